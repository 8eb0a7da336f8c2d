"""One rule of batches for every public function: what problems or views share may be given once.

A shared argument, without its leading dimension or with leading size 1, means what the same repeated does: the same
values, and the gradients of the repeated one, summed.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import geometry
from geometry import Prior, Problem, project, se3
from geometry.reconstruction import StructureProblem
from geometry.tasks.hand_eye import hand_eye
from geometry.tasks.homography import homography
from geometry.tasks.point_registration import point_registration
from geometry.tasks.radial_pnp import radial_pnp
from geometry.tasks.relative_pose import relative_pose
from geometry.tasks.rolling_shutter import rolling_shutter
from geometry.tasks.stereo_rig import stereo_rig
from geometry.tasks.triangulation import triangulation
from tests.numbers import DOUBLE, close, generator, normal

B, N = 3, 8
K = torch.tensor([[800.0, 0, 320], [0, 780, 240], [0, 0, 1]], **DOUBLE)
POINTS = 2 * torch.rand(N, 3, generator=generator(), **DOUBLE) - 1
POSES = se3.from_rotvec_t(0.3 * normal(B, 6, seed=1) + torch.tensor([0, 0, 0, 0, 0, 8.0]))
LENS = torch.tensor([-0.2, 0.05, 1e-3, -1e-3], **DOUBLE)
PIXELS = project(POINTS, POSES, K, LENS) + 0.3 * normal(B, N, 2, seed=2)
BEARINGS = se3.transform(POSES, POINTS) + 0.01 * normal(B, N, 3, seed=2)
WEIGHTS = 0.5 + torch.rand(N, generator=generator(1), **DOUBLE)
MASK = torch.arange(N) != 3
RIG = se3.from_rotvec_t(torch.tensor([[0.0] * 6, [0.1, 0, 0, 0.4, 0, 0]], **DOUBLE))
INDEX = torch.arange(N) % 2
MOUNTED = torch.stack([project(POINTS, RIG[i] @ POSES, K, LENS) for i in range(2)])[INDEX, :, torch.arange(N)]
MOUNTED = MOUNTED.transpose(0, 1) + 0.3 * normal(B, N, 2, seed=2)
VIEWS, TRACKS = (t.flatten() for t in torch.meshgrid(torch.arange(B), torch.arange(N), indexing="ij"))
MOTIONS = se3.from_rotvec_t(normal(6, 6, seed=4))
LINE = Problem(lambda x, a, b: x[0] * a + x[1] - b, dof=2)
BOARD = torch.cartesian_prod(torch.arange(4.0, **DOUBLE), torch.arange(3.0, **DOUBLE), torch.zeros(1, **DOUBLE))
TARGET = se3.from_rotvec_t(0.3 * normal(B, 6, seed=5) + torch.tensor([0, 0, 0, -1.5, -1, 8.0]))
BOARDS = project(BOARD, TARGET, K) + 0.1 * normal(B, 12, 2, seed=6)


class Call(NamedTuple):
    """A call of B problems or views: what each has, what all share in the shape of one, and what is no tensor.

    gradients: whether the result carries any. sizes: how many there are of what is shared by others than these B.
    """

    function: Callable
    own: dict[str, Any]
    shared: dict[str, Tensor]
    options: dict[str, Any] = {}  # noqa: RUF012
    gradients: bool = True
    sizes: dict[str, int] = {}  # noqa: RUF012


def drawn(function: Callable) -> Callable:
    """With the same random numbers at every call."""
    return lambda **arguments: function(**arguments, generator=generator(9))


def seeded(function: Callable) -> Callable:
    """The same, of torch's own generator."""

    def call(**arguments: Any) -> Any:
        torch.manual_seed(9)
        return function(**arguments)

    return call


def sizes_of_sets(points2d: Tensor, **options: Any) -> list[Tensor]:
    sets = geometry.pose_set(points2d, **options)
    return [sets.x, sets.excess(POSES), sets.log_volume(2.0)]


def spoken(function: Callable, *by_place: str) -> Callable:
    """A function of a problem and its data, by the names of these."""
    return lambda **a: function(LINE, *(a.pop(name) for name in by_place), **a)


