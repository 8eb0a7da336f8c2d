"""A caller's mistakes: one table of what every public function refuses, and of what it says.

Each function has a call that is right, each of its arguments is of a kind, and each kind has its mistakes.
"""

import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import jvp, vmap

import geometry.tasks
from geometry import Constrained, Prior, Problem, checks, pnp, project, se3
from geometry.reconstruction import StructureProblem
from geometry.tasks.hand_eye import hand_eye
from geometry.tasks.homography import homography
from geometry.tasks.point_registration import point_registration
from geometry.tasks.radial_pnp import radial_pnp
from geometry.tasks.relative_pose import relative_pose
from geometry.tasks.rolling_shutter import rolling_shutter
from geometry.tasks.stereo_rig import stereo_rig
from geometry.tasks.triangulation import triangulation
from tests.numbers import DOUBLE, normal

V, N = 3, 8
K = torch.tensor([[800.0, 0, 320], [0, 780, 240], [0, 0, 1]], **DOUBLE)
POINTS = normal(N, 3)
POSES = se3.from_rotvec_t(0.3 * normal(V, 6, seed=1) + torch.tensor([0, 0, 0, 0, 0, 8.0]))
PIXELS = project(POINTS, POSES, K) + 0.1 * normal(V, N, 2, seed=2)
LENS = torch.zeros(V, 4, **DOUBLE)
ONES = torch.ones(V, N, **DOUBLE)
VIEWS, TRACKS = (t.flatten() for t in torch.meshgrid(torch.arange(V), torch.arange(N), indexing="ij"))
SEEN = torch.ones(V, N, dtype=torch.bool)
RIG = se3.from_rotvec_t(torch.tensor([[0.0] * 6, [0.0, 0, 0, 0.1, 0, 0]], **DOUBLE))
MEAN = Problem(lambda x, y: x - y, dof=2)


def in_a_layer(points2d: Tensor, **options: Any) -> Tensor:
    return geometry.BPnP(**options)(points2d)


