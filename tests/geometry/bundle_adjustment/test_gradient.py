"""Gradients of `bundle` against finite differences of the solver, in float64 and with noise."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datasets.reconstructions.bal import read_bal
from geometry import Prior, SolverError, Status, argmin, barron, bundle, cauchy, huber, project, se3
from geometry.lenses import LENSES
from tests.geometry.bundle_adjustment.scenes import (
    Tracks,
    dense_problem,
    keep_only,
    make_tracks,
    solved_scene,
    still_steps,
    with_gradient,
)
from tests.numbers import DOUBLE

CASES: dict[str, dict[str, Any]] = {
    "fixed gauge": {},
    "free gauge": {"gauge": "free"},
    "own intrinsics": {"names": ("f", "k1", "k2")},
    "cauchy, free gauge": {"names": ("f", "k1"), "kernel": cauchy(1.0), "gauge": "free"},
    "barron": {"kernel": barron(-2.0, 2.0)},
    "own kernel": {"kernel": lambda s: 4 * torch.log1p(s / 4)},
    "shared f": {"names": ("f",), "cameras": 1},
    "two cameras, all of K": {"names": ("fx", "fy", "cx", "cy"), "cameras": 2, "V": 6, "N": 30, "noise": 0.2},
    "fisheye": {"model": "fisheye", "lens": 4, "names": ("fx", "fy"), "cameras": 1},
    "five coefficients": {"lens": 5, "names": ("f", "k1", "p1"), "cameras": 1, "gauge": "free"},
    "twelve coefficients": {"lens": 12, "names": ("f", "k4"), "cameras": 1, "N": 30, "noise": 0.2},
    "pinhole": {"lens": 0, "names": ("f",)},
    "fixed poses": {"still_poses": [0, 3]},
    "one fixed pose": {"still_poses": [2], "gauge": "free"},
    "fixed points": {"still_points": [0, 1, 2], "gauge": "free"},
    "resection": {"free": ("poses",)},
    "triangulation": {"free": ("points", "f"), "cameras": 1},
    "priors": {"names": ("f",), "prior": True},
    "priors, shared f, huber": {"names": ("f",), "prior": True, "cameras": 1, "kernel": huber(1.0), "gauge": "free"},
    "iterative": {"N": 20, "names": ("f", "k1"), "solver": "iterative"},
    "iterative, shared f": {"names": ("f",), "cameras": 1, "solver": "iterative", "gauge": "free"},
    "iterative, priors": {"prior": True, "solver": "iterative"},
}
GIVEN = ("points2d", "weights", "world_to_camera", "points3d", "K", "distortion")


def make_prior(tracks: Tracks, names: tuple[str, ...]) -> Prior:
    """Two poses, one of them by its centre alone, a control point, and the intrinsics; none of them at its optimum."""
    g = torch.Generator().manual_seed(11)
    V, N, C = len(tracks.world_to_camera), len(tracks.points3d), len(tracks.K)
    pose = se3.retract(tracks.truth.world_to_camera, 0.01 * torch.randn(V, 6, generator=g, **DOUBLE))
    pose_weights, point_weights = torch.zeros(V, 6, **DOUBLE), torch.zeros(N, 3, **DOUBLE)
    pose_weights[1] = 100 * torch.rand(6, generator=g, **DOUBLE)
    pose_weights[2, 3:] = 100 * torch.rand(3, generator=g, **DOUBLE)
    point_weights[5] = 30
    known = (pose, pose_weights, tracks.truth.points3d + 0.02, point_weights)
    if not names:
        return Prior(*known)
    return Prior(*known, torch.full((C, len(names)), 505.0, **DOUBLE), torch.full((C, len(names)), 0.05, **DOUBLE))


class Case:
    """A solved problem, as a function of all its inputs that starts from the optimum."""

    def __init__(
        self,
        names: tuple[str, ...] = (),
        free: tuple[str, ...] = ("poses", "points"),
        still_poses: Any = (),
        still_points: Any = (),
        prior: bool = False,
        **options: Any,
    ) -> None:
        scene = {k: options.pop(k) for k in ("V", "N", "cameras", "model", "lens", "noise") if k in options}
        self.tracks = make_tracks(**{"V": 5, "N": 14, **scene})
        V, N = len(self.tracks.world_to_camera), len(self.tracks.points3d)
        poses, points = torch.zeros(V, dtype=torch.bool), torch.zeros(N, dtype=torch.bool)
        poses[list(still_poses)], points[list(still_points)] = True, True
        if "poses" not in free:
            poses[:] = True
        if "points" not in free:
            points[:] = True
        self.names, self.still = names, {"world_to_camera": poses, "points3d": points}
        self.options = {"free": (*free, *names), "fixed_poses": poses, "fixed_points": points, **options}
        self.free_gauge = options.get("gauge") == "free"
        g = torch.Generator().manual_seed(7)
        weights = 0.5 + torch.rand(len(self.tracks.points2d), 2, generator=g, **DOUBLE)
        given = {name: getattr(self.tracks, name) for name in GIVEN if name != "weights"}
        known = make_prior(self.tracks, names)._asdict() if prior else {}
        self.inputs = {**given, "weights": weights, **{f"prior {k}": t for k, t in known.items() if t is not None}}
        optimum = self.solve(self.inputs)
        assert optimum.converged
        self.inputs |= solved_scene(optimum)

    def solve(self, inputs: dict[str, Tensor], **options: Any) -> Any:
        prior = Prior(**{k.removeprefix("prior "): t for k, t in inputs.items() if k.startswith("prior ")})
        given = {name: inputs[name] for name in GIVEN if name != "weights"}
        return replace(self.tracks, **given).solve(
            weights=inputs["weights"], prior=prior, **{**self.options, **options}
        )

    def direction(self, name: str) -> Tensor:
        """A direction of the input, zero where it is a start and not data."""
        t = self.inputs[name]
        d = torch.randn(t.shape, generator=torch.Generator().manual_seed(5), **DOUBLE)
        if name in self.still:
            d[~self.still[name]] = 0
        if name == "K":
            # "f" keeps the pixels' shape: fx is a start then, fy data
            places = {"f": (0, 0), "fx": (0, 0), "fy": (1, 1), "cx": (0, 2), "cy": (1, 2)}
            d[:, 2] = 0
            for i, j in (places[free] for free in self.names if free in places):
                d[:, i, j] = 0
        if name == "distortion":
            coefficients = LENSES[self.tracks.model].names[: t.shape[1]]
            d = 0.1 * d * torch.tensor([c not in self.names for c in coefficients], **DOUBLE)
        if name.endswith("world_to_camera"):
            d[:, 3] = 0
            d[:, :3, :3] = se3.hat(d[:, :3, 3]) @ t[:, :3, :3] if name in self.still else d[:, :3, :3]
            d[:, :3, :3] = torch.where(d[:, :1, 3:] == 0, 0, d[:, :3, :3])
        # parts of the prior count about as much as what is seen
        return d * {"prior world_to_camera": 0.1, "prior pose_weights": 100, "prior point_weights": 30}.get(name, 1)


def covectors(x: Any) -> list[list[Tensor]]:
    """Three random linear functions of the scene, in units of its parts."""
    g = torch.Generator().manual_seed(13)
    parts = list(zip((1.0, 1.0, 1e-2, 1.0), x[:4], strict=True))
    return [[s * torch.randn(t.shape, generator=g, **DOUBLE) for s, t in parts] for _ in range(3)]


def functions(x: Any) -> Tensor:
    """The values (3,) of `covectors`."""
    return torch.stack(
        [torch.stack([(c * t).sum() for c, t in zip(some, x[:4], strict=True)]).sum() for some in covectors(x)]
    )


def slopes(case: Case, **options: Any) -> dict[str, Tensor]:
    """Analytic derivative (3,) of the functions of the scene along the direction of each input."""
    names = [name for name in case.inputs if case.direction(name).any()]
    leaves = {n: t.clone().requires_grad_(n in names) for n, t in case.inputs.items()}
    solution = case.solve(leaves, **options)
    assert solution.converged
    inputs = [leaves[n] for n in names]
    rows = [torch.autograd.grad(value, inputs, retain_graph=True) for value in functions(solution.x)]
    return {n: torch.stack([(row[i] * case.direction(n)).sum() for row in rows]) for i, n in enumerate(names)}


def difference(
    case: Case, sizes: dict[str, float], central_difference: Callable[..., Tensor], **options: Any
) -> Tensor:
    """Numeric derivative (3,) along so many times the directions of some inputs at once."""

    def value(step: float) -> Tensor:
        moved = {n: case.inputs[n] + step * size * case.direction(n) for n, size in sizes.items()}
        return functions(case.solve({**case.inputs, **moved}, **options).x)

    # to second order the free gauge depends on the way that the solver takes
    return central_difference(value, 1e-5 if case.free_gauge else 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_gradients_of_all_inputs(central_difference: Callable[..., Tensor], case: str) -> None:
    """At once, each along so much of its direction that all move the scene alike: what one of them lacks is seen."""
    problem = Case(**CASES[case])
    found = slopes(problem)
    least = min(slope.norm() for slope in found.values())
    sizes = {name: (least / slope.norm()).item() for name, slope in found.items()}
    total = sum(size * found[name] for name, size in sizes.items())
    numeric = difference(problem, sizes, central_difference)
    assert (total - numeric).norm() < (1e-6 if problem.free_gauge else 1e-8) * numeric.norm()


def test_the_gauss_newton_gradient_lacks_the_curvature(central_difference: Callable[..., Tensor]) -> None:
    noisy, perfect = Case(noise=1.0), Case(noise=0.0)
    found = slopes(noisy, gradient="gauss_newton")
    total = torch.stack(list(found.values())).sum(0)
    numeric = difference(noisy, dict.fromkeys(found, 1.0), central_difference)
    assert 1e-4 < (total - numeric).norm() / numeric.norm() < 0.5
    # a perfect fit does not feel its weights
    found = slopes(perfect, gradient="gauss_newton")
    numeric = difference(perfect, dict.fromkeys(GIVEN[:1] + GIVEN[4:], 1.0), central_difference)
    total = found["points2d"] + found["K"] + found["distortion"]
    assert (total - numeric).norm() < 1e-8 * numeric.norm()
    assert found["weights"].norm() < 1e-10 * numeric.norm()


@pytest.mark.slow
@pytest.mark.parametrize("lens", [False, True])
def test_gradient_is_that_of_argmin(lens: bool) -> None:
    """`argmin` differentiates the same least squares as one dense problem, by automatic differentiation."""
    tracks = make_tracks(4, 12, cameras=2)
    weights = 0.5 + torch.rand(len(tracks.points2d), 2, generator=torch.Generator().manual_seed(1), **DOUBLE)
    free = ("poses", "points", *(("f", "k1", "k2") if lens else ()))
    ours = tracks.points2d.clone().requires_grad_(), weights.clone().requires_grad_()
    x = replace(tracks, points2d=ours[0]).solve(weights=ours[1], free=free).x
    still = still_steps(tracks.world_to_camera, x.world_to_camera)
    assert int(still.sum()) == 7
    problem, start = dense_problem(tracks, still, lens=lens)
    theirs = tracks.points2d.clone().requires_grad_(), weights.clone().requires_grad_()
    poses, points, theta = argmin(problem, start, theirs[0][None], theirs[1][None], throw=True).x
    torch.testing.assert_close(x.points3d, points[0], rtol=0, atol=1e-10)
    c = [torch.randn(t.shape, generator=torch.Generator().manual_seed(2), **DOUBLE) for t in x[:2]]
    loss = (c[0] * x.world_to_camera).sum() + (c[1] * x.points3d).sum()
    other = (c[0] * poses[0]).sum() + (c[1] * points[0]).sum()
    if lens:
        loss = loss + 0.1 * x.K[:, 0, 0].sum() + x.distortion.square().sum()
        other = other + 0.1 * theta[0, :, 0].sum() + theta[0, :, 1:].square().sum()
    for a, b in zip(torch.autograd.grad(loss, ours), torch.autograd.grad(other, theirs), strict=True):
        assert (a - b).norm() < 1e-9 * b.norm()


@pytest.mark.slow
@pytest.mark.parametrize("gauge", ["fixed", "free"])
def test_gradient_on_ladybug(
    real_data: Callable[[str], Path], central_difference: Callable[..., Tensor], gauge: str
) -> None:
    """49 cameras and 7776 points, a loss that depends on the gauge and one that no similarity changes."""
    r = read_bal(real_data("bal") / "problem-49-7776-pre.txt")
    options: Any = {"free": ("poses", "points", "f", "k1", "k2")}
    seen = (r.camera_index, r.point_index)
    optimum = bundle(r.points2d, *seen, r.world_to_camera, r.points3d, r.K, r.distortion, **options)
    options["gauge"] = gauge
    g = torch.Generator().manual_seed(0)
    settled = (~optimum.undetermined).nonzero().flatten()
    settled = settled[torch.randperm(len(settled), generator=g)[:200]]
    covector = torch.randn(200, 3, generator=g, **DOUBLE)

    def losses(points2d: Tensor, weights: Tensor) -> Tensor:
        x = bundle(points2d, *seen, *optimum.x[:4], weights=weights, **options).x
        X = x.points3d[settled]
        distance = (X[:100] - X[100:]).norm(dim=1)
        return torch.stack([(covector * X).sum(), (covector[:99, 0] * (distance[1:] / distance[:-1])).sum()])

    inputs = r.points2d, torch.ones_like(r.points2d)
    leaves = [t.clone().requires_grad_() for t in inputs]
    values = losses(*leaves)
    rows = [torch.autograd.grad(value, leaves, retain_graph=True) for value in values]
    for i, name in enumerate(("points2d", "weights")):
        d = torch.randn(inputs[i].shape, generator=g, **DOUBLE)
        analytic = torch.stack([(row[i] * d).sum() for row in rows])

        def moved(h: float, i: int = i, d: Tensor = d) -> Tensor:
            return losses(*(t + h * d if j == i else t for j, t in enumerate(inputs)))

        error = (analytic - central_difference(moved, 1e-4)).abs() / analytic.abs()
        assert error.max() < 3e-6, name


def test_backward_twice_gives_the_same() -> None:
    tracks = make_tracks(4, 12)
    z = tracks.points2d.clone().requires_grad_()
    loss = replace(tracks, points2d=z).solve().x.points3d.square().sum()
    first, second = (torch.autograd.grad(loss, z, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert first.abs().max() > 0


def test_no_graph_where_no_gradient_is_wanted() -> None:
    tracks = make_tracks(4, 12)
    assert not any(t.requires_grad for t in tracks.solve().x[:4])
    wanted = replace(tracks, points2d=tracks.points2d.clone().requires_grad_())
    assert wanted.solve().x.points3d.requires_grad
    with torch.no_grad():
        assert not any(t.requires_grad for t in wanted.solve().x[:4])
    # cost and state are plain numbers
    assert not wanted.solve().cost.requires_grad


def test_what_is_free_is_a_start_and_gets_no_gradient() -> None:
    tracks = make_tracks(4, 12)
    leaves = {
        n: getattr(tracks, n).clone().requires_grad_() for n in ("world_to_camera", "points3d", "K", "distortion")
    }
    x = replace(tracks, **leaves).solve(free=("poses", "points", "f", "k1", "k2"), kernel=cauchy(2.0)).x
    (x.points3d.square().sum() + x.world_to_camera[:, :3].sum() + x.K[:, 0, 0].sum() + x.distortion.sum()).backward()
    gauge = leaves["world_to_camera"].grad
    assert gauge is not None
    assert leaves["points3d"].grad is not None
    assert not gauge.any()
    assert not leaves["points3d"].grad.any()
    assert not leaves["distortion"].grad.any()
    # fx is a start too, but fy and the centre are not
    K = leaves["K"].grad
    assert K is not None
    assert K[:, 1, 1].all()
    assert K[:, :2, 2].all()


def failing(kind: str) -> tuple[Tracks, dict[str, Any], Status]:
    tracks = make_tracks(4, 10, seen=1.0)
    if kind == "a pixel whose square is no number":
        return replace(tracks, points2d=tracks.points2d.index_fill(0, torch.tensor([7]), 1e200)), {}, Status.INFEASIBLE
    if kind == "poses from points on a line":
        line = tracks.points3d[:1] + torch.linspace(-1, 1, 10, **DOUBLE)[:, None]
        pixels = project(line[None], tracks.truth.world_to_camera, tracks.K, tracks.distortion)
        pixels = pixels[tracks.camera_index, tracks.point_index]
        return replace(tracks, points3d=line, points2d=pixels), {"free": ("poses",)}, Status.SINGULAR
    if kind == "out of steps":
        return tracks, {"max_steps": 0}, Status.STALLED  # the Hessian is definite there
    few = keep_only(tracks, (tracks.camera_index < 2) & (tracks.point_index < 4))
    return few, {}, Status.TOO_FEW


@pytest.mark.parametrize(
    "kind", ["a pixel whose square is no number", "poses from points on a line", "out of steps", "two views of four"]
)
def test_failures_have_a_status_and_no_gradient(kind: str) -> None:
    tracks, options, status = failing(kind)
    found, gradients = with_gradient(tracks, **options)
    assert Status(int(found.status)) == status
    # what is fixed passes through: of that, the loss holds K alone
    assert not gradients["points2d"].any()
    assert not gradients["weights"].any()
    assert torch.equal(gradients["K"], torch.full_like(gradients["K"], 1e-3))
    with pytest.raises(SolverError, match=status.message):
        tracks.solve(throw=True, **options)
