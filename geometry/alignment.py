"""Alignment of point sets, and the frames that solvers set them in."""

from typing import NamedTuple

import torch
from torch import Tensor

from geometry import se3

__all__ = ["Frame", "Similarity", "align_similarity"]


class Frame(NamedTuple):
    """A frame of the world: its origin (B,D) and its unit of length (B,), a power of two, so that no digit is lost.

    About a far origin, rotation and translation can hardly be told apart, and in small units no step says by its size
    whether it matters: what is found in a frame amid the data depends on neither.
    """

    origin: Tensor
    unit: Tensor

    @staticmethod
    def amid(points: Tensor, mask: Tensor, scaled: bool = True) -> "Frame":
        """The frame in the middle of those points (B,N,D) that count, mask (B,N); scaled: in units of their extent.

        The world's own where they are one point, but for rounding, which must not be taken for an extent.
        """
        points = points.detach()
        present = mask[..., None].to(points.dtype)
        count = present.sum(1).clamp_min(1)
        origin = (points * present).sum(1) / count
        square = ((points - origin[:, None]) * present).square().sum((1, 2)) / count[:, 0]
        apart = square > (1e4 * torch.finfo(points.dtype).eps) ** 2 * origin.square().sum(-1)
        unit = torch.where(apart & scaled, square, 1.0).sqrt().log2().round().exp2()
        return Frame(torch.where(apart[:, None], origin, 0.0), unit)

    def points(self, points: Tensor) -> Tensor:
        """Points (B,N,D) as they are in this frame."""
        return (points - self.origin[:, None]) / self.unit[:, None, None]

    def to_frame(self, pose: Tensor) -> Tensor:
        """world_to_camera (B,…,4,4) of points that are given in this frame, in its unit."""
        moved = se3.about(pose, self._like(self.origin, pose.ndim - 1))
        return se3.make(moved[..., :3, :3], moved[..., :3, 3] / self._like(self.unit[:, None], pose.ndim - 1))

    def from_frame(self, pose: Tensor) -> Tensor:
        """The inverse of `to_frame`."""
        grown = self._like(self.unit[:, None], pose.ndim - 1) * pose[..., :3, 3]
        return se3.about(se3.make(pose[..., :3, :3], grown), -self._like(self.origin, pose.ndim - 1))

    @property
    def matrix(self) -> Tensor:
        """The map into the frame, of homogeneous points: (B,D+1,D+1)."""
        return self._map(1 / self.unit, -self.origin / self.unit[:, None])

    @property
    def inverse(self) -> Tensor:
        """The map out of it."""
        return self._map(self.unit, self.origin)

    @staticmethod
    def _map(scale: Tensor, shift: Tensor) -> Tensor:
        diagonal = torch.diag_embed(torch.cat([scale[:, None].expand_as(shift), torch.ones_like(scale[:, None])], -1))
        return diagonal + torch.nn.functional.pad(shift[..., None], (shift.shape[1], 0, 0, 1))

    @staticmethod
    def _like(values: Tensor, ndim: int) -> Tensor:
        """(B,k) as (B,1,…,k) with ndim dimensions."""
        return values.view(len(values), *[1] * (ndim - values.ndim), values.shape[-1])


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
