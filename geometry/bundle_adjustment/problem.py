"""The reprojection error of many cameras and points, observation by observation, in tensor operations.

Data flow one way: unknowns (`State`) and data are composed to a `Bundle`; each observation takes its camera and its
point from there. The derivatives are those of the composed function

    step (omega, v, kappa, dX)  ->  p = exp(omega) R (X + dX) + t + v,  theta + kappa  ->  pixel  ->  cost

whose last part, (p, theta) -> pixel, is differentiated by forward mode, so that a lens stays one function.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from geometry import se3
from geometry._forward import curvature, directional
from geometry.bundle_adjustment import operator
from geometry.bundle_adjustment.chain import Motion, pull_back, turned
from geometry.bundle_adjustment.equations import NormalEquations, Tangent
from geometry.bundle_adjustment.indices import Layout
from geometry.bundle_adjustment.prior import Known, Prior, add_known, cost_of
from geometry.bundle_adjustment.rigs import Rig, mounting
from geometry.bundle_adjustment.shutter import Shutter, at_instants, motion
from geometry.camera import Model, in_front, project_camera_frame
from geometry.lenses import LENSES
from geometry.robust import Kernel, kernel_derivatives

__all__ = ["Bundle", "BundleData", "BundleProblem", "Prior", "State"]


_PLACES = {"fx": (0, 0), "fy": (1, 1), "skew": (0, 1)}
"""Of intrinsics among the upper left numbers of K."""


class Bundle(NamedTuple):
    """What is seen, and by what: world_to_camera (V,4,4), points3d (N,3), K (C,3,3), distortion (C,k).

    Of rigs world_to_camera (F,4,4) is the world_to_rig of each frame, sensor_from_rig (S,4,4) where its cameras sit.
    Where rows have times, velocity (F,6) is how cameras or rigs move, readout (1,) what the times are multiplied by.

    >>> bundle(points2d.flatten(0, 1), view, point, pose, points3d, K).x.points3d.shape
    torch.Size([12, 3])
    """

    world_to_camera: Tensor
    points3d: Tensor
    K: Tensor
    distortion: Tensor
    sensor_from_rig: Tensor | None = None
    velocity: Tensor | None = None
    readout: Tensor | None = None


class State(NamedTuple):
    """The unknowns: world_to_camera (F,4,4) of views or frames, points3d (N,3), theta (C,P): values of the free
    intrinsics; sensor_from_rig (S,4,4), none without rigs; velocity (F,6) and readout (1,), none without times."""

    world_to_camera: Tensor
    points3d: Tensor
    theta: Tensor
    sensor_from_rig: Tensor
    velocity: Tensor
    readout: Tensor


class BundleData(NamedTuple):
    """What the optimum depends on: points2d (M,2), weights (M,2), times (M,) and bearings (M,3) if there are any, the
    start or fixed values, and the prior. Of bearings the points2d are zero, and the lens an equidistant fisheye."""

    points2d: Tensor
    weights: Tensor
    times: Tensor | None
    bearings: Tensor | None
    given: Bundle
    prior: Prior

    def of(self, some: Tensor) -> "BundleData":
        """The same of some observations, by a mask or numbers."""
        times, bearings = (None if t is None else t[some] for t in (self.times, self.bearings))
        return self._replace(points2d=self.points2d[some], weights=self.weights[some], times=times, bearings=bearings)


@dataclass(frozen=True)
class BundleProblem:
    """Half the sum of rho(|weighted reprojection error|^2), plus half the squared prior, over a `State`.

    layout: who sees what. cameras: C; intrinsics_index (V,): which of them took which image. fixed_poses (F,),
    fixed_points (N,) bool. names: free intrinsics. rig: how views are mounted, None where each has a pose of its own;
    shutter: what is sought of their motion, None where images are taken at once; bearings: whether directions are
    observed. in_tensors: do without the compiled kernels.
    """

    layout: Layout
    cameras: int
    intrinsics_index: Tensor
    fixed_poses: Tensor
    fixed_points: Tensor
    names: tuple[str, ...]
    model: Model
    kernel: Kernel | None
    rig: Rig | None = None
    shutter: Shutter | None = None
    bearings: bool = False
    in_tensors: bool = False

    def intrinsics(self, K: Tensor, distortion: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """K (…,3,3) and distortion (…,k) with the free ones replaced by theta (…,P); "f" keeps the pixels' shape."""
        if not self.names:
            return K, distortion
        A, c, d = K[..., :2, :2], list(K[..., :2, 2].unbind(-1)), list(distortion.unbind(-1))
        # "f" first: it scales a skew that is given, not one that is sought
        for name, value in sorted(zip(self.names, theta.unbind(-1), strict=True), key=lambda pair: pair[0] != "f"):
            if name == "f":
                A = A * (value / A[..., 0, 0])[..., None, None]
            elif name in _PLACES:
                here = torch.zeros(2, 2, dtype=torch.bool, device=K.device)
                here[_PLACES[name]] = True
                A = torch.where(here, value[..., None, None], A)
            elif name in ("cx", "cy"):
                c[("cx", "cy").index(name)] = value
            else:
                d[LENSES[self.model].names.index(name)] = value
        top = torch.cat([A, torch.stack(c, -1)[..., None]], -1)
        return torch.cat([top, K[..., 2:, :].expand(*top.shape[:-2], 1, 3)], -2), (
            torch.stack(d, -1) if d else distortion
        )

    def theta_of(self, K: Tensor, distortion: Tensor) -> Tensor:
        """Values (C,P) of the free intrinsics."""
        places = {"f": K[:, 0, 0], "cx": K[:, 0, 2], "cy": K[:, 1, 2]}
        places |= {name: K[:, i, j] for name, (i, j) in _PLACES.items()}
        places |= dict(zip(LENSES[self.model].names, distortion.unbind(-1), strict=False))
        return torch.stack([places[name] for name in self.names], -1) if self.names else K.new_zeros(len(K), 0)

    def start(self, given: Bundle) -> State:
        """The state that is given."""
        none = given.K.new_zeros(0, 4, 4), given.K.new_zeros(0, 6), given.K.new_zeros(0)
        more = [n if t is None else t for t, n in zip(given[4:], none, strict=True)]
        return State(given.world_to_camera, given.points3d, self.theta_of(given.K, given.distortion), *more)

    def compose(self, state: State, given: Bundle) -> Bundle:
        """The scene of unknowns and what is fixed, differentiable in both."""
        poses = torch.where(self.fixed_poses[:, None, None], given.world_to_camera, state.world_to_camera)
        points = torch.where(self.fixed_points[:, None], given.points3d, state.points3d)
        scene = Bundle(poses, points, *self.intrinsics(given.K, given.distortion, state.theta), *given[4:])
        if self.rig is not None and given.sensor_from_rig is not None:
            fixed = self.rig.fixed[:, None, None]
            scene = scene._replace(sensor_from_rig=torch.where(fixed, given.sensor_from_rig, state.sensor_from_rig))
        if self.shutter is not None:
            scene = scene._replace(
                velocity=state.velocity if self.shutter.velocities else given.velocity,
                readout=state.readout if self.shutter.readout else given.readout,
            )
        return scene

    @property
    def single(self) -> tuple[Layout, Tensor | slice]:
        """Observations as of n cameras with a pose of their own: their layout, and which view each camera is of.

        Cameras are the views, or, where times differ or each looks along a bearing, the observations.
        """
        apart = self.shutter is not None or self.bearings
        return (self.layout.apart, self.layout.view) if apart else (self.layout, slice(None))

    def _chain(self, scene: Bundle, data: BundleData) -> tuple[Tensor, list[Motion]]:
        """Poses (n,4,4) of single cameras; and what moves them, from the outermost motion inward."""
        poses, motions = scene.world_to_camera, []
        cameras = self.single[1]
        if self.shutter is not None and scene.velocity is not None and scene.readout is not None:
            assert data.times is not None
            frame = self.frame[cameras]
            inner, velocity = poses[frame], scene.velocity[frame]
            motions = [motion(inner, velocity, data.times, scene.readout, self.shutter)]
            poses = at_instants(inner, velocity, scene.readout * data.times)
        if self.rig is not None and scene.sensor_from_rig is not None:
            inner = poses[self.rig.frame[cameras]] if self.shutter is None else poses
            mounted = scene.sensor_from_rig[self.rig.sensor[cameras]]
            motions = [mounting(inner, mounted, self.rig.moving), *motions]
            poses = mounted @ inner
        elif self.bearings and self.shutter is None:
            poses = poses[cameras]
        if data.bearings is not None:
            towards = se3.rotation_to_axis(data.bearings)
            motions = [turned(poses, towards), *motions]
            poses = se3.make(towards @ poses[:, :3, :3], (towards @ poses[:, :3, 3:]).squeeze(-1))
        return poses, motions

    def cameras_of(self, scene: Bundle, data: BundleData) -> Bundle:
        """The scene of single cameras, with a pose of its own for each."""
        return Bundle(self._chain(scene, data)[0], *scene[1:4])

    @cached_property
    def frame(self) -> Tensor:
        """Whose pose a view has (V,): its own, or that of its rig."""
        V = len(self.intrinsics_index)
        return torch.arange(V, device=self.intrinsics_index.device) if self.rig is None else self.rig.frame

    def _rows_of(self, first: int, end: int, index: Tensor, count: int) -> Tensor:
        """Where columns first to end - 1 lie among the camera unknowns (count, end - first), by what views share."""
        rows = self.layout.rows[:, first:end]
        nowhere = torch.full((count, end - first), self.layout.size, device=rows.device)
        return nowhere.scatter_reduce(0, index[:, None].expand_as(rows), rows, "amin")

    @cached_property
    def pose_rows(self) -> Tensor:
        """(F,6): where the poses lie among the camera unknowns."""
        return self._rows_of(0, 6, self.frame, len(self.fixed_poses))

    @cached_property
    def theta_rows(self) -> Tensor:
        """(C,P): where the free intrinsics of each K lie."""
        return self._rows_of(6, 6 + len(self.names), self.intrinsics_index, self.cameras)

    @cached_property
    def _columns(self) -> tuple[int | None, int | None, int | None]:
        """Where the columns of mountings, velocities and readout begin among those of a view; None where none are."""
        begin, found = 6 + len(self.names), list[int | None]()
        moving, shutter = self.rig is not None and self.rig.moving, self.shutter or Shutter(False, False)
        for there, count in ((moving, 6), (shutter.velocities, 6), (shutter.readout, 1)):
            found.append(begin if there else None)
            begin += count * there
        return found[0], found[1], found[2]

    def _rows_at(self, first: int | None, width: int, index: Tensor, count: int) -> Tensor:
        if first is None:
            return torch.full((count, width), self.layout.size, device=self.layout.rows.device)
        return self._rows_of(first, first + width, index, count)

    @cached_property
    def sensor_rows(self) -> Tensor:
        """(S,6): where the mountings lie."""
        if self.rig is None:
            return self._rows_at(None, 6, self.frame, 0)
        return self._rows_at(self._columns[0], 6, self.rig.sensor, len(self.rig.fixed))

    @cached_property
    def velocity_rows(self) -> Tensor:
        """(F,6): where the velocities lie."""
        return self._rows_at(self._columns[1], 6, self.frame, 0 if self.shutter is None else len(self.fixed_poses))

    @cached_property
    def readout_rows(self) -> Tensor:
        """(1,1): where the readout lies."""
        return self._rows_at(self._columns[2], 1, torch.zeros_like(self.frame), 0 if self.shutter is None else 1)

    def _once(self, first: int, index: Tensor) -> Tensor:
        """Whether a view (V,) is the first of all that share columns of which it has the first one."""
        V, there = len(index), self.layout.rows[:, first] < self.layout.size
        each = torch.arange(V, device=index.device)
        earliest = torch.full((V + 1,), V, device=index.device)
        earliest = earliest.scatter_reduce(0, torch.where(there, index, V), each, "amin")
        return there & (earliest[index] == each)

    def redundancy(self, data: BundleData) -> int:
        """Numbers that are observed, or known beforehand of what is sought, less unknowns."""
        layout, prior = self.layout, data.prior
        known = int((data.weights != 0).sum())
        for weights, rows in (
            (prior.pose_weights, self.pose_rows),
            (prior.theta_weights, self.theta_rows),
            (prior.sensor_weights, self.sensor_rows),
            (prior.velocity_weights, self.velocity_rows),
        ):
            if weights is not None:
                known += int((weights[rows < layout.size] != 0).sum())
        if prior.point_weights is not None:
            known += int((prior.point_weights[~layout.held] != 0).sum())
        return known - layout.size - 3 * int((~layout.held).sum())

    def retract(self, state: State, step: Tangent) -> State:
        """Move the unknowns."""
        cameras = torch.cat([step.cameras, step.cameras.new_zeros(1)])
        sensors = state.sensor_from_rig
        if self._columns[0] is not None:
            sensors = se3.retract(sensors, cameras[self.sensor_rows])
        return State(
            se3.retract(state.world_to_camera, cameras[self.pose_rows]),
            state.points3d + torch.where(self.layout.held[:, None], 0, step.points),
            state.theta + cameras[self.theta_rows],
            sensors,
            state.velocity + cameras[self.velocity_rows],
            state.readout + cameras[self.readout_rows].flatten(),
        )

    def _camera_frame(self, cameras: Bundle) -> tuple[Tensor, Tensor, Tensor]:
        """R (M,3,3), rotated points R X (M,3) and points in the camera frame (M,3) of all observations."""
        layout, _ = self.single
        pose = cameras.world_to_camera[layout.view]
        rotated = (pose[:, :3, :3] * cameras.points3d[layout.point][:, None]).sum(-1)
        return pose[:, :3, :3], rotated, rotated + pose[:, :3, 3]

    def _pixels(self, p: Tensor, K: Tensor, distortion: Tensor) -> Tensor:
        return project_camera_frame(p[:, None], K, distortion, model=self.model).squeeze(1)

    def behind(self, scene: Bundle, data: BundleData) -> Tensor:
        """Observations (M,) of points that their camera cannot see, which the formula projects nonetheless."""
        if self.bearings:
            return torch.zeros_like(self.layout.view, dtype=torch.bool)
        p, index = self._camera_frame(self.cameras_of(scene, data))[2][:, None], self.intrinsics_index[self.layout.view]
        return ~in_front(p, scene.distortion[index], model=self.model).squeeze(1)

    def residual(self, scene: Bundle, data: BundleData) -> Tensor:
        """Weighted reprojection errors (M,2)."""
        p = self._camera_frame(self.cameras_of(scene, data))[2]
        index = self.intrinsics_index[self.layout.view]
        r = data.weights * (self._pixels(p, scene.K[index], scene.distortion[index]) - data.points2d)
        # weight zero is as good as absent, wherever the point lies
        return torch.where(data.weights != 0, r, torch.zeros_like(r))

    def point_costs(self, scene: Bundle, data: BundleData) -> Tensor:
        """Costs (N,) of the points' observations and priors, which add up to the cost but for the cameras' priors."""
        if self._compiled(data) and not torch.is_grad_enabled():
            layout, views = self.single
            observed = data.points2d, data.weights, layout, self.kernel, self.model
            costs = operator.point_costs(self.cameras_of(scene, data)[:4], self.intrinsics_index[views], *observed)
        else:
            s = self.residual(scene, data).square().sum(-1)
            costs = self.layout.per_point(0.5 * (s if self.kernel is None else self.kernel(s)))
        prior = data.prior
        if prior.points3d is not None and prior.point_weights is not None:
            costs = costs + 0.5 * (prior.point_weights * (scene.points3d - prior.points3d)).square().sum(-1)
        return costs

    def _known(self, scene: Bundle, theta: Tensor, prior: Prior) -> list[Known]:
        """What the prior knows of the camera unknowns."""
        sensor, velocity, _ = self._columns
        mounted = self.frame if self.rig is None else self.rig.sensor
        kinds = (
            (scene.world_to_camera, prior.world_to_camera, prior.pose_weights, 0, self.frame),
            (scene.sensor_from_rig, prior.sensor_from_rig, prior.sensor_weights, sensor, mounted),
            (theta, prior.theta, prior.theta_weights, 6 if self.names else None, self.intrinsics_index),
            (scene.velocity, prior.velocity, prior.velocity_weights, velocity, self.frame),
        )
        return [
            Known(value, known, weights, first, self._once(first or 0, shared), shared)
            for value, known, weights, first, shared in kinds
            if value is not None and known is not None and weights is not None
        ]

    def cost(self, state: State, data: BundleData) -> Tensor:
        """Cost (), differentiable in unknowns and data."""
        scene = self.compose(state, data.given)
        return self.point_costs(scene, data).sum() + cost_of(self._known(scene, state.theta, data.prior), state.theta)

    def rays(self, state: State) -> Tensor:
        """From the camera that saw a point first to the point: (N,3)."""
        first = self.layout.begin[:-1].clamp_max(max(0, len(self.layout.view) - 1))
        view = self.layout.view[first]
        poses = state.world_to_camera[self.frame[view]]
        if self.rig is not None:
            poses = state.sensor_from_rig[self.rig.sensor[view]] @ poses
        return state.points3d - se3.centre(poses)

    def along(self, state: State, step: Tangent, data: BundleData) -> tuple[State, Tensor]:
        """Move the unknowns along a step, every point on the better of two ways; returns the points' costs (N,) there.

        The ways agree to first order: a straight line, and one that is straight in homogeneous coordinates about the
        camera that saw the point first (that is, in inverse depth). Points far away are linear in the latter, and
        would crawl to infinity on the former, a few times farther at every step.
        """
        moved = self.retract(state, step)
        ray = self.rays(state)
        outward = (ray * step.points).sum(-1, keepdim=True) / ray.square().sum(-1, keepdim=True)
        # no point goes beyond infinity, or farther out than ten times at once
        bent = (ray + step.points - outward * ray) / (1 - outward).clamp_min(0.1)
        other = moved._replace(points3d=state.points3d + (bent - ray))
        scene, other_scene = self.compose(moved, data.given), self.compose(other, data.given)
        costs, other_costs = self.point_costs(scene, data), self.point_costs(other_scene, data)
        better = other_costs < costs
        points = torch.where(better[:, None], other_scene.points3d, moved.points3d)
        return moved._replace(points3d=points), torch.where(better, other_costs, costs)

    def advance(self, state: State, step: Tangent, data: BundleData) -> tuple[State, Tensor]:
        """`along` a step; returns the cost () there."""
        moved, costs = self.along(state, step, data)
        known = self._known(self.compose(moved, data.given), moved.theta, data.prior)
        return moved, costs.sum() + cost_of(known, moved.theta)

    def linearize(self, state: State, data: BundleData, *, exact: bool = False) -> NormalEquations:
        """Normal equations at a state: Gauss-Newton's, or with the exact Hessian."""
        scene = self.compose(state, data.given)
        poses, motions = self._chain(scene, data)
        cameras, (layout, views) = Bundle(poses, *scene[1:4]), self.single
        index = self.intrinsics_index[views]
        if self._compiled(data):
            observed = data.points2d, data.weights, layout, self.kernel, self.model
            blocks = operator.linearize(cameras[:4], index, *observed, names=self.names, exact=exact)
        else:
            blocks = self._blocks(cameras, state.theta[index], data, exact)
        for one in motions:
            blocks = pull_back(blocks, one, layout, exact)
        if layout is not self.layout:
            blocks = blocks._replace(views=self.layout.per_view(blocks.views), U=self.layout.per_view(blocks.U))
        blocks = add_known(blocks, self._known(scene, state.theta, data.prior), exact)
        cost, g, points, U, W, V = blocks
        prior = data.prior
        if prior.points3d is not None and prior.point_weights is not None:
            r = prior.point_weights * (scene.points3d - prior.points3d)
            cost = cost + 0.5 * r.square().sum()
            points = points + prior.point_weights * r
            V = V + torch.diag_embed(prior.point_weights.square())
        return NormalEquations(cost, Tangent(self.layout.from_views(g), points), U, W, V)

    def _compiled(self, data: BundleData) -> bool:
        return not self.in_tensors and operator.supported(data.points2d, self.names, self.model, self.kernel)

    def _blocks(self, cameras: Bundle, theta: Tensor, data: BundleData, exact: bool) -> operator.Blocks:
        """What observations add to the normal equations of single cameras, theta (n,P)."""
        layout, P = self.single[0], len(self.names)
        R, q, p = self._camera_frame(cameras)
        index = self.intrinsics_index[self.layout.view]
        given = data.given.K[index], data.given.distortion[index]

        def pixels(y: Tensor) -> Tensor:
            """Of the inner variables y (M,3+P) = (p, theta)."""
            return self._pixels(y[:, :3], *self.intrinsics(*given, y[:, 3:]))

        y = torch.cat([p, theta[layout.view]], -1)
        axes = torch.eye(3 + P, dtype=y.dtype, device=y.device)
        seen, J = vmap(lambda axis: directional(pixels, y, axis), out_dims=(None, -1))(axes)  # type: ignore[arg-type]
        absent = data.weights == 0
        r = torch.where(absent, 0, data.weights * (seen - data.points2d))
        J = torch.where(absent[..., None], 0, data.weights[..., None] * J)
        rho, slope, bend = kernel_derivatives(self.kernel, r.square().sum(-1))
        b = (J.mT @ r[..., None]).squeeze(-1)
        a, C = slope[:, None] * b, slope[:, None, None] * (J.mT @ J)
        if exact:
            C = C + 2 * bend[:, None, None] * b[:, :, None] * b[:, None, :]
            covector = slope[:, None] * data.weights * r
            C = C + torch.where(absent.all(-1)[:, None, None], 0, curvature(pixels, y, covector))
        # d (p, theta) / d (omega, v, kappa, dX)
        eye = torch.eye(3, dtype=y.dtype, device=y.device).expand_as(R)
        moved = torch.cat([-se3.hat(q), eye, R.new_zeros(len(R), 3, P), R], -1)
        kappa = torch.cat([axes.new_zeros(P, 6), axes[3:, 3:], axes.new_zeros(P, 3)], -1).expand(len(R), -1, -1)
        M = torch.cat([moved, kappa], -2)
        g, H = (M.mT @ a[..., None]).squeeze(-1), M.mT @ C @ M
        if exact:
            # second order of exp(omega) R (X + dX): omega x (omega x q) and omega x R dX, along a
            H[:, :3, :3] += 0.5 * (a[:, :3, None] * q[:, None] + q[:, :, None] * a[:, None, :3])
            H[:, :3, :3] -= (a[:, :3] * q).sum(-1)[:, None, None] * eye
            mixed = -se3.hat(a[:, :3]) @ R
            H[:, :3, -3:] += mixed
            H[:, -3:, :3] += mixed.mT
        views, points = layout.per_view(g[:, :-3]), layout.per_point(g[:, -3:])
        U, V = layout.per_view(H[:, :-3, :-3]), layout.per_point(H[:, -3:, -3:])
        return operator.Blocks(0.5 * rho.sum(), views, points, U, H[:, :-3, -3:].contiguous(), V)
