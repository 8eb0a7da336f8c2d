"""Hand-eye calibration A X = X B: where a camera sits on a robot's gripper, from motions of both."""

import torch
from torch import Tensor

from geometry import se3
from geometry.checks import batched
from geometry.optim import Problem, Solution, argmin

__all__ = ["hand_eye", "hand_eye_problem", "motions"]


def residual(camera_to_gripper: Tensor, gripper: Tensor, camera: Tensor, weights: Tensor | None = None) -> Tensor:
    """(N,6): rotation vector in radians and translation from X B to A X, times weights (N,2)."""
    left, right = gripper @ camera_to_gripper, camera_to_gripper @ camera
    rotvec = se3.log(left[:, :3, :3] @ right[:, :3, :3].mT)
    error = torch.cat([rotvec, left[:, :3, 3] - right[:, :3, 3]], -1)
    return error if weights is None else weights.repeat_interleave(3, -1) * error


hand_eye_problem = Problem(residual, dof=6, retract=se3.retract, alike=(3,))
"""x camera_to_gripper (4,4), data gripper motions (N,4,4), camera motions (N,4,4), weights (N,2) or nothing."""


def hand_eye(gripper: Tensor, camera: Tensor, weights: Tensor | None = None) -> Solution:
    """The pose X of a camera on a gripper with A X = X B for their motions A and B, in the least-squares sense.

    gripper, camera (B,N,4,4) or (N,4,4): N >= 2 motions about axes that are not all parallel, as `motions` makes them
    of absolute poses: A from the gripper's frame before to that after, B from the camera's frame before to that after,
    lengths in one unit. weights (B,N,2) or (N,2) multiply a motion's error of rotation (1/rad) and of translation
    (1/length); without them one unit of length counts as much as one radian. x = camera_to_gripper (B,4,4),
    differentiable in all. What fails says so in `status`: SINGULAR for parallel axes. Raises ValueError for other
    shapes. Errors are measured in the gripper's frame after the motion.

    Starts with the rotation that solves R_A R = R R_B as linear equations in the entries of R (Andreff, Horaud and
    Espiau 2001, IJRR 20(3); unlike rotation vectors these need no care at 180 degrees) and the translation that then
    solves (R_A - I) t = R t_B - t_A (Tsai and Lenz 1989, TRA 5(3), eq. 15), and minimises both errors together.
    """
    gripper, camera, weights = batched(
        2, gripper=(gripper, "N,4,4", "pose"), camera=(camera, "N,4,4", "pose"), weights=(weights, "N,2")
    )
    return argmin(hand_eye_problem, linear, gripper, camera, weights)


def motions(gripper_to_base: Tensor, target_to_camera: Tensor) -> tuple[Tensor, Tensor]:
    """The motions A and B (…,V(V-1)/2,4,4) between all pairs of V views, of absolute poses (…,V,4,4) each.

    In view i the robot tells gripper_to_base, and the camera sees a target that does not move at target_to_camera.
    """
    V = gripper_to_base.shape[-3]
    i, j = torch.triu_indices(V, V, 1, device=gripper_to_base.device)
    A = se3.inverse(gripper_to_base)[..., j, :, :] @ gripper_to_base[..., i, :, :]
    return A, target_to_camera[..., j, :, :] @ se3.inverse(target_to_camera)[..., i, :, :]


def linear(gripper: Tensor, camera: Tensor, weights: Tensor) -> Tensor:
    """X (B,4,4): the rotation by linear equations, then the translation by others."""
    R_A, t_A, R_B, t_B = gripper[..., :3, :3], gripper[..., :3, 3], camera[..., :3, :3], camera[..., :3, 3]
    rotation, length = weights.square().unbind(-1)
    # the sum of |R_A M - M R_B|^2 is least, for M of norm one, where that of <M, R_A M R_B^T> is largest
    form = torch.einsum("bnij,bnkl,bn->bikjl", R_A, R_B, rotation).flatten(3, 4).flatten(1, 2)
    _, vectors = torch.linalg.eigh(form + form.mT)
    U, _, Vh = torch.linalg.svd(vectors[..., -1].unflatten(-1, (3, 3)))
    R = torch.linalg.det(U @ Vh).sign()[:, None, None] * (U @ Vh)
    L = R_A - torch.eye(3, dtype=R.dtype, device=R.device)
    r = (R[:, None] @ t_B[..., None]).squeeze(-1) - t_A
    normal = torch.einsum("bnij,bnik,bn->bjk", L, L, length)
    t = torch.linalg.pinv(normal, hermitian=True) @ torch.einsum("bnij,bni,bn->bj", L, r, length)[..., None]
    return se3.make(R, t.squeeze(-1))