PNP = {"points2d": PIXELS, "points3d": POINTS, "K": K, "distortion": LENS, "weights": ONES, "mask": SEEN}
LOSS = PNP | {"pose_gt": POSES, "model": "radtan"}
TRACKED = {"points2d": PIXELS, "visible": SEEN, "K": K.expand(V, 3, 3), "distortion": LENS, "model": "radtan"}
RIGHT: dict[Callable, dict[str, Any]] = {
    pnp: PNP | {"init": POSES, "model": "radtan", "kernel": None, "gradient": "exact", "max_steps": 9,
                "solve_dtype": torch.float64},
    geometry.rig_pnp: PNP | {"K": K.expand(2, 3, 3), "distortion": LENS[:2], "init": POSES, "model": "radtan",
                             "sensor_from_rig": RIG, "sensor_index": TRACKS.view(V, N) % 2, "kernel": None,
                             "gradient": "exact", "max_steps": 9, "solve_dtype": torch.float64},
    in_a_layer: {"points2d": PIXELS, "points3d": POINTS, "K": K, "model": "radtan", "kernel": None, "gradient": "exact",
                 "max_steps": 9},
    geometry.pnp_problem: {"model": "radtan", "kernel": None},
    geometry.pnp_ransac: PNP | {"candidates": ONES, "threshold": 4.0, "hypotheses": 9, "confidence": 0.9,
                                "model": "radtan", "kernel": None, "gradient": "exact"},
    geometry.rig_pnp_ransac: PNP | {"K": K.expand(2, 3, 3), "distortion": LENS[:2], "sensor_from_rig": RIG,
                                    "sensor_index": TRACKS.view(V, N) % 2, "candidates": ONES, "threshold": 4.0,
                                    "hypotheses": 9, "confidence": 0.9, "model": "radtan", "kernel": None,
                                    "gradient": "exact"},
    geometry.monte_carlo_pose_loss: LOSS | {"init": POSES, "kernel": None, "huber_scale": ONES[:, 0], "samples": 8,
                                            "iterations": 2},
    geometry.derivative_regularisation_loss: LOSS | {"init": POSES, "kernel": None, "huber_scale": ONES[:, 0],
                                                     "beta": 1.0},
    geometry.adaptive_huber_scale: {"points2d": PIXELS, "weights": ONES, "mask": SEEN, "relative": 0.1},
    geometry.keypoint_likelihood_loss: LOSS,
    geometry.linear_covariance_loss: LOSS,
    geometry.pose_set: PNP | {"model": "radtan", "kernel": None},
    geometry.conformal_level: {"scores": torch.arange(20.0), "coverage": 0.9},
    geometry.pose_covariance: PNP | {"pose": POSES, "model": "radtan", "kernel": None, "sigma": 1.0},
    geometry.bundle: {
        "points2d": PIXELS.flatten(0, 1), "camera_index": VIEWS, "point_index": TRACKS, "world_to_camera": POSES,
        "points3d": POINTS, "K": K, "distortion": LENS[0], "intrinsics_index": torch.zeros(V, dtype=torch.int64),
        "weights": ONES.flatten(), "free": ("poses", "points"), "fixed_poses": ~SEEN[:, 0], "fixed_points": ~SEEN[0],
        "prior": None, "model": "radtan", "kernel": None, "gauge": "fixed", "gradient": "exact", "solver": "auto",
        "max_steps": 0, "callback": None,
    },
    geometry.calibrate: {"points2d": PIXELS, "points3d": POINTS, "image_size": (640, 480), "distortion": 0,
                         "model": "radtan", "mask": SEEN, "kernel": None, "max_steps": 1},
    geometry.calibrate_rig: {"points2d": PIXELS[None], "points3d": POINTS, "image_sizes": [(640, 480)],
                             "mask": SEEN[None], "distortion": 0, "free": ("f",), "K": K[None],
                             "coefficients": LENS[:1, :0], "model": "radtan", "kernel": None, "max_steps": 1},
    StructureProblem: TRACKED,
    geometry.find_structure: TRACKED | {"sigma": 1.0, "free": (), "candidates": 1, "rounds": 1, "callback": None},
    geometry.triangulate: TRACKED | {"world_to_camera": POSES},
    project: {"points3d": POINTS, "world_to_camera": POSES, "K": K, "distortion": LENS, "model": "radtan"},
    geometry.unproject: {"points2d": PIXELS, "K": K, "distortion": LENS, "model": "radtan", "max_steps": 9},
    geometry.equirectangular_rays: {"points2d": PIXELS, "image_size": (640, 320)},
    geometry.equirectangular_pixels: {"rays": POINTS, "image_size": (640, 320)},
    geometry.bearing_whitening: {"bearings": POINTS, "covariance": torch.eye(3, **DOUBLE)},
    geometry.align_similarity: {"source": POINTS, "target": POINTS, "weights": ONES[0]},
    geometry.draw_sets: {"log_weights": ONES, "size": 2, "count": 3},
    geometry.relaxed_sets: {"log_weights": ONES, "size": 2, "count": 3, "temperature": 1.0},
    geometry.set_log_probability: {"log_weights": ONES, "index": VIEWS.view(V, 4, 2)},
    geometry.soft_inliers: {"error": ONES, "threshold": 1.0, "beta": 1.0},
    geometry.expected_loss: {"score": ONES, "loss": ONES},
    geometry.score_function_loss: {"loss": ONES, "log_probability": -ONES},
    geometry.huber: {"scale": 1.0}, geometry.cauchy: {"scale": 1.0}, geometry.geman_mcclure: {"scale": 1.0},
    geometry.barron: {"alpha": 1.0, "scale": 1.0},
    Problem: {"residual": MEAN.residual, "dof": 2, "retract": MEAN.retract, "kernel": None},
    Constrained: {"problem": MEAN, "equality": lambda x, y: x[:1]},
    geometry.quadratic_program: {
        "Q": torch.eye(2, **DOUBLE)[None], "p": ONES[:1, :2], "G": ONES[:1, :1, None].expand(1, 1, 2),
        "h": ONES[:1, :1], "A": torch.eye(2, **DOUBLE)[None, :1], "b": ONES[:1, :1], "max_steps": 9, "polish": 1,
    },
    hand_eye: {"gripper": POSES, "camera": POSES, "weights": ONES[:, :2]},
    homography: {"points_a": PIXELS[0], "points_b": PIXELS[1], "weights": ONES[0]},
    point_registration: {"source": POINTS, "target": POINTS, "weights": ONES[0]},
    radial_pnp: {"points2d": PIXELS[0], "points3d": POINTS, "principal_point": K[:2, 2], "weights": ONES[0]},
    relative_pose: {"points_a": PIXELS[0], "points_b": PIXELS[1], "K_a": K, "K_b": K, "weights": ONES[0],
                    "model": "radtan"},
    rolling_shutter: {"points2d": PIXELS[0], "points3d": POINTS, "K": K, "times": 0.01 * PIXELS[0, :, 1],
                      "weights": ONES[0], "distortion": LENS[0], "model": "radtan"},
    stereo_rig: {"points2d": PIXELS[:2, None], "points3d": POINTS, "K": K.expand(2, 3, 3), "distortion": LENS[:2],
                 "weights": ONES[:2, None]},
    triangulation: {"points2d": PIXELS[:, 0], "world_to_camera": POSES, "K": K.expand(V, 3, 3), "weights": ONES[:, 0],
                    "model": "radtan"},
}  # fmt: skip

