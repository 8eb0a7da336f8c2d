"""Every solver under every transform of torch: the same derivatives, or a refusal, but never a silent zero."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jacrev, jvp, vmap

from datasets.made.rig_views import rig_views
from geometry import Problem, argmin, bundle, cauchy, pnp, pnp_ransac, project, quadratic_program, rig_pnp, se3
from geometry.camera import Model
from geometry.lenses import LENSES
from geometry.optim import Constrained
from geometry.tasks.hand_eye import hand_eye
from geometry.tasks.homography import homography
from geometry.tasks.point_registration import point_registration
from geometry.tasks.radial_pnp import radial_pnp
from geometry.tasks.relative_pose import relative_pose
from geometry.tasks.stereo_rig import stereo_rig
from geometry.tasks.triangulation import triangulation
from tests.numbers import DOUBLE, central_difference, close, generator, normal

K = torch.tensor([[800.0, 0, 320], [0, 780, 240], [0, 0, 1]], **DOUBLE)


class Case(NamedTuple):
    """A solver as a function of one tensor, and where it is asked."""

    solver: Callable[[Tensor], Tensor]
    at: Tensor


def views(*turns: float) -> tuple[Tensor, Tensor, Tensor]:
    """Points (9,3), poses (V,4,4), and noisy pixels (V,9,2)."""
    points = 2 * torch.rand(9, 3, generator=generator(1), **DOUBLE) - 1
    away = torch.tensor([0.0, 0, 0, 0, 0, 6], **DOUBLE)
    poses = se3.from_rotvec_t(
        torch.stack([away + turn * torch.tensor([0.1, 0.3, -0.1, 1, 0.2, 0.1]) for turn in turns])
    )
    return points, poses, project(points, poses, K) + normal(len(turns), 9, 2, seed=2)


def a_curve() -> Case:
    def residual(x: tuple[Tensor, Tensor], data: Tensor) -> Tensor:
        return x[0][0] * torch.exp(-x[1] * data[0]) + x[0][1] - data[1]

    problem = Problem(residual, dof=3, retract=lambda x, step: (x[0] + step[:2], x[1] * torch.exp(step[2])))
    time = torch.linspace(0, 4, 8, **DOUBLE).expand(2, 8)
    data = torch.stack([time, 2 * torch.exp(-0.7 * time) + 0.2 * normal(2, 8)], 1)

    def solver(data: Tensor) -> Tensor:
        ones = data.new_ones(len(data), 2)
        a, rate = argmin(problem, (ones, ones[:, 0]), data, throw=True).x
        return torch.cat([a, rate[:, None]], 1)

    return Case(solver, data)


def a_homography() -> Case:
    a = normal(2, 6, 2)
    return Case(lambda a: homography(a, a + 0.2 * a.square()).x, a)


def a_registration() -> Case:
    source = normal(2, 5, 3)
    target = source @ se3.exp(normal(2, 3, seed=1)).mT + 0.1 * normal(2, 5, 3, seed=2)
    return Case(lambda source: point_registration(source, target).x, source)


def a_relative_pose() -> Case:
    _, _, pixels = views(0, 1)
    return Case(lambda a: relative_pose(a, pixels[1], K, K).x, pixels[0])


def a_triangulation() -> Case:
    _, poses, pixels = views(0, 1, 2)
    return Case(lambda x: triangulation(x, poses, K.expand(3, 3, 3)).x, pixels[:, 0])


def a_radial_pnp() -> Case:
    points, _, pixels = views(1)

    def solver(pixels: Tensor) -> Tensor:
        pose, f, distortion = radial_pnp(pixels, points, K[:2, 2]).x
        return torch.cat([pose.flatten(1), f[:, None] / 800, distortion], 1)

    return Case(solver, pixels[0])


def a_hand_eye() -> Case:
    gripper, X = se3.from_rotvec_t(normal(4, 6)), se3.from_rotvec_t(normal(6, seed=1))
    camera = se3.retract(se3.inverse(X) @ gripper @ X, 0.05 * normal(4, 6, seed=2))
    return Case(lambda step: hand_eye(gripper, se3.retract(camera, step)).x, torch.zeros(4, 6, **DOUBLE))


def a_stereo_rig() -> Case:
    points, poses, left = views(0, 1)
    rig = se3.from_rotvec_t(torch.tensor([0.02, -0.03, 0.01, -0.5, 0.02, 0.01], **DOUBLE))
    right = project(points, rig @ poses, K) + normal(2, 9, 2, seed=3)
    lenses = K.expand(2, 3, 3)
    return Case(lambda left: stereo_rig(torch.stack([left, right])[None], points, lenses).x[0], left)


def a_pose(tensor: str, model: Model = "radtan", **options: Any) -> Callable[[], Case]:
    def case() -> Case:
        points, poses, _ = views(0, 1)
        lens = torch.tensor([0.05, -0.02, 0.004, -0.001][: LENSES[model].counts[-1]], **DOUBLE)
        pixels = project(points, poses, K, lens, model=model) + normal(2, 9, 2, seed=2)
        given = {
            "points2d": pixels,
            "points3d": points,
            "K": K,
            "distortion": lens,
            "weights": torch.ones(2, 9, **DOUBLE),
        }

        def solver(d: Tensor) -> Tensor:
            data = given | {tensor: d}
            seen = data.pop("points2d"), data.pop("points3d"), data.pop("K")
            return pnp(*seen, model=model, **data, **options).x

        return Case(solver, given[tensor])

    return case


def a_rig_of_unknown_scale() -> Case:
    seen = rig_views(2, 9, 3, 1.0, generator(3))

    def solver(pixels: Tensor) -> Tensor:
        pose, scale = rig_pnp(**(seen.given | {"points2d": pixels}), scale=True).x
        return torch.cat([pose.flatten(1), scale[:, None]], 1)

    return Case(solver, seen.points2d)


def a_pose_of_bearings() -> Case:
    points, poses, _ = views(0, 1)
    bearings = se3.transform(poses, points) + 0.1 * normal(2, 9, 3, seed=2)
    return Case(lambda bearings: pnp(bearings, points, None, model="ray").x, bearings)  # type: ignore[arg-type, return-value]


def a_pose_among_wrong_matches() -> Case:
    points, _, pixels = views(0, 1)
    pixels[:, 0] += 200

    def solver(pixels: Tensor) -> Tensor:
        return pnp_ransac(pixels, points, K, generator=generator(), confidence=1 - 1e-9).x

    return Case(solver, pixels)


def a_bundle(tensor: str) -> Callable[[], Case]:
    def case() -> Case:
        points, poses, pixels = views(-1, 0, 1)
        camera, point = (index.flatten() for index in torch.meshgrid(torch.arange(3), torch.arange(9), indexing="ij"))
        given = {"points2d": pixels.flatten(0, 1), "weights": torch.ones(27, **DOUBLE), "K": K}

        def solver(d: Tensor) -> Tensor:
            data = given | {tensor: d}
            found = bundle(data["points2d"], camera, point, poses, points, data["K"], weights=data["weights"]).x
            return torch.cat([found.world_to_camera.flatten(), found.points3d.flatten()])

        return Case(solver, given[tensor])

    return case


def a_program(which: int, outcome: str) -> Callable[[], Case]:
    def case() -> Case:
        Q = normal(1, 4, 4)
        data = [Q @ Q.mT + torch.eye(4, **DOUBLE), normal(2, 4), normal(2, 6, 4), normal(2, 6).abs(), normal(1, 1, 4)]
        data.append(0.1 * normal(2, 1))

        def solver(d: Tensor) -> Tensor:
            return getattr(quadratic_program(*data[:which], d, *data[which + 1 :]), outcome)

        return Case(solver, data[which])

    return case


def a_constrained_problem() -> Case:
    problem = Problem(lambda x, y, A, b: x - y + 0.1 * x * x, dof=4)
    under = Constrained(problem, equality=lambda x, y, A, b: A @ x - b)
    y, b = normal(2, 4), normal(2, 2, seed=1)

    def solver(A: Tensor) -> Tensor:
        found = argmin(under, A.new_zeros(2, 4), y, A, b)
        return torch.cat([found.x, found.equality], 1)  # type: ignore[attr-defined]

    return Case(solver, normal(2, 2, 4, seed=2))


def upper_rows(make: Callable[[], Case]) -> Callable[[], Case]:
    """A case as a function of the first two rows of K; the third is no variable."""

    def case() -> Case:
        solver, K = make()
        return Case(lambda at: solver(torch.cat([at, K[..., 2:, :]], -2)), K[..., :2, :].clone())

    return case


NEAR = se3.from_rotvec_t(torch.tensor([0, 0, 0, 0, 0, 6.0], **DOUBLE))[None]

CASES: dict[str, Callable[[], Case]] = {
    "pnp in points2d": a_pose("points2d"),
    "pnp in points3d, robust": a_pose("points3d", kernel=cauchy(1.0)),
    "pnp in K, with a start": upper_rows(a_pose("K", init=NEAR)),
    "pnp in weights, fisheye": a_pose("weights", "fisheye"),
    "pnp in distortion, fisheye": a_pose("distortion", "fisheye"),
    "pnp in distortion, double sphere": a_pose("distortion", "double_sphere"),
    "pnp of bearings": a_pose_of_bearings,
    "pnp_ransac": a_pose_among_wrong_matches,
    "rig_pnp": a_rig_of_unknown_scale,
    "argmin": a_curve,
    "constrained": a_constrained_problem,
    "program in Q": a_program(0, "x"),
    "program in G": a_program(2, "x"),
    "multipliers in h": a_program(3, "inequality"),
    "homography": a_homography,
    "point_registration": a_registration,
    "relative_pose": a_relative_pose,
    "triangulation": a_triangulation,
    "radial_pnp": a_radial_pnp,
    "hand_eye": a_hand_eye,
    "stereo_rig": a_stereo_rig,
    "bundle in points2d": a_bundle("points2d"),
    "bundle in K": upper_rows(a_bundle("K")),
}
# a bundle is one problem, and its solver is differentiable once
every_batched_solver = pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("bundle")])
# derivatives of third order of what moves twelve unknowns by automatic differentiation take half a minute
HEAVY = ("stereo_rig", "hand_eye", "relative_pose", "radial_pnp", "bundle in points2d", "bundle in K")
every_solver = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in HEAVY else []) for name in CASES]
)
every_light_solver = pytest.mark.parametrize("name", [name for name in CASES if name not in HEAVY])
a_solver_of_each_kind = pytest.mark.parametrize(
    "name", ["pnp in weights, fisheye", "pnp_ransac", "argmin", "constrained", "program in Q", "bundle in K"]
)


@cache
def reference(name: str) -> tuple[Case, Tensor]:
    """The case, and d solver / d at by torch.autograd, a row a number of the result."""
    whole = CASES[name]()

    def solver(at: Tensor) -> Tensor:
        """Five sums of what is found, with weights of either sign: a row of a Jacobian costs a pass."""
        found = whole.solver(at).flatten()
        return torch.arange(5.0 * len(found), **DOUBLE).cos().view(5, -1) @ found

    case = Case(solver, whole.at)
    at = case.at.clone().requires_grad_()
    found = case.solver(at)
    rows = [torch.autograd.grad(one, at, retain_graph=True)[0] for one in found.flatten()]
    jacobian = torch.stack(rows).view(*found.shape, *at.shape)
    assert jacobian.abs().amax() > 1e-4
    return case, jacobian


def assert_same(found: Tensor, jacobian: Tensor) -> None:
    close(found, jacobian, 1e-9 * float(jacobian.abs().amax()))


@pytest.mark.slow
@every_solver
def test_reverse_mode_is_that_of_differences(name: str) -> None:
    case, jacobian = reference(name)
    direction = normal(*case.at.shape, seed=9) * case.at.abs().amax().clamp_min(1)
    numeric = central_difference(lambda h: case.solver(case.at + h * direction), 1e-4)
    along = (jacobian * direction).flatten(-case.at.ndim).sum(-1)
    close(along, numeric, 1e-6 * float(numeric.abs().amax()))


@every_solver
def test_forward_and_reverse_mode_of_torch_func(name: str) -> None:
    case, jacobian = reference(name)
    assert_same(jacrev(case.solver)(case.at), jacobian)
    assert_same(jacfwd(case.solver)(case.at), jacobian)


@pytest.mark.slow
@every_solver
def test_dual_numbers(name: str) -> None:
    case, jacobian = reference(name)
    direction = normal(*case.at.shape, seed=9)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(case.solver(forward_ad.make_dual(case.at, direction))).tangent
    assert_same(tangent, (jacobian * direction).flatten(-case.at.ndim).sum(-1))


@pytest.mark.slow
@every_batched_solver
def test_vmap_of_values_and_of_derivatives(name: str) -> None:
    case, jacobian = reference(name)
    other = case.at + 1e-3 * normal(*case.at.shape, seed=8)
    pair = torch.stack([other, case.at])
    values = vmap(case.solver)(pair)
    close(values[0], case.solver(other), 1e-12 * float(values.abs().amax()))
    for transform in (jacrev, jacfwd):
        assert_same(vmap(transform(case.solver))(pair)[1], jacobian)


@pytest.mark.slow
@every_light_solver
def test_second_derivatives_in_all_four_ways(name: str) -> None:
    case, _ = reference(name)
    direction = normal(*case.at.shape, seed=9) * case.at.abs().amax().clamp_min(1)

    def loss(at: Tensor) -> Tensor:
        return case.solver(at).sin().sum()

    wanted = central_difference(lambda h: grad(loss)(case.at + h * direction), 1e-4)
    size = 1e-5 * float(wanted.abs().amax())
    close(jvp(grad(loss), (case.at,), (direction,))[1], wanted, size)
    close(grad(lambda at: jvp(loss, (at,), (direction,))[1])(case.at), wanted, size)
    twice = jvp(lambda at: jvp(loss, (at,), (direction,))[1], (case.at,), (direction,))[1]
    close(twice, (wanted * direction).sum(), size * float(direction.abs().sum()))
    at = case.at.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(at), at, create_graph=True)
    close(torch.autograd.grad((first * direction).sum(), at)[0], wanted, size)


@pytest.mark.parametrize("name", ["bundle in points2d", "bundle in K"])
def test_what_a_bundle_cannot_do_is_refused(name: str) -> None:
    case, _ = reference(name)

    def loss(at: Tensor) -> Tensor:
        return case.solver(at).sin().sum()

    with pytest.raises(NotImplementedError, match="differentiable once"):
        jvp(grad(loss), (case.at,), (case.at,))
    at = case.at.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(at), at, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        torch.autograd.grad(first.sum(), at)
    with pytest.raises(NotImplementedError, match="loop"):
        vmap(case.solver)(case.at[None])


@pytest.mark.slow
@a_solver_of_each_kind
def test_compiled_code_has_the_same_derivatives(name: str) -> None:
    """Graphs may break at a solver, but nothing changes: `pnp` alone stands in one graph (pose/test_torch.py)."""
    case, jacobian = reference(name)
    torch.compiler.reset()
    leaf = case.at.clone().requires_grad_()
    found = torch.compile(case.solver, backend="eager")(leaf)
    rows = torch.stack([torch.autograd.grad(one, leaf, retain_graph=True)[0] for one in found])
    assert_same(rows, jacobian)


# ---- what must not happen ----


def test_what_a_residual_captures_is_refused_not_a_constant() -> None:
    y, c = torch.ones(3, 2, **DOUBLE), torch.tensor([1.0, 2.0, 3.0], **DOUBLE)

    def solver(c: Tensor) -> Tensor:
        return argmin(Problem(lambda x, y: x - c * y, dof=2), torch.zeros(3, 2, **DOUBLE), y).x

    def robust(k: Tensor) -> Tensor:
        points, _, pixels = views(0)
        return pnp(pixels, points, K, kernel=lambda s: 2 * k * ((1 + s / k).sqrt() - 1)).x

    for transform in (vmap, jacrev, jacfwd):
        with pytest.raises(NotImplementedError, match="give it as data"):
            transform(solver)(c)
    with pytest.raises(NotImplementedError, match="give it as data"):
        jvp(robust, (c[0],), (c[0],))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="give it as data"):
        robust(forward_ad.make_dual(c[0], c[0]))


def test_a_failed_problem_spoils_no_derivative_of_any_order() -> None:
    log = Problem(lambda x, a, y: torch.log(x[0] * a) - y * x[0], dof=1)
    start = torch.tensor([[1.0], [-1.0], [1.0]], **DOUBLE)  # the logarithm of the second is not a number
    a = torch.linspace(1, 3, 7, **DOUBLE)[None].requires_grad_()
    y = torch.linspace(0.4, 0.6, 21, **DOUBLE).view(3, 7).requires_grad_()

    def second(rows: list[int]) -> tuple[Tensor, ...]:
        x = argmin(log, start[rows], a, y[rows]).x
        (first,) = torch.autograd.grad(x.sum(), a, create_graph=True)
        return torch.autograd.grad(first.sum(), (a, y))

    (found_a, found_y), (expected_a, expected_y) = second([0, 1, 2]), second([0, 2])
    close(found_a, expected_a, 1e-9)
    close(found_y, expected_y, 1e-9)
    assert (found_y[1] == 0).all()
    tangent = jvp(lambda y: argmin(log, start, a.detach(), y).x, (y.detach(),), (torch.ones_like(y),))[1]
    assert (tangent != 0).flatten().tolist() == [True, False, True]


def test_a_part_of_x_that_does_not_move_has_no_derivative() -> None:
    y = normal(3, 4)
    problem = Problem(lambda x, y: x[0] * x[1] - y, dof=4, retract=lambda x, step: (x[0] + step, x[1]))
    start = torch.ones(3, 4, **DOUBLE), torch.full((3,), 2.0, **DOUBLE)
    found = jacrev(lambda y: argmin(problem, start, y).x)(y)
    close(found[0], 0.5 * torch.eye(12, **DOUBLE).view(3, 4, 3, 4), 1e-12)
    assert not found[1].any()
    at_rest = 0.5 * y, start[1]
    still = argmin(problem, at_rest, y.requires_grad_(), max_steps=1, polish=0)
    assert torch.equal(still.x[0], at_rest[0])


def test_threads_do_not_share_a_derivative() -> None:
    a = normal(2, 6, 2)
    expected = homography(a, a + 0.2 * a.square()).x
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(lambda _: homography(a, a + 0.2 * a.square()).x, range(20)):
            assert torch.equal(found, expected)
