"""What PnP is given: its arguments checked, and each with its batch dimension."""

import torch
from torch import Tensor

from geometry.camera import Model, check_distortion


def check_shape(name: str, value: Tensor, B: int, N: int, wanted: str, *shapes: tuple[int, ...]) -> None:
    # The text is made on failure alone: torch.compile takes a size that is printed for a constant.
    if all(value.shape != shape for shape in shapes):
        raise ValueError(f"{name} must have shape {wanted.format(B=B, N=N)}, got {tuple(value.shape)}")


def precision(value: Tensor) -> torch.dtype:
    """The dtype of an argument, 16-bit floats counted as float32: no pose could be told in their three digits."""
    return torch.float32 if value.dtype in (torch.float16, torch.bfloat16) else value.dtype


def prepare(
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor,
    distortion: Tensor | None,
    weights: Tensor | None,
    mask: Tensor | None,
    init: Tensor | None,
    model: Model,
) -> tuple[Tensor, ...]:
    """Check shapes, dtypes and devices, and give every argument its batch dimension, of size 1 where shared.

    Nothing here looks at values or moves data. Weights become (B|1,N,2), or (1,1,1) where there are none, mask (1,1).
    """
    if points2d.ndim != 3 or points2d.shape[-1] != 2:
        raise ValueError(f"points2d must have shape (B,N,2), got {tuple(points2d.shape)}")
    B, N, _ = points2d.shape
    check_shape("points3d", points3d, B, N, "({B}|1,{N},3) or ({N},3)", (B, N, 3), (1, N, 3), (N, 3))
    check_shape("K", K, B, N, "({B}|1,3,3) or (3,3)", (B, 3, 3), (1, 3, 3), (3, 3))
    if distortion is None:
        distortion = points2d.new_empty(1, 0, dtype=K.dtype)
    elif distortion.ndim not in (1, 2) or (distortion.ndim == 2 and distortion.shape[0] not in (1, B)):
        raise ValueError(f"distortion must have shape ({B}|1,k) or (k,), got {tuple(distortion.shape)}")
    check_distortion(distortion, model)
    if weights is None:
        weights = points2d.new_ones(1, 1, 1, dtype=K.dtype)
    else:
        check_shape("weights", weights, B, N, "({B}|1,{N}) or ({B}|1,{N},2)", (B, N), (1, N), (B, N, 2), (1, N, 2))
        weights = weights[..., None].expand(-1, -1, 2) if weights.ndim == 2 else weights
    if mask is None:
        mask = torch.ones(1, 1, dtype=torch.bool, device=points2d.device)
    else:
        check_shape("mask", mask, B, N, "({B}|1,{N})", (B, N), (1, N))
        if mask.dtype != torch.bool:
            raise ValueError(f"mask must be of dtype torch.bool, got {mask.dtype}")
        if mask.device != points2d.device:
            raise ValueError(f"mask must be on the device of points2d ({points2d.device}), got {mask.device}")
    if not points2d.is_floating_point():
        raise ValueError(f"points2d must be of a floating-point dtype, got {points2d.dtype}")
    dtype, device = precision(points2d), points2d.device
    named = (("points3d", points3d), ("K", K), ("distortion", distortion), ("weights", weights), ("init", init))
    for name, value in named:
        if value is not None and (precision(value) != dtype or value.device != device):
            raise ValueError(
                f"{name} must have the dtype and device of points2d ({points2d.dtype}, {device}), "
                f"got {value.dtype}, {value.device}"
            )
    if init is not None:
        check_shape("init", init, B, N, "({B}|1,4,4)", (B, 4, 4), (1, 4, 4))
    needed = 4 if init is None else 3
    if needed > N:
        start = "" if init is None else " with init"
        raise ValueError(f"points2d must hold at least {needed} points{start}, got N={N}")
    points3d = points3d if points3d.ndim == 3 else points3d[None]
    K = K if K.ndim == 3 else K[None]
    return points2d, points3d, K, distortion if distortion.ndim == 2 else distortion[None], weights, mask