START = {"problem": MEAN, "x0": ONES[:, :2]}
WITH_DATA: dict[Callable, dict[str, Any]] = {
    geometry.minimize: START | {"max_steps": 9, "polish": 1, "enough": 1e-9},
    geometry.argmin: START | {"max_steps": 9, "polish": 1, "gradient": "exact"},
    geometry.attach_gradient: {"problem": MEAN, "x": ONES[:, :2], "gradient": "exact"},
    geometry.covariance: {"problem": MEAN, "x": ONES[:, :2], "sigma": 1.0},
    geometry.sample_poses: {"problem": geometry.pnp_problem(), "mode": POSES, "samples": 8, "iterations": 2},
    geometry.ransac: {"problem": MEAN, "minimal_solver": lambda index: index[..., :2].double(), "candidates": ONES,
                      "size": 2, "threshold": 1.0, "hypotheses": 2, "confidence": 0.9, "refine": 0},
}  # fmt: skip
"""Functions that take a problem and its data."""
DATA = {
    geometry.sample_poses: (PIXELS, POINTS[None], K[None], LENS, ONES[..., None].expand(V, N, 2), SEEN),
    geometry.ransac: (PIXELS,),
}


def changed(matrix: Tensor, *place: int, to: float) -> Tensor:
    matrix = matrix.clone()
    matrix[(..., *place)] = to
    return matrix


def numbers(value: Tensor) -> list[Any]:
    return [value.numpy(), value.to(torch.int64), value.to(torch.complex128)]


# What stands for an argument of a kind that is wrong.
MISTAKES: dict[str, Callable[[Any], list[Any]]] = {
    "tensor": numbers,
    "indices": lambda value: [value.numpy(), value.double()],
    "mask": lambda value: [value.numpy(), value.double()],
    "camera": lambda K: [*numbers(K), K.mT.contiguous(), changed(K, 2, 2, to=2.0), changed(K, 2, 2, to=0.0),
                         changed(K, 0, 0, to=torch.nan)],
    "pose": lambda T: [*numbers(T), T.mT.contiguous(), torch.cat([-T[..., :1], T[..., 1:]], -1),
                       torch.cat([1.01 * T[..., :3], T[..., 3:]], -1), changed(T, 0, 3, to=torch.inf), 0 * T],
    "count": lambda _: [0, -1, 2.5, "2", True, None],
    "count or none": lambda _: [-1, 2.5, "2", True, None],
    "positive": lambda _: [0, -1.0, math.nan, math.inf, "1", torch.ones(())],
    "function": lambda _: ["huber", 1.0],
    "choice": lambda _: ["other", 1, None],
    "object": lambda _: ["other", 1, np.ones(2)],
    "size": lambda _: [640, (640,), (0, 480), (640, "480"), None],
    "sizes": lambda _: [640, [640], [(640,)], [(0, 480)], [(640, "480")], None],
    "share": lambda _: [0.0, 1.0, -0.5, math.nan, "0.9", True, None],
    "below two": lambda _: [2.0, math.nan, "1", None],
}  # fmt: skip
KINDS = {
    "count": (
        "max_steps",
        "size",
        "count",
        "samples",
        "iterations",
        "hypotheses",
        "candidates of a search",
        "dof",
        "rounds",
    ),
    "count or none": ("polish", "refine", "max_steps of bundle", "distortion of calibrate(_rig)"),
    "positive": (
        "threshold",
        "confidence",
        "scale",
        "sigma",
        "beta",
        "enough",
        "relative",
        "temperature",
    ),
    "function": ("kernel", "callback", "residual", "retract", "equality", "minimal_solver"),
    "choice": ("model", "gradient", "gauge", "solver", "solve_dtype"),
    "camera": ("K", "K_a", "K_b"),
    "pose": ("init", "pose_gt", "pose", "world_to_camera", "gripper", "camera", "mode", "sensor_from_rig"),
    "object": ("problem", "prior", "free"),
    "size": ("image_size",),
    "sizes": ("image_sizes",),
    "below two": ("alpha",),
    "share": ("coverage",),
}
ROWS = {"points2d", "points3d", "source", "target", "points_a", "points_b", "bearings", "rays"}
ALIKE = {"points3d", "K", "distortion", "target", "points_b", "K_a", "K_b", "camera", "covariance"}
"""Tensors with a point in each row; and those of the dtype of the first argument."""
OF_THEIR_OWN = {
    (geometry.bundle, "max_steps"): "count or none",
    (geometry.calibrate, "distortion"): "count or none",
    (geometry.calibrate_rig, "distortion"): "count or none",
    (geometry.find_structure, "candidates"): "count",
}


