"""Normal equations of a bundle: their blocks against automatic differentiation, their kernels against dense algebra."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import hessian, jacfwd, jacrev

from geometry import Prior, barron, cauchy, geman_mcclure, huber
from geometry.bundle_adjustment.coarse import coarse_motions
from geometry.bundle_adjustment.conjugate_gradients import conjugate_gradients
from geometry.bundle_adjustment.equations import NormalEquations, Tangent
from geometry.bundle_adjustment.gauge import choose_rows, gauge_at
from geometry.bundle_adjustment.indices import Layout
from geometry.bundle_adjustment.problem import BundleData, BundleProblem, State
from geometry.bundle_adjustment.products import couple, couple_back, own_blocks, project_blocks, reduce, schur_product
from geometry.bundle_adjustment.schur import Schur
from tests.geometry.bundle_adjustment.scenes import (
    ALL,
    assert_same,
    assert_same_gradients,
    dense_hessian,
    flat,
    make_tracks,
    moving,
    random_tangent,
    relative,
    solved_scene,
    system_of,
    unflat,
    with_gradient,
)
from tests.numbers import DOUBLE

# --- the loops over observations --------------------------------------------------------------------------------------


def make_layout(kind: str, P: int, V: int = 42) -> Layout:
    """Points that 1 to 40 views see, twice over, and one that nobody sees; three points are held."""
    g = torch.Generator().manual_seed(P)
    counts = torch.cat([torch.arange(1, 41), torch.tensor([0]), torch.arange(40, 0, -1)])
    view = torch.cat([torch.randperm(V, generator=g)[:n] for n in counts.tolist()])
    point = torch.arange(len(counts)).repeat_interleave(counts)
    still = torch.arange(V) % 5 == 2 if kind == "fixed" else torch.zeros(V, dtype=torch.bool)
    own = torch.zeros(V, dtype=torch.bool) if kind == "shared" else torch.ones(V, dtype=torch.bool)
    if kind == "fixed":
        own = torch.arange(V) % 3 > 0
    width = 6 * ~still + P * own
    start = width.cumsum(0) - width
    size = int(width.sum()) + (2 * P if kind == "shared" else 0)
    poses = torch.where(still[:, None], size, start[:, None] + torch.arange(6))
    place = int(width.sum()) + P * (torch.arange(V) % 2) if kind == "shared" else start + 6 * ~still
    kappa = torch.where(own[:, None] | (kind == "shared"), place[:, None] + torch.arange(P), size)
    held = torch.arange(len(counts)) % 20 == 7
    return Layout(view, point, torch.cat([poses, kappa], 1), size, (), held)


def random_blocks(layout: Layout, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """U (V,p,p), W (M,p,3) and V^-1 (N,3,3), the latter zero where held."""
    g = torch.Generator().manual_seed(seed)
    p = layout.rows.shape[1]
    A = torch.randn(len(layout.rows), p, p, generator=g, **DOUBLE)
    B = torch.randn(len(layout.held), 3, 3, generator=g, **DOUBLE)
    W = torch.randn(len(layout.view), p, 3, generator=g, **DOUBLE)
    return A @ A.mT, W, torch.where(layout.held[:, None, None], 0, B @ B.mT)


def dense_blocks(layout: Layout, U: Tensor, W: Tensor, V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (D,D), W (D,3N), V (3N,3N) as plain matrices."""
    zero = Tangent(torch.zeros(layout.size, **DOUBLE), torch.zeros(len(layout.held), 3, **DOUBLE))
    free = replace(layout, held=torch.zeros_like(layout.held))
    H = dense_hessian(NormalEquations(torch.zeros((), **DOUBLE), zero, U, W, V), free)
    D = layout.size
    return H[:D, :D], H[:D, D:], H[D:, D:]


@pytest.fixture
def one_and_two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Iterator[int]]:
    """One thread, then two, however few the observations."""
    monkeypatch.setattr("geometry.bundle_adjustment.indices._WORTH_A_THREAD", 10)
    before = torch.get_num_threads()

    def numbers() -> Iterator[int]:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            yield threads

    yield numbers()
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("P", [0, 1, 3, 9, 16])
@pytest.mark.parametrize("kind", ["own", "shared", "fixed"])
def test_products_are_those_of_dense_matrices(kind: str, P: int, one_and_two_threads: Iterator[int]) -> None:
    U, W, V = random_blocks(make_layout(kind, P))
    dense = dense_blocks(make_layout(kind, P), U, W, V)
    for threads in one_and_two_threads:
        layout = make_layout(kind, P)
        assert len(layout.parts) == threads + 1
        assert_products(layout, (U, W, V), dense)


