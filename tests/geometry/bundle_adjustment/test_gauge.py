"""The seven similarities that pixels do not see: how many are free, how they are chosen, and what depends on that."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from geometry import BundleSolution, Prior, align_similarity, cauchy, huber, project, se3
from geometry.bundle_adjustment.gauge import Gauge
from geometry.bundle_adjustment.prior import Known, _derivatives
from geometry.bundle_adjustment.problem import State
from tests.geometry.bundle_adjustment.scenes import (
    Tracks,
    dense_hessian,
    flat,
    make_tracks,
    moving,
    random_tangent,
    relative,
    solved_scene,
    still_steps,
    system_of,
    unflat,
)
from tests.numbers import DOUBLE

GAUGES = ["fixed", "free"]


def first(n: int, size: int) -> Tensor:
    return torch.arange(size) < n


def gauge_of(solution: BundleSolution) -> Gauge | None:
    return solution.task.gauge_at(solution.state)


def freedom(solution: BundleSolution) -> int:
    gauge = gauge_of(solution)
    return 0 if gauge is None else gauge.motions.cameras.shape[1]


def prior(
    tracks: Tracks, *, poses: float = 0, centres: float = 0, turns: float = 0, points: float = 0, n: int = 1
) -> Prior:
    """The truth of the first n poses, centres, rotations or points, with these weights."""
    pose_weights = torch.tensor([poses + turns] * 3 + [poses + centres] * 3, **DOUBLE)
    V, N = len(tracks.world_to_camera), len(tracks.points3d)
    known = tracks.truth.world_to_camera, first(n, V)[:, None] * pose_weights
    return Prior(*known, tracks.truth.points3d, first(n, N)[:, None] * torch.full((3,), float(points), **DOUBLE))


# --- how much is free -------------------------------------------------------------------------------------------------

FREEDOM: dict[str, tuple[int, dict[str, Any]]] = {
    "nothing known": (7, {}),
    "intrinsics free": (7, {"free": ("poses", "points", "f")}),
    "one pose fixed": (1, {"fixed_poses": first(1, 5)}),
    "two poses fixed": (0, {"fixed_poses": first(2, 5)}),
    "one point fixed": (4, {"fixed_points": first(1, 20)}),
    "two points fixed": (1, {"fixed_points": first(2, 20)}),
    "three points fixed": (0, {"fixed_points": first(3, 20)}),
    "a pose and a point fixed": (0, {"fixed_poses": first(1, 5), "fixed_points": first(1, 20)}),
    "all poses fixed": (0, {"free": ("points",)}),
    "all points fixed": (0, {"free": ("poses",)}),
    "one pose known": (1, {"prior": {"poses": 10}}),
    "two poses known": (0, {"prior": {"poses": 10, "n": 2}}),
    "one centre known": (4, {"prior": {"centres": 10}}),
    "two centres known": (1, {"prior": {"centres": 10, "n": 2}}),
    "three centres known": (0, {"prior": {"centres": 10, "n": 3}}),
    "one rotation known": (4, {"prior": {"turns": 10}}),
    "one point known": (4, {"prior": {"points": 10}}),
    "three points known": (0, {"prior": {"points": 10, "n": 3}}),
    "a prior that knows nothing": (7, {"prior": {}}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FREEDOM)
def test_number_of_free_similarities(case: str) -> None:
    number, options = FREEDOM[case]
    tracks, options = make_tracks(5, 20), dict(options)
    if "prior" in options:
        options["prior"] = prior(tracks, **options["prior"])
    found = tracks.solve(**options)
    assert found.converged
    assert freedom(found) == number
    # the Hessian says the same
    layout = found.task.problem.layout
    equations = found.task.problem.linearize(found.state, found.task.data, exact=True)
    places = moving(layout)
    H = dense_hessian(equations, layout)[places][:, places]
    scale = H.diagonal().rsqrt()
    values = torch.linalg.eigvalsh(scale[:, None] * H * scale)
    assert (values < 1e-9).sum() == number
    assert number < len(values)
    assert values[number] > 1e-7


@pytest.mark.parametrize("options", [{}, {"kernel": cauchy(1.0)}, {"free": ("poses", "points", "f"), "gauge": "free"}])
def test_motions_are_the_null_space_of_the_hessian(options: dict[str, Any]) -> None:
    found = make_tracks(5, 20, cameras=2).solve(**options)
    gauge, layout = gauge_of(found), found.task.problem.layout
    assert gauge is not None
    H = dense_hessian(found.task.problem.linearize(found.state, found.task.data, exact=True), layout)
    N = flat(gauge.motions)
    assert torch.linalg.matrix_rank(N) == 7
    size = H.diagonal().sqrt()
    assert ((H @ N) / size[:, None]).abs().max() < 1e-9 * (size[:, None] * N).abs().max()


@pytest.mark.parametrize("gauge", GAUGES)
def test_section_and_ignore_are_adjoint_projections(gauge: str) -> None:
    for options in ({}, {"fixed_poses": first(1, 5)}, {"fixed_points": first(2, 20)}):
        found = make_tracks(5, 20).solve(gauge=gauge, **options)
        chosen, layout = gauge_of(found), found.task.problem.layout
        assert chosen is not None
        u, b = random_tangent(layout, seed=1), random_tangent(layout, seed=2)
        once = chosen.section(u)
        assert relative(flat(chosen.section(once)), flat(once)) < 1e-12
        ignored = chosen.ignore(b)
        assert relative(flat(chosen.ignore(ignored)), flat(ignored)) < 1e-12
        assert abs(float(ignored.dot(u) - b.dot(once))) < 1e-10 * float(flat(u).norm() * flat(b).norm())
        N, C = flat(chosen.motions), chosen.normals
        assert (C.T @ once.cameras).abs().max() < 1e-11 * C.abs().max()
        assert (N.T @ flat(ignored)).abs().max() < 1e-11 * N.abs().max()
        assert flat(chosen.section(unflat(N, layout))).abs().max() < 1e-11
        # several at once are each by itself
        several = random_tangent(layout, 3)
        one = chosen.section(several._replace(cameras=several.cameras[:, 1], points=several.points[..., 1]))
        assert relative(flat(chosen.section(several))[:, 1], flat(one)) < 1e-12


# --- what the gauge keeps ---------------------------------------------------------------------------------------------


def test_fixed_keeps_the_first_pose_and_one_coordinate() -> None:
    for seed in range(5):
        tracks = make_tracks(5, 20, seed=seed)
        found = tracks.solve(free=("poses", "points", "f"))
        still = still_steps(tracks.world_to_camera, found.x.world_to_camera)
        assert still[0].all()
        assert int(still.sum()) == 7
        assert int(still[:, 3:].sum()) == 4
        # the first view that is not seen does not count
        later = tracks.camera_index > 0
        names = ("points2d", "camera_index", "point_index")
        without = replace(tracks, **{n: getattr(tracks, n)[later] for n in names}).solve()
        assert still_steps(tracks.world_to_camera, without.x.world_to_camera)[1].all()


def test_fixed_with_one_pose_given_keeps_one_coordinate() -> None:
    tracks = make_tracks(5, 20)
    found = tracks.solve(fixed_poses=torch.arange(5) == 2)
    still = still_steps(tracks.world_to_camera, found.x.world_to_camera)
    assert still[2].all()
    assert int(still.sum()) == 7


def as_a_whole(pose: Tensor, start: Tensor) -> Tensor:
    """How the cameras move (3), spread () and turn (3) as a whole, to first order: what the free gauge keeps."""
    centre = torch.linalg.inv(start)[:, :3, 3]
    relative_to = centre - centre.mean(0)
    size2 = relative_to.square().sum(1).mean()
    moved = torch.linalg.inv(pose)[:, :3, 3] - centre
    turned = -(start[:, :3, :3].mT @ se3.log(pose[:, :3, :3] @ start[:, :3, :3].mT)[..., None]).squeeze(-1)
    turn = turned.sum(0) + torch.linalg.cross(relative_to, moved).sum(0) / size2
    return torch.cat([moved.sum(0), (relative_to * moved).sum()[None], turn])


def test_free_keeps_the_cameras_as_a_whole() -> None:
    """Of the gradient, nothing goes to a similarity; a solution takes many steps, each of which keeps them there."""
    tracks = make_tracks(5, 20)
    pixels = tracks.points2d.clone().requires_grad_()
    x = replace(tracks, points2d=pixels).solve(gauge="free", free=("poses", "points", "f")).x
    pose = x.world_to_camera
    other = torch.autograd.grad(pose[2, :3].sum(), pixels, retain_graph=True)[0].norm()
    for value in as_a_whole(pose, pose.detach()):
        assert torch.autograd.grad(value, pixels, retain_graph=True)[0].norm() < 1e-9 * other
    # that they are kept to first order leaves the second
    assert as_a_whole(pose, tracks.world_to_camera).norm() < 0.3 * (pose - tracks.world_to_camera).square().sum()


@pytest.mark.parametrize("options", [{}, {"free": ("poses", "points", "f"), "kernel": cauchy(1.0)}])
def test_what_no_similarity_changes_has_one_gradient(options: dict[str, Any]) -> None:
    tracks = make_tracks(5, 20)
    at = replace(tracks, **solved_scene(tracks.solve(**options)))
    index, gradients, dependent = tracks.intrinsics_index, [], []
    for gauge in GAUGES:
        leaves = at.points2d.clone().requires_grad_(), torch.ones_like(at.points2d).requires_grad_()
        x = replace(at, points2d=leaves[0]).solve(weights=leaves[1], gauge=gauge, **options).x
        pixels = project(x.points3d[None], x.world_to_camera, x.K[index], x.distortion[index])
        distance = (x.points3d[1:] - x.points3d[:-1]).norm(dim=1)
        loss = 1e-3 * pixels.pow(2).mean() + (distance[1:] / distance[:-1]).sin().sum()
        gradients.append(torch.cat(torch.autograd.grad(loss, leaves, retain_graph=True)))
        dependent.append(torch.cat(torch.autograd.grad(x.points3d.pow(2).sum(), leaves)))
    assert (gradients[0] - gradients[1]).norm() < 1e-9 * gradients[1].norm()
    assert (dependent[0] - dependent[1]).norm() > 1e-2 * dependent[1].norm()


@pytest.mark.parametrize("options", [{}, {"kernel": huber(1.0), "free": ("poses", "points", "f", "k1")}])
def test_a_similarity_of_the_world_moves_the_optimum_with_it(options: dict[str, Any]) -> None:
    tracks = make_tracks(5, 20)
    Q, t, s = se3.exp(torch.tensor([0.3, -0.5, 0.2], **DOUBLE)), torch.tensor([2.0, -1, 3], **DOUBLE), 1.7
    b = tracks.solve(**options)

    def moved(poses: Tensor, points: Tensor, t: Tensor) -> dict[str, Tensor]:
        R = poses[:, :3, :3] @ Q.T
        return {"world_to_camera": se3.make(R, s * poses[:, :3, 3] - R @ t), "points3d": s * points @ Q.T + t}

    a = replace(tracks, **moved(tracks.world_to_camera, tracks.points3d, 0 * t)).solve(**options)
    assert relative(a.cost, b.cost) < 1e-11
    for name, expected in moved(*b.x[:2], 0 * t).items():
        assert relative(getattr(a.x, name), expected) < 1e-9
    # the coordinate that fixes the scale is another one about another origin
    a = replace(tracks, **moved(tracks.world_to_camera, tracks.points3d, t)).solve(**options)
    assert relative(a.cost, b.cost) < 1e-11
    aligned = align_similarity(b.x.points3d, a.x.points3d).apply(b.x.points3d)
    assert relative(aligned, a.x.points3d) < 1e-9


# --- what is known beforehand -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_enormous_weight_is_as_good_as_fixing() -> None:
    tracks = make_tracks(5, 20)
    truth = tracks.truth
    pose = torch.where(first(2, 5)[:, None, None], truth.world_to_camera, tracks.world_to_camera)
    fixed = replace(tracks, world_to_camera=pose).solve(fixed_poses=first(2, 5))
    known = tracks.solve(prior=prior(tracks, poses=1e7, n=2))
    assert (known.x.world_to_camera - fixed.x.world_to_camera).abs().max() < 1e-8
    assert (known.x.points3d - fixed.x.points3d).abs().max() < 1e-8
    X = torch.where(first(3, 20)[:, None], truth.points3d, tracks.points3d)
    fixed = replace(tracks, points3d=X).solve(fixed_points=first(3, 20))
    known = tracks.solve(prior=prior(tracks, points=1e7, n=3))
    assert (known.x.points3d - fixed.x.points3d).abs().max() < 1e-8
    # intrinsics: f and k1 of three cameras, "f" standing for fx
    names = ("poses", "points", "f", "k1")
    tracks = make_tracks(6, 20, cameras=3)
    theta = torch.stack([tracks.K[:, 0, 0], tracks.distortion[:, 0]], 1) * 1.01
    K = tracks.K.clone()
    K[:, :2, :2] *= 1.01
    distortion = tracks.distortion * torch.tensor([1.01, 1], **DOUBLE)
    fixed = replace(tracks, K=K, distortion=distortion).solve()
    known = tracks.solve(free=names, prior=Prior(theta=theta, theta_weights=torch.full((3, 2), 1e7, **DOUBLE)))
    assert relative(known.x.K, fixed.x.K) < 1e-9
    assert (known.x.points3d - fixed.x.points3d).abs().max() < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("known", [{"points": 1e3, "n": 4}, {"centres": 1e3, "n": 5}, {"poses": 1e3, "n": 2}])
def test_what_is_known_tells_scale_and_place(known: dict[str, Any]) -> None:
    """Perfect tracks, the start elsewhere and half the size: the truth comes back without an alignment."""
    tracks = make_tracks(5, 20, noise=0.0)
    Q, t, s = se3.exp(torch.tensor([0.1, 0.05, -0.1], **DOUBLE)), torch.tensor([0.2, 0.1, -0.3], **DOUBLE), 0.5
    R = tracks.world_to_camera[:, :3, :3] @ Q.T
    pose = se3.make(R, s * tracks.world_to_camera[:, :3, 3] - R @ t)
    moved = replace(tracks, world_to_camera=pose, points3d=s * tracks.points3d @ Q.T + t)
    found = moved.solve(prior=prior(tracks, **known))
    assert found.converged
    assert (found.x.points3d - tracks.truth.points3d).abs().max() < 1e-8
    assert (found.x.world_to_camera - tracks.truth.world_to_camera).abs().max() < 1e-8


def test_what_only_a_prior_determines_moves_to_it() -> None:
    """A point and a view that nothing connects with the rest, which stays as it was."""
    tracks = make_tracks(5, 20)
    alone = tracks.solve()
    pose = torch.cat([tracks.world_to_camera, tracks.world_to_camera[:1]])
    points = torch.cat([tracks.points3d, torch.zeros(1, 3, **DOUBLE)])
    more = {name: torch.cat([getattr(tracks, name), getattr(tracks, name)[:1]]) for name in ("K", "distortion")}
    given = replace(tracks, world_to_camera=pose, points3d=points, intrinsics_index=torch.arange(6), **more)
    known_pose = se3.retract(pose, torch.full((6, 6), 0.1, **DOUBLE))
    known_points = (points + 0.3).requires_grad_()
    weights = torch.zeros(6, 6, **DOUBLE), torch.zeros(21, 3, **DOUBLE)
    weights[0][5], weights[1][20] = 10, 5
    found = given.solve(prior=Prior(known_pose, weights[0], known_points, weights[1]))
    assert found.converged
    assert freedom(found) == 7
    assert (found.x.world_to_camera[5] - known_pose[5]).abs().max() < 1e-9
    assert (found.x.points3d[20] - 0.3).abs().max() < 1e-9
    assert (found.x.points3d[:20] - alone.x.points3d).abs().max() < 1e-9
    gradient = torch.autograd.grad(found.x.points3d[:, 1].sum(), known_points)[0]
    expected = torch.zeros(21, 3, **DOUBLE)
    expected[20, 1] = 1
    assert (gradient - expected).abs().max() < 1e-9
    assert relative(found.covariance(torch.tensor([20]), sigma=1.0).points[0], torch.eye(3, **DOUBLE) / 25) < 1e-9


def test_residuals_of_a_prior() -> None:
    """Alone: rotation vector of R R_prior^T, difference of the centres, of points, of intrinsics."""
    tracks = make_tracks(5, 20)
    g = torch.Generator().manual_seed(1)
    weights = torch.rand(5, 6, generator=g, **DOUBLE), torch.rand(20, 3, generator=g, **DOUBLE)
    theta = tracks.K[:, :1, 0] + 3
    known = Prior(tracks.truth.world_to_camera, weights[0], tracks.truth.points3d, weights[1], theta, theta * 0 + 0.7)
    costs: dict[bool, list[float]] = {True: [], False: []}
    for given in (True, False):
        options: Any = {"free": ("poses", "points", "f"), "prior": known if given else None}
        tracks.solve(callback=lambda step, cost, given=given: costs[given].append(cost), max_steps=1, **options)
    T, T0 = tracks.world_to_camera, tracks.truth.world_to_camera
    turn = se3.log(T[:, :3, :3] @ T0[:, :3, :3].mT)
    centre = torch.linalg.inv(T)[:, :3, 3] - torch.linalg.inv(T0)[:, :3, 3]
    expected = 0.5 * (weights[0] * torch.cat([turn, centre], 1)).square().sum()
    expected += 0.5 * (weights[1] * (tracks.points3d - tracks.truth.points3d)).square().sum() + 0.5 * 5 * (0.7 * 3) ** 2
    assert abs(costs[True][0] - costs[False][0] - float(expected)) < 1e-9 * costs[True][0]


@pytest.mark.parametrize("size", [1e-9, 0.3, 3.0])
def test_derivatives_of_priors_of_poses(size: float) -> None:
    """Against automatic differentiation, next to the prior and nearly half a turn away."""
    g = torch.Generator().manual_seed(2)
    pose = se3.from_rotvec_t(torch.randn(4, 6, generator=g, **DOUBLE))
    axis = torch.nn.functional.normalize(torch.randn(4, 3, generator=g, **DOUBLE), dim=-1)
    prior = se3.retract(pose, torch.cat([size * axis, torch.randn(4, 3, generator=g, **DOUBLE)], -1))
    weights = torch.rand(4, 6, generator=g, **DOUBLE)
    every = torch.arange(4)
    known = Known(pose, prior, weights, 0, torch.ones(4, **DOUBLE), every)

    def residual(step: Tensor, pose: Tensor, prior: Tensor, weights: Tensor) -> Tensor:
        moved = se3.retract(pose, step)
        turn = se3.log(moved[:3, :3] @ prior[:3, :3].mT)
        return weights * torch.cat([turn, torch.linalg.inv(moved)[:3, 3] - torch.linalg.inv(prior)[:3, 3]])

    at = (torch.zeros(4, 6, **DOUBLE), pose, prior, weights)
    r, J = torch.vmap(residual)(*at), torch.vmap(torch.func.jacfwd(residual))(*at)
    for exact in (False, True):
        slope, bend = _derivatives(known, exact)
        assert relative(slope, (J.mT @ r[..., None])[..., 0]) < 1e-9
        half_square = torch.func.hessian(lambda *a: 0.5 * residual(*a).square().sum())
        assert relative(bend, torch.vmap(half_square)(*at) if exact else J.mT @ J) < 1e-9


@pytest.mark.parametrize("kind", ["world_to_camera", "points3d", "theta"])
def test_every_way_to_the_cost_counts_the_prior(kind: str) -> None:
    """By itself, with the normal equations, and at the end of a step: the residual of one kind, written out."""
    tracks = make_tracks(5, 20)
    free = ("poses", "points", "f")
    weights = {"world_to_camera": (5, 6), "points3d": (20, 3), "theta": (5, 1)}[kind]
    theta = tracks.K[:, :1, 0] + 3
    value = theta if kind == "theta" else getattr(tracks.truth, kind)
    name = {"world_to_camera": "pose_weights", "points3d": "point_weights", "theta": "theta_weights"}[kind]
    w = 1 + torch.rand(*weights, generator=torch.Generator().manual_seed(1), **DOUBLE)
    (problem, data, state), (_, plain, _) = (
        system_of(tracks, free=free, prior=known) for known in (Prior(**{kind: value, name: w}), None)
    )
    step = random_tangent(problem.layout).times(1e-3)
    moved, cost = problem.advance(state, step, data)

    def expected(state: State) -> Tensor:
        T, T0 = state.world_to_camera, tracks.truth.world_to_camera
        turn = se3.log(T[:, :3, :3] @ T0[:, :3, :3].mT)
        centre = torch.linalg.inv(T)[:, :3, 3] - torch.linalg.inv(T0)[:, :3, 3]
        r = {
            "world_to_camera": torch.cat([turn, centre], 1),
            "points3d": state.points3d - tracks.truth.points3d,
            "theta": state.theta - theta,
        }
        return problem.cost(state, plain) + 0.5 * (w * r[kind]).square().sum()

    assert relative(problem.cost(state, data), expected(state)) < 1e-13
    assert relative(problem.linearize(state, data).cost, expected(state)) < 1e-13
    assert relative(cost, expected(moved)) < 1e-13
    assert problem.cost(state, data) > problem.cost(state, plain) + 1e-6