def kind(function: Callable, name: str, value: Any) -> str:
    found = OF_THEIR_OWN.get((function, name)) or next((k for k, names in KINDS.items() if name in names), "tensor")
    if found == "tensor" and value.dtype == torch.bool:
        return "mask"
    return "indices" if found == "tensor" and not value.is_floating_point() else found


def name_of(function: Any) -> str:
    return str(function.__name__)


def call(function: Callable, **options: Any) -> Any:
    """The function, of keywords, or of what it takes before its data by place."""
    if function not in WITH_DATA:
        return function(**options)
    data = DATA.get(function, (ONES[:, :2],))
    by_place = [n for n in inspect.signature(function).parameters if n in options][:2]
    return function(*(options.pop(n) for n in by_place), *data, **options)


@pytest.mark.parametrize("function", [*RIGHT, *WITH_DATA], ids=name_of)
def test_what_is_wrong_is_named(function: Callable) -> None:
    right = RIGHT.get(function) or WITH_DATA[function]
    call(function, **right)
    for name, value in right.items():
        for wrong in MISTAKES[kind(function, name, value)](value):
            with pytest.raises(ValueError, match=rf"^{name}(\[0\])?\b.*got "):
                call(function, **right | {name: wrong})


@pytest.mark.parametrize("function", [*RIGHT, *WITH_DATA], ids=name_of)
def test_the_usual_mistakes_are_told_how_to_be_mended(function: Callable) -> None:
    """Arrays of numpy and lists, whole numbers, a dtype of its own, points in columns, a kernel by its name."""
    right = RIGHT.get(function) or WITH_DATA[function]
    tensors = {name: value for name, value in right.items() if isinstance(value, Tensor)}
    mistakes: list[tuple[str, Any, str]] = []
    for name, value in tensors.items():
        mistakes += [
            (name, value.numpy(), f"must be a torch.Tensor, got numpy.ndarray: torch.from_numpy({name})"),
            (name, value.tolist(), f"must be a torch.Tensor, got list: torch.tensor({name})"),
        ]
        if value.is_floating_point():
            mistakes.append((name, value.int(), f"must be of a floating-point dtype, got torch.int32: {name}.double()"))
        if name in ROWS and value.shape[-1] != value.shape[-2]:
            mistakes.append((name, value.mT, f"got {tuple(value.mT.shape)}: {name}.mT"))
    any_dtype = function in (geometry.bundle, geometry.calibrate_rig)  # they solve in float64
    of_one_dtype = set() if any_dtype else ALIKE
    for name in of_one_dtype & tensors.keys() & {*list(right)[1:]}:
        of_its_own = tensors[name].float()
        mistakes.append((name, of_its_own, f"got torch.float32, cpu: {name}.to({next(iter(right))})"))
    if "kernel" in right:
        mistakes.append(("kernel", "huber", "got 'huber': geometry.huber(scale), for example"))
        mistakes.append(("kernel", geometry.huber, "got huber without its scale"))
    for name, wrong, remedy in mistakes:
        with pytest.raises(ValueError, match=rf"^{name}(\[0\])? .*") as raised:
            call(function, **right | {name: wrong})
        assert remedy in str(raised.value).replace("[0]", "")


def test_the_table_knows_every_public_function() -> None:
    public = {getattr(geometry, name) for name in geometry.__all__}
    assert {f for f in public if inspect.isfunction(f)} <= {*RIGHT, *WITH_DATA}
    tasks = [importlib.import_module(f"geometry.tasks.{m.name}") for m in pkgutil.iter_modules(geometry.tasks.__path__)]
    assert {getattr(task, task.__name__.rsplit(".")[-1]) for task in tasks} <= {*RIGHT}


def test_a_prior_has_weights_and_weights_have_a_prior() -> None:
    right = RIGHT[geometry.bundle]
    for prior, wanted in (
        (Prior(pose_weights=torch.ones(V, 6, **DOUBLE)), "prior.pose_weights must come with prior.world_to_camera"),
        (Prior(points3d=POINTS), "prior.points3d must come with prior.point_weights"),
        (Prior(POSES.mT, torch.ones(V, 6, **DOUBLE)), r"prior.world_to_camera must have the last row \(0, 0, 0, 1\)"),
    ):
        with pytest.raises(ValueError, match=wanted):
            geometry.bundle(**right | {"prior": prior})


