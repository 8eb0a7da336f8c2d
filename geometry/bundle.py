"""Multi-view bundle adjustment: cameras, points and intrinsics from tracks, differentiable in everything given.

    solution = bundle(points2d, camera_index, point_index, world_to_camera, points3d, K)
    solution.x.points3d                 # (N,3), with exact gradients to points2d, weights, whatever is fixed, priors

Levenberg-Marquardt on the Schur complement of the points (`geometry.schur`), then Newton with the exact Hessian, whose
factor also gives the gradients of the optimum (implicit function theorem) and its covariance. Half a dozen
parameters a camera and three a point never meet in one dense matrix; observations are a flat list, so that what
a camera does not see costs nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from geometry.bundle_problem import COEFFICIENTS, Bundle, BundleData, BundleProblem, Prior, State
from geometry.camera import Model, check_distortion
from geometry.gauge import Gauge, GaugeChoice, choose_rows, gauge_at
from geometry.optim import Solution, Status, next_damping
from geometry.robust import Kernel
from geometry.schur import NormalEquations, Schur, Tangent
from geometry.schur_op import Layout

__all__ = ["Bundle", "BundleCovariance", "BundleSolution", "Prior", "bundle"]

_Solver = Literal["auto", "dense", "iterative"]
# Camera unknowns up to which S is built and factorised: 3,000 take 70 MB and half a second a step.
_DENSE = 3000


class Progress(NamedTuple):
    """Where the descent stands after `trials` steps, of which `steps` were accepted."""

    state: State
    cost: Tensor
    trials: int
    steps: int
    done: bool


@dataclass(frozen=True)
class _Task:
    """A problem with its data and the options of its solution."""

    problem: BundleProblem
    data: BundleData
    gauge: GaugeChoice
    rows: Tensor
    iterative: bool
    stiff: Tensor | None = None

    def gauge_at(self, state: State) -> Gauge | None:
        return gauge_at(self.problem, state, self.data, self.gauge, self.rows)

    def factorise(
        self, equations: NormalEquations, gauge: Gauge | None, damping: float = 0.0, accuracy: float = 1e-13
    ) -> Schur:
        unseen = None if gauge is None else gauge.motions.cameras
        layout = self.problem.layout
        return Schur(equations, layout, damping, unseen, self.stiff, iterative=self.iterative, accuracy=accuracy)


def _descend(task: _Task, state: State, max_steps: int, tolerance: float) -> Iterator[Progress]:
    """Levenberg-Marquardt with Marquardt's scaling; yields the start, and what stands after every trial."""
    problem, data = task.problem, task.data
    equations = problem.linearize(state, data)
    cost = equations.cost
    damping, growth = torch.full_like(cost, 1e-4), torch.full_like(cost, 2.0)
    steps = 0
    # pixels are known to a few digits less than they have: a perfect fit leaves that
    rounding = (torch.finfo(cost.dtype).eps * data.weights * data.points2d).square().sum()
    done = not bool(torch.isfinite(cost))
    yield Progress(state, cost, 0, 0, done)
    for trial in range(1, max_steps + 1):
        gauge = task.gauge_at(state)
        # far from the minimum a tenth of the accuracy moves as far
        system = task.factorise(equations, gauge, float(damping), accuracy=0.1)
        step = system.solve(equations.gradient.times(-1))
        predicted = 0.5 * (step.dot(system.damped.times_entries(step)) - step.dot(equations.gradient))
        if gauge is not None:
            step = gauge.section(step)
        candidate, trial_cost = problem.advance(state, step, data)
        accept = system.ok & (trial_cost < cost)
        ratio = (cost - trial_cost) / predicted.clamp_min(torch.finfo(cost.dtype).tiny)
        damping, growth = next_damping(damping, growth, accept, torch.nan_to_num(ratio, -1.0))
        small = tolerance * torch.minimum(cost, trial_cost) + rounding
        done = bool(system.ok & ((predicted <= small) | (accept & (cost - trial_cost <= small))) | (damping > 1e12))
        if accept:
            state, steps = candidate, steps + 1
            equations = problem.linearize(state, data)
            cost = equations.cost
        yield Progress(state, cost, trial, steps, done)
        if done:
            return