def assert_products(layout: Layout, blocks: tuple[Tensor, ...], dense: tuple[Tensor, ...]) -> None:
    (U, W, V), (dense_U, dense_W, dense_V) = blocks, dense
    P = layout.rows.shape[1] - 6
    assert relative(reduce(U, W, V, layout), dense_U - dense_W @ dense_V @ dense_W.T) < 1e-13
    for R in (1, 3):
        g = torch.Generator().manual_seed(R)
        u = torch.randn(layout.size, R, generator=g, **DOUBLE)
        x = torch.randn(len(layout.held), 3, R, generator=g, **DOUBLE)
        assert relative(couple(W, x, layout), dense_W @ x.flatten(0, 1)) < 1e-13
        assert relative(couple_back(W, u, layout).flatten(0, 1), dense_W.T @ u) < 1e-13
        assert relative(schur_product(W, V, u, layout), dense_W @ (dense_V @ (dense_W.T @ u))) < 1e-13
    own = torch.stack([sum(W[i] @ V[layout.point[i]] @ W[i].T for i in (layout.view == v).nonzero()[:, 0])
                       for v in range(len(U))])  # fmt: skip
    assert relative(own_blocks(W, V, layout), own) < 1e-13
    motions = torch.randn(len(U), 6 + P, 4, generator=torch.Generator().manual_seed(5), **DOUBLE)
    assert relative(project_blocks(W, motions, layout), motions.mT[layout.view] @ W) < 1e-13


