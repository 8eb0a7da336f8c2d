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

from geometry import se3
from geometry.bundle_adjustment.coarse import similarities
from geometry.bundle_adjustment.equations import Tangent
from geometry.bundle_adjustment.problem import BundleData, BundleProblem, State

__all__ = ["Gauge", "GaugeChoice", "choose_rows", "gauge_at"]

GaugeChoice = Literal["fixed", "free"]


class Gauge(NamedTuple):
    """N and C at some state: motions of all unknowns, their last dimension g, and normals (D,g) of the cameras'."""

    motions: Tangent
    normals: Tensor

    def section(self, u: Tangent) -> Tangent:
        """Pi u, of one vector or of several: cameras (D,…), points (N,3,…)."""
        cameras, points = u.side_by_side()
        amount = torch.linalg.solve(self.normals.T @ self.motions.cameras, self.normals.T @ cameras)
        cameras = cameras - self.motions.cameras @ amount
        return Tangent(cameras.view_as(u.cameras), (points - self.motions.points @ amount).view_as(u.points))

    def ignore(self, b: Tangent) -> Tangent:
        """Pi^T b."""
        cameras, points = b.side_by_side()
        share = self.motions.cameras.T @ cameras + self.motions.points.flatten(0, 1).T @ points.flatten(0, 1)
        amount = torch.linalg.solve(self.motions.cameras.T @ self.normals, share)
        return Tangent((cameras - self.normals @ amount).view_as(b.cameras), b.points)


def _place(pose: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (3,) of the camera centres, and their rms distance () from it; 1 where all stand in one place."""
    centre = se3.centre(pose)
    mean = centre.mean(0)
    size = (centre - mean).square().sum(-1).mean().sqrt()
    return mean, torch.where(size > 1e-9 * mean.norm(), size, torch.ones_like(size))


def _measure(problem: BundleProblem, state: State, data: BundleData, cameras: Tensor) -> Tensor:
    """A^T A cameras (D,g), with A the turns of all cameras and the shifts of their centres in units of their spread."""
    pose, layout = problem.compose(state, data.given).world_to_camera, problem.layout
    turn, v = layout.to_views(cameras)[:, :6].split(3, 1)
    t = pose[:, :3, 3, None].expand_as(turn)
    # the centre is -R^T t: it moves by -R^T (v + t x turn); the transpose takes the shift's share back
    share = (v + torch.linalg.cross(t, turn, dim=1)) / _place(pose[layout.rows[:, 0] < layout.size])[1].square()
    measured = torch.cat([turn - torch.linalg.cross(t, share, dim=1), share], 1)
    return layout.from_views(torch.nn.functional.pad(measured, (0, 0, 0, layout.rows.shape[1] - 6)))


def _free_motions(problem: BundleProblem, state: State, data: BundleData) -> Tangent:
    """N: the similarities that move nothing that is fixed or known beforehand, as motions of the unknowns."""
    layout, prior = problem.layout, data.prior
    if len(layout.view) == 0:
        return Tangent(state.points3d.new_zeros(layout.size, 0), state.points3d.new_zeros(*state.points3d.shape, 0))
    scene = problem.compose(state, data.given)
    seen_points = torch.bincount(layout.point, minlength=len(layout.held)) > 0
    seen_views = torch.bincount(layout.view, minlength=len(layout.rows)) > 0
    # about the cameras: points may lie anywhere, as far as at infinity
    poses, points = similarities(scene.world_to_camera, scene.points3d, *_place(scene.world_to_camera[seen_views]))
    anchors = [
        poses[problem.fixed_poses & seen_views].flatten(0, 1),
        points[problem.fixed_points & seen_points].flatten(0, 1),
    ]
    if prior.pose_weights is not None:
        R, t = scene.world_to_camera[:, :3, :3], scene.world_to_camera[:, :3, 3]
        # centre = -R^T t
        turned = torch.linalg.cross(t[:, :, None].expand_as(poses[:, :3]), poses[:, :3], dim=1)
        moved = -(R.mT @ (poses[:, 3:] + turned))
        anchors.append((prior.pose_weights[..., None] * torch.cat([poses[:, :3], moved], 1))[seen_views].flatten(0, 1))
    if prior.point_weights is not None:
        anchors.append((prior.point_weights[..., None] * points)[seen_points].flatten(0, 1))
    held = torch.cat(anchors)
    poses = torch.where(seen_views[:, None, None], poses, 0)
    each = torch.cat([poses, poses.new_zeros(len(poses), layout.rows.shape[1] - 6, 7)], 1)
    place = layout.rows.flatten()
    cameras = poses.new_zeros(layout.size + 1, 7).index_copy(0, place, each.flatten(0, 1))[:-1]
    points = torch.where((layout.held | ~seen_points)[:, None, None], 0, points)
    if len(held) == 0:
        return Tangent(cameras, points)
    # columns of like size, so that what is left over can be told from rounding
    held = held / held.norm(dim=1, keepdim=True).clamp_min(torch.finfo(held.dtype).tiny)
    values, vectors = torch.linalg.eigh(held.T @ held)
    free = vectors[:, values < 1e-10]
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
    cameras = torch.zeros_like(motions.cameras)
    if choice == "fixed":
        cameras[rows, torch.arange(len(rows), device=rows.device)] = 1
    else:
        cameras = _measure(problem, state, data, motions.cameras)
    return Gauge(motions, cameras)