def _endless(task: _Task, state: State) -> Tensor:
    """Unit rays (N,3) of the points whose depth the data leave open, zero for all others.

    At the end of the descent such a point would still more than double its distance, or shows no parallax at all.
    """
    equations = task.problem.linearize(state, task.data)
    ray = task.problem.rays(state)
    length = ray.norm(dim=-1)
    ray = ray / length.clamp_min(torch.finfo(ray.dtype).tiny)[:, None]
    stiffness = (ray * (equations.V @ ray[..., None]).squeeze(-1)).sum(-1)
    push = -(ray * equations.gradient.points).sum(-1)
    most = equations.V.diagonal(dim1=-2, dim2=-1).amax(-1)
    open_end = (push > stiffness * length) | (stiffness <= 1e-12 * most)
    return torch.where((open_end & (most > 0) & ~task.problem.layout.held)[:, None], ray, 0)


def _polish(task: _Task, state: State, cost: Tensor, rounds: int) -> tuple[State, Tensor, Status]:
    """Undamped Newton with the exact Hessian, until the next step would not matter; that one is still taken.

    Accepting steps by cost alone stops at the square root of the resolution. Returns state, cost and status.
    """
    problem, data = task.problem, task.data
    best, best_cost, decrease = state, cost, torch.full_like(cost, torch.inf)
    status = Status.SINGULAR
    eps = torch.finfo(cost.dtype).eps
    rounding = (eps * data.weights * data.points2d).square().sum()
    for _ in range(rounds):
        equations = problem.linearize(state, data, exact=True)
        gauge = task.gauge_at(state)
        system = task.factorise(equations, gauge)
        step = system.solve(equations.gradient.times(-1))
        new_decrease = -0.5 * step.dot(equations.gradient)
        # one part in a thousand of cost may be given up: Newton must not run to a saddle or to another basin
        near = equations.cost <= 1.001 * best_cost + 1e3 * rounding
        if not (system.ok & near & (new_decrease < decrease)):
            break
        best, best_cost, decrease = state, equations.cost, new_decrease
        status = Status.STALLED
        state = problem.retract(state, step if gauge is None else gauge.section(step))
        if decrease <= 1e-13 * best_cost + rounding:
            return state, best_cost, Status.CONVERGED
    return best, best_cost, status


def _solve(
    task: _Task, state: State, max_steps: int, callback: Callable[[int, float], None] | None
) -> tuple[State, Tensor, Status, int, Tensor]:
    """Descend, then polish; where Newton does not converge yet, descend farther. Returns state, cost, status, accepted
    steps and the rays (N,3) of points without depth."""
    layout = task.problem.layout
    unknown_points = (layout.begin.diff() > 0) & ~layout.held
    unknowns = layout.size + 3 * int(unknown_points.sum()) - len(task.rows)
    taken = accepted = 0
    stiff = torch.zeros_like(state.points3d)
    for tolerance in (1e-7, 1e-10, 1e-13):
        for progress in _descend(task, state, max_steps - taken, tolerance):
            if callback is not None and (progress.trials or not taken):
                callback(taken + progress.trials, float(progress.cost))
        state, cost = progress.state, progress.cost
        taken, accepted = taken + progress.trials, accepted + progress.steps
        if not torch.isfinite(cost):
            return state, cost, Status.INFEASIBLE, accepted, stiff
        stiff = _endless(task, state)
        state, cost, status = _polish(replace(task, stiff=stiff), state, cost, rounds=6)
        if status == Status.CONVERGED or taken >= max_steps:
            break
    known = sum(int((w != 0).sum()) for w in task.data.prior[1::2] if w is not None)
    if int((task.data.weights != 0).sum()) + known < unknowns:
        status = Status.TOO_FEW
    elif status == Status.SINGULAR and not progress.done:
        status = Status.STALLED
    return state, cost, status, accepted, stiff


def _mask(mask: Tensor | None, size: int, like: Bundle) -> Tensor:
    return torch.zeros(size, dtype=torch.bool, device=like.K.device) if mask is None else mask


