"""The problem of calibration: intrinsics and distortion outside, every view's pose at its argmin.

The poses are found by PnP; the intrinsics take the Gauss-Newton step of the reduced reprojection error
(`geometry.optim.nested`), whose gradient and matrix, or exact Hessian, are the Schur complement of the poses.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jacfwd, jvp, vmap

from geometry import se3
from geometry._forward import one_at_a_time
from geometry.alignment import Frame
from geometry.camera import Model, matrix_from_intrinsics, project_camera_frame, projection_jacobian
from geometry.lenses import LENSES
from geometry.optim import Status, chain_of_blocks, margin, score_variance, share
from geometry.pose import pnp
from geometry.robust import Kernel, kernel_derivatives

__all__ = ["CalibrationProblem", "Minima", "Reduced", "free_intrinsics", "start_intrinsics"]

Unpack = Callable[[Tensor], tuple[Tensor, Tensor]]


def free_intrinsics(theta: Tensor) -> tuple[Tensor, Tensor]:
    """The usual parameters: theta (4+k,) = fx, fy, cx, cy, distortion -> K (3,3), distortion (k,)."""
    return matrix_from_intrinsics(theta[:4]), theta[4:]


def start_intrinsics(image_size: tuple[int, int], distortion: int, model: Model, like: Tensor) -> Tensor:
    """theta (4+distortion,) that knows nothing but the image size (width, height) in pixels.

    Principal point at the image centre, and the lens's own `start`: the focal length is the longer side ("radtan": 53
    degrees across), or what maps half a turn to it (all others). dtype and device are those of `like`.
    """
    width, height = image_size
    part, *coefficients = LENSES[model].start
    f = part * max(width, height)
    return like.new_tensor([f, f, (width - 1) / 2, (height - 1) / 2, *coefficients[:distortion]])


class Minima(NamedTuple):
    """Of V views in S trials: costs (S,V), infinite where there is no pose, and poses (S,V,4,4); and those of a second
    minimum of a view, of infinite cost where none is known."""

    cost: Tensor
    poses: Tensor
    other_cost: Tensor
    others: Tensor

    def or_lower(self, found: "Minima") -> "Minima":
        """The lower of the two minima in each view."""
        lower = found.cost < self.cost
        cost, poses = torch.where(lower, found.cost, self.cost), found.poses
        return found._replace(cost=cost, poses=torch.where(lower[..., None, None], poses, self.poses))


class Reduced(NamedTuple):
    """The cost of V views in S trials near theta, the poses at their argmin, to second order.

    gradient (S,V,P); matrix (S,V,P,P), the Schur complement of the pose; diagonal (S,V,P), what that of the matrix was
    before the pose took its part; poses (S,V), the least `share` that the pose keeps where theta is held.
    """

    gradient: Tensor
    matrix: Tensor
    diagonal: Tensor
    poses: Tensor

    def sum(self) -> "Reduced":
        """That of all views: (S,P), (S,P,P), (S,P), (S,)."""
        gradient, matrix, diagonal, poses = self
        return Reduced(gradient.sum(1), matrix.sum(1), diagonal.sum(1), poses.amin(1))


@dataclass(frozen=True)
class CalibrationProblem:
    """`NestedProblem` over theta (S,P), S trials at once; inner: world_to_camera (S,V,4,4).

    points2d (V,N,2) px, points3d (V,N,3) or (N,3) target frame, mask (V,N) bool. unpack maps theta (P,) to K (3,3) and
    distortion (k,): `free_intrinsics`, or any function of yours that ties or fixes parameters. kernel: robust kernel.
    exact: take steps by the exact Hessian. A view whose PnP fails makes the cost infinite: the step is refused.
    """

    points2d: Tensor
    points3d: Tensor
    mask: Tensor
    unpack: Unpack = free_intrinsics
    model: Model = "radtan"
    kernel: Kernel | None = None
    exact: bool = False

    def evaluate(self, theta: Tensor, inner: Tensor | None) -> tuple[Tensor, Tensor]:
        found = self.minima(theta, inner)
        return found.cost.sum(1), found.poses

    def minima(self, theta: Tensor, inner: Tensor | None) -> "Minima":
        """The minimum of every view next to `inner` (S,V,4,4), or if it is None or that fails the global one."""
        K, distortion = vmap(self.unpack)(theta)
        # a focal length through zero is a mirror world: refuse the step
        sound = (K[:, 0, 0] > 0) & (K[:, 1, 1] > 0) & torch.isfinite(theta).all(-1)
        eye = torch.eye(3, dtype=K.dtype, device=K.device)
        K, distortion = torch.where(sound[:, None, None], K, eye), torch.where(sound[:, None], distortion, 0.0)
        found = self._pnp(K, distortion, inner)
        if inner is not None:
            if torch.isinf(found.cost[sound]).any():
                found = found.or_lower(self._pnp(K, distortion, None))
            found = found._replace(poses=torch.where(sound[:, None, None, None], found.poses, inner))
        return found._replace(cost=torch.where(sound[:, None], found.cost, torch.inf))

    def here(self, theta: Tensor, inner: Tensor) -> "Minima":
        """What `minima` would say of poses that are minima already."""
        points, frame = self._target()
        pose = frame.to_frame(inner.transpose(0, 1)).transpose(0, 1)
        none = theta.new_zeros(*pose.shape[:2], theta.shape[1] + 6)
        cost = self._costs(theta, pose, none, torch.where(self.mask[..., None], self.points2d, 0.0), points)
        return Minima(cost, inner, torch.full_like(cost, torch.inf), inner)

    def _pnp(self, K: Tensor, distortion: Tensor, init: Tensor | None) -> "Minima":
        S, (V, N) = len(K), self.mask.shape
        with torch.no_grad():
            found = pnp(
                self.points2d.repeat(S, 1, 1),
                self.points3d.expand(V, N, 3).repeat(S, 1, 1),
                K.repeat_interleave(V, 0),
                distortion=distortion.repeat_interleave(V, 0),
                mask=self.mask.repeat(S, 1),
                init=None if init is None else init.flatten(0, 1),
                model=self.model,
                kernel=self.kernel,
            )
        usable = (found.status != Status.INFEASIBLE) & (found.status != Status.TOO_FEW) & torch.isfinite(found.cost)
        cost, poses = torch.where(usable, found.cost, torch.inf).view(S, V), found.x.view(S, V, 4, 4)
        if found.second is None or found.ratio is None:
            return Minima(cost, poses, torch.full_like(cost, torch.inf), poses)
        other = torch.where(found.ratio > 0, found.cost / found.ratio, torch.inf)
        return Minima(cost, poses, other.view(S, V), found.second.view(S, V, 4, 4))

    def _target(self) -> tuple[Tensor, Frame]:
        """The points (V,N,3) of each view in a frame amid those that it sees; zero where masked."""
        V, N = self.mask.shape
        points3d = torch.where(self.mask[..., None], self.points3d.expand(V, N, 3), 0.0)
        frame = Frame.amid(points3d, self.mask)
        return torch.where(self.mask[..., None], frame.points(points3d), 0.0), frame

    def reduced(self, theta: Tensor, inner: Tensor, exact: bool = False) -> Reduced:
        """Gradient and Gauss-Newton matrix of the reduced cost, or with exact=True its Hessian; of all views."""
        return self.of_views(theta, inner, exact).sum()

    def of_views(self, theta: Tensor, inner: Tensor, exact: bool = False) -> Reduced:
        """`reduced` of each view."""
        P = theta.shape[1]
        gradient, matrix, _ = self._joint(theta, inner, exact)
        follow, C = _following(matrix, P), matrix[..., P:, P:]
        gradient = gradient[..., :P] - (follow.mT @ gradient[..., P:, None])[..., 0]
        diagonal = matrix.diagonal(dim1=-2, dim2=-1)[..., :P]
        reduced = matrix[..., :P, :P] - matrix[..., :P, P:] @ follow
        return Reduced(gradient, reduced, diagonal, share(C.flatten(0, 1)).view(C.shape[:2]))

    def _joint(self, theta: Tensor, inner: Tensor, exact: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Of each view, by theta and its pose: gradient (S,V,P+6), matrix (S,V,P+6,P+6); squared errors (S,V,N), px."""
        # turns and shifts of the poses are told apart best about the middle of the target
        points, frame = self._target()
        pose = frame.to_frame(inner.transpose(0, 1)).transpose(0, 1)
        S, V, P = len(theta), len(points), theta.shape[1]
        mask = self.mask[..., None]
        rotated = points @ pose[..., :3, :3].mT
        p = torch.where(mask, rotated + pose[..., None, :3, 3], 1.0)
        K, distortion = vmap(self.unpack)(theta)
        pixels, D = projection_jacobian(p, K[:, None], distortion[:, None], self.model)
        r = torch.where(mask, pixels - self.points2d, 0.0)
        turn = torch.linalg.cross(rotated[..., None, :].expand_as(D), D)
        with one_at_a_time():
            J = torch.cat([vmap(jacfwd(self._pixels))(theta, p), turn, D], -1)
        s = r.square().sum(-1)
        slope = torch.where(self.mask, kernel_derivatives(self.kernel, s)[1], 0.0)
        weighted = (slope[..., None, None] * J).flatten(2, 3).mT
        gradient = (weighted @ r.flatten(2)[..., None])[..., 0]
        if not exact:
            return gradient, weighted @ J.flatten(2, 3), s
        points2d = torch.where(mask, self.points2d, 0.0)
        slope_at = grad(lambda step: self._costs(theta, pose, step, points2d, points).sum())
        columns = torch.eye(P + 6, dtype=theta.dtype, device=theta.device)[:, None, None].expand(-1, S, V, -1)
        none = torch.zeros_like(columns[0])
        with one_at_a_time():
            return gradient, vmap(lambda column: jvp(slope_at, (none,), (column,))[1], out_dims=-1)(columns), s

    def _pixels(self, theta: Tensor, p: Tensor) -> Tensor:
        return project_camera_frame(p, *self.unpack(theta), model=self.model)

    def _costs(self, theta: Tensor, pose: Tensor, step: Tensor, points2d: Tensor, points3d: Tensor) -> Tensor:
        """Costs (S,V) of all views after steps (S,V,P+6), each of its own, of theta (S,P) and the pose (S,V,4,4)."""
        P = theta.shape[1]
        p = se3.transform(se3.retract(pose, step[..., P:]), points3d)
        p = torch.where(self.mask[..., None], p, 1.0)
        s = (vmap(vmap(self._pixels))(theta[:, None] + step[..., :P], p) - points2d).square().sum(-1)
        return 0.5 * torch.where(self.mask, s if self.kernel is None else self.kernel(s), 0.0).sum(-1)

    def step(self, theta: Tensor, inner: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
        gradient, matrix = self.reduced(theta, inner)[:2]
        diagonal = matrix.diagonal(dim1=-2, dim2=-1)
        if self.exact:
            matrix = self.reduced(theta, inner, exact=True).matrix
        scale = diagonal.clamp_min(torch.finfo(matrix.dtype).tiny).rsqrt()
        scaled = matrix * scale[..., None] * scale[:, None]
        scaled.diagonal(dim1=-2, dim2=-1).add_(damping[:, None])
        factor, info = torch.linalg.cholesky_ex(scaled)
        ok = info == 0
        factor = torch.where(
            ok[:, None, None], factor, torch.eye(len(scale[0]), dtype=scale.dtype, device=scale.device)
        )
        step = -torch.cholesky_solve((scale * gradient)[..., None], factor)[..., 0]
        predicted = 0.5 * (step * (damping[:, None] * step - scale * gradient)).sum(-1)
        return torch.where(ok[:, None], scale * step, 0.0), torch.where(ok, predicted, torch.inf)

    def retract(self, theta: Tensor, step: Tensor) -> Tensor:
        return theta + step

    def margin(self, theta: Tensor) -> float:
        """The share up to which theta (S,P) and the poses are undetermined."""
        return margin(theta.dtype, theta.shape[1] + 6, chain_of_blocks(self.points2d.numel()))

    def determined(self, theta: Tensor, reduced: Reduced) -> Tensor:
        """Whether the data tell theta and the poses (S,), to first order."""
        return torch.minimum(share(reduced.matrix, reduced.diagonal), reduced.poses) > self.margin(theta)

    def undetermined(self, theta: Tensor, inner: Tensor) -> Tensor:
        """Which unknowns (P,) of theta (1,P) the data do not tell: they move along a direction that changes nothing."""
        _, matrix, diagonal, _ = (part[0] for part in self.reduced(theta, inner))
        none = diagonal <= 0
        scale = torch.where(none, 0.0, diagonal.clamp_min(torch.finfo(diagonal.dtype).tiny).rsqrt())
        values, vectors = torch.linalg.eigh(matrix * scale[:, None] * scale)
        open_ = values <= len(values) * self.margin(theta)
        return none | ((vectors.square() * open_).sum(1) > torch.finfo(values.dtype).eps ** 0.5)

    def covariance(self, theta: Tensor, inner: Tensor, *, sigma: float | None = None) -> Tensor:
        """Covariance (P,P) of theta, the poses of the views being unknown, too: that block of `geometry.covariance`.

        sigma: standard deviation of a coordinate in px, where there is no kernel; None estimates it from the residual
        and the numbers that are measured less all unknowns, those of the poses among them. NaN where the data do not
        determine theta, where no numbers are left to estimate sigma from, and, with a kernel, at no minimum.
        """
        P = theta.shape[1]
        nothing = theta.new_full((P, P), torch.nan)
        freedom = 2 * int(self.mask.sum()) - P - 6 * len(self.mask)
        if len(self.mask) == 0:
            return nothing
        _, B, s = replace(self, kernel=None)._joint(theta, inner, exact=False)
        variance = score_variance(s.flatten(), freedom, self.kernel, sigma)
        if not self.determined(theta, self.reduced(theta, inner)).all():
            return nothing
        A = self._joint(theta, inner, exact=True)[1] if self.kernel is not None else B
        follow = _following(A, P)
        moved = torch.cat([torch.eye(P, dtype=A.dtype, device=A.device).expand(*A.shape[:2], P, P), -follow], -2)
        A, B = ((moved.mT @ M @ moved).sum((0, 1)) for M in (A, B))
        if not share(A[None]) > self.margin(theta):
            return nothing
        scale = A.diagonal().rsqrt()
        inverse = torch.linalg.inv(A * scale[:, None] * scale) * scale[:, None] * scale
        return variance * inverse @ B @ inverse


def _following(matrix: Tensor, P: int) -> Tensor:
    """How poses follow theta, but for the sign: C^-1 B^T (…,6,P) of matrices (…,P+6,P+6) with the blocks A, B and C."""
    B, C = matrix[..., :P, P:], matrix[..., P:, P:]
    scale = C.diagonal(dim1=-2, dim2=-1).abs().clamp_min(torch.finfo(C.dtype).tiny).rsqrt()[..., None]
    return scale * torch.linalg.solve_ex(scale * C * scale.mT, scale * B.mT)[0]
