"""Alignment of point sets, and the frames that solvers set them in."""

from typing import NamedTuple

import torch
from torch import Tensor

from geometry import se3
from geometry.checks import alike, check_tensors, check_tensors_or_none, shaped, values

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
    """p -> scale R p + t, with scale (…), R (…,3,3), t (…,3).

    >>> larger = Similarity(torch.tensor(2.0), torch.eye(3), torch.zeros(3))
    >>> torch.equal(larger.apply(points3d), 2 * points3d)
    True
    """

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

    Differentiable twice, also where singular values agree, as of a cube. Where many rotations fit best (fewer than
    three points, points on a line or in one place, some mirror images) one of them is returned, of scale 1 where the
    source is one point, and its gradient is zero; the status of `geometry.tasks.point_registration` says so.
    Raises ValueError for what are no tensors of finite floating-point numbers, of these shapes and one dtype.

    >>> align_similarity(points3d, 2 * points3d + 1).scale.round(decimals=6)
    tensor(2.)
    """
    check_tensors(source=source, target=target)
    check_tensors_or_none(weights=weights)
    shaped(source=(source, "…,N,3"), target=(target, "…,N,3"), weights=(weights, "…,N"))
    alike(source=source, target=target, weights=weights)
    values(source=(source, "finite"), target=(target, "finite"), weights=(weights, "finite"))
    w = torch.ones_like(source[..., :1]) if weights is None else weights[..., None]
    with torch.no_grad():
        apart, determined = _what_is_determined(source, target, w)
        determined = determined[..., None, None]
    source, target, w = (torch.where(determined, d, d.detach()) for d in (source, target, w))
    share = w.square() / w.square().sum(-2, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
    source_mean, target_mean = ((share * points).sum(-2, keepdim=True) for points in (source, target))
    a, b = w * (source - source_mean), w * (target - target_mean)
    M = b.mT @ a
    R = _rotation(M, determined)
    size = torch.where(apart, a.square().sum((-2, -1)), 1.0)
    scale = torch.where(apart, (R * M).sum((-2, -1)) / size, 1.0)
    t = target_mean - scale[..., None, None] * (source_mean @ R.mT)
    return Similarity(scale, R, t.squeeze(-2))


def _centred(points: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted points about their middle, in parts of their extent, and what rounding is of that, at least (…)."""
    share = w.square() / w.square().sum(-2, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
    moved = w * (points - (share * points).sum(-2, keepdim=True))
    extent = moved.square().sum((-2, -1)).sqrt()
    # each point is known to a rounding of its distance from the origin
    lost = torch.finfo(w.dtype).eps * (extent + (w * points).square().sum((-2, -1)).sqrt())
    return moved / torch.where(extent > 0, extent, 1.0)[..., None, None], lost / extent


def _what_is_determined(source: Tensor, target: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Whether the source is more than one point (…), and one rotation alone fits best (…).

    That is where the sum of the lesser two signed singular values is above rounding.
    """
    (a, lost_a), (b, lost_b) = _centred(source, w), _centred(target, w)
    M = b.mT @ a
    S = torch.linalg.svdvals(M)
    sign = torch.where(torch.linalg.det(M) < 0, -1.0, torch.ones_like(lost_a))
    # what rounding puts beside a line meets in products, and the sum of N products is rounded itself
    noise = 4 * torch.finfo(M.dtype).eps * a.shape[-2] ** 0.5 + 16 * lost_a * lost_b
    return lost_a < 1 / 16, S[..., 1] + sign * S[..., 2] > noise


def _rotation(M: Tensor, determined: Tensor) -> Tensor:
    """The R of the largest <R, M> (…,3,3), by a singular value decomposition that is not differentiated.

    At R the matrix A = M R^T is symmetric. With g the axial vector of A - A^T, a turn by omega restores that to first
    order where (tr A - A) omega = g: two steps of Newton's method, from where nothing is left to do, carry two
    derivatives, whatever singular values agree.
    """
    with torch.no_grad():
        U, _, Vh = torch.linalg.svd(M)
        sign = torch.linalg.det(U @ Vh).sign()[..., None]
        R = (U * torch.cat([torch.ones_like(sign), torch.ones_like(sign), sign], -1)[..., None, :]) @ Vh
    eye = torch.eye(3, dtype=M.dtype, device=M.device)
    for _ in range(2):
        A = M @ R.mT
        g = torch.stack([A[..., 2, 1] - A[..., 1, 2], A[..., 0, 2] - A[..., 2, 0], A[..., 1, 0] - A[..., 0, 1]], -1)
        H = A.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] * eye - 0.5 * (A + A.mT)
        H = torch.where(determined, H, eye)
        omega = torch.linalg.solve_ex(H, torch.where(determined[..., 0], g, 0.0))[0]
        R = se3.exp(omega) @ R
    return R