def _scene(
    world_to_camera: Tensor, points3d: Tensor, K: Tensor, distortion: Tensor | None, index: Tensor | None, model: Model
) -> tuple[Bundle, Tensor]:
    """What is given as a `Bundle` with one row of intrinsics for each of the C cameras, and the index (V,) of views."""
    V, N = len(world_to_camera), len(points3d)
    if world_to_camera.shape != (V, 4, 4):
        raise ValueError(f"world_to_camera must have shape (V,4,4), got {tuple(world_to_camera.shape)}")
    if points3d.shape != (N, 3):
        raise ValueError(f"points3d must have shape (N,3), got {tuple(points3d.shape)}")
    K = K[None] if K.ndim == 2 else K
    C = len(K)
    if K.shape != (C, 3, 3):
        raise ValueError(f"K must have shape (3,3) or (C,3,3), got {tuple(K.shape)}")
    distortion = K.new_zeros(C, 0) if distortion is None else distortion
    distortion = distortion.expand(C, -1) if distortion.ndim == 1 else distortion
    if distortion.ndim != 2 or len(distortion) != C:
        raise ValueError(f"distortion must have shape (k,) or ({C},k), got {tuple(distortion.shape)}")
    check_distortion(distortion, model)
    if index is None:
        if C not in (1, V):
            raise ValueError(f"K must have size 1 or {V} (the views) without intrinsics_index, got {C}")
        index = torch.arange(V, device=K.device) if C == V else torch.zeros(V, dtype=torch.long, device=K.device)
    if index.shape != (V,) or (V and (int(index.min()) < 0 or int(index.max()) >= C)):
        raise ValueError(f"intrinsics_index must have shape ({V},) and values 0 … {C - 1}, got {tuple(index.shape)}")
    given = Bundle(world_to_camera, points3d, K, distortion)
    for name, tensor in given._asdict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    return given, index


def _free_names(free: Sequence[str], coefficients: int, model: Model) -> tuple[str, ...]:
    """The free intrinsics among `free`, checked."""
    known = ("poses", "points", "f", "fx", "fy", "cx", "cy", *COEFFICIENTS[model][:coefficients])
    if isinstance(free, str) or not set(free) <= set(known) or len(set(free)) < len(free):
        raise ValueError(f"free must hold names among {known} (distortion has {coefficients}), each once, got {free!r}")
    if "f" in free and ("fx" in free or "fy" in free):
        raise ValueError(f'free may hold "f" or "fx" and "fy", not both, got {free!r}')
    return tuple(name for name in free if name not in ("poses", "points"))


def _determining(view: Tensor, point: Tensor, keep: Tensor, known_pose: Tensor, known_point: Tensor) -> Tensor:
    """Observations (M,) that are left when points of fewer than two, and views of fewer than three, are taken away."""
    while True:
        few_views = (torch.bincount(point[keep], minlength=len(known_point)) < 2) & ~known_point
        few_points = (torch.bincount(view[keep], minlength=len(known_pose)) < 3) & ~known_pose
        fewer = keep & ~few_views[point] & ~few_points[view]
        if bool((fewer == keep).all()):
            return keep
        keep = fewer


def _layout(
    view: Tensor, point: Tensor, still_poses: Tensor, still_points: Tensor, index: Tensor, free_intrinsics: int
) -> Layout:
    """Number the camera unknowns: those of a view that nobody shares side by side, shared intrinsics at the end."""
    V, P, device = len(still_poses), free_intrinsics, view.device
    seen = torch.bincount(view, minlength=V) > 0
    users = torch.bincount(index[seen], minlength=int(index.max()) + 1 if V else 0)
    own = (users == 1)[index] & seen if P else torch.zeros_like(seen)
    pose_free = seen & ~still_poses
    width = 6 * pose_free + P * own
    start = width.cumsum(0) - width
    size = int(width.sum())
    groups = (users > 1).nonzero().flatten() if P else index[:0]
    total = size + P * len(groups)
    rows = torch.full((V, 6 + P), total, device=device)
    rows[:, :6] = torch.where(pose_free[:, None], start[:, None] + torch.arange(6, device=device), total)
    kappa = torch.where(own, start + 6 * pose_free, total)
    place = torch.full_like(users, total)
    place[groups] = size + P * torch.arange(len(groups), device=device)
    kappa = torch.where(seen & ~own, place[index], kappa) if P else kappa
    rows[:, 6:] = torch.where(kappa[:, None] < total, kappa[:, None] + torch.arange(P, device=device), total)
    # blocks of equal width for the preconditioner
    blocks = [
        start[width == w][:, None] + torch.arange(w, device=device) for w in torch.unique(width).tolist() if w > 0
    ]
    if len(groups):
        blocks.append(torch.arange(size, total, device=device).view(-1, P))
    held = still_points | (torch.bincount(point, minlength=len(still_points)) == 0)
    return Layout(view, point, rows, total, tuple(blocks), held)


