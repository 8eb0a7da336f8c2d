"""The freedom of a reconstruction: similarities of the world that change no pixel, and how to choose among them.

With N the motions of all unknowns under the g similarities that are free (7, fewer where something is fixed; six more
where no mounting of a rig is held, whose own frame is then anywhere), and C as many normals of the chosen section, a
tangent vector is brought into the section by

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
from geometry.bundle_adjustment.problem import Bundle, BundleData, BundleProblem, State

__all__ = ["Gauge", "GaugeChoice", "choose_rows", "gauge_at"]

GaugeChoice = Literal["fixed", "free"]
_ONE_PLACE = 1e-9  # cameras that are no farther from one another, in parts of their distance from the points


class Gauge(NamedTuple):
    """N and C at some state: motions of all unknowns, their last dimension g, and normals (D,g) of the cameras'.

    rigid: how many of the normals, from the first, can do without the others where the scale need not be held.
    """

    motions: Tangent
    normals: Tensor
    rigid: int

    def section(self, u: Tangent) -> Tangent:
        """Pi u, of one vector or of several: cameras (D,…), points (N,3,…)."""
        cameras, points = u.side_by_side()
        amount = torch.linalg.solve(self.normals.T @ self.motions.cameras, self.normals.T @ cameras)
        cameras = cameras - self.motions.cameras @ amount
        return Tangent(cameras.view_as(u.cameras), (points - self.motions.points @ amount).view_as(u.points))

    def short_section(self, u: Tangent, longest: Tensor) -> Tangent:
        """Pi u of one vector; with the `rigid` normals alone where it would move the points farther (their norm).

        Cameras that stand close together hold the scale at a long lever: where a step takes them apart, to first order
        Pi shrinks the world to less than nothing.
        """
        kept = self.section(u)
        if kept.points.norm() <= torch.maximum(longest, 2 * u.points.norm()):
            return kept
        normals, motions = self.normals[:, : self.rigid], self.motions
        size = (motions.cameras.square().sum(0) + motions.points.square().sum((0, 1))).sqrt()
        amount = torch.linalg.pinv(normals.T @ motions.cameras / size) @ (normals.T @ u.cameras) / size
        return Tangent(u.cameras - motions.cameras @ amount, u.points - motions.points @ amount)

    def ignore(self, b: Tangent) -> Tangent:
        """Pi^T b."""
        cameras, points = b.side_by_side()
        share = self.motions.cameras.T @ cameras + self.motions.points.flatten(0, 1).T @ points.flatten(0, 1)
        amount = torch.linalg.solve(self.motions.cameras.T @ self.normals, share)
        return Tangent((cameras - self.normals @ amount).view_as(b.cameras), b.points)


def _place(pose: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (3,) of the camera centres, and their rms distance () from it; where all stand in one place, the median
    distance of the points."""
    centre = se3.centre(pose)
    mean = centre.mean(0)
    size = (centre - mean).square().sum(-1).mean().sqrt()
    distance = (points - mean).norm(dim=-1).median() if len(points) else torch.zeros_like(size)
    size = torch.where(size > _ONE_PLACE * distance, size, distance)
    return mean, torch.where(size > 0, size, 1)


def _moves(pose: Tensor, motions: Tensor, size: Tensor) -> Tensor:
    """What cameras do in motions (V,6,g): how they turn, and how their centres move in units of a size () (V,6,g)."""
    turn, v = motions.split(3, 1)
    t = pose[:, :3, 3, None].expand_as(turn)
    # the centre is -R^T t
    moved = -pose[:, :3, :3].mT @ (v + torch.linalg.cross(t, turn, dim=1))
    return torch.cat([turn, moved / size], 1)


def _measure(problem: BundleProblem, state: State, data: BundleData, cameras: Tensor) -> Tensor:
    """A^T A cameras (D,g), with A the turns of all cameras and the shifts of their centres in units of their spread."""
    scene, layout = problem.compose(state, data.given), problem.layout
    unknowns = torch.cat([cameras, cameras.new_zeros(1, cameras.shape[1])])
    out, points = torch.zeros_like(unknowns), scene.points3d[layout.point]
    for pose, rows in _free_poses(problem, scene):
        size = _place(pose[rows[:, 0] < layout.size], points)[1]
        turn, moved = _moves(pose, unknowns[rows], size).split(3, 1)
        # the transpose takes the shift's share back
        share = -pose[:, :3, :3] @ moved / size
        t = pose[:, :3, 3, None].expand_as(turn)
        measured = torch.cat([turn - torch.linalg.cross(t, share, dim=1), share], 1)
        out.index_copy_(0, rows.flatten(), measured.flatten(0, 1))
    return out[:-1]


