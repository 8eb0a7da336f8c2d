"""Every public solver on a device beside the CPU, for `experiments.benchmarks.device`: values, gradients, statuses.

The same seeded problems are solved on both. What is compared are solutions, costs and gradients of one random linear
function of the solution, relative to the largest number in each tensor, and statuses one by one.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import geometry
from datasets.locate import AbsentDataError, find
from datasets.made.scenes import random_poses
from experiments.benchmarks.bundle_solvers import read_scene, synthetic_scene
from experiments.benchmarks.places import Place
from experiments.benchmarks.sections import Measures, Row
from geometry import Problem, Solution, Status, argmin, pnp, project, se3
from geometry.camera import project_camera_frame
from geometry.robust import barron, cauchy, geman_mcclure, huber

__all__ = ["PRECISION", "Check", "checks", "compared", "outcome", "views", "without"]

PRECISION = {torch.float64: 1e-10, torch.float32: 1e-4}
KERNELS = {"huber": huber(2.0), "cauchy": cauchy(2.0), "Geman-McClure": geman_mcclure(4.0), "Barron": barron(-1.0, 2.0)}
LENSES = {"radtan": (-0.28, 0.11, 0.0011, -0.0015, -0.02), "fisheye": (0.06, -0.012, 0.004, -0.001)}
LENSES["rational"] = (*LENSES["radtan"], 0.01, 0.002, 1e-4)
LENSES["prism"] = (*LENSES["rational"], 1e-3, -1e-3, 5e-4, 1e-4)


@dataclass(frozen=True)
class Check:
    """call(**inputs) is what is solved; inputs are of the CPU, and the gradients are those of its floating ones.

    single: whether it is worth a look in float32, too.
    """

    call: Callable[..., Any]
    inputs: Mapping[str, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    single: bool = True


def outcome(check: Check, place: Place | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """What comes out at a place, or on the CPU, by name: x, cost, status, and gradients of the inputs."""
    device = torch.device("cpu") if place is None else place.device

    def there(t: Tensor) -> Tensor:
        return t.to(device, dtype).requires_grad_() if t.is_floating_point() else t.to(device)

    def solve() -> dict[str, Tensor]:
        inputs = {name: there(t) for name, t in check.inputs.items()}
        found = check.call(**inputs, **check.options)
        named = flat("x", found.x if isinstance(found, Solution) else found)
        if isinstance(found, Solution):
            named |= {"cost": found.cost, "status": found.status}
        leaves = {name: t for name, t in inputs.items() if t.requires_grad}
        seeds = torch.Generator().manual_seed(7)
        total = torch.zeros((), dtype=dtype, device=device)
        for t in named.values():
            if t.requires_grad:
                total = total + (t * torch.randn(t.shape, generator=seeds, dtype=torch.float64).to(t)).sum()
        if total.requires_grad:
            gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
            named |= {f"gradient of {n}": g for n, g in zip(leaves, gradients, strict=True) if g is not None}
        return {name: t.detach().cpu() for name, t in named.items()}

    return solve() if place is None else place.run(solve)


def flat(name: str, x: Any) -> dict[str, Tensor]:
    """The tensors of x, which may be a tuple of such, by name."""
    if isinstance(x, Tensor):
        return {name: x}
    if isinstance(x, (tuple, list)):
        return {n: t for i, part in enumerate(x) for n, t in flat(f"{name}[{i}]", part).items()}
    return {}


def compared(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> Row:
    """The largest difference relative to the largest number of its tensor, and whether all that is no number agrees.

    A problem that was not solved ends anywhere, and its gradient is zero.
    """
    if found.keys() != expected.keys():
        raise ValueError(f"what comes out differs: {sorted(found.keys() ^ expected.keys())}")
    worst, where, same = 0.0, "x", True
    good = expected.get("status", torch.zeros(1)) == Status.CONVERGED
    for name, e in expected.items():
        f = found[name]
        if name.startswith(("x", "cost")) and len(good) == len(e):
            f, e = f[good], e[good]
        if not e.is_floating_point():
            same &= torch.equal(f, e)
            continue
        finite = torch.isfinite(e)
        same &= torch.equal(f[~finite].nan_to_num(), e[~finite].nan_to_num())
        scale = e[finite].abs().max().item() if finite.any() else 1.0
        apart = (f - e)[finite].abs().max().item() if finite.any() else 0.0
        relative = apart / scale if scale > 0 else apart
        relative = math.inf if math.isnan(relative) else relative
        if relative > worst:
            worst, where = relative, name
    right = same and worst <= tolerance
    verdict = "ok" if right else f"**over {tolerance:.0e}**" if same else "**differ**"
    return Row([f"{worst:.1e}", where, "equal" if same else "different", verdict], {"failures": 0.0 if right else 1.0})


# ---- the problems ----


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def views(B: int, N: int, lens: str = "none") -> dict[str, Tensor]:
    """PnP with weights, a mask and a start: of each problem one point is masked, of the last but one all but two; the
    points of the last lie on a line."""
    pose = random_poses(B, torch.Generator().manual_seed(3), depth=(6.0, 9.0))
    points3d = normal(B, N, 3, seed=4).clamp(-1, 1)
    points3d[-1] = points3d[-1, :1] * torch.linspace(-1, 1, N, dtype=torch.float64)[:, None]
    K = torch.tensor([[800.0, 0, 320], [0, 780, 240], [0, 0, 1]], dtype=torch.float64).repeat(B, 1, 1)
    distortion = torch.tensor(LENSES.get(lens, ()), dtype=torch.float64)
    pixels = project(points3d, pose, K, distortion, model="fisheye" if lens == "fisheye" else "radtan")
    mask = torch.ones(B, N, dtype=torch.bool)
    mask[torch.arange(B), torch.arange(B) % N] = False
    mask[-2, 2:] = False
    return {
        "points2d": pixels + 0.5 * normal(B, N, 2), "points3d": points3d, "K": K,
        "weights": 0.5 + normal(B, N, 2, seed=5).sigmoid(), "mask": mask, "distortion": distortion,
        "init": se3.retract(pose, 0.02 * normal(B, 6)),
    }  # fmt: skip


def without(given: Mapping[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: t for name, t in given.items() if name not in names}


def of_pnp(B: int, N: int) -> dict[str, Check]:
    found = {}
    bent = views(B, N, "radtan")
    for name, kernel in {"no kernel": None, **KERNELS}.items():
        found[f"pnp, start, {name}"] = Check(pnp, bent, {"kernel": kernel})
        found[f"pnp, no start, {name}"] = Check(pnp, without(bent, "init"), {"kernel": kernel}, name == "no kernel")
    for lens in ("none", "rational", "prism", "fisheye"):
        model = "fisheye" if lens == "fisheye" else "radtan"
        found[f"pnp, start, lens {lens}"] = Check(pnp, views(B, N, lens), {"model": model}, lens != "fisheye")
    found["pnp, Gauss-Newton's gradient"] = Check(pnp, bent, {"gradient": "gauss_newton"})
    plain = without(views(B, N), "mask", "distortion")
    shared = {**plain, "points3d": plain["points3d"][0], "K": plain["K"][0], "weights": plain["weights"][:1]}
    pose = random_poses(B, torch.Generator().manual_seed(3), depth=(6.0, 9.0))
    shared["points2d"] = project(shared["points3d"], pose, shared["K"]) + normal(B, N, 2)
    found["pnp, what is shared"] = Check(pnp, shared)
    few = without(shared, "weights")
    vectors = few | {"init": se3.rotvec_t(few["init"])}
    found["BPnP"] = Check(lambda **given: geometry.BPnP(vector=True)(**given), vectors)
    at = {**without(few, "init"), "pose": pose}
    found["pose_covariance"] = Check(geometry.pose_covariance, at)
    found["linear_covariance_loss"] = Check(geometry.linear_covariance_loss, without(at, "pose") | {"pose_gt": pose})
    found["pnp, double backward"] = Check(_twice, few, single=False)
    found["pnp, jvp"] = Check(_pushed, few, single=False)
    found["pnp, vmap"] = Check(_mapped, few, single=False)
    wrong = {**few, "points2d": few["points2d"].clone()}
    wrong["points2d"][:, :2] += 150.0
    found["pnp_ransac"] = Check(geometry.pnp_ransac, without(wrong, "init"), single=False)
    return found


def _twice(points2d: Tensor, points3d: Tensor, K: Tensor, init: Tensor) -> Tensor:
    x = pnp(points2d, points3d, K, init=init).x
    (g,) = torch.autograd.grad((x * x).sum(), points2d, create_graph=True)
    return g


def _pushed(points2d: Tensor, points3d: Tensor, K: Tensor, init: Tensor) -> Tensor:
    given = points2d.detach(), torch.ones_like(points2d)
    return torch.func.jvp(lambda p: pnp(p, points3d.detach(), K.detach(), init=init).x, *((t,) for t in given))[1]


def _mapped(points2d: Tensor, points3d: Tensor, K: Tensor, init: Tensor) -> Tensor:
    return torch.func.vmap(lambda p, i: pnp(p[None], points3d, K, init=i[None]).x[0])(points2d, init)


def scene(file: Any = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `bundle` takes of a file, or of a made street of five cameras, and with which options."""
    start = read_scene(file) if file else synthetic_scene(5, 100, 4, torch.Generator().manual_seed(0))[0]
    names = ("points2d", "camera_index", "point_index", "world_to_camera", "points3d", "K", "distortion")
    inputs = {name: getattr(start, name) for name in (*names, "intrinsics_index")}
    return inputs, {"free": ("poses", "points", "f", "k1", "k2"), "gauge": "free"}