def test_the_reduced_matrix_in_tensors_and_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on a GPU, where a chunk of points is all that fits."""
    from geometry.bundle_adjustment import products

    layout = make_layout("fixed", 3)
    blocks = random_blocks(layout)
    whole = products._reduce_in_tensors(*blocks, layout)
    assert relative(whole, reduce(*blocks, layout)) < 1e-13
    monkeypatch.setattr(products, "_CHUNK", 500)
    assert relative(products._reduce_in_tensors(*blocks, layout), whole) < 1e-13


# --- the blocks -------------------------------------------------------------------------------------------------------

SCENES: dict[str, dict[str, Any]] = {
    "pinhole": {"lens": 0},
    "own f, k1, k2": {"free": ("f", "k1", "k2")},
    "shared f": {"cameras": 1, "free": ("f",)},
    "two cameras, nine intrinsics": {
        "cameras": 2, "lens": 5, "free": ("k3", "fx", "p2", "fy", "k1", "cx", "p1", "cy", "k2"),
    },
    "f and eight more": {"lens": 5, "free": ("cy", "p1", "k2", "f", "k3", "cx", "p2", "k1")},
    "twelve coefficients": {"lens": 12, "free": ("p1", "cx", "f")},
    "no poses": {"free": ("f", "k2"), "poses": False},
    "fixed poses and points": {
        "free": ("f",), "fixed_poses": torch.arange(4) < 2, "fixed_points": torch.arange(12) < 3,
    },
    "zero weights": {"weights": True, "free": ("k1",)},
}  # fmt: skip
KERNELS = {
    "none": None,
    "huber": huber(0.7),
    "cauchy": cauchy(1.0),
    "geman": geman_mcclure(2.0),
    "barron": barron(-1.0, 2.0),
}


def make_system(
    scene: str, kernel: str = "none", prior: Prior | None = None
) -> tuple[BundleProblem, BundleData, State]:
    """A problem some way from its optimum, where all of the second derivatives count."""
    options = dict(SCENES[scene])
    shape = {name: options.pop(name) for name in ("lens", "cameras") if name in options}
    free = (*(("poses",) if options.pop("poses", True) else ()), "points", *options.pop("free", ()))
    tracks = make_tracks(4, 12, **shape)
    if options.pop("weights", False):
        weights = 0.5 + torch.rand(len(tracks.points2d), 2, generator=torch.Generator().manual_seed(2), **DOUBLE)
        weights[::4, 0], weights[1::4, 1], weights[2::8] = 0, 0, 0
        options["weights"] = weights
    return system_of(tracks, free=free, kernel=KERNELS[kernel], prior=prior, **options)


def blocks_of(equations: NormalEquations) -> dict[str, Tensor]:
    gradient = equations.gradient
    fields = equations.cost, gradient.cameras, gradient.points, *equations[2:]
    return dict(zip(("cost", "cameras", "points", "U", "W", "V"), fields, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("scene", "kernel"), [*((scene, "none") for scene in SCENES), *(("own f, k1, k2", kernel) for kernel in KERNELS),
                          ("two cameras, nine intrinsics", "cauchy"), ("zero weights", "huber")],
)  # fmt: skip
def test_compiled_blocks_are_those_in_tensors(
    scene: str, kernel: str, exact: bool, one_and_two_threads: Iterator[int]
) -> None:
    problem, data, state = make_system(scene, kernel)
    expected = blocks_of(replace(problem, in_tensors=True).linearize(state, data, exact=exact))
    for threads in one_and_two_threads:
        problem, data, state = make_system(scene, kernel)
        assert problem._compiled(data)
        found = blocks_of(problem.linearize(state, data, exact=exact))
        for name, block in expected.items():
            assert relative(found[name], block) < 1e-12, (name, threads)


def known_beforehand() -> Prior:
    g = torch.Generator().manual_seed(1)
    tracks = make_tracks(4, 12)

    def weights(*shape: int) -> Tensor:
        return 30 * torch.rand(*shape, generator=g, **DOUBLE) * (torch.arange(shape[0]) % 2)[:, None]

    return Prior(tracks.truth.world_to_camera, weights(4, 6), tracks.truth.points3d, weights(12, 3),
                 torch.full((4, 3), 2.0, **DOUBLE), weights(4, 3))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("in_tensors", [False, True])
@pytest.mark.parametrize(
    ("scene", "kernel", "prior"),
    [("own f, k1, k2", "none", False), ("own f, k1, k2", "barron", False), ("own f, k1, k2", "cauchy", True),
     ("shared f", "none", False), ("two cameras, nine intrinsics", "geman", False), ("no poses", "none", False),
     ("twelve coefficients", "huber", False), ("fixed poses and points", "cauchy", False),
     ("zero weights", "none", False)],
)  # fmt: skip
def test_blocks_are_derivatives_of_the_cost(scene: str, kernel: str, prior: bool, in_tensors: bool) -> None:
    """By automatic differentiation of the cost along the retraction, as one dense problem."""
    problem, data, state = make_system(scene, kernel, known_beforehand() if prior else None)
    problem = replace(problem, in_tensors=in_tensors)
    layout = problem.layout

    def cost(step: Tensor) -> Tensor:
        return problem.cost(problem.retract(state, unflat(step, layout)), data)

    equations = problem.linearize(state, data, exact=True)
    zero = torch.zeros(layout.size + 3 * len(layout.held), **DOUBLE)
    places = moving(layout)
    assert relative(equations.cost, cost(zero)) < 1e-13
    gradient = flat(Tangent(equations.gradient.cameras, equations.gradient.points))[places]
    assert relative(gradient, jacrev(cost)(zero)[places]) < 1e-12
    H = hessian(cost)(zero)[places][:, places]
    assert relative(dense_hessian(equations, layout)[places][:, places], H) < 1e-12
    assert relative(flat(equations.diagonal(layout))[places], H.diagonal()) < 1e-12
    if kernel == "none":

        def residual(step: Tensor) -> Tensor:
            moved = problem.compose(problem.retract(state, unflat(step, layout)), data.given)
            return problem.residual(moved, data).flatten()

        J = jacfwd(residual)(zero)[:, places]
        gauss_newton = dense_hessian(problem.linearize(state, data), layout)[places][:, places]
        assert relative(gauss_newton, J.T @ J) < 1e-12


# --- solutions --------------------------------------------------------------------------------------------------------


def damped_system(scene: str, damping: float = 1e-2, **options: Any) -> tuple[Schur, Tensor, Layout]:
    problem, data, state = make_system(scene)
    equations = problem.linearize(state, data)
    H = dense_hessian(equations, problem.layout)
    if options.get("coarse"):
        poses = problem.compose(state, data.given).world_to_camera
        options["coarse"] = coarse_motions(poses, problem.layout, problem.frame)
    schur = Schur(equations, problem.layout, damping, **options)
    return schur, H + damping * H.diagonal().diag(), problem.layout


@pytest.mark.slow
@pytest.mark.parametrize("method", [{}, {"iterative": True}, {"iterative": True, "coarse": True}])
@pytest.mark.parametrize("scene", SCENES)
def test_solution_of_the_damped_equations(scene: str, method: dict[str, Any]) -> None:
    schur, H, layout = damped_system(scene, **method)
    places = moving(layout)
    for several in ((), (1,), (4,)):
        b = random_tangent(layout, *several)
        u = schur.solve(b)
        assert schur.ok
        assert u.cameras.shape == b.cameras.shape
        expected = torch.linalg.solve(H[places][:, places], flat(b)[places])
        assert relative(flat(u)[places], expected) < 1e-8
        assert not u.points[layout.held].any()
    product = schur.reduced.multiply(torch.eye(layout.size, **DOUBLE))
    D = layout.size
    inner = places[places >= D]
    S = H[:D, :D] - H[:D, inner] @ torch.linalg.solve(H[inner][:, inner], H[inner, :D])
    assert relative(product, S) < 1e-11


@pytest.mark.parametrize("iterative", [False, True])
@pytest.mark.parametrize("scene", ["own f, k1, k2", "shared f"])
def test_directions_that_the_data_do_not_see(scene: str, iterative: bool) -> None:
    """Without damping: H u = b for every b that has no share in the seven similarities, as if nothing were added."""
    problem, data, state = make_system(scene)
    gauge = gauge_at(problem, state, data, "free", choose_rows(problem, state, data))
    assert gauge is not None
    equations = problem.linearize(state, data)
    H, layout = dense_hessian(equations, problem.layout), problem.layout
    assert not Schur(equations, layout).ok
    schur = Schur(equations, layout, unseen=gauge.motions.cameras, iterative=iterative)
    b = gauge.ignore(random_tangent(layout, 3))
    u = schur.solve(b)
    assert schur.ok
    assert relative(H @ flat(u), flat(b)) < 1e-7
    expected = unflat(torch.linalg.pinv(H, rtol=1e-11, hermitian=True) @ flat(b), layout)
    assert relative(flat(gauge.section(u)), flat(gauge.section(expected))) < 1e-6


@pytest.mark.parametrize("damping", [1e-3, 0.5])
def test_points_do_not_move_along_their_stiff_direction(damping: float) -> None:
    g = torch.Generator().manual_seed(3)
    stiff = torch.nn.functional.normalize(torch.randn(12, 3, generator=g, **DOUBLE), dim=1)
    stiff[::2] = 0
    schur, H, layout = damped_system("own f, k1, k2", damping, stiff=stiff)
    b = random_tangent(layout)
    u = schur.solve(b)
    assert (u.points * stiff).sum(1).abs().max() < 1e-13 * u.points.abs().max()
    columns = torch.zeros(layout.size + 36, 12, **DOUBLE)
    for j in range(12):
        columns[layout.size + 3 * j : layout.size + 3 * j + 3, j] = stiff[j]
    Z = torch.linalg.svd(columns[:, 1::2]).U[:, 6:]  # what is orthogonal to all of them
    expected = Z @ torch.linalg.solve(Z.T @ H @ Z, Z.T @ flat(b))
    assert relative(flat(u), expected) < 1e-9


@pytest.mark.parametrize("iterative", [False, True])
def test_what_is_not_definite_is_said_so(iterative: bool) -> None:
    problem, data, state = make_system("pinhole")
    equations = problem.linearize(state, data)
    for U, V in (
        (-equations.U, equations.V),
        (equations.U, equations.V * torch.where(torch.arange(12) == 4, -1, 1)[:, None, None]),
    ):
        schur = Schur(equations._replace(U=U, V=V), problem.layout, 1e-3, iterative=iterative)
        u = schur.solve(random_tangent(problem.layout))
        assert not schur.ok
        assert not flat(u).any()
    infinite = equations._replace(cost=equations.cost * torch.inf)
    assert not Schur(infinite, problem.layout, 1e-3, iterative=iterative).ok


def test_conjugate_gradients_say_what_they_do_not_solve() -> None:
    """Diagonals of 100 entries between 1 and 1e-4, and between 1 and 1e-14: the latter takes too many steps."""
    for least, solvable in ((1e-4, True), (1e-14, False)):
        S = torch.logspace(0, float(torch.tensor(least).log10()), 100, **DOUBLE)[:, None]
        u, found = conjugate_gradients(lambda p, S=S: S * p, torch.clone, torch.ones_like(S), truncated=False)
        assert found == solvable
        assert relative(u, 1 / S) < 1e-9 if solvable else not u.any()


@pytest.mark.parametrize("link", [1e-2, 1e-4, 0.0])
def test_conjugate_gradients_know_the_share_as_a_factor_does(link: float) -> None:
    """Two groups of views that a few observations of a small weight tie to each other, or none at all."""
    solution = make_tracks(8, 40, seen=1.0, lens=0).solve()
    state, layout = solution.state, solution.task.problem.layout
    across = (layout.view < 4) != (layout.point < 20)
    weights = torch.where(across, link, 1.0)[:, None].expand(-1, 2).double()
    task = replace(solution.task, data=solution.task.data._replace(weights=weights))
    equations, gauge = task.problem.linearize(state, task.data), task.gauge_at(state)
    one, other = (replace(task, solver=s).factorise(state, equations, gauge) for s in ("dense", "iterative"))
    assert one.definite == other.definite == (link > 0)
    if link:
        assert one.share * 0.99 < other.share < 30 * one.share  # of seven open directions they are given one


def test_a_truncated_step_gains_almost_as_much() -> None:
    for scene in ("own f, k1, k2", "shared f"):
        truncated, H, layout = damped_system(scene, 1e-3, iterative=True, truncated=True, coarse=True)
        b = random_tangent(layout)
        u, best = flat(truncated.solve(b)), torch.linalg.solve(H, flat(b))

        def gain(u: Tensor, H: Tensor = H, b: Tangent = b) -> Tensor:
            return u @ flat(b) - 0.5 * u @ H @ u

        assert 0.9 * gain(best) < gain(u) <= gain(best) * (1 + 1e-12)


# --- the way that points take -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["none", "cauchy"])
def test_advance_agrees_with_the_straight_way_to_first_order(kernel: str) -> None:
    problem, data, state = make_system("fixed poses and points", kernel)
    step = random_tangent(problem.layout)
    difference = []
    for h in (1e-3, 1e-4):
        found, _ = problem.advance(state, step.times(h), data)
        straight = problem.retract(state, step.times(h))
        assert torch.equal(found.world_to_camera, straight.world_to_camera)
        assert torch.equal(found.theta, straight.theta)
        difference.append(float((found.points3d - straight.points3d).norm()))
        assert torch.equal(found.points3d[problem.layout.held], state.points3d[problem.layout.held])
    assert 0 < difference[1] < 1.5e-2 * difference[0]


@pytest.mark.parametrize("size", [0.1, 1.0, 30.0])
def test_advance_never_costs_more_than_the_straight_way(size: float) -> None:
    problem, data, state = make_system("own f, k1, k2", "none", known_beforehand())
    won = 0
    for seed in range(20):
        step = random_tangent(problem.layout, seed=seed)
        step = Tangent(0.01 * step.cameras, size * step.points)
        found, cost = problem.advance(state, step, data)
        straight = problem.cost(problem.retract(state, step), data)
        assert cost <= straight * (1 + 1e-12)
        assert relative(problem.cost(found, data), cost) < 1e-12
        won += bool(cost < straight * (1 - 1e-6))
    assert won > 0


# --- whole solutions --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["dense", "iterative"])
def test_threads_do_not_matter(solver: str) -> None:
    tracks = make_tracks(12, 500, cameras=3)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(with_gradient(tracks, free=ALL, solver=solver, kernel=huber(1.0)))
        assert len(found[-1][0].task.problem.layout.parts) == threads + 1
    torch.set_num_threads(before)
    assert_same(found[1][0], found[0][0])
    assert_same_gradients(found[1][1], found[0][1])


@pytest.mark.slow
@pytest.mark.parametrize("cameras", [None, 2])
@pytest.mark.parametrize("gauge", ["fixed", "free"])
def test_dense_and_iterative_solver_agree(gauge: str, cameras: int | None) -> None:
    tracks = make_tracks(6, 40, cameras=cameras)
    dense = tracks.solve(free=ALL)
    # both from there: the free gauge depends on the way
    at = replace(tracks, **solved_scene(dense))
    a, ga = with_gradient(at, free=ALL, gauge=gauge, solver="iterative")
    b, gb = with_gradient(at, free=ALL, gauge=gauge, solver="dense")
    assert_same(a, b, 1e-8)
    assert_same_gradients(ga, gb)
    if gauge == "fixed":
        assert_same(tracks.solve(free=ALL, solver="iterative"), dense, 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [huber(1.5), cauchy(1.0), geman_mcclure(6.0), barron(1.0, 2.0), barron(-2.0, 3.0)])
def test_a_kernel_of_one_s_own_takes_the_other_path(kernel: Any) -> None:
    tracks = make_tracks(5, 20)
    known, own = with_gradient(tracks, kernel=kernel), with_gradient(tracks, kernel=lambda s: kernel(s))
    assert not own[0].task.problem._compiled(own[0].task.data)
    assert known[0].task.problem._compiled(known[0].task.data)
    assert_same(own[0], known[0])
    assert_same_gradients(own[1], known[1], 1e-7)
