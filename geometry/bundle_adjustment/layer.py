"""Multi-view bundle adjustment: cameras, points and intrinsics from tracks, differentiable in everything given.

    solution = bundle(points2d, camera_index, point_index, world_to_camera, points3d, K)
    solution.x.points3d                 # (N,3), with exact gradients to points2d, weights, whatever is fixed, priors

Levenberg-Marquardt on the Schur complement of the points (`geometry.bundle_adjustment.schur`), then Newton with the
exact Hessian, whose factor also gives the gradients of the optimum (implicit function theorem) and its covariance. Half
a dozen parameters a camera and three a point never meet in one dense matrix; observations are a flat list, so that what
a camera does not see costs nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.func import grad

from geometry import se3
from geometry.bundle_adjustment.equations import Tangent
from geometry.bundle_adjustment.gauge import GaugeChoice, choose_rows
from geometry.bundle_adjustment.layout import (
    check_bearings,
    check_prior,
    check_range,
    check_rig,
    check_scene,
    check_shutter,
    components,
    determining,
    free_names,
    lay_out,
)
from geometry.bundle_adjustment.problem import Bundle, BundleData, BundleProblem, Prior, State
from geometry.bundle_adjustment.solver import Solver, Task, solve
from geometry.bundle_adjustment.uncertainty import BundleCovariance, covariance
from geometry.camera import Model
from geometry.checks import (
    What,
    boolean,
    check_tensors,
    check_tensors_or_none,
    function,
    indices,
    leading,
    one_of,
    plainly,
    shaped,
    values,
    whole,
)
from geometry.optim import Batch, Solution, SolverError, Status, constant, implicit, solved
from geometry.robust import Kernel, check_kernel

__all__ = ["Bundle", "BundleSolution", "Prior", "bundle"]


@dataclass(frozen=True)
class _Optimum:
    """`Equation` of a bundle: the gradient of its cost vanishes at a `State`.

    x holds besides it the rays (N,3) of points without depth, which do not move. The tensors are those of `_flatten`
    that are there, in its order. A tangent vector is flat: the D camera unknowns, then the points.
    """

    task: Task
    there: tuple[bool, ...]
    exact: bool
    max_steps: int
    callback: Callable[[int, float], None] | None
    first: ClassVar[int] = 0
    batch: ClassVar[Batch] = "none"

    def find(self, *tensors: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
        data = _unflatten(tensors, self.there)
        task = replace(self.task, data=data)
        start = task.problem.start(data.given)
        state, cost, status, steps, stiff = solve(task, start, self.max_steps, self.callback)
        converged = torch.tensor(status == Status.CONVERGED, device=cost.device)
        code = torch.full((1,), status, dtype=torch.int8, device=cost.device)
        count = torch.full((1,), steps, dtype=torch.int32, device=cost.device)
        return (*state, stiff), (converged, cost[None], code, count)

    def step(self, x: Sequence[Tensor]) -> Tensor:
        return x[1].new_zeros(self.task.problem.layout.size + 3 * len(x[1]))

    def _tangent(self, step: Tensor) -> Tangent:
        D = self.task.problem.layout.size
        return Tangent(step[:D], step[D:].view(-1, 3, *step.shape[1:]))

    def retract(self, x: Sequence[Tensor], step: Tensor) -> tuple[Tensor, ...]:
        return *self.task.problem.retract(State(*x[:-1]), self._tangent(step)), x[-1]

    def slope(self, x: Sequence[Tensor], *tensors: Tensor) -> Tensor:
        problem, data = replace(self.task.problem, in_tensors=True), _unflatten(tensors, self.there)
        return grad(lambda step: problem.cost(State(*self.retract(x, step)[:-1]), data))(self.step(x))

    def solve(self, x: Sequence[Tensor], tensors: tuple[Tensor, ...], b: Tensor) -> tuple[Tensor, Tensor]:
        return solved(self._solve, b, *x, *tensors)

    def _solve(self, b: Tensor, *x_and_tensors: Tensor) -> tuple[Tensor, Tensor]:
        size = len(State._fields)
        state, data = State(*x_and_tensors[:size]), _unflatten(x_and_tensors[size + 1 :], self.there)
        task = replace(self.task, data=data, stiff=x_and_tensors[size])
        gauge = task.gauge_at(state)
        system = task.factorise(state, task.problem.linearize(state, data, exact=self.exact), gauge)
        columns = self._tangent(b)
        # what the gauge leaves of a step, and of its covector: the slope knows nothing of the rest
        u = system.solve_exactly(columns if gauge is None else gauge.ignore(columns))
        u = u if gauge is None else gauge.section(u)
        return torch.cat([u.cameras, u.points.flatten(0, 1)]), system.ok


def _flatten(data: BundleData) -> tuple[Tensor | None, ...]:
    return (*data[:4], *data.given, *data.prior)


def _unflatten(tensors: Sequence[Tensor], there: Sequence[bool]) -> BundleData:
    """The data of what `_flatten` makes of them, without those that are not there."""
    every = iter(tensors)
    points2d, weights, times, bearings, *rest = (next(every) if one else None for one in there)
    assert points2d is not None
    assert weights is not None
    size = len(Bundle._fields)
    return BundleData(points2d, weights, times, bearings, Bundle(*rest[:size]), Prior(*rest[size:]))  # type: ignore[arg-type]


def _used(tensors: Sequence[Tensor], there: Sequence[bool], order: Tensor, place: Tensor) -> list[Tensor]:
    """What `_flatten` makes of the data, of these observations alone, in float64 and relative to a place (3,)."""
    data = _unflatten([t.double() for t in tensors], there).of(order)
    given, prior = data.given, data.prior
    given = given._replace(world_to_camera=se3.about(given.world_to_camera, place), points3d=given.points3d - place)
    if prior.world_to_camera is not None:
        prior = prior._replace(world_to_camera=se3.about(prior.world_to_camera, place))
    if prior.points3d is not None:
        prior = prior._replace(points3d=prior.points3d - place)
    return [t for t in _flatten(data._replace(given=given, prior=prior)) if t is not None]


def _amid(centres: Tensor, points3d: Tensor) -> Tensor:
    """A place (3,) amid the points (N,3) that are not much farther than others from the cameras (V,3) that see them.

    It moves with the world, and little with a point that lies at infinity. About it, turns and shifts of cameras can be
    told apart.
    """
    seen_from = centres.mean(0).nan_to_num()
    distance = (points3d - seen_from).norm(dim=-1, keepdim=True)
    typical = distance.median().clamp_min(torch.finfo(distance.dtype).tiny) if len(distance) else 1.0
    weight = 1 / (1 + (distance / typical).square()).square()
    return seen_from + (weight * (points3d - seen_from)).sum(0) / weight.sum().clamp_min(1e-300)


def _moved_back(found: State, given: Bundle, task: Task) -> State:
    """What was found relative to the task's place, in the caller's world; what has not moved is what was given."""
    start, R = task.data.given, found.world_to_camera[:, :3, :3]
    turned, moved = R - start.world_to_camera[:, :3, :3], found.world_to_camera - start.world_to_camera
    t = given.world_to_camera[:, :3, 3] + moved[:, :3, 3] - (turned @ task.place[:, None]).squeeze(-1)
    return found._replace(world_to_camera=se3.make(R, t), points3d=given.points3d + (found.points3d - start.points3d))


@dataclass(frozen=True)
class BundleSolution(Solution):
    """A `Solution` (cost, status and steps of size 1) whose x is a `Bundle`.

    left_out (M,) bool: observations that determine nothing (of a point that fewer than two views see, of a view with
    too few points; the same observed twice counts once) and were not used. behind (M,) bool: observations whose point
    ended behind its camera. undetermined (N,) bool: points whose depth the data leave open, as of a point at infinity:
    they would still more than double their distance from the camera that saw them first; gradients and covariance hold
    that distance.

    >>> found = bundle(points2d.flatten(0, 1), view, point, pose, points3d, K)
    >>> found.left_out.any(), found.covariance().cameras.shape
    (tensor(False), torch.Size([3, 6, 6]))
    """

    x: Bundle
    left_out: Tensor
    behind: Tensor
    undetermined: Tensor
    task: Task
    state: State

    @property
    def component(self) -> Tensor:
        """Which part of the scene each view belongs to (V,), from 0, -1 for a view that was not used.

        Parts share no point and no frame of a rig: how they lie to one another is not determined, and together they
        are SINGULAR unless something fixed or known places each of them.
        """
        problem, layout = self.task.problem, self.task.problem.layout
        frame = problem.frame
        part = components(frame[layout.view], layout.point, len(problem.fixed_poses), len(layout.held))[frame]
        seen = torch.bincount(layout.view, minlength=len(frame)) > 0
        return torch.where(seen, part, -1)

    @property
    def message(self) -> str:
        """What became of it, for a person: the status, and what else should be known before x is used."""

        def look(status: Tensor, behind: Tensor, left_out: Tensor, undetermined: Tensor) -> str:
            singular = int(status) == Status.SINGULAR
            parts = int(self.component.max()) + 1 if singular else 1
            notes = (
                (parts > 1, f"the views fall into {parts} parts that share no point (`component`): solve each by itself"
                            " or place them by what is fixed or known"),
                (behind.any(), f"{int(behind.sum())} of {len(behind)} observations see a point behind their camera"),
                (left_out.any(), f"{int(left_out.sum())} of {len(left_out)} observations determine nothing and were"
                                 " left out"),
                (undetermined.any(), f"{int(undetermined.sum())} of {len(undetermined)} points have no depth"),
            )  # fmt: skip
            return "; ".join([Status(int(status)).message, *(text for there, text in notes if there)])

        return plainly(look, self.status, self.behind, self.left_out, self.undetermined)

    def raise_if_failed(self) -> None:
        """Raise SolverError with the `message` unless the status is CONVERGED."""
        if not plainly(bool, self.converged):
            raise SolverError(self.message)

    def covariance(self, points: Tensor | None = None, sigma: float | None = None) -> BundleCovariance:
        """Covariance at the optimum, to first order in the noise and in the chosen gauge (`geometry.covariance`).

        points (n,): indices of the points wanted, None for none. Without a kernel sigma^2 (J^T J)^-1; sigma, the
        standard deviation of one weighted residual component, is estimated from the residuals where it is None. With
        a kernel A^-1 B A^-1 with the exact Hessian A, and no sigma. A prior is taken to be as exact as it says.
        NaN where the data do not determine the cameras, where sigma is to be estimated from no more numbers than
        unknowns, and with a kernel where x is no minimum.
        """
        if points is not None:
            indices("points", points)
        with torch.no_grad():
            return covariance(self.task, self.state, points, sigma)


def _each(scene: Bundle, function: Callable[[Tensor], Tensor]) -> Bundle:
    """A function of every tensor of a scene."""
    return Bundle(*(None if t is None else function(t) for t in scene))  # type: ignore[arg-type]


def _mask(mask: Tensor | None, size: int, like: Bundle) -> Tensor:
    return torch.zeros(size, dtype=torch.bool, device=like.K.device) if mask is None else mask


def bundle(
    points2d: Tensor,
    camera_index: Tensor,
    point_index: Tensor,
    world_to_camera: Tensor,
    points3d: Tensor,
    K: Tensor | None,
    distortion: Tensor | None = None,
    *,
    intrinsics_index: Tensor | None = None,
    weights: Tensor | None = None,
    free: Sequence[str] = ("poses", "points"),
    fixed_poses: Tensor | None = None,
    fixed_points: Tensor | None = None,
    prior: Prior | None = None,
    rig_index: Tensor | None = None,
    sensor_index: Tensor | None = None,
    sensor_from_rig: Tensor | None = None,
    fixed_sensors: Tensor | None = None,
    times: Tensor | None = None,
    velocity: Tensor | None = None,
    model: Model | Literal["ray"] = "radtan",
    kernel: Kernel | None = None,
    gauge: GaugeChoice = "fixed",
    gradient: Literal["exact", "gauss_newton"] = "exact",
    solver: Solver = "auto",
    max_steps: int = 100,
    throw: bool = False,
    callback: Callable[[int, float], None] | None = None,
) -> BundleSolution:
    """Find cameras, points and intrinsics that fit the tracks best, next to a start.

    points2d (M,2) px: observations, in any order; camera_index (M,) and point_index (M,), int32 or int64: of which
    view and which point. world_to_camera (V,4,4), points3d (N,3): the start, and the value of what is fixed. K (3,3) of
    all views, (V,3,3) of each, or (C,3,3) with intrinsics_index (V,) saying which K took which image (shared
    intrinsics); distortion (k,) or (C,k) of `model`. weights (M,) or (M,2), 1/sigma; a weight of zero means absent.

    What is of each view, frame, camera, point or observation may be given once where they share it: distortion (k,), a
    velocity (6,), the fields of a prior.

    free: what is sought: "poses", "points", and intrinsics by name: "f" (fx and fy in their given ratio) or "fx", "fy";
    "cx", "cy"; "skew" (K[0,1]); distortion coefficients as "k1". All else is fixed, as are the views where fixed_poses
    (V,) and the points where fixed_points (N,) are True. prior: what is known beforehand. kernel: robust kernel of each
    observation.

    Rigs: rig_index (V,) and sensor_index (V,) say of which frame and which sensor each view is, sensor_from_rig (S,4,4)
    where the sensors sit; world_to_camera (F,4,4), fixed_poses (F,) and the prior's poses then are those of the frames,
    world_to_rig, and K (3,3) of all sensors or (S,3,3) of each, unless intrinsics_index says otherwise. With "sensors"
    in free the mountings are sought, too, but where fixed_sensors (S,) is True: None holds the first one, to which the
    rig's frame is fastened. What no view uses stays as it is given.

    Rolling shutter: times (M,) in seconds say when each observation was made, relative to the instant of its pose
    (`geometry.tasks.rolling_shutter.row_times`); velocity (V,6), per second, is how cameras (or rigs: (F,6)) move then:
    tau seconds later they see exp(tau omega) (R X + t) + tau v; None is none. With "velocities" in free they are
    sought, with "readout" a factor of all times, `x.readout`, which is only determined where velocities are known.

    model="ray": points2d (M,3) are bearings in the frame of their camera, of any length but zero and in any direction,
    K and distortion are None: what any central camera measures (`geometry.unproject`). The residual is the angle to the
    bearing in radians, along its tangent plane (`geometry.se3.rotation_to_axis`), weights are 1/sigma in 1/radian; no
    point lies behind. x.K is the identity.

    gauge: which of the similar solutions is meant where nothing fixed or known tells. "fixed": the pose of the first
    free view stays, and one coordinate of the place amid the points as another view sees it; "free": no similarity is
    added to the start (the cameras as a whole neither turn nor move nor spread). Gradients and covariance refer to it.
    Where all cameras start in one place, or nearly, the scale that a step finds is kept.

    solver: "dense" factorises the reduced camera matrix, "iterative" multiplies with it (conjugate gradients); "auto"
    takes the latter above 3,000 camera unknowns for the steps, above 12,000 also for the exact end and the gradient.
    callback(step, cost) is told after every trial.

    Returns a `BundleSolution`; x is a `Bundle`, differentiable in points2d, weights, the prior and all that is fixed
    (what is free is a start and gets no gradient): gradient="exact" with the exact Hessian, "gauss_newton" with J^T J.
    Points behind their camera are projected by the formula all the same, as Bundle Adjustment in the Large does.
    Solved in float64; x has the dtype of points3d. Raises ValueError for input that does not fit, SolverError with
    throw=True where the status is not CONVERGED.

    Source: Triggs, McLauchlan, Hartley, Fitzgibbon 2000, "Bundle adjustment: a modern synthesis"; the way that the
    points take is ours (`BundleProblem.advance`).

    >>> seen = points2d.flatten(0, 1).requires_grad_()
    >>> solution = bundle(seen, view, point, pose, points3d, K)
    >>> solution.x.points3d.square().sum().backward()
    >>> solution.converged, seen.grad.shape
    (tensor([True]), torch.Size([36, 2]))
    """
    one_of("gauge", gauge, ("fixed", "free"))
    one_of("solver", solver, ("auto", "dense", "iterative"))
    one_of("gradient", gradient, ("exact", "gauss_newton"))
    check_kernel(kernel)
    constant(kernel=kernel)
    function("callback", callback)
    whole("max_steps", max_steps, 0)
    check_tensors(points2d=points2d, world_to_camera=world_to_camera, points3d=points3d)
    bearings = None
    if model == "ray":
        points2d, bearings, K = check_bearings(points2d, K, distortion)
        model = "fisheye"
    check_tensors(K=K)
    shaped(points2d=(points2d, "M,2"))
    assert K is not None
    check_tensors_or_none(distortion=distortion, weights=weights, sensor_from_rig=sensor_from_rig)
    indices("camera_index", camera_index)
    indices("point_index", point_index)
    for name, mask in (("fixed_poses", fixed_poses), ("fixed_points", fixed_points)):
        if mask is not None:
            boolean(name, mask)
    F, N, M = len(world_to_camera), len(points3d), len(points2d)
    sought = tuple(free) if isinstance(free, Iterable) else ()  # `free_names` says what is wrong with it
    rig = check_rig(rig_index, sensor_index, sensor_from_rig, fixed_sensors, F, sought)
    distortion = K.new_zeros(len(K) if K.ndim == 3 else 1, 0) if distortion is None else distortion
    given = Bundle(world_to_camera, points3d, K, distortion, sensor_from_rig)
    given, shutter = check_shutter(times, velocity, given, sought, rig)
    given, index = check_scene(given, intrinsics_index, model, rig)
    V, C, S = len(index), len(given.K), 0 if rig is None else len(rig.fixed)
    names = free_names(free, given.distortion.shape[-1], model)
    if bearings is not None and names:
        raise ValueError(f'free must hold no intrinsics with model="ray", got {free!r}')
    weights = points2d.new_ones(M, 2) if weights is None else weights
    weights = weights[:, None].expand(M, 2) if weights.shape == (M,) else weights
    shaped(points2d=(points2d, "M,2"), camera_index=(camera_index, "M"), point_index=(point_index, "M"))
    shapes: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "weights": (weights, (M, 2)), "times": (times, (M,)),
        "fixed_poses": (fixed_poses, (F,)), "fixed_points": (fixed_points, (N,)),
    }  # fmt: skip
    P = len(names)
    sizes = ((F, 4, 4), (F, 6), (N, 3), (N, 3), (C, P), (C, P), (S, 4, 4), (S, 6), (F, 6), (F, 6))
    prior = Prior() if prior is None else prior
    check_prior(prior)
    shapes |= {f"prior.{name}": (t, size) for name, t, size in zip(Prior._fields, prior, sizes, strict=True)}
    every = {
        name: None if tensor is None else leading(name, tensor, size, one).expand(size, *one)
        for name, (tensor, (size, *rest)) in shapes.items()
        for one in (tuple(rest),)
    }
    weights, times, fixed_poses, fixed_points, *known = every.values()
    assert weights is not None
    prior = Prior(*known)
    floating = {"points2d": points2d} | {n: t for n, t in every.items() if t is not None and t.is_floating_point()}
    kinds: dict[str, What] = {"prior.world_to_camera": "pose", "prior.sensor_from_rig": "pose"}
    values(**{name: (tensor, kinds.get(name, "finite")) for name, tensor in floating.items()})
    check_range("camera_index", camera_index, V)
    check_range("point_index", point_index, N)
    camera_index, point_index = camera_index.long(), point_index.long()

    tensors = _flatten(BundleData(points2d, weights, times, bearings, given, prior))
    there = tuple(t is not None for t in tensors)
    still = _mask(fixed_poses, F, given) | ("poses" not in free), _mask(fixed_points, N, given) | ("points" not in free)

    def numbered(camera: Tensor, point: Tensor, index: Tensor, *rest: Tensor) -> tuple[Tensor, Task]:
        """The observations that determine something, in the order of their points (m,), and the task that they are."""
        (still_poses, still_points), data = rest[:2], _unflatten(rest[2:], there)
        prior = data.prior
        known_poses, known_points, known_sensors = (
            _mask(None if w is None else (w != 0).all(-1), size, data.given)
            for w, size in ((prior.pose_weights, F), (prior.point_weights, N), (prior.sensor_weights, S))
        )
        of_poses = 6 * (~(still_poses | known_poses)).long()
        if shutter is not None and shutter.velocities and prior.velocity_weights is None:
            of_poses += 6
        of_sensors = known_sensors.long() if rig is None else 6 * (~(known_sensors | rig.fixed)).long()
        unknowns = of_poses, 3 * (~(still_points | known_points)).long(), of_sensors
        keep = determining(camera, point, data.weights != 0, unknowns, rig)
        order = keep.nonzero().flatten()
        order = order[torch.argsort(point[order], stable=True)]
        known = (known_poses, known_points, known_sensors)
        layout = lay_out(
            camera[order], point[order], (still_poses, still_points), known, index, P, rig=rig, shutter=shutter
        )
        problem = BundleProblem(
            layout, C, index, still_poses, still_points, names, model, kernel, rig, shutter, bearings is not None
        )
        seen = data.given.points3d[point[order].unique()]
        seen_from = data.given.world_to_camera[problem.frame[camera[order]].unique()]
        place = _amid(se3.centre(seen_from.double()), seen.double())
        data = _unflatten(_used(rest[2:], there, order, place), there)
        rows = choose_rows(problem, problem.start(data.given), data)
        return order, Task(problem, data, place, gauge, rows, solver)

    inputs = [t for t in tensors if t is not None]
    order, task = plainly(numbered, camera_index, point_index, index, *still, *inputs, batched=False)
    exact = _each(given, Tensor.double)
    inputs = _used(inputs, there, order, task.place)
    optimum = _Optimum(task, there, gradient == "exact", max_steps, callback)
    (*found, stiff), (_, cost, status, steps) = implicit(optimum, *inputs)
    x = task.problem.compose(_moved_back(State(*found), _each(exact, Tensor.detach), task), exact)
    state = State(*(t.detach() for t in found))
    nothing = torch.zeros(M, dtype=torch.bool, device=order.device)
    with torch.no_grad():
        behind = nothing.index_copy(
            0, order, task.problem.behind(task.problem.compose(state, task.data.given), task.data)
        )
    left_out = (~nothing).index_fill(0, order, False)
    solution = BundleSolution(
        _each(x, lambda t: t.to(points3d.dtype)),
        cost.to(points3d.dtype), status, steps, left_out, behind, (stiff != 0).any(-1),
        replace(task, stiff=stiff), state,
    )  # fmt: skip
    if throw:
        solution.raise_if_failed()
    return solution
