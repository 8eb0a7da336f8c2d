"""Linear systems of a batch, and the one rule of what is singular."""

import torch
from torch import Tensor


def solve_spd(A: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Solve A u = b for symmetric A after scaling its diagonal to one. (B,P,P), (B,P) -> u (B,P), ok (B,).

    ok is False, and u zero, where A is not numerically positive definite; the other problems are untouched.
    """
    scale = A.diagonal(dim1=-2, dim2=-1).abs().clamp_min(torch.finfo(A.dtype).tiny).rsqrt()
    scaled = A * scale[..., :, None] * scale[..., None, :]
    finite = torch.isfinite(scaled).all(-1).all(-1)
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    factor, info = torch.linalg.cholesky_ex(torch.where(finite[..., None, None], scaled, eye))
    pivot = factor.diagonal(dim1=-2, dim2=-1).square().amin(-1)
    ok = finite & (info == 0) & (pivot > 100 * torch.finfo(A.dtype).eps)
    factor = torch.where(ok[..., None, None], factor, eye)
    u = torch.cholesky_solve((b * scale)[..., None], factor).squeeze(-1) * scale
    return torch.where(ok[..., None], u, torch.zeros_like(u)), ok