class _Optimum(torch.autograd.Function):
    """A tangent vector of zeros at the optimum, whose gradient with respect to the data is the implicit one."""

    @staticmethod
    def forward(
        ctx: Any, task: _Task, state: State, ok: bool, exact: bool, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.task, ctx.state, ctx.ok, ctx.exact = task, state, ok, exact
        ctx.save_for_backward(*tensors)
        return state.points3d.new_zeros(task.problem.layout.size), torch.zeros_like(state.points3d)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cameras: Tensor, points: Tensor) -> tuple[Tensor | None, ...]:
        task, state, tensors = ctx.task, ctx.state, ctx.saved_tensors
        wanted = ctx.needs_input_grad[4:]
        problem: BundleProblem = task.problem
        grad = Tangent(cameras, torch.where(problem.layout.held[:, None], 0, points))
        with torch.no_grad():
            gauge = task.gauge_at(state)
            system = task.factorise(problem.linearize(state, task.data, exact=ctx.exact), gauge)
            u = system.solve(grad if gauge is None else gauge.ignore(grad))
        if not (ctx.ok and bool(system.ok)):
            return (None,) * 4 + tuple(torch.zeros_like(t) if w else None for t, w in zip(tensors, wanted, strict=True))
        with torch.enable_grad():
            data = [None if t is None else t.detach().requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)]
            step = Tangent(torch.zeros_like(cameras).requires_grad_(), torch.zeros_like(points).requires_grad_())
            cost = problem.cost(problem.retract(state, step), _unflatten(data))
            slope = torch.autograd.grad(cost, step, create_graph=True, materialize_grads=True)
            inputs = [t for t in data if t is not None and t.requires_grad]
            found = iter(torch.autograd.grad(Tangent(*slope).dot(u), inputs, allow_unused=True, materialize_grads=True))
        return (None,) * 4 + tuple(-next(found) if w else None for w in wanted)


def _flatten(data: BundleData) -> tuple[Tensor | None, ...]:
    return (data.points2d, data.weights, *data.given, *data.prior)


def _unflatten(tensors: Sequence[Tensor | None]) -> BundleData:
    points2d, weights, *rest = tensors
    assert points2d is not None
    assert weights is not None
    return BundleData(points2d, weights, Bundle(*rest[:4]), Prior(*rest[4:]))  # type: ignore[arg-type]


class BundleCovariance(NamedTuple):
    """Covariances of tangent steps: cameras (V,6+P,6+P), the pose (omega, v) and free intrinsics of each view;
    points (n,3,3). Zero where something is fixed."""

    cameras: Tensor
    points: Tensor