def _free_poses(problem: BundleProblem, scene: Bundle) -> list[tuple[Tensor, Tensor]]:
    """Poses (n,4,4) and where they lie among the camera unknowns (n,6): of views or frames, and mountings that move."""
    found = [(scene.world_to_camera, problem.pose_rows)]
    if problem.rig is not None and problem.rig.moving and scene.sensor_from_rig is not None:
        found.append((scene.sensor_from_rig, problem.sensor_rows))
    return found


def _null_space(held: Tensor) -> Tensor:
    """Orthonormal columns (c,g): the motions that leave all in place whose motions (n,c) are given."""
    if len(held) == 0:
        return torch.eye(held.shape[1], dtype=held.dtype, device=held.device)
    held = held / held.norm(dim=1, keepdim=True).clamp_min(torch.finfo(held.dtype).tiny)
    # columns of like size, so that what is left over can be told from rounding
    size = held.norm(dim=0).clamp_min(1e-6)
    values, vectors = torch.linalg.eigh((held / size).T @ (held / size))
    return torch.linalg.qr(vectors[:, values < 1e-10] / size[:, None])[0]


def _free_motions(problem: BundleProblem, state: State, data: BundleData) -> tuple[Tangent, bool]:
    """N: the similarities that move nothing that is fixed or known beforehand, as motions of the unknowns; and whether
    they change the scale.

    Where all cameras stand in one place a change of scale moves none of them: it is left out, as it is no more than a
    change of the points' depths, none of which such cameras see.
    """
    layout, prior = problem.layout, data.prior
    scene = problem.compose(state, data.given)
    seen_points = torch.bincount(layout.point, minlength=len(layout.held)) > 0
    seen_poses = torch.bincount(problem.frame[layout.view], minlength=len(problem.fixed_poses)) > 0
    # about the cameras: points may lie anywhere, as far as at infinity
    place, size = _place(scene.world_to_camera[seen_poses], scene.points3d[seen_points])
    poses, points = similarities(scene.world_to_camera, scene.points3d, place, size)
    anchors, rows = [], [problem.pose_rows]
    moving = [(scene.world_to_camera, poses, size, problem.fixed_poses, seen_poses, prior.pose_weights)]
    if problem.rig is not None and scene.sensor_from_rig is not None:
        mounted, rig, view = scene.sensor_from_rig, problem.rig, layout.view
        if rig.moving:
            seen_sensors = torch.bincount(rig.sensor[view], minlength=len(mounted)) > 0
            middle, spread = _place(mounted[seen_sensors], scene.points3d[:0])
            poses, sensors = _with_rig_frame(scene.world_to_camera, poses, mounted, middle, spread)
            points = torch.cat([points[..., :6], points.new_zeros(len(points), 3, 6), points[..., 6:]], -1)
            moving.append((mounted, sensors, spread, rig.fixed, seen_sensors, prior.sensor_weights))
            rows.append(problem.sensor_rows)
        else:
            poses, apart = _about_cameras(poses, se3.centre(mounted)[rig.sensor[view]], rig.frame[view])
            anchors.append(torch.eye(7, dtype=poses.dtype, device=poses.device)[6:] * (apart > _ONE_PLACE * size))
        moving[0] = (scene.world_to_camera, poses, *moving[0][2:])
    grown = points.new_zeros(0, 6, points.shape[2])
    if scene.velocity is not None and data.times is not None:
        # of the world's similarities a camera that moves with it feels the scale alone
        grown = points.new_zeros(len(poses), 6, points.shape[2])
        frame = problem.frame[layout.view]
        timed = torch.bincount(frame[data.times != 0], minlength=len(grown)) > 0
        grown[:, 3:, -1] = timed[:, None] * scene.velocity[:, 3:]
        sought = problem.shutter is not None and problem.shutter.velocities
        known = prior.velocity_weights if sought else torch.ones_like(scene.velocity)
        if known is not None:
            anchors.append((known[..., None] * grown)[seen_poses].flatten(0, 1))
    anchors.append(points[problem.fixed_points & seen_points].flatten(0, 1))
    if prior.point_weights is not None:
        anchors.append((prior.point_weights[..., None] * points)[seen_points].flatten(0, 1))
    all_moves = []
    for pose, motions, unit, fixed, seen, weights in moving:
        moves = _moves(pose, motions, unit)
        anchors.append(moves[fixed & seen].flatten(0, 1))
        if weights is not None:
            anchors.append((weights[..., None] * moves)[seen].flatten(0, 1))
        all_moves.append(moves[seen & ~fixed].flatten(0, 1))
    free = _null_space(torch.cat(anchors))
    # of these, what moves cameras
    own = torch.cat(all_moves) @ free
    values, vectors = torch.linalg.eigh(own.T @ own)
    still = values <= 1e-12 * len(own)
    free = free @ vectors[:, ~still] if still.any() else free
    cameras = points.new_zeros(layout.size + 1, points.shape[2])
    for (_, motions, _, _, seen, _), where in zip(moving, rows, strict=True):
        motions = torch.where(seen[:, None, None], motions, 0)
        cameras.index_copy_(0, where.flatten(), motions.flatten(0, 1))
    cameras.index_copy_(0, problem.velocity_rows.flatten(), grown.flatten(0, 1))
    points = torch.where((layout.held | ~seen_points)[:, None, None], 0, points)
    return Tangent(cameras[:-1] @ free, points @ free), bool((free[-1].abs() > 1e-6).any())


