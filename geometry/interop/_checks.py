"""What the conversions share: the way to the host and back, and what is said of an argument that does not convert."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from geometry.checks import check_tensors, values

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ImageSize", "batch", "check_K", "check_pose", "check_rotation", "check_shape", "host", "integers", "tensor"]

ImageSize = tuple[int, int] | Tensor  # (width, height), or (B,2)


def host(x: Tensor) -> "np.ndarray":
    """A copy as numpy float64, detached."""
    return x.detach().to("cpu", torch.float64, copy=True).numpy()


def tensor(name: str, value: Any) -> Tensor:
    """A copy of an array, or of a sequence of arrays of one shape, as float64 on the CPU."""
    import numpy as np

    if isinstance(value, Tensor):
        return value.detach().to("cpu", torch.float64, copy=True)
    try:
        return torch.from_numpy(np.array(value, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers, or arrays of one shape: {error}") from None


def check_shape(name: str, x: Tensor, *last: int) -> None:
    """Raise ValueError unless x is a tensor of floating-point numbers and its shape ends with `last`."""
    if not isinstance(x, Tensor):
        check_tensors(**{name: x})
    if x.shape[-len(last) :] != last or not x.is_floating_point():
        wanted = ",".join(map(str, last))
        raise ValueError(
            f"{name} must have shape (…,{wanted}) and hold floating-point numbers, got {tuple(x.shape)} of {x.dtype}"
        )


def check_rotation(name: str, R: Tensor) -> None:
    """Raise ValueError unless every matrix is a rotation: orthonormal, and no reflection (`geometry.checks.values`)."""
    check_shape(name, R, 3, 3)
    values(**{name: (R, "rotation")})


def check_pose(name: str, pose: Tensor) -> None:
    """Raise ValueError unless every matrix is a rigid motion that acts on column vectors."""
    check_shape(name, pose, 4, 4)
    values(**{name: (pose, "pose")})


def check_K(K: Tensor, library: str | None) -> None:
    """Raise ValueError for another third row than (0, 0, 1) and, where a `library` has none, for skew."""
    check_shape("K", K, 3, 3)
    fixed = K.detach()[..., [1, 2, 2, 2], [0, 0, 1, 2]]
    if not (fixed == fixed.new_tensor([0, 0, 0, 1])).all():
        raise ValueError(f"K must have zeros below the diagonal and 1 at its end, got {K.tolist()}")
    if library is not None and K[..., 0, 1].any():
        raise ValueError(f"K: {library} has no skew and wants a zero beside fx, got {K[..., 0, 1].tolist()}")


def integers(image_size: ImageSize) -> tuple[int, int]:
    """(width, height) of one image. Raises ValueError unless they are two whole numbers that are not negative."""
    size = torch.as_tensor(image_size)
    if size.shape != (2,) or (size != size.round()).any() or (size < 0).any():
        raise ValueError(f"image_size must be (width, height) in whole pixels, got {image_size}")
    width, height = size.tolist()
    return int(width), int(height)


def batch(world_to_camera: Tensor, K: Tensor, image_size: ImageSize) -> tuple[Tensor, Tensor, Tensor]:
    """The three as (B,4,4), (B,3,3) and (B,2), for a library whose cameras come in batches; what is shared is expanded.

    Raises ValueError where the leading dimensions do not fit, or are more than one, and for two dtypes.
    """
    check_pose("world_to_camera", world_to_camera)
    check_K(K, None)
    if world_to_camera.dtype != K.dtype:
        raise ValueError(f"world_to_camera and K must have one dtype, got {world_to_camera.dtype} and {K.dtype}")
    size = torch.as_tensor(image_size, device=K.device)
    if size.shape[-1:] != (2,):
        raise ValueError(f"image_size must be (width, height) or have shape (B,2), got {tuple(size.shape)}")
    leading = [world_to_camera.shape[:-2], K.shape[:-2], size.shape[:-1]]
    try:
        B = torch.broadcast_shapes((1,), *leading)
    except RuntimeError:
        B = torch.Size()
    if len(B) != 1:
        raise ValueError(
            "world_to_camera (B,4,4), K (B,3,3) and image_size (B,2) must share one leading dimension or lack it, "
            f"got {[tuple(x.shape) for x in (world_to_camera, K, size)]}"
        )
    return world_to_camera.expand(*B, 4, 4), K.expand(*B, 3, 3), size.expand(*B, 2)
