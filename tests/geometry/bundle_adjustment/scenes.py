"""Multi-view scenes for the tests of `bundle`, and its linear algebra written out as one dense matrix."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, hessian

from geometry import Bundle, BundleSolution, Problem, bundle, project, se3
from geometry.bundle_adjustment.equations import NormalEquations, Tangent
from geometry.bundle_adjustment.indices import Layout
from geometry.bundle_adjustment.problem import BundleData, BundleProblem, State
from geometry.camera import Model
from tests.numbers import DOUBLE, close

ALL = ("poses", "points", "f", "k1", "k2")
"""What may be free."""


@dataclass(frozen=True)
class Tracks:
    """Arguments of `bundle`: noisy pixels, a start some percent off, intrinsics; and the truth behind the pixels."""

    points2d: Tensor
    camera_index: Tensor
    point_index: Tensor
    world_to_camera: Tensor
    points3d: Tensor
    K: Tensor
    distortion: Tensor
    intrinsics_index: Tensor
    model: Model
    truth: Bundle

    def solve(self, **options: Any) -> BundleSolution:
        positional = (self.points2d, self.camera_index, self.point_index, self.world_to_camera, self.points3d)
        options = {"intrinsics_index": self.intrinsics_index, "model": self.model, **options}
        return bundle(*positional, self.K, self.distortion, **options)


def make_tracks(
    V: int = 5,
    N: int = 20,
    *,
    cameras: int | None = None,
    model: Model = "radtan",
    lens: int = 2,
    noise: float = 0.5,
    seen: float = 0.8,
    off: float = 1.0,
    seed: int = 3,
) -> Tracks:
    """V views around a cloud of N points, in front of all of them; `cameras` K are taken in turn, None: one a view.

    seen: share of the points in a view. off: how far the start is from the truth, 0: at it. The world's origin is where
    `bundle` sets it.
    """
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, **DOUBLE)

    C = V if cameras is None else cameras
    X = normal(N, 3)
    T = se3.make(se3.exp(0.4 * normal(V, 3)), torch.tensor([0.0, 0, 7], **DOUBLE) + 0.5 * normal(V, 3))
    K = torch.tensor([[500.0, 0, 320], [0, 510, 240], [0, 0, 1]], **DOUBLE).repeat(C, 1, 1)
    K[:, :2] += normal(C, 2, 3) * torch.tensor([[9.0, 0, 3], [0, 9, 3]], **DOUBLE)
    distortion = (0.02 if model == "fisheye" else 0.05) * normal(C, lens)
    index = torch.arange(V) % C
    visible = torch.rand(V, N, generator=g) < seen
    visible[:2] |= visible.sum(0) < 2
    view, point = visible.nonzero(as_tuple=True)
    order = torch.randperm(len(view), generator=g)
    view, point = view[order], point[order]
    pixels = project(X[None], T, K[index], distortion[index], model=model)[view, point] + noise * normal(len(view), 2)
    start = se3.retract(T, 0.02 * off * normal(V, 6)), X + 0.05 * off * normal(N, 3)
    tracks = Tracks(pixels, view, point, *start, K, distortion, index, model, Bundle(T, X, K, distortion))
    place = tracks.solve(max_steps=0).task.place
    (pose, points), (T, X) = ((se3.about(pose, place), points - place) for pose, points in (start, (T, X)))
    return replace(tracks, world_to_camera=pose, points3d=points, truth=Bundle(T, X, K, distortion))


def solved_scene(solution: BundleSolution) -> dict[str, Tensor]:
    """What was found, as arguments of `bundle`."""
    return {name: value for name, value in solution.x._asdict().items() if value is not None}


def system_of(tracks: Tracks, **options: Any) -> tuple[BundleProblem, BundleData, State]:
    """The problem that `bundle` makes of the tracks, its data, and its start as a state."""
    task = tracks.solve(max_steps=0, **options).task
    given = Bundle(tracks.world_to_camera, tracks.points3d, tracks.K, tracks.distortion)
    return task.problem, task.data, task.problem.start(given)


def random_tangent(layout: Layout, *several: int, seed: int = 0) -> Tangent:
    g = torch.Generator().manual_seed(seed)
    points = torch.randn(len(layout.held), 3, *several, generator=g, **DOUBLE)
    points[layout.held] = 0
    return Tangent(torch.randn(layout.size, *several, generator=g, **DOUBLE), points)


def flat(u: Tangent) -> Tensor:
    """(D + 3 N, …)."""
    return torch.cat([u.cameras, u.points.flatten(0, 1)])


def unflat(u: Tensor, layout: Layout) -> Tangent:
    return Tangent(u[: layout.size], u[layout.size :].unflatten(0, (-1, 3)))


def dense_hessian(equations: NormalEquations, layout: Layout) -> Tensor:
    """[[U, W], [W^T, V]] (D + 3 N, D + 3 N), entry by entry; zero where something is fixed."""
    D, N = layout.size, len(layout.held)
    H = torch.zeros(D + 3 * N + 1, D + 3 * N + 1, **DOUBLE)  # the last row and column collect what is fixed
    columns = [torch.where(row < D, row, D + 3 * N) for row in layout.rows]

    def add(rows: Tensor, cols: Tensor, block: Tensor) -> None:
        H.index_put_((rows[:, None], cols[None]), block, accumulate=True)

    for v, block in enumerate(equations.U):
        add(columns[v], columns[v], block)
    for i, block in enumerate(equations.W):
        if not layout.held[layout.point[i]]:
            place = D + 3 * layout.point[i] + torch.arange(3)
            add(columns[layout.view[i]], place, block)
            add(place, columns[layout.view[i]], block.T)
    for j, block in enumerate(equations.V):
        if not layout.held[j]:
            place = D + 3 * j + torch.arange(3)
            add(place, place, block)
    return H[:-1, :-1]


def moving(layout: Layout) -> Tensor:
    """Places (n,) of the unknowns of a dense matrix that are not fixed."""
    return (~torch.cat([torch.zeros(layout.size, dtype=torch.bool), layout.held.repeat_interleave(3)])).nonzero()[:, 0]


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference, of the largest entry of b."""
    return float(((a - b).abs().max() / b.abs().max()).detach())


