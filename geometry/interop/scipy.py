"""SciPy: scipy.spatial.transform.Rotation.

Nothing flips: its matrices act on columns, and its rotation vectors are our rotvec. Its quaternions have another order,
x, y, z, w, and either sign, which stays. A Rotation lives on the host: values are detached, copied, float64.

    rotation = scipy.to_rotation(world_to_camera[..., :3, :3])
    R = scipy.from_rotation(Rotation.from_euler("xyz", angles))
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from geometry.interop._checks import check_rotation, check_shape, host, tensor

if TYPE_CHECKING:
    from scipy.spatial.transform import Rotation

__all__ = ["from_quat_xyzw", "from_rotation", "to_quat_xyzw", "to_rotation"]


def to_rotation(R: Tensor) -> "Rotation":
    """One Rotation of R (3,3), or a stack of N of R (N,3,3). No flip.

    SciPy takes the nearest rotation. Raises ValueError for other shapes and for what is no rotation to 1e-3.
    """
    from scipy.spatial.transform import Rotation

    check_rotation("R", R)
    if R.dim() > 3:
        raise ValueError(f"R must have shape (3,3) or (N,3,3), got {tuple(R.shape)}")
    return Rotation.from_matrix(host(R))


def from_rotation(rotation: "Rotation") -> Tensor:
    """R (3,3) of one Rotation, (N,3,3) of a stack; float64 on the CPU. No flip."""
    return tensor("rotation", rotation.as_matrix())


def to_quat_xyzw(quat_wxyz: Tensor) -> Tensor:
    """What `Rotation.from_quat` takes, (…,4), of quat_wxyz (…,4): the real part goes last. Differentiable."""
    check_shape("quat_wxyz", quat_wxyz, 4)
    return torch.roll(quat_wxyz, -1, -1)


def from_quat_xyzw(quat_xyzw: Tensor) -> Tensor:
    """quat_wxyz (…,4) of what `Rotation.as_quat` gives, (…,4): the real part goes first. Differentiable."""
    check_shape("quat_xyzw", quat_xyzw, 4)
    return torch.roll(quat_xyzw, 1, -1)