def with_prior(**arguments: Any) -> Any:
    """`bundle`, with what begins with "prior_" in its prior."""
    known = {name[6:]: arguments.pop(name) for name in [*arguments] if name.startswith("prior_")}
    return geometry.bundle(**arguments, prior=Prior(**known))


POSE = {"points3d": POINTS, "K": K, "distortion": LENS, "weights": WEIGHTS, "mask": MASK}
TRUTH = POSE | {"pose_gt": POSES[0]}
TRACKED = {
    "points2d": PIXELS.flatten(0, 1), "camera_index": VIEWS, "point_index": TRACKS, "world_to_camera": POSES,
    "points3d": POINTS + 0.01 * normal(N, 3, seed=7), "K": K.expand(B, 3, 3),
}  # fmt: skip
ROWS = normal(B, N, seed=8)
SETS = torch.tensor([[0, 1], [2, 3], [4, 0], [5, 6]])
Q = torch.eye(2, **DOUBLE) + 0.1
IMAGE = normal(B, N, 2, seed=9)

CALLS: dict[str, Call] = {
    "pnp": Call(geometry.pnp, {"points2d": PIXELS}, POSE),
    "pnp, init": Call(geometry.pnp, {"points2d": PIXELS}, POSE | {"init": POSES[0]}),
    "pnp, points2d": Call(geometry.pnp, {"init": POSES}, {"points2d": PIXELS[0]} | POSE),
    "pnp, weights of coordinates": Call(
        geometry.pnp, {"points2d": PIXELS}, {"points3d": POINTS, "K": K, "weights": WEIGHTS[:, None].expand(N, 2)}
    ),
    "pnp, tensors": Call(
        geometry.pnp, {"points2d": PIXELS}, POSE | {"init": POSES[0]}, {"kernel": lambda s: 4 * torch.log1p(s / 4)}
    ),
    "pnp, bearings": Call(
        geometry.pnp, {"points2d": BEARINGS},
        {"points3d": POINTS, "weights": torch.eye(2, **DOUBLE).expand(N, 2, 2), "mask": MASK},
        {"K": None, "model": "ray"},
    ),
    "BPnP": Call(lambda points2d, **a: geometry.BPnP(vector=True)(points2d, **a), {"points2d": PIXELS},
                 POSE | {"init": se3.rotvec_t(POSES[0])}),
    "pnp_ransac": Call(drawn(geometry.pnp_ransac), {"points2d": PIXELS}, POSE | {"candidates": WEIGHTS}),
    "pnp_ransac, candidates": Call(
        drawn(geometry.pnp_ransac), {"candidates": WEIGHTS.expand(B, N)}, {"points2d": PIXELS[0]} | POSE
    ),
    "rig_pnp": Call(
        geometry.rig_pnp, {"points2d": MOUNTED},
        {"points3d": POINTS, "K": K.expand(2, 3, 3), "distortion": LENS.expand(2, 4), "weights": WEIGHTS, "mask": MASK,
         "sensor_from_rig": RIG, "sensor_index": INDEX, "init": POSES[0]},
    ),
    "rig_pnp_ransac": Call(
        drawn(geometry.rig_pnp_ransac), {"points2d": MOUNTED},
        {"points3d": POINTS, "K": K.expand(2, 3, 3), "distortion": LENS.expand(2, 4), "weights": WEIGHTS, "mask": MASK,
         "sensor_from_rig": RIG, "sensor_index": INDEX, "candidates": WEIGHTS}, {"hypotheses": 32},
    ),
    "monte_carlo_pose_loss": Call(
        drawn(geometry.monte_carlo_pose_loss), {"points2d": PIXELS},
        TRUTH | {"init": POSES[0], "huber_scale": WEIGHTS[0]}, {"samples": 32},
    ),
    "monte_carlo_pose_loss, pose_gt": Call(
        drawn(geometry.monte_carlo_pose_loss), {"pose_gt": POSES[:1].expand(B, 4, 4)}, {"points2d": PIXELS[0]} | POSE,
        {"samples": 32},
    ),
    "derivative_regularisation_loss": Call(
        geometry.derivative_regularisation_loss, {"points2d": PIXELS},
        TRUTH | {"init": POSES[0], "huber_scale": WEIGHTS[0]},
    ),
    "linear_covariance_loss": Call(geometry.linear_covariance_loss, {"points2d": PIXELS}, TRUTH),
    "keypoint_likelihood_loss": Call(geometry.keypoint_likelihood_loss, {"points2d": PIXELS}, TRUTH),
    "pose_covariance": Call(geometry.pose_covariance, {"points2d": PIXELS}, POSE | {"pose": POSES[0]}, gradients=False),
    "pose_set": Call(sizes_of_sets, {"points2d": PIXELS}, POSE),
    "adaptive_huber_scale": Call(
        geometry.adaptive_huber_scale, {"points2d": PIXELS}, {"weights": WEIGHTS, "mask": MASK}
    ),
    "sample_poses": Call(
        lambda mode, **data: geometry.sample_poses(
            geometry.pnp_problem(), mode, *data.values(), samples=8, generator=generator(3)
        ),
        {"points2d": PIXELS, "points3d": POINTS.expand(B, N, 3), "K": K.expand(B, 3, 3),
         "distortion": LENS.expand(B, 4), "weights": WEIGHTS[:, None].expand(B, N, 2), "mask": MASK.expand(B, N)},
        {"mode": POSES[0]}, gradients=False,
    ),
    "project": Call(project, {"world_to_camera": POSES}, {"points3d": POINTS, "K": K, "distortion": LENS}),
    "project, pose": Call(project, {"points3d": POINTS.expand(B, N, 3)}, {"world_to_camera": POSES[0], "K": K}),
    "unproject": Call(geometry.unproject, {"points2d": PIXELS}, {"K": K, "distortion": LENS}),
    "bearing_whitening": Call(
        lambda bearings, covariance: geometry.bearing_whitening(bearings, covariance[..., None, :, :]),
        {"bearings": BEARINGS}, {"covariance": torch.eye(3, **DOUBLE) + 0.1},
    ),
    "align_similarity": Call(
        geometry.align_similarity, {"source": BEARINGS}, {"target": POINTS, "weights": WEIGHTS}
    ),
    "align_similarity, source": Call(geometry.align_similarity, {"target": BEARINGS}, {"source": POINTS}),
    "set_log_probability": Call(
        geometry.set_log_probability, {"index": SETS.expand(B, 4, 2)}, {"log_weights": ROWS[0]}
    ),
    "set_log_probability, index": Call(geometry.set_log_probability, {"log_weights": ROWS}, {"index": SETS}),
    "expected_loss": Call(geometry.expected_loss, {"score": ROWS}, {"loss": WEIGHTS}),
    "expected_loss, score": Call(geometry.expected_loss, {"loss": ROWS}, {"score": WEIGHTS}),
    "score_function_loss": Call(geometry.score_function_loss, {"log_probability": ROWS}, {"loss": WEIGHTS}),
    "soft_inliers": Call(geometry.soft_inliers, {"error": ROWS}, {"mask": MASK}, {"threshold": 1.0, "beta": 2.0}),
    "quadratic_program": Call(
        geometry.quadratic_program, {"p": normal(B, 2)},
        {"Q": Q, "G": Q[:1], "h": WEIGHTS[:1], "A": Q[1:], "b": WEIGHTS[1:2]},
    ),
    "quadratic_program, p": Call(geometry.quadratic_program, {"Q": Q.expand(B, 2, 2)}, {"p": WEIGHTS[:2]}),
    "bundle": Call(
        with_prior, TRACKED,
        {"distortion": LENS, "prior_world_to_camera": POSES[0], "prior_pose_weights": 0.1 * WEIGHTS[:6],
         "prior_points3d": POINTS[0], "prior_point_weights": 0.1 * WEIGHTS[:3], "weights": WEIGHTS[:2]},
        sizes={"prior_points3d": N, "prior_point_weights": N, "weights": B * N},
    ),
    "bundle, rolling": Call(
        geometry.bundle, TRACKED | {"times": 1e-4 * PIXELS[..., 1].flatten()},
        {"velocity": 0.1 * WEIGHTS[:6], "fixed_poses": torch.tensor(True)},
    ),
    "calibrate": Call(geometry.calibrate, {"points2d": BOARDS}, {"points3d": BOARD, "mask": torch.arange(12) != 5},
                      {"image_size": (640, 480), "distortion": 0}, gradients=False),
    "calibrate_rig": Call(
        geometry.calibrate_rig, {"points2d": BOARDS[None].expand(B, -1, -1, -1)},
        {"mask": torch.arange(12).expand(B, 12) != 5, "K": K, "coefficients": LENS[:0]},
        {"points3d": BOARD, "image_sizes": [(640, 480)] * B, "distortion": 0, "free": ()}, gradients=False,
    ),
    "find_structure": Call(
        seeded(geometry.find_structure), {"points2d": PIXELS}, {"visible": MASK, "K": K, "distortion": LENS},
        {"sigma": 0.3, "candidates": 1, "rounds": 1, "callback": lambda _: True}, gradients=False,
    ),
    "StructureProblem": Call(
        lambda theta, **views: StructureProblem(**views).evaluate(theta, None), {"points2d": PIXELS},
        {"visible": MASK, "K": K, "distortion": LENS}, {"theta": POINTS[None]}, gradients=False,
    ),
    "triangulate": Call(
        geometry.triangulate, {"points2d": PIXELS, "world_to_camera": POSES},
        {"visible": MASK, "K": K, "distortion": LENS},
    ),
    "homography": Call(homography, {"points_a": IMAGE}, {"points_b": POINTS[:, :2], "weights": WEIGHTS}),
    "point_registration": Call(point_registration, {"source": BEARINGS}, {"target": POINTS, "weights": WEIGHTS}),
    "hand_eye": Call(
        hand_eye, {"gripper": MOTIONS.expand(B, 6, 4, 4)}, {"camera": MOTIONS, "weights": 1 + WEIGHTS[:6, None] * Q[0]}
    ),
    "radial_pnp": Call(
        radial_pnp, {"points2d": PIXELS}, {"points3d": POINTS, "principal_point": K[:2, 2], "weights": WEIGHTS}
    ),
    "relative_pose": Call(
        relative_pose, {"points_a": PIXELS[:1].expand(B, N, 2)},
        {"points_b": PIXELS[1], "K_a": K, "K_b": K, "weights": WEIGHTS},
    ),
    "rolling_shutter": Call(
        rolling_shutter, {"points2d": PIXELS},
        {"points3d": POINTS, "K": K, "distortion": LENS, "times": 1e-3 * PIXELS[0, :, 1], "weights": WEIGHTS,
         "velocity": 0.1 * WEIGHTS[:6]},
    ),
    "stereo_rig": Call(
        stereo_rig, {"points2d": torch.stack([BOARDS, BOARDS + 8])[None, :, :1].expand(B, 2, 1, 12, 2)},
        {"points3d": BOARD, "K": K.expand(2, 3, 3), "distortion": LENS.expand(2, 4)},
    ),
    "triangulation": Call(
        triangulation, {"points2d": PIXELS[:, :3].transpose(0, 1)},
        {"world_to_camera": POSES, "K": K.expand(B, 3, 3), "weights": WEIGHTS[:B]},
    ),
}  # fmt: skip

