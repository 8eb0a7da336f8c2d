"""Alignment of point sets."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Similarity", "align_similarity"]


class Similarity(NamedTuple):
    """p -> scale R p + t, with scale (…), R (…,3,3), t (…,3)."""

    scale: Tensor
    R: Tensor
    t: Tensor

    def apply(self, points: Tensor) -> Tensor:
        """(…,N,3) -> (…,N,3)."""
        return self.scale[..., None, None] * points @ self.R.mT + self.t[..., None, :]


def align_similarity(source: Tensor, target: Tensor, weights: Tensor | None = None) -> Similarity:
    """The similarity that minimises sum |w_i (s R source_i + t - target_i)|^2. (…,N,3), (…,N,3), (…,N); det R = +1.

    Umeyama 1991, TPAMI 13(4), eqs. 40 to 42. A reconstruction from images alone is defined up to such a map, which
    must be taken out before it is compared; a mirror image is not, and stays an error.
    """
    w = torch.ones_like(source[..., :1]) if weights is None else weights[..., None]
    share = w.square() / w.square().sum(-2, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
    source_mean, target_mean = ((share * points).sum(-2, keepdim=True) for points in (source, target))
    a, b = w * (source - source_mean), w * (target - target_mean)
    U, S, Vh = torch.linalg.svd(b.mT @ a)
    sign = torch.cat([torch.ones_like(S[..., :2]), torch.linalg.det(U @ Vh).sign()[..., None]], -1)
    R = (U * sign[..., None, :]) @ Vh
    scale = (S * sign).sum(-1) / a.square().sum((-2, -1))
    t = target_mean - scale[..., None, None] * (source_mean @ R.mT)
    return Similarity(scale, R, t.squeeze(-2))
