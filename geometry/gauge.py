"""The freedom of a reconstruction: similarities of the world that change no pixel, and how to choose among them.

With N the motions of all unknowns under the g similarities that are free (7, fewer where something is fixed), and C
as many normals of the chosen section, a tangent vector is brought into the section by

    Pi u = u - N (C^T N)^-1 C^T u,

and a gradient b is made to ignore what leaves it by Pi^T. Any solution u of H u = Pi^T b then gives the same Pi u
(the S-transformation of Baarda 1973; Triggs et al. 2000, section 9).
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from geometry.bundle_problem import BundleData, BundleProblem, State
from geometry.coarse import similarities
from geometry.schur import Tangent

__all__ = ["Gauge", "GaugeChoice", "choose_rows", "gauge_at"]

GaugeChoice = Literal["fixed", "free"]


class Gauge(NamedTuple):
    """N and C at some state: motions with their last dimension g, normals likewise."""

    motions: Tangent
    normals: Tangent

    def section(self, u: Tangent) -> Tangent:
        """Pi u."""
        return self._project(u, self.motions, self.normals)

    def ignore(self, b: Tangent) -> Tangent:
        """Pi^T b."""
        return self._project(b, self.normals, self.motions)

    def _project(self, u: Tangent, along: Tangent, normals: Tangent) -> Tangent:
        """u less what the normals see of it, taken away along `along`; u may hold several vectors."""

        def product(a: Tangent, b: Tangent) -> Tensor:
            return a.cameras.T @ b.cameras.flatten(1) + a.points.flatten(0, 1).T @ b.points.flatten(2).flatten(0, 1)

        several = Tangent(u.cameras.reshape(len(u.cameras), -1), u.points.reshape(*u.points.shape[:2], -1))
        amount = torch.linalg.solve(product(normals, along), product(normals, several))
        cameras = several.cameras - along.cameras @ amount
        points = several.points - along.points @ amount
        return Tangent(cameras.view_as(u.cameras), points.view_as(u.points))


def _free_motions(problem: BundleProblem, state: State, data: BundleData) -> Tangent:
    """N: the similarities that move nothing that is fixed or known beforehand, as motions of the unknowns."""
    layout, prior = problem.layout, data.prior
    if len(layout.view) == 0:
        return Tangent(state.points3d.new_zeros(layout.size, 0), state.points3d.new_zeros(*state.points3d.shape, 0))
    scene = problem.compose(state, data.given)
    seen_points = torch.bincount(layout.point, minlength=len(layout.held)) > 0
    seen_views = torch.bincount(layout.view, minlength=len(layout.rows)) > 0
    X = scene.points3d[seen_points]
    size = (X - X.mean(0)).square().sum(-1).mean().sqrt()
    poses, points = similarities(scene.world_to_camera, scene.points3d, X.mean(0), size)
    anchors = [
        poses[problem.fixed_poses & seen_views].flatten(0, 1),
        points[problem.fixed_points & seen_points].flatten(0, 1),
    ]
    if prior.pose_weights is not None:
        R, t = scene.world_to_camera[:, :3, :3], scene.world_to_camera[:, :3, 3]
        # centre = -R^T t
        turned = torch.linalg.cross(t[:, :, None].expand_as(poses[:, :3]), poses[:, :3], dim=1)
        moved = -(R.mT @ (poses[:, 3:] + turned))
        anchors.append((prior.pose_weights[..., None] * torch.cat([poses[:, :3], moved], 1)).flatten(0, 1))
    if prior.point_weights is not None:
        anchors.append((prior.point_weights[..., None] * points).flatten(0, 1))
    held = torch.cat(anchors)
    # columns of like size, so that what is left over can be told from rounding
    held = held / held.norm(dim=1, keepdim=True).clamp_min(torch.finfo(held.dtype).tiny)
    values, vectors = torch.linalg.eigh(held.T @ held)
    free = vectors[:, values < 1e-10]
    each = torch.cat([poses, poses.new_zeros(len(poses), layout.rows.shape[1] - 6, 7)], 1)
    place = layout.rows.flatten()
    cameras = poses.new_zeros(layout.size + 1, 7).index_copy(0, place, each.flatten(0, 1))[:-1]
    points = torch.where((layout.held | ~seen_points)[:, None, None], 0, points)
    return Tangent(cameras @ free, points @ free)


def choose_rows(problem: BundleProblem, state: State, data: BundleData) -> Tensor:
    """The camera unknowns (g,) that "fixed" holds: the first free view's pose, and what moves most with the rest."""
    motions = _free_motions(problem, state, data).cameras
    g = motions.shape[1]
    left = motions / motions.norm(dim=0).clamp_min(torch.finfo(motions.dtype).tiny)
    free = problem.layout.rows[:, 0] < problem.layout.size
    first = problem.layout.rows[free][:1, :6].flatten()
    chosen: list[Tensor] = []
    for _ in range(g):
        size = left.norm(dim=1)
        best = size.argmax()
        if len(first) and size[first].amax() > 1e-6 * size.amax() and len(chosen) < 6:
            best = first[size[first].argmax()]
        chosen.append(best)
        n = left[best] / size[best]
        left = left - (left @ n)[:, None] * n
    return torch.stack(chosen) if chosen else torch.zeros(0, dtype=torch.long, device=motions.device)


def gauge_at(problem: BundleProblem, state: State, data: BundleData, choice: GaugeChoice, rows: Tensor) -> Gauge | None:
    """The gauge at a state, None where the data leave no freedom. rows: what "fixed" holds, from `choose_rows`."""
    motions = _free_motions(problem, state, data)
    if motions.cameras.shape[1] == 0:
        return None
    if choice == "free":
        return Gauge(motions, Tangent(torch.zeros_like(motions.cameras), motions.points))
    cameras = torch.zeros_like(motions.cameras)
    cameras[rows, torch.arange(len(rows), device=rows.device)] = 1
    return Gauge(motions, Tangent(cameras, torch.zeros_like(motions.points)))