# data of a problem may be anything: only leading size 1 says that it is shared
START, A, Y = torch.zeros(2, **DOUBLE), torch.linspace(0, 1, N, **DOUBLE), WEIGHTS
FITTED = torch.linalg.lstsq(torch.stack([A, torch.ones_like(A)], -1), Y).solution
DATA: dict[str, Call] = {
    "minimize": Call(spoken(geometry.minimize, "x0", "a", "b"), {"b": ROWS}, {"x0": START, "a": A}, gradients=False),
    "argmin": Call(spoken(geometry.argmin, "x0", "a", "b"), {"b": ROWS}, {"x0": START, "a": A}),
    "argmin, unrolled": Call(
        spoken(geometry.argmin, "x0", "a", "b"), {"b": ROWS}, {"x0": START, "a": A}, {"gradient": "unrolled"}
    ),
    "attach_gradient": Call(
        spoken(geometry.attach_gradient, "x", "a", "b"), {"a": A.expand(B, N)}, {"x": FITTED, "b": Y}
    ),
    "covariance": Call(
        spoken(geometry.covariance, "x", "a", "b"), {"a": A.expand(B, N)}, {"x": FITTED, "b": Y}, gradients=False
    ),
    "ransac": Call(
        spoken(
            lambda problem, a, b, candidates: geometry.ransac(
                problem, lambda index: ROWS[:, :2, None].expand(B, 2, index.shape[1]).mT, a, b, candidates=candidates,
                size=2, threshold=0.5, hypotheses=16, generator=generator(3),
            ), "a", "b", "candidates",
        ), {"b": ROWS}, {"a": A, "candidates": WEIGHTS}, gradients=False,
    ),
}  # fmt: skip