def of_others(large: bool) -> dict[str, Check]:
    line = Problem(lambda x, p: p[:, 1] - x[0] * torch.exp(-x[1] * p[:, 0]), dof=2)
    points = torch.stack([normal(4, 12).abs(), 1 + 0.1 * normal(4, 12, seed=2)], -1)
    fitted = {"points": points, "x0": torch.zeros(1, 2, dtype=torch.float64)}

    def start(x0: Tensor) -> Tensor:
        return x0.detach().expand(4, 2)

    board = torch.cartesian_prod(torch.arange(6.0), torch.arange(5.0)).double() - 2.5
    board = torch.cat([board, torch.zeros(30, 1, dtype=torch.float64)], -1)
    up = torch.tensor([0.0, 0, 0, 0, 0, 14], dtype=torch.float64)
    boards = se3.from_rotvec_t(up + normal(6, 6, seed=6) * torch.tensor([0.4, 0.4, 0.4, 1, 1, 1]))
    K = torch.tensor([[540.0, 0, 330], [0, 525, 228], [0, 0, 1]], dtype=torch.float64)
    corners = project(board, boards, K, torch.tensor(LENSES["radtan"], dtype=torch.float64)) + 0.3 * normal(6, 30, 2)
    root = normal(3, 5, 5)
    program = {"Q": root @ root.mT, "p": normal(3, 5, seed=2), "G": normal(3, 4, 5, seed=3)}
    program |= {"h": 1 + normal(3, 4, seed=4).abs(), "A": normal(3, 1, 5, seed=5), "b": normal(3, 1, seed=6)}
    seen = {
        "points2d": corners, "visible": torch.ones(6, 30, dtype=torch.bool), "world_to_camera": boards,
        "K": K.repeat(6, 1, 1), "distortion": torch.tensor(LENSES["radtan"], dtype=torch.float64).repeat(6, 1),
    }  # fmt: skip
    inputs, options = scene()
    found = {
        "bundle": Check(geometry.bundle, inputs, options),
        "calibrate": Check(
            geometry.calibrate, {"points2d": corners, "points3d": board}, {"image_size": (640, 480)}, single=False
        ),
        "quadratic_program": Check(geometry.quadratic_program, program, single=False),
        "minimize": Check(lambda points, x0: geometry.minimize(line, start(x0), points), fitted),
        "argmin": Check(lambda points, x0: argmin(line, start(x0), points), fitted),
        "covariance": Check(lambda points, x0: geometry.covariance(line, start(x0) + 1, points), fitted),
        "triangulate": Check(geometry.triangulate, seen),
        "align_similarity": Check(
            geometry.align_similarity, {"source": normal(3, 8, 3), "target": normal(3, 8, 3, seed=2)}
        ),
    }
    if large:
        with suppress(AbsentDataError):
            inputs, options = scene(find("bal") / "problem-49-7776-pre.txt")
            found["bundle, Ladybug-49"] = Check(geometry.bundle, inputs, options, single=False)
    return found | of_tasks()