def assert_derivatives(task: Any, tolerance: float = 1e-11) -> None:
    """Normal equations with the exact Hessian, of both back ends, are the derivatives of the cost by a step."""
    problem, layout, data = task.problem, task.problem.layout, task.data
    state, tensors, places = problem.start(data.given), replace(problem, in_tensors=True), moving(layout)

    def cost(step: Tensor) -> Tensor:
        return tensors.cost(problem.retract(state, unflat(step, layout)), data)

    zero = torch.zeros(layout.size + 3 * len(layout.held), **DOUBLE)
    slope, bend = grad(cost)(zero)[places], hessian(cost)(zero)[places][:, places]
    for one in (problem, tensors):
        found = one.linearize(state, data, exact=True)
        assert relative(flat(found.gradient)[places], slope) < tolerance
        assert relative(dense_hessian(found, layout)[places][:, places], bend) < tolerance


def dense_problem(tracks: Tracks, still: Tensor, *, lens: bool = False) -> tuple[Problem, Any]:
    """The same least squares as a dense `Problem`, and its start: x = (poses, points, theta), a batch of one.

    still (V,6) bool: components of the poses' steps that are held. lens: f, k1, k2 of each camera are theta (C,3), fx
    and fy keeping their ratio. Data: points2d (1,M,2), weights (1,M,2).
    """
    V, N, C = len(tracks.world_to_camera), len(tracks.points3d), len(tracks.K)
    places = (~still.flatten()).nonzero().flatten()
    index = tracks.intrinsics_index

    def residual(x: Any, points2d: Tensor, weights: Tensor) -> Tensor:
        poses, points, theta = x
        K, distortion = tracks.K, tracks.distortion
        if lens:
            f = (theta[:, 0] / K[:, 0, 0])[:, None]
            K = torch.cat([torch.cat([f[:, None] * K[:, :2, :2], K[:, :2, 2:]], 2), K[:, 2:]], 1)
            distortion = theta[:, 1:]
        pixels = project(points.expand(V, N, 3), poses, K[index], distortion[index], model=tracks.model)
        return weights * (pixels[tracks.camera_index, tracks.point_index] - points2d)

    def move(x: Any, step: Tensor) -> Any:
        cameras, points, theta = step.split([len(places), 3 * N, 3 * C if lens else 0])
        cameras = step.new_zeros(6 * V).index_copy(0, places, cameras)
        theta = x[2] + theta.view(C, 3) if lens else x[2]
        return se3.retract(x[0], cameras.view(V, 6)), x[1] + points.view(N, 3), theta

    theta = torch.cat([tracks.K[:, 0, :1], tracks.distortion], 1)
    start = tracks.world_to_camera[None], tracks.points3d[None], theta[None]
    return Problem(residual, len(places) + 3 * N + (3 * C if lens else 0), move), start


