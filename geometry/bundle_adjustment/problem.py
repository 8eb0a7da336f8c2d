"""The reprojection error of many cameras and points, observation by observation, in tensor operations.

Data flow one way: unknowns (`State`) and data are composed to a `Bundle`; each observation takes its camera and its
point from there. The derivatives are those of the composed function

    step (omega, v, kappa, dX)  ->  p = exp(omega) R (X + dX) + t + v,  theta + kappa  ->  pixel  ->  cost

whose last part, (p, theta) -> pixel, is differentiated by forward mode, so that a lens stays one function.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import hessian, jacfwd, vmap

from geometry import se3
from geometry._forward import directional, one_at_a_time
from geometry.bundle_adjustment import operator
from geometry.bundle_adjustment.equations import NormalEquations, Tangent
from geometry.bundle_adjustment.indices import Layout
from geometry.bundle_adjustment.rigs import Rig, pull_back, view_poses
from geometry.camera import Model, in_front, project_camera_frame
from geometry.lenses import LENSES
from geometry.robust import Kernel, kernel_derivatives

__all__ = ["Bundle", "BundleData", "BundleProblem", "Prior", "State"]


class Bundle(NamedTuple):
    """What is seen, and by what: world_to_camera (V,4,4), points3d (N,3), K (C,3,3), distortion (C,k).

    Of rigs world_to_camera (F,4,4) is the world_to_rig of each frame, sensor_from_rig (S,4,4) where its cameras sit.
    """

    world_to_camera: Tensor
    points3d: Tensor
    K: Tensor
    distortion: Tensor
    sensor_from_rig: Tensor | None = None


class State(NamedTuple):
    """The unknowns: world_to_camera (F,4,4) of views or frames, points3d (N,3), theta (C,P): values of the free
    intrinsics, sensor_from_rig (S,4,4), which are none without rigs."""

    world_to_camera: Tensor
    points3d: Tensor
    theta: Tensor
    sensor_from_rig: Tensor


class Prior(NamedTuple):
    """What is known beforehand, with weights 1/sigma; a weight of zero knows nothing, None nothing of the kind.

    world_to_camera (V,4,4), pose_weights (V,6): the residual is the rotation vector of R R_prior^T (radians, camera
    axes) and the difference of the camera centres (world units, world axes; what a GPS measures). points3d (N,3),
    point_weights (N,3): control points. theta (C,P), theta_weights (C,P): the free intrinsics in the order of their
    names, "f" standing for fx. sensor_from_rig (S,4,4), sensor_weights (S,6): mountings, the residual as for poses. Of
    rigs the poses are those of the frames.
    """

    world_to_camera: Tensor | None = None
    pose_weights: Tensor | None = None
    points3d: Tensor | None = None
    point_weights: Tensor | None = None
    theta: Tensor | None = None
    theta_weights: Tensor | None = None
    sensor_from_rig: Tensor | None = None
    sensor_weights: Tensor | None = None


class BundleData(NamedTuple):
    """What the optimum depends on: points2d (M,2), weights (M,2), the start or fixed values, and the prior."""

    points2d: Tensor
    weights: Tensor
    given: Bundle
    prior: Prior


def _pose_prior(pose: Tensor, prior: Tensor, weights: Tensor) -> Tensor:
    """Residual (6,) of one camera."""
    turn = se3.log(pose[:3, :3] @ prior[:3, :3].mT)
    return weights * torch.cat([turn, se3.centre(pose) - se3.centre(prior)])


def _pose_prior_derivatives(
    poses: Tensor, priors: Tensor, weights: Tensor, exact: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Residuals (n,6), their Jacobians by the steps of the poses, and J^T J or the exact Hessians (n,6,6)."""

    def moved(step: Tensor, pose: Tensor, known: Tensor, weights: Tensor) -> Tensor:
        return _pose_prior(se3.retract(pose, step), known, weights)

    inputs = (poses.new_zeros(len(poses), 6), poses, priors, weights)
    with one_at_a_time():
        r, J = vmap(moved)(*inputs), vmap(jacfwd(moved))(*inputs)
        return r, J, vmap(hessian(lambda *a: 0.5 * moved(*a).square().sum()))(*inputs) if exact else J.mT @ J