def of_tasks() -> dict[str, Check]:
    from geometry.tasks import hand_eye, homography, point_registration, radial_pnp, relative_pose, triangulation
    from geometry.tasks.rolling_shutter import rolling_shutter, rolling_shutter_points
    from geometry.tasks.stereo_rig import stereo_rig

    given = without(views(5, 12), "mask", "init")
    given = {name: t[:3] for name, t in given.items() if name != "distortion"}
    weights, K, points3d = given["weights"][..., 0], given["K"], given["points3d"]
    pose = random_poses(3, torch.Generator().manual_seed(3), depth=(6.0, 9.0))
    turn = se3.from_rotvec_t(torch.tensor([0.05, -0.1, 0.02, 0.5, 0.1, 0.05], dtype=torch.float64))
    a, b = (project(points3d, T, K) + 0.3 * normal(3, 12, 2, seed=8) for T in (pose, turn @ pose))
    pair = torch.stack([K, K], 1)
    seen = torch.stack([a, b], 1)  # (3,2,12,2): of each problem two cameras
    times = torch.linspace(-0.015, 0.015, 12, dtype=torch.float64).expand(3, 12)
    there = rolling_shutter_points(pose, 0.5 * normal(3, 6, seed=9), points3d, times)
    rolled = project_camera_frame(there, K) + 0.3 * normal(3, 12, 2, seed=10)
    X = se3.from_rotvec_t(torch.tensor([0.3, -0.2, 0.1, 0.1, 0.2, 0.3], dtype=torch.float64))
    gripper = se3.from_rotvec_t(normal(3, 6, 6) * torch.tensor([1.0, 1, 1, 0.3, 0.3, 0.3]))
    camera = se3.retract(se3.inverse(X) @ gripper @ X, 0.02 * normal(3, 6, 6, seed=2))
    H = torch.tensor([[1.1, 0.15, 30], [-0.1, 0.95, 20], [2e-4, -3e-4, 1]], dtype=torch.float64)
    flat_a = 300 + 80 * normal(3, 12, 2)
    image = torch.cat([flat_a, torch.ones(3, 12, 1, dtype=torch.float64)], -1) @ H.mT
    flat_b = image[..., :2] / image[..., 2:] + normal(3, 12, 2, seed=3)
    both = torch.stack([pose, turn @ pose], 1)
    moved = points3d @ X[:3, :3].mT + 0.1 * normal(3, 12, 3)
    middle = K[:, :2, 2].contiguous()
    return {
        "hand_eye": Check(hand_eye.hand_eye, {"gripper": gripper, "camera": camera}),
        "homography": Check(homography.homography, {"points_a": flat_a, "points_b": flat_b, "weights": weights}),
        "point_registration": Check(
            point_registration.point_registration, {"source": points3d, "target": moved}
        ),
        "radial_pnp": Check(
            radial_pnp.radial_pnp, {"points2d": a, "points3d": points3d, "principal_point": middle}, single=False
        ),
        "relative_pose": Check(
            relative_pose.relative_pose, {"points_a": a, "points_b": b, "K_a": K, "K_b": K}, single=False
        ),
        "rolling_shutter": Check(
            rolling_shutter, {"points2d": rolled, "points3d": points3d, "K": K, "times": times}, single=False
        ),
        "stereo_rig": Check(stereo_rig, {"points2d": seen[:, :, None], "points3d": points3d, "K": pair}, single=False),
        "triangulation": Check(
            triangulation.triangulation, {"points2d": seen[:, :, 0], "world_to_camera": both, "K": pair}
        ),
    }  # fmt: skip


def checks(place: Place, options: Mapping[str, Any], dtype: torch.dtype) -> Measures:
    """Everything in one precision, which PnP also has inside; and float32 given to what solves in float64."""
    single = dtype == torch.float32

    def one(check: Check) -> Row:
        expected = outcome(check, None, dtype)
        return compared(outcome(check, place, dtype), expected, PRECISION[dtype])

    for name, check in (of_pnp(6, 10) | of_others(not place.stand_in)).items():
        if single and not check.single:
            continue
        if single and check.call is pnp:
            inside = Check(pnp, check.inputs, {**check.options, "solve_dtype": dtype})
            yield f"{name}, float32 inside", partial(one, inside)
        yield name, partial(one, check)