def still_steps(start: Tensor, found: Tensor) -> Tensor:
    """Components (V,6) of the poses' steps that a solution did not take, but for rounding."""
    moved = (start - found).abs() > 1e-14
    turned = moved[:, :3, :3].flatten(1).any(1)
    return ~torch.cat([turned[:, None].expand(-1, 3), moved[:, :3, 3]], 1)


def assert_same(a: BundleSolution, b: BundleSolution, atol: float = 1e-9) -> None:
    """Equal costs, and scenes that differ by a part in `atol`."""
    assert a.converged
    assert b.converged
    close(a.cost, b.cost, atol * float(b.cost))
    for found, expected in zip(a.x[:4], b.x[:4], strict=True):
        if expected.numel():
            assert relative(found, expected) < atol


def with_gradient(tracks: Tracks, **options: Any) -> tuple[BundleSolution, dict[str, Tensor]]:
    """Solution, and the gradient of a fixed function of it to pixels, weights and K."""
    weights = options.pop("weights", torch.ones(len(tracks.points2d), 2, dtype=tracks.points2d.dtype))
    leaves = {"points2d": tracks.points2d, "weights": weights, "K": tracks.K}
    leaves = {n: t.detach().clone().requires_grad_() for n, t in leaves.items()}
    solution = replace(tracks, points2d=leaves["points2d"], K=leaves["K"]).solve(weights=leaves["weights"], **options)
    x = solution.x
    loss = x.points3d[:3].pow(3).sum() + x.world_to_camera[-1, :3].sum() + x.distortion.sum() + 1e-3 * x.K.sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return solution, dict(zip(leaves, gradients, strict=True))


def assert_same_gradients(a: dict[str, Tensor], b: dict[str, Tensor], rounding: float = 1e-8) -> None:
    assert a.keys() == b.keys()
    for name, g in b.items():
        assert g.abs().max() > 0, name
        assert (a[name] - g).norm() <= rounding * g.norm(), name


def keep_only(tracks: Tracks, keep: Tensor) -> Tracks:
    """The tracks with some observations taken away."""
    return replace(tracks, **{n: getattr(tracks, n)[keep] for n in ("points2d", "camera_index", "point_index")})


def two_scenes() -> Tracks:
    """Five views of 16 points, and four views of 12 others: nothing tells how the two lie to one another."""
    one, other = make_tracks(5, 16), make_tracks(4, 12, seed=8)
    shift = {"camera_index": 5, "point_index": 16, "intrinsics_index": 5}
    names = ("points2d", "world_to_camera", "points3d", "K", "distortion", *shift)
    return replace(one, **{n: torch.cat([getattr(one, n), getattr(other, n) + shift.get(n, 0)]) for n in names})