@dataclass(frozen=True)
class BundleSolution(Solution):
    """A `Solution` (cost, status and steps of size 1) whose x is a `Bundle`.

    left_out (M,) bool: observations that determine nothing (of a point that fewer than two views see, of a view with
    too few points) and were not used. behind (M,) bool: observations whose point ended behind its camera.
    undetermined (N,) bool: points whose depth the data leave open, as of a point at infinity: they would still more
    than double their distance from the camera that saw them first; gradients and covariance hold that distance.
    """

    x: Bundle
    left_out: Tensor
    behind: Tensor
    undetermined: Tensor
    task: _Task
    state: State

    def covariance(self, points: Tensor | None = None, sigma: float | None = None) -> BundleCovariance:
        """Covariance at the optimum, to first order in the noise: sigma^2 (J^T J)^-1 in the chosen gauge.

        points (n,): indices of the points wanted, None for none. sigma: standard deviation of one weighted residual
        component; None estimates it from the cost. NaN where the data do not determine the cameras.
        """
        task, layout, state = self.task, self.task.problem.layout, self.state
        with torch.no_grad():
            gauge = task.gauge_at(state)
            equations = task.problem.linearize(state, task.data)
            system = task.factorise(equations, gauge)
            if sigma is None:
                unknowns = layout.size + 3 * int((layout.begin.diff() > 0).logical_and(~layout.held).sum())
                unknowns -= 0 if gauge is None else gauge.motions.cameras.shape[1]
                freedom = max(1, int((task.data.weights != 0).sum()) - unknowns)
                variance = 2 * equations.cost / freedom
            else:
                variance = torch.full_like(equations.cost, sigma * sigma)
            variance = torch.where(system.ok, variance, torch.nan)

            def columns(b: Tangent) -> Tangent:
                """Columns of the covariance for unit vectors b."""
                u = system.solve(b if gauge is None else gauge.ignore(b))
                return (u if gauge is None else gauge.section(u)).times(variance)

            D, N, p = layout.size, len(layout.held), layout.rows.shape[1]
            cameras = state.theta.new_zeros(len(layout.rows), p, p)
            some = max(1, 4_000_000 // (p * (D + 3 * N)))
            for views in torch.arange(len(layout.rows), device=cameras.device).split(some):
                rows = layout.rows[views]
                b = cameras.new_zeros(D + 1, rows.numel())
                b[rows.flatten(), torch.arange(rows.numel(), device=rows.device)] = 1
                u = columns(Tangent(b[:-1], cameras.new_zeros(N, 3, rows.numel()))).cameras
                u = torch.cat([u, u.new_zeros(1, u.shape[1])]).view(D + 1, len(views), p)
                cameras[views] = u[rows, torch.arange(len(views), device=rows.device)[:, None]]
            chosen = torch.zeros(0, dtype=torch.long) if points is None else points
            blocks = []
            for some_points in chosen.to(cameras.device).split(max(1, 4_000_000 // (3 * (D + 3 * N)))):
                n = len(some_points)
                b = cameras.new_zeros(N, 3, n, 3)
                each = torch.arange(n, device=b.device)
                b[some_points[:, None], torch.arange(3), each[:, None], torch.arange(3)] = 1
                b[layout.held] = 0
                u = columns(Tangent(cameras.new_zeros(D, 3 * n), b.flatten(2))).points.view(N, 3, n, 3)
                blocks.append(u[some_points, :, each])
        return BundleCovariance(cameras, torch.cat(blocks) if blocks else cameras.new_zeros(0, 3, 3))


def bundle(
    points2d: Tensor,
    camera_index: Tensor,
    point_index: Tensor,
    world_to_camera: Tensor,
    points3d: Tensor,
    K: Tensor,
    distortion: Tensor | None = None,
    *,
    intrinsics_index: Tensor | None = None,
    weights: Tensor | None = None,
    free: Sequence[str] = ("poses", "points"),
    fixed_poses: Tensor | None = None,
    fixed_points: Tensor | None = None,
    prior: Prior | None = None,
    model: Model = "radtan",
    kernel: Kernel | None = None,
    gauge: GaugeChoice = "fixed",
    gradient: Literal["exact", "gauss_newton"] = "exact",
    solver: _Solver = "auto",
    max_steps: int = 100,
    throw: bool = False,
    callback: Callable[[int, float], None] | None = None,
) -> BundleSolution:
    """Find cameras, points and intrinsics that fit the tracks best, next to a start.

    points2d (M,2) px: observations, in any order; camera_index (M,) and point_index (M,), int64: of which view and
    which point. world_to_camera (V,4,4), points3d (N,3): the start, and the value of what is fixed. K (3,3) of all
    views, (V,3,3) of each, or (C,3,3) with intrinsics_index (V,) saying which K took which image (shared intrinsics);
    distortion (k,) or (C,k) of `model`. weights (M,) or (M,2), 1/sigma; a weight of zero means absent.

    free: what is sought: "poses", "points", and intrinsics by name: "f" (fx and fy in their given ratio) or "fx", "fy";
    "cx", "cy"; distortion coefficients as "k1". All else is fixed, as are the views where fixed_poses (V,) and the
    points where fixed_points (N,) are True. prior: what is known beforehand. kernel: robust kernel of each observation.

    gauge: which of the similar solutions is meant where nothing fixed or known tells. "fixed": the pose of the first
    free view stays, and one coordinate of another's translation; "free": no similarity is added to the start
    (the points' step has no translation, rotation and scaling, the photogrammetrists' inner constraints). Gradients
    and covariance refer to it.

    solver: "dense" factorises the reduced camera matrix, "iterative" multiplies with it (conjugate gradients); "auto"
    takes the latter above 3000 camera unknowns. callback(step, cost) is told after every trial.

    Returns a `BundleSolution`; x is a `Bundle`, differentiable in points2d, weights, the prior and all that is fixed
    (what is free is a start and gets no gradient): gradient="exact" with the exact Hessian, "gauss_newton" with J^T J.
    Points behind their camera are projected by the formula all the same, as Bundle Adjustment in the Large does.
    Solved in float64; x has the dtype of points3d. Raises ValueError for input that does not fit, SolverError with
    throw=True where the status is not CONVERGED.

    Source: Triggs, McLauchlan, Hartley, Fitzgibbon 2000, "Bundle adjustment: a modern synthesis"; the way that the
    points take is ours (`BundleProblem.advance`).
    """
    options = (("gauge", gauge, ("fixed", "free")), ("solver", solver, ("auto", "dense", "iterative")))
    for name, value, known in (*options, ("gradient", gradient, ("exact", "gauss_newton"))):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}")
    V, N, M = len(world_to_camera), len(points3d), len(points2d)
    given, index = _scene(world_to_camera, points3d, K, distortion, intrinsics_index, model)
    names = _free_names(free, given.distortion.shape[-1], model)
    weights = points2d.new_ones(M, 2) if weights is None else weights
    weights = weights[:, None].expand(M, 2) if weights.shape == (M,) else weights
    shapes = {
        "points2d": (points2d, (M, 2)), "camera_index": (camera_index, (M,)), "point_index": (point_index, (M,)),
        "weights": (weights, (M, 2)), "fixed_poses": (fixed_poses, (V,)), "fixed_points": (fixed_points, (N,)),
    }  # fmt: skip
    sizes = ((V, 4, 4), (V, 6), (N, 3), (N, 3), (len(given.K), len(names)), (len(given.K), len(names)))
    prior = prior or Prior()
    shapes |= {f"prior.{name}": (t, size) for name, t, size in zip(Prior._fields, prior, sizes, strict=True)}
    for name, (tensor, shape) in shapes.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        if tensor is not None and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    for name, which, size in (("camera_index", camera_index, V), ("point_index", point_index, N)):
        if M and (int(which.min()) < 0 or int(which.max()) >= size):
            raise ValueError(f"{name} must lie in 0 … {size - 1}, got {int(which.min())} … {int(which.max())}")

    still_poses = _mask(fixed_poses, V, given) | ("poses" not in free)
    still_points = _mask(fixed_points, N, given) | ("points" not in free)
    keep = _determining(
        camera_index, point_index, (weights != 0).any(-1),
        still_poses | _mask(None if prior.pose_weights is None else (prior.pose_weights != 0).all(-1), V, given),
        still_points | _mask(None if prior.point_weights is None else (prior.point_weights != 0).all(-1), N, given),
    )  # fmt: skip
    order = keep.nonzero().flatten()
    order = order[torch.argsort(point_index[order], stable=True)]
    layout = _layout(camera_index[order], point_index[order], still_poses, still_points, index, len(names))
    problem = BundleProblem(layout, len(given.K), index, still_poses, names, model, kernel)
    data = BundleData(points2d[order].double(), weights[order].double(), given, prior)
    plain = _unflatten([None if t is None else t.detach().double() for t in _flatten(data)])
    state = State(*plain.given[:2], problem.theta_of(plain.given.K, plain.given.distortion))
    iterative = solver == "iterative" or (solver == "auto" and layout.size > _DENSE)
    with torch.no_grad():
        task = _Task(problem, plain, gauge, choose_rows(problem, state, plain), iterative)
        state, cost, status, steps, stiff = _solve(task, state, max_steps, callback)
        task = replace(task, stiff=stiff)
    left_out = ~keep
    behind = torch.zeros_like(keep)
    with torch.no_grad():
        behind[order] = problem.behind(problem.compose(state, plain.given))
    inputs = _flatten(BundleData(data.points2d, data.weights, given, prior))
    x = problem.compose(state, plain.given)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        inputs = tuple(None if t is None else t.double() for t in inputs)
        step = Tangent(*_Optimum.apply(task, state, status == Status.CONVERGED, gradient == "exact", *inputs))
        x = problem.compose(problem.retract(state, step), Bundle(*inputs[2:6]))  # type: ignore[arg-type]
    solution = BundleSolution(
        Bundle(*(t.to(points3d.dtype) for t in x)),
        cost[None].to(points3d.dtype),
        torch.full((1,), status, dtype=torch.int8, device=cost.device),
        torch.full((1,), steps, dtype=torch.int32, device=cost.device),
        left_out, behind, (stiff != 0).any(-1), task, state,
    )  # fmt: skip
    if throw:
        solution.raise_if_failed()
    return solution
