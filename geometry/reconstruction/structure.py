"""Structure from images alone: 3D points learned through PnP, no pose given.

The outer unknowns are the points, the inner ones the poses: each trial structure gets the pose that suits each view
best, by the global PnP of `geometry.pose` if wished, and the points take a Gauss-Newton step of the reduced cost
(`geometry.optim.nested`). Because no pose is ever carried along, a view cannot be left behind in a wrong basin by a
wrong start, and random points are a usable start.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from geometry import se3
from geometry.camera import Model, in_front, project_camera_frame, projection_jacobian, rays_of
from geometry.checks import (
    alike,
    boolean,
    check_tensors,
    check_tensors_or_none,
    leading,
    shaped,
    values,
)
from geometry.lenses import check_distortion
from geometry.optim import Problem, Solution, argmin
from geometry.pose import pnp

__all__ = ["StructureProblem", "checked_views", "mirror", "triangulate"]


class Views(NamedTuple):
    """What known cameras see of N points: visible (V,N), K (V,3,3), distortion (V,k), and poses (V,4,4) or None."""

    visible: Tensor
    K: Tensor
    distortion: Tensor
    pose: Tensor | None


def checked_views(
    points2d: Tensor,
    visible: Tensor,
    *,
    K: Tensor,
    distortion: Tensor | None,
    model: Model,
    pose: Tensor | None = None,
) -> Views:
    """The views of points2d (V,N,2), what they share repeated for each; ValueError unless these are V views."""
    check_tensors(points2d=points2d, K=K)
    check_tensors_or_none(distortion=distortion, world_to_camera=pose)
    distortion = K.new_zeros(0) if distortion is None else distortion
    boolean("visible", visible)
    shaped(points2d=(points2d, "V,N,2"))
    V, N, _ = points2d.shape
    visible = leading("visible", visible, V, (N,)).expand(V, N)
    K = leading("K", K, V, (3, 3)).expand(V, 3, 3)
    distortion = leading("distortion", distortion, V, distortion.shape[-1:]).expand(V, -1)
    if pose is not None:
        pose = leading("world_to_camera", pose, V, (4, 4)).expand(V, 4, 4)
    alike(points2d=points2d, K=K, distortion=distortion, world_to_camera=pose)
    check_distortion(distortion, model)
    seen = torch.where(visible[..., None], points2d.detach(), 0)
    values(
        points2d=(seen, "finite"), K=(K, "camera"), distortion=(distortion, "finite"), world_to_camera=(pose, "pose")
    )
    if blind := (~visible.any(1)).nonzero().flatten().tolist():
        which = f"view {blind[0]} sees" if len(blind) == 1 else f"views {', '.join(map(str, blind))} see"
        raise ValueError(f"visible must hold True for a point of each view, got none: {which} no point")
    return Views(visible, K, distortion, pose)


class _Observations(NamedTuple):
    """The visible points of each view, packed to the left: which (V,M) of the points, seen (V,M), points2d (V,M,2)."""

    which: Tensor
    seen: Tensor
    points2d: Tensor


@dataclass(frozen=True)
class StructureProblem:
    """`NestedProblem` over S candidate structures theta (S,N,3) seen by the same V views; inner (S,V,4,4).

    points2d (V,N,2) px, visible (V,N) bool, K (V,3,3), distortion (V,k) of `model`, once where views share
    it. global_poses: seek every pose's global minimum at each step (the start of PnP is None) instead of following the
    last one. normalise: keep each structure at zero mean and unit rms radius, which a reconstruction up to similarity
    is free to do.
    """

    points2d: Tensor
    visible: Tensor
    K: Tensor
    distortion: Tensor
    model: Model = "radtan"
    global_poses: bool = True
    normalise: bool = True

    def __post_init__(self) -> None:
        views = checked_views(self.points2d, self.visible, K=self.K, distortion=self.distortion, model=self.model)
        for name in ("visible", "K", "distortion"):
            object.__setattr__(self, name, getattr(views, name))

    @cached_property
    def _packed(self) -> _Observations:
        # Tracks see a few points of many: work, and memory but for W below, go with the fullest view, not with N.
        most = int(self.visible.sum(1).max())
        index = self.visible.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
        seen = self.visible.gather(1, index)
        points2d = self.points2d.gather(1, index[..., None].expand(-1, -1, 2))
        return _Observations(index, seen, torch.where(seen[..., None], points2d, 0))

    def evaluate(self, theta: Tensor, inner: Tensor | None) -> tuple[Tensor, Tensor]:
        S, V = len(theta), len(self.visible)
        index, seen, points2d = self._packed

        def each(tensor: Tensor) -> Tensor:
            return tensor.expand(S, *tensor.shape).flatten(0, 1)

        solution = pnp(
            each(points2d),
            theta[:, index].flatten(0, 1),
            each(self.K),
            distortion=each(self.distortion),
            mask=each(seen),
            init=None if self.global_poses or inner is None else inner.flatten(0, 1),
            model=self.model,
        )
        return solution.cost.unflatten(0, (S, V)).sum(1), solution.x.unflatten(0, (S, V)).detach()

    def step(self, theta: Tensor, inner: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
        """One Gauss-Newton step with the poses eliminated: the Schur complement D - W H^-1 W^T of the points.

        D is block diagonal (3 x 3 a point) and W H^-1 W^T has rank 6V, so the Woodbury identity leaves one dense
        system of 6V unknowns, whatever N. Memory: W holds N x 3 x 6V numbers.
        """
        S, N, V = len(theta), theta.shape[1], len(self.visible)
        index, seen, points2d = self._packed
        rotated = theta[:, index] @ inner[..., :3, :3].mT
        p = rotated + inner[..., None, :3, 3]
        p = torch.where(seen[..., None], p, p.new_tensor([0.0, 0.0, 1.0]))
        pixels, J = projection_jacobian(p, self.K, self.distortion, self.model)
        r = (pixels - points2d) * seen[..., None]
        J = J * seen[..., None, None]
        J_point = J @ inner[..., None, :3, :3]
        J_pose = torch.cat([torch.linalg.cross(rotated[..., None, :].expand_as(J), J), J], -1)

        def at_points(rows: Tensor, where: Tensor, size: int) -> Tensor:
            """Sum rows (S,V,M,…) into (S,size,…) at where (V,M)."""
            total = rows.new_zeros(S, size, *rows.shape[3:])
            return total.index_add_(1, where.flatten(), rows.flatten(1, 2))

        gradient = at_points((J_point * r[..., None]).sum(-2), index, N)
        D = at_points(J_point.mT @ J_point, index, N)
        view = torch.arange(V, device=index.device)[:, None]
        W = at_points(J_point.mT @ J_pose, index * V + view, N * V).unflatten(1, (N, V))
        W = W.transpose(2, 3).flatten(-2)
        diagonal = D.diagonal(dim1=-2, dim2=-1)
        # a point that no view sees stays where it is
        damped = damping[:, None, None] * torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal))
        H = (J_pose.mT @ J_pose).sum(2)
        H = torch.stack([torch.block_diag(*views) for views in H])
        D_inverse = torch.linalg.inv(D + torch.diag_embed(damped))
        DW = D_inverse @ W
        reduced = H - W.flatten(1, 2).mT @ DW.flatten(1, 2)
        # the seven gauge directions are singular but for the damping of the points
        scale = H.diagonal(dim1=-2, dim2=-1).rsqrt()
        eye = torch.eye(6 * V, dtype=H.dtype, device=H.device)
        reduced = reduced * scale[:, :, None] * scale[:, None, :] + 1e-10 * eye
        descent = -(D_inverse @ gradient[..., None]).squeeze(-1)
        right = (W.flatten(1, 2).mT @ descent.flatten(1)[..., None]).squeeze(-1) * scale
        y = torch.linalg.solve(reduced, right[..., None]) * scale[..., None]
        step = descent + (DW.flatten(1, 2) @ y).view_as(descent)
        predicted = 0.5 * (step * (damped * step - gradient)).sum((1, 2))
        return step, predicted

    def retract(self, theta: Tensor, step: Tensor) -> Tensor:
        moved = theta + step
        if not self.normalise:
            return moved
        moved = moved - moved.mean(1, keepdim=True)
        return moved / moved.square().sum(-1).mean(1).sqrt()[:, None, None]


def mirror(theta: Tensor) -> Tensor:
    """The structure reflected: nearly as good a fit where perspective is weak (Necker reversal), so worth a look.

    Any plane does, since poses are sought anew. (S,N,3) -> (S,N,3).
    """
    return theta * theta.new_tensor([1.0, 1.0, -1.0])


def triangulate(
    points2d: Tensor,
    visible: Tensor,
    world_to_camera: Tensor,
    K: Tensor,
    distortion: Tensor | None = None,
    *,
    model: Model = "radtan",
) -> Solution:
    """Points from views of known cameras: N problems of three unknowns each.

    points2d (V,N,2) px, visible (V,N) bool, world_to_camera (V,4,4), K (V,3,3), distortion (V,k) or None -> Solution,
    x (N,3) in the world; what views share may be given once, as K (3,3). The start is the point nearest to all rays
    (least squares), the minimum that of the reprojection error, differentiable as that of `argmin`. Raises ValueError
    for what is not such.

    >>> every = torch.ones(3, 12, dtype=torch.bool)
    >>> bool((triangulate(points2d, every, pose, K).x - points3d).norm(dim=-1).median() < 0.1)
    True
    """
    views = checked_views(points2d, visible, K=K, distortion=distortion, model=model, pose=world_to_camera)
    visible, K, distortion = views[:3]
    world_to_camera = world_to_camera if views.pose is None else views.pose

    def residual(X: Tensor, pixels: Tensor, seen: Tensor, pose: Tensor, K: Tensor, distortion: Tensor) -> Tensor:
        p = se3.transform(pose, X.expand(len(pose), 1, 3))
        p = torch.where(seen[:, None, None], p, p.new_tensor([0.0, 0.0, 1.0]))
        r = project_camera_frame(p, K, distortion, model=model).squeeze(1) - pixels
        r = torch.where(in_front(p, distortion, model=model), r, torch.inf)
        return torch.where(seen[:, None], r, 0)

    points2d, middle = torch.where(visible[..., None], points2d, 0), se3.centre(world_to_camera.detach()).mean(0)
    world_to_camera = se3.about(world_to_camera, middle)
    with torch.no_grad():
        rays, valid = rays_of(points2d, K, distortion, model)
        R, t = world_to_camera[:, :3, :3], world_to_camera[:, :3, 3]
        directions, centres = rays @ R, -(R.mT @ t[..., None]).squeeze(-1)
        eye = torch.eye(3, dtype=rays.dtype, device=rays.device)
        A = (visible & valid)[..., None, None] * (eye - directions[..., :, None] * directions[..., None, :])
        start, _ = torch.linalg.solve_ex(A.sum(0) + 1e-9 * eye, (A @ centres[:, None, :, None]).sum(0))
    cameras = (world_to_camera[None], K[None], distortion[None])
    found = argmin(
        Problem(residual, dof=3, alike=(3,)), start.squeeze(-1), points2d.transpose(0, 1), visible.T, *cameras
    )
    return replace(found, x=found.x + middle)