WITHOUT = {  # what has no argument that problems could share
    "barron", "cauchy", "conformal_level", "draw_sets", "equirectangular_pixels", "equirectangular_rays",
    "geman_mcclure", "huber", "relaxed_sets",
}  # fmt: skip


def tensors(result: Any) -> Iterable[Tensor]:
    """The floating-point tensors and the statuses of a result, whatever holds them."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, tuple | list):
        for part in result:
            yield from tensors(part)
    elif is_dataclass(result):
        for field in fields(result):
            if field.name not in ("task", "state", "problem", "bundle", "alone"):
                yield from tensors(getattr(result, field.name))


def outcome(call: Call, given: dict[str, Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """What comes out, and the gradients of a sum of it by every tensor."""
    every = call.own | given
    leaves = {n: t.clone().requires_grad_() if t.is_floating_point() else t for n, t in every.items()}
    found = list(tensors(call.function(**leaves, **call.options)))
    tracked = [t for t in found if t.requires_grad]
    assert bool(tracked) == call.gradients
    by = {n: t for n, t in leaves.items() if t.requires_grad and tracked}
    total = sum((t * torch.linspace(1, 2, t.numel(), dtype=t.dtype).view_as(t)).sum() for t in tracked)
    gradients = torch.autograd.grad(total, [*by.values()], allow_unused=True) if by else ()  # type: ignore[arg-type]
    there = (torch.zeros_like(t) if g is None else g for t, g in zip(by.values(), gradients, strict=True))
    return [t.detach() for t in found], dict(zip(by, there, strict=True))


def shared_alike(call: Call, once: Callable[[Tensor], Tensor]) -> None:
    """All the shared arguments at once, and each alone among repeated ones, are as if they were repeated."""
    repeated = {name: t.expand(call.sizes.get(name, B), *t.shape) for name, t in call.shared.items()}
    values, gradients = outcome(call, repeated)
    assert all(torch.isfinite(g).all() for g in gradients.values())
    for names in ({*call.shared}, *({name} for name in call.shared)):
        found, slopes = outcome(call, {n: once(call.shared[n]) if n in names else t for n, t in repeated.items()})
        for one, other in zip(found, values, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9, equal_nan=True)
        for name, other in gradients.items():
            total = other.sum(0).view_as(slopes[name]) if name in names else other
            close(slopes[name], total, atol=1e-7 * float(total.abs().max()) + 1e-12)


def marked(calls: dict[str, Call]) -> list[Any]:
    slow = {"calibrate", "calibrate_rig", "bundle", "rig_pnp_ransac", "bundle, rolling", "relative_pose", "stereo_rig"}
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in slow)) for name in calls]


@pytest.mark.parametrize("leading", ["without", "of size 1"])
@pytest.mark.parametrize("name", marked(CALLS))
def test_what_is_given_once_is_as_if_repeated(name: str, leading: str) -> None:
    shared_alike(CALLS[name], (lambda t: t) if leading == "without" else (lambda t: t[None]))


@pytest.mark.parametrize("name", DATA)
def test_data_of_a_problem_of_leading_size_1_are_as_if_repeated(name: str) -> None:
    shared_alike(DATA[name], lambda t: t[None])


def test_every_public_function_is_there() -> None:
    public = {name for name in geometry.__all__ if inspect.isfunction(getattr(geometry, name))}
    assert public == {name.split(",")[0] for name in (*CALLS, *DATA)} & public | WITHOUT
