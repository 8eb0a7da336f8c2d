"""Multi-view bundle adjustment: cameras, points and intrinsics from tracks, differentiable in everything given.

    solution = bundle(points2d, camera_index, point_index, world_to_camera, points3d, K)
    solution.x.points3d                 # (N,3), with exact gradients to points2d, weights, whatever is fixed, priors

Levenberg-Marquardt on the Schur complement of the points (`geometry.bundle_adjustment.schur`), then Newton with the
exact Hessian, whose factor also gives the gradients of the optimum (implicit function theorem) and its covariance. Half
a dozen parameters a camera and three a point never meet in one dense matrix; observations are a flat list, so that what
a camera does not see costs nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from geometry.bundle_adjustment.equations import Tangent
from geometry.bundle_adjustment.gauge import GaugeChoice, choose_rows
from geometry.bundle_adjustment.layout import check_scene, determining, free_names, lay_out
from geometry.bundle_adjustment.problem import Bundle, BundleData, BundleProblem, Prior, State
from geometry.bundle_adjustment.solver import Solver, Task, solve
from geometry.camera import Model
from geometry.optim import Solution, Status
from geometry.robust import Kernel

__all__ = ["Bundle", "BundleCovariance", "BundleSolution", "Prior", "bundle"]


class _Optimum(torch.autograd.Function):
    """A tangent vector of zeros at the optimum, whose gradient with respect to the data is the implicit one."""

    @staticmethod
    def forward(
        ctx: Any, task: Task, state: State, ok: bool, exact: bool, *tensors: Tensor | None
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
            system = task.factorise(state, problem.linearize(state, task.data, exact=ctx.exact), gauge)
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
    task: Task
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
            system = task.factorise(state, equations, gauge)
            if sigma is None:
                variance = 2 * equations.cost / max(1, task.problem.redundancy(task.data) + len(task.rows))
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


def _mask(mask: Tensor | None, size: int, like: Bundle) -> Tensor:
    return torch.zeros(size, dtype=torch.bool, device=like.K.device) if mask is None else mask


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
    solver: Solver = "auto",
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
    free view stays, and one coordinate of another's translation; "free": no similarity is added to the start (the
    cameras as a whole neither turn nor move nor spread). Gradients and covariance refer to it.

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
    """
    options = (("gauge", gauge, ("fixed", "free")), ("solver", solver, ("auto", "dense", "iterative")))
    for name, value, choices in (*options, ("gradient", gradient, ("exact", "gauss_newton"))):
        if value not in choices:
            raise ValueError(f"{name} must be one of {choices}, got {value!r}")
    V, N, M = len(world_to_camera), len(points3d), len(points2d)
    given, index = check_scene(world_to_camera, points3d, K, distortion, intrinsics_index, model)
    names = free_names(free, given.distortion.shape[-1], model)
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
    known_poses = _mask(None if prior.pose_weights is None else (prior.pose_weights != 0).all(-1), V, given)
    known_points = _mask(None if prior.point_weights is None else (prior.point_weights != 0).all(-1), N, given)
    still, known = (still_poses, still_points), (known_poses, known_points)
    keep = determining(
        camera_index, point_index, (weights != 0).any(-1), still_poses | known_poses, still_points | known_points
    )
    order = keep.nonzero().flatten()
    order = order[torch.argsort(point_index[order], stable=True)]
    layout = lay_out(camera_index[order], point_index[order], still, known, index, len(names))
    problem = BundleProblem(layout, len(given.K), index, still_poses, still_points, names, model, kernel)
    data = BundleData(points2d[order].double(), weights[order].double(), given, prior)
    plain = _unflatten([None if t is None else t.detach().double() for t in _flatten(data)])
    state = State(*plain.given[:2], problem.theta_of(plain.given.K, plain.given.distortion))
    with torch.no_grad():
        task = Task(problem, plain, gauge, choose_rows(problem, state, plain), solver)
        state, cost, status, steps, stiff = solve(task, state, max_steps, callback)
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