def test_a_pose_is_one_up_to_the_digits_of_a_file_and_of_its_dtype() -> None:
    for digits in (4, 16):
        checks.values(pose=(POSES.mul(10**digits).round().div(10**digits), "pose"))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        poses = se3.from_rotvec_t(normal(500, 6, seed=3)).to(dtype)
        checks.values(pose=(poses, "pose"))
        poses[300, :, 0] *= 1.1
        with pytest.raises(ValueError, match="pose must hold rotations") as raised:
            checks.values(pose=(poses, "pose"))
        assert str(poses[300, 0].tolist()) in str(raised.value)  # it is this one that is shown


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_values_are_seen_under_transforms(dim: int) -> None:
    """Whatever dimension a transform maps over, it is not taken for one of the matrix."""
    right, wrong = K.expand(4, 3, 3), changed(K.expand(4, 3, 3), 2, 2, to=1.0)
    wrong[2, 2, 0] = 5.0

    def solve(K: Tensor) -> Tensor:
        return pnp(PIXELS[:1], POINTS, K, init=POSES[:1]).x

    found = vmap(solve, in_dims=dim)(right.movedim(0, dim))
    assert torch.equal(found[1], solve(K))
    with pytest.raises(ValueError, match="K must have the third row"):
        vmap(solve, in_dims=dim)(wrong.movedim(0, dim))
    with pytest.raises(ValueError, match="K must have the third row"):
        jvp(lambda X: pnp(PIXELS[:1], X, wrong[2], init=POSES[:1]).x, (POINTS,), (POINTS,))


def test_both_back_ends_of_pnp_ask_the_same_of_a_pose() -> None:
    """Rotations that are off by about what is allowed: what one refuses, the other does."""
    g = torch.Generator().manual_seed(7)
    X = 2 * torch.rand(8, 3, generator=g, dtype=torch.float64) - 1
    K = torch.tensor([[800.0, 0, 320], [0, 800, 240], [0, 0, 1]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)[None]
    pose[:, 2, 3] = 6
    x = project(X, pose[0], K)[None]
    refused = []
    for _ in range(60):
        near = pose.clone()
        near[:, :3, :3] += 4e-4 * torch.randn(3, 3, generator=g, dtype=torch.float64)
        found = []
        for gradient in ("exact", "unrolled"):
            try:
                pnp(x, X, K, init=near, gradient=gradient)
                found.append(False)
            except ValueError as error:
                found.append("init must hold rotations" in str(error))
        assert found[0] == found[1]
        refused.append(found[0])
    assert 10 < sum(refused) < 50


@pytest.mark.parametrize(
    ("changed", "remedy"),
    [
        ({"init": torch.zeros(V, 6, **DOUBLE)}, ": se3.from_rotvec_t(init)"),
        ({"K": torch.ones(V, 4, **DOUBLE)}, ": camera.matrix_from_intrinsics(K)"),
        ({"weights": ONES[:, :, None]}, ": weights[..., 0]"),
        ({"points2d": POINTS.expand(V, N, 3)}, ": pixels come before points3d here"),
        ({"points2d": PIXELS.mT}, ": points2d.mT"),
    ],
)
def test_a_shape_that_is_not_wanted_comes_with_what_to_write(changed: dict[str, torch.Tensor], remedy: str) -> None:
    given = {"points2d": PIXELS, "points3d": POINTS, "K": K, "init": POSES}
    with pytest.raises(ValueError, match=rf"{re.escape(remedy)}$"):
        pnp(**{**given, **changed})


def test_numbers_are_batched_as_tensors_are() -> None:
    two, one = torch.tensor([2.0, 3.0]), torch.tensor(1.0)
    for shared in (one, one[None]):
        found = checks.batched(focal=(two, ""), depth=(shared, ""), points=(torch.ones(5, 3), "N,3"))
        assert [tuple(value.shape) for value in found] == [(2,), (2,), (2, 5, 3)]
    with pytest.raises(ValueError, match=r"depth must have shape \(\) or \(2,\), got \(3,\)"):
        checks.batched(focal=(two, ""), depth=(torch.ones(3), ""))


def test_indices_are_whole_numbers_of_either_length() -> None:
    for dtype in (torch.int64, torch.int32):
        checks.indices("index", torch.zeros(2, dtype=dtype))
    with pytest.raises(ValueError, match=r"index must be .* torch\.int64 or torch\.int32, got torch\.float32"):
        checks.indices("index", torch.zeros(2))