def _about_cameras(motions: Tensor, centres: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """Motions (F,6,7) of rigs whose mountings are held, the scale about the middle of the cameras that each frame has;
    and how far () any is from there, so that it would have to move. centres (M,3) in the rig, frame (M,)."""
    count = torch.bincount(frame, minlength=len(motions))[:, None].clamp_min(1)
    middle = centres.new_zeros(len(motions), 3).index_add_(0, frame, centres) / count
    moved = torch.cat([torch.zeros_like(middle), middle], 1)[..., None]
    apart = (centres - middle[frame]).norm(dim=-1).amax() if len(frame) else centres.new_zeros(())
    return torch.cat([motions[..., :6], motions[..., 6:] - moved], -1), apart


def _with_rig_frame(
    poses: Tensor, motions: Tensor, mounted: Tensor, middle: Tensor, size: Tensor
) -> tuple[Tensor, Tensor]:
    """How rig poses (F,6,13) and mountings (S,6,13) move: motions (F,6,7) of the world's similarities, with the motions
    of the rigs' own frame about its middle (3,), in units of a size (), in front of the last one, the scale."""
    sensors, _ = similarities(mounted, mounted[:0, :3, 3], middle, size)
    t = poses[:, :3, 3] - middle
    eye = torch.eye(3, dtype=poses.dtype, device=poses.device).expand(len(poses), 3, 3)
    shift = torch.cat([torch.zeros_like(eye), size * eye], 1)
    turn = torch.cat([eye, -se3.hat(t)], 1)
    scale = motions[:, :, 6:] - torch.cat([torch.zeros_like(middle), middle])[:, None]
    still = sensors.new_zeros(len(sensors), 6, 6)
    return torch.cat([motions[..., :6], shift, turn, scale], -1), torch.cat([still, sensors], -1)


def _leading_rows(motions: Tensor, problem: BundleProblem) -> Tensor:
    """The camera unknowns (g,) that "fixed" holds, of motions (D,g)."""
    left = motions / motions.norm(dim=0).clamp_min(torch.finfo(motions.dtype).tiny)
    free = problem.pose_rows[:, 0] < problem.layout.size
    first = problem.pose_rows[free][:1].flatten()
    chosen: list[Tensor] = []
    for _ in range(motions.shape[1]):
        size = left.norm(dim=1)
        best = size.argmax()
        if len(first) and size[first].amax() > 1e-6 * size.amax() and len(chosen) < 6:
            best = first[size[first].argmax()]
        chosen.append(best)
        n = left[best] / size[best]
        left = left - (left @ n)[:, None] * n
    return torch.stack(chosen) if chosen else torch.zeros(0, dtype=torch.long, device=motions.device)


def choose_rows(problem: BundleProblem, state: State, data: BundleData) -> Tensor:
    """The camera unknowns (g,) that "fixed" holds: the first free view's pose, and what moves most with the rest."""
    return _leading_rows(_free_motions(problem, state, data)[0].cameras, problem)


def _hold(rows: Tensor, motions: Tensor) -> bool:
    """Whether motions (D,g) are determined by those of the rows, and all rows are needed for it."""
    if len(rows) != motions.shape[1]:
        return False
    held = motions[rows] / motions.norm(dim=0)
    return bool(torch.linalg.svdvals(held)[-1] > 1e-6 * held.abs().amax())


def gauge_at(problem: BundleProblem, state: State, data: BundleData, choice: GaugeChoice, rows: Tensor) -> Gauge | None:
    """The gauge at a state, None where the data leave no freedom.

    rows: what "fixed" holds, from `choose_rows`; chosen anew where these do not determine the motions, as after a start
    with all cameras in one place.
    """
    motions, scaled = _free_motions(problem, state, data)
    if motions.cameras.shape[1] == 0:
        return None
    cameras = torch.zeros_like(motions.cameras)
    if choice == "fixed":
        rows = rows if _hold(rows, motions.cameras) else _leading_rows(motions.cameras, problem)
        cameras[rows, torch.arange(len(rows), device=rows.device)] = 1
        return Gauge(motions, cameras, len(rows) - scaled)
    return Gauge(motions, _measure(problem, state, data, motions.cameras), 0)