@dataclass(frozen=True)
class BundleProblem:
    """Half the sum of rho(|weighted reprojection error|^2), plus half the squared prior, over a `State`.

    layout: who sees what. cameras: C; intrinsics_index (V,): which of them took which image. fixed_poses (F,),
    fixed_points (N,) bool. names: free intrinsics. rig: how views are mounted, None where each has a pose of its own.
    in_tensors: do without the compiled kernels.
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
    in_tensors: bool = False

    def intrinsics(self, K: Tensor, distortion: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """K (…,3,3) and distortion (…,k) with the free ones replaced by theta (…,P); "f" keeps the pixels' shape."""
        if not self.names:
            return K, distortion
        A, c, d = K[..., :2, :2], list(K[..., :2, 2].unbind(-1)), list(distortion.unbind(-1))
        for name, value in zip(self.names, theta.unbind(-1), strict=True):
            if name == "f":
                A = A * (value / A[..., 0, 0])[..., None, None]
            elif name in ("fx", "fy"):
                i = ("fx", "fy").index(name)
                here = torch.zeros(2, 2, dtype=torch.bool, device=K.device)
                here[i, i] = True
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
        places = {"f": K[:, 0, 0], "fx": K[:, 0, 0], "fy": K[:, 1, 1], "cx": K[:, 0, 2], "cy": K[:, 1, 2]}
        places |= dict(zip(LENSES[self.model].names, distortion.unbind(-1), strict=False))
        return torch.stack([places[name] for name in self.names], -1) if self.names else K.new_zeros(len(K), 0)

    def start(self, given: Bundle) -> State:
        """The state that is given."""
        sensors = given.K.new_zeros(0, 4, 4) if given.sensor_from_rig is None else given.sensor_from_rig
        return State(given.world_to_camera, given.points3d, self.theta_of(given.K, given.distortion), sensors)

    def compose(self, state: State, given: Bundle) -> Bundle:
        """The scene of unknowns and what is fixed, differentiable in both."""
        poses = torch.where(self.fixed_poses[:, None, None], given.world_to_camera, state.world_to_camera)
        points = torch.where(self.fixed_points[:, None], given.points3d, state.points3d)
        lens = self.intrinsics(given.K, given.distortion, state.theta)
        if self.rig is None or given.sensor_from_rig is None:
            return Bundle(poses, points, *lens)
        sensors = torch.where(self.rig.fixed[:, None, None], given.sensor_from_rig, state.sensor_from_rig)
        return Bundle(poses, points, *lens, sensors)

    def views(self, scene: Bundle) -> Bundle:
        """The scene with a pose of its own for each view: world_to_camera (V,4,4)."""
        if self.rig is None or scene.sensor_from_rig is None:
            return scene
        poses = view_poses(scene.world_to_camera, scene.sensor_from_rig, self.rig)
        return scene._replace(world_to_camera=poses, sensor_from_rig=None)

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
    def sensor_rows(self) -> Tensor:
        """(S,6): where the mountings lie."""
        if self.rig is None or not self.rig.moving:
            sensors = 0 if self.rig is None else len(self.rig.fixed)
            return torch.full((sensors, 6), self.layout.size, device=self.layout.rows.device)
        end = self.layout.rows.shape[1]
        return self._rows_of(end - 6, end, self.rig.sensor, len(self.rig.fixed))

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
        ):
            if weights is not None:
                known += int((weights[rows < layout.size] != 0).sum())
        if prior.point_weights is not None:
            known += int((prior.point_weights[~layout.held] != 0).sum())
        return known - layout.size - 3 * int((~layout.held).sum())

    def columns(self, step: Tangent) -> tuple[Tensor, Tensor, Tensor]:
        """The steps of poses (F,6), intrinsics (C,P) and mountings (S,6) of a tangent vector, zero where fixed."""
        cameras = torch.cat([step.cameras, step.cameras.new_zeros(1)])
        return cameras[self.pose_rows], cameras[self.theta_rows], cameras[self.sensor_rows]

    def retract(self, state: State, step: Tangent) -> State:
        """Move the unknowns."""
        pose_step, kappa, sensor_step = self.columns(step)
        poses, sensors = state.world_to_camera, state.sensor_from_rig
        points = state.points3d + torch.where(self.layout.held[:, None], 0, step.points)
        if self.rig is not None and self.rig.moving:
            sensors = se3.retract(sensors, sensor_step)
        return State(se3.retract(poses, pose_step), points, state.theta + kappa, sensors)

    def _camera_frame(self, scene: Bundle) -> tuple[Tensor, Tensor, Tensor]:
        """R (M,3,3), rotated points R X (M,3) and points in the camera frame (M,3), of observations by `views`."""
        pose = scene.world_to_camera[self.layout.view]
        rotated = (pose[:, :3, :3] * scene.points3d[self.layout.point][:, None]).sum(-1)
        return pose[:, :3, :3], rotated, rotated + pose[:, :3, 3]

    def _pixels(self, p: Tensor, K: Tensor, distortion: Tensor) -> Tensor:
        return project_camera_frame(p[:, None], K, distortion, model=self.model).squeeze(1)

    def behind(self, scene: Bundle) -> Tensor:
        """Observations (M,) of points that their camera cannot see, which the formula projects nonetheless."""
        p, index = self._camera_frame(self.views(scene))[2][:, None], self.intrinsics_index[self.layout.view]
        return ~in_front(p, scene.distortion[index], model=self.model).squeeze(1)

    def residual(self, scene: Bundle, data: BundleData) -> Tensor:
        """Weighted reprojection errors (M,2)."""
        p = self._camera_frame(self.views(scene))[2]
        index = self.intrinsics_index[self.layout.view]
        r = data.weights * (self._pixels(p, scene.K[index], scene.distortion[index]) - data.points2d)
        # weight zero is as good as absent, wherever the point lies
        return torch.where(data.weights != 0, r, torch.zeros_like(r))

    def _point_costs(self, scene: Bundle, data: BundleData) -> Tensor:
        """Costs (N,) of the points' observations and priors, which add up to the cost but for the cameras' priors."""
        if self._compiled(data) and not torch.is_grad_enabled():
            views = self.views(scene)[:4]
            costs = operator.point_costs(views, self.intrinsics_index, *data[:2], self.layout, self.kernel, self.model)
        else:
            s = self.residual(scene, data).square().sum(-1)
            costs = self.layout.per_point(0.5 * (s if self.kernel is None else self.kernel(s)))
        prior = data.prior
        if prior.points3d is not None and prior.point_weights is not None:
            costs = costs + 0.5 * (prior.point_weights * (scene.points3d - prior.points3d)).square().sum(-1)
        return costs

    def _known_poses(self, scene: Bundle, prior: Prior) -> list[tuple[tuple[Tensor, Tensor, Tensor], int, Tensor]]:
        """Poses, their priors and weights, of frames and of mountings; the first of their columns, the views' index."""
        found = []
        if prior.world_to_camera is not None and prior.pose_weights is not None:
            found.append(((scene.world_to_camera, prior.world_to_camera, prior.pose_weights), 0, self.frame))
        sensors, known, weights = scene.sensor_from_rig, prior.sensor_from_rig, prior.sensor_weights
        if self.rig is not None and sensors is not None and known is not None and weights is not None:
            found.append(((sensors, known, weights), 6 + len(self.names), self.rig.sensor))
        return found

    def _camera_prior_cost(self, scene: Bundle, theta: Tensor, prior: Prior) -> Tensor:
        cost = theta.new_zeros(())
        for known, _, _ in self._known_poses(scene, prior):
            cost = cost + 0.5 * vmap(_pose_prior)(*known).square().sum()
        if prior.theta is not None and prior.theta_weights is not None:
            cost = cost + 0.5 * (prior.theta_weights * (theta - prior.theta)).square().sum()
        return cost

    def cost(self, state: State, data: BundleData) -> Tensor:
        """Cost (), differentiable in unknowns and data."""
        scene = self.compose(state, data.given)
        return self._point_costs(scene, data).sum() + self._camera_prior_cost(scene, state.theta, data.prior)

    def rays(self, state: State) -> Tensor:
        """From the camera that saw a point first to the point: (N,3)."""
        first = self.layout.begin[:-1].clamp_max(max(0, len(self.layout.view) - 1))
        poses = state.world_to_camera
        if self.rig is not None:
            poses = view_poses(poses, state.sensor_from_rig, self.rig)
        return state.points3d - se3.centre(poses)[self.layout.view[first]]

    def advance(self, state: State, step: Tangent, data: BundleData) -> tuple[State, Tensor]:
        """Move the unknowns along a step, every point on the better of two ways; returns the cost () there.

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
        costs, other_costs = self._point_costs(scene, data), self._point_costs(other_scene, data)
        better = other_costs < costs
        points = torch.where(better[:, None], other_scene.points3d, moved.points3d)
        cost = torch.where(better, other_costs, costs).sum() + self._camera_prior_cost(scene, moved.theta, data.prior)
        return moved._replace(points3d=points), cost

    def linearize(self, state: State, data: BundleData, *, exact: bool = False) -> NormalEquations:
        """Normal equations at a state: Gauss-Newton's, or with the exact Hessian."""
        scene = self.compose(state, data.given)
        if self._compiled(data):
            observed = *data[:2], self.layout, self.kernel, self.model
            index = self.intrinsics_index
            blocks = operator.linearize(self.views(scene)[:4], index, *observed, names=self.names, exact=exact)
        else:
            blocks = self._blocks(self.views(scene), state, data, exact)
        if self.rig is not None and scene.sensor_from_rig is not None:
            frames = scene.world_to_camera, scene.sensor_from_rig, self.rig
            blocks = pull_back(blocks, *frames, self.layout, exact)
        return self._with_prior(blocks, scene, state, data, exact)

    def _compiled(self, data: BundleData) -> bool:
        return not self.in_tensors and operator.supported(data.points2d, self.names, self.model, self.kernel)

    def _blocks(self, scene: Bundle, state: State, data: BundleData, exact: bool) -> operator.Blocks:
        """What the observations add to the normal equations."""
        layout, P = self.layout, len(self.names)
        R, q, p = self._camera_frame(scene)
        index = self.intrinsics_index[layout.view]
        given = data.given.K[index], data.given.distortion[index]

        def pixels(y: Tensor) -> Tensor:
            """Of the inner variables y (M,3+P) = (p, theta)."""
            return self._pixels(y[:, :3], *self.intrinsics(*given, y[:, 3:]))

        y = torch.cat([p, state.theta[index]], -1)
        axes = torch.eye(3 + P, dtype=y.dtype, device=y.device)
        columns = [directional(pixels, y, axis) for axis in axes]
        absent = data.weights == 0
        r = torch.where(absent, 0, data.weights * (columns[0][0] - data.points2d))
        J = torch.stack([column for _, column in columns], -1)
        J = torch.where(absent[..., None], 0, data.weights[..., None] * J)
        rho, slope, bend = kernel_derivatives(self.kernel, r.square().sum(-1))
        b = (J.mT @ r[..., None]).squeeze(-1)
        a, C = slope[:, None] * b, slope[:, None, None] * (J.mT @ J)
        if exact:
            C = C + 2 * bend[:, None, None] * b[:, :, None] * b[:, None, :]
            covector = slope[:, None] * data.weights * r
            C = C + torch.where(absent.all(-1)[:, None, None], 0, _curvature(pixels, y, covector))
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

    def _with_prior(
        self, blocks: operator.Blocks, scene: Bundle, state: State, data: BundleData, exact: bool
    ) -> NormalEquations:
        """The normal equations of observations and prior."""
        prior, layout = data.prior, self.layout
        cost, g, points, U, W, V = blocks
        width = layout.rows.shape[1]
        for known, first, shared in self._known_poses(scene, prior):
            r, J, H = _pose_prior_derivatives(*known, exact)
            cost = cost + 0.5 * r.square().sum()
            # what views share is known once: in the first of them
            once = self._once(first, shared)[:, None]
            room = first, width - first - 6
            g = g + once * torch.nn.functional.pad((J.mT @ r[..., None]).squeeze(-1)[shared], room)
            U = U + once[..., None] * torch.nn.functional.pad(H[shared], room + room)
        if prior.theta is not None and prior.theta_weights is not None and self.names:
            r = prior.theta_weights * (state.theta - prior.theta)
            cost = cost + 0.5 * r.square().sum()
            index, room = self.intrinsics_index, (6, width - 6 - len(self.names))
            weights = self._once(6, index)[:, None] * prior.theta_weights[index]
            g = g + torch.nn.functional.pad(weights * r[index], room)
            U = U + torch.diag_embed(torch.nn.functional.pad(weights.square(), room))
        if prior.points3d is not None and prior.point_weights is not None:
            r = prior.point_weights * (scene.points3d - prior.points3d)
            cost = cost + 0.5 * r.square().sum()
            points = points + prior.point_weights * r
            V = V + torch.diag_embed(prior.point_weights.square())
        return NormalEquations(cost, Tangent(layout.from_views(g), points), U, W, V)


def _curvature(f: Callable[[Tensor], Tensor], y: Tensor, covector: Tensor) -> Tensor:
    """Second derivative (M,n,n) of <covector, f(y)>, y (M,n)."""
    n = y.shape[1]
    axes = torch.eye(n, dtype=y.dtype, device=y.device)

    def slope(i: int) -> Callable[[Tensor], Tensor]:
        return lambda y: (covector * directional(f, y, axes[i])[1]).sum(-1)

    entry = {(i, j): directional(slope(i), y, axes[j])[1] for i in range(n) for j in range(i, n)}
    return torch.stack([entry[min(i, j), max(i, j)] for i in range(n) for j in range(n)], -1).unflatten(-1, (n, n))
