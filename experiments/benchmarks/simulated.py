"""Estimates from simulated data, how far they are off, and the covariances that are stated with them.

Noise is Gaussian; weights are 1/sigma, so that one kernel suits all. Wrong observations lie anywhere in the image.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import jacfwd, vmap
from torch.nn.functional import normalize

from geometry import (
    Prior,
    Problem,
    bundle,
    covariance,
    pnp,
    pnp_problem,
    pnp_ransac,
    pose_covariance,
    project,
    se3,
)
from geometry.camera import project_camera_frame
from geometry.consensus.minimal import homography_problem
from geometry.consensus.minimal.homography import transfer
from geometry.optim import State, exact_hessian, jacobian, nested_start, nested_step
from geometry.reconstruction import CalibrationProblem
from geometry.robust import RobustKernel, barron, cauchy, geman_mcclure, huber, kernel_derivatives
from geometry.tasks.hand_eye import hand_eye, hand_eye_problem
from geometry.tasks.homography import homography
from geometry.tasks.point_registration import point_registration, similarity_problem
from geometry.tasks.radial_pnp import radial_pnp, radial_pnp_problem, radial_projection
from geometry.tasks.relative_pose import relative_pose, relative_pose_problem
from geometry.tasks.stereo_rig import stereo_rig, stereo_rig_problem
from geometry.tasks.triangulation import triangulation, triangulation_problem

__all__ = [
    "KERNELS",
    "TASKS",
    "Setting",
    "Stated",
    "bundles",
    "calibrations",
    "one_focal_length",
    "poses",
    "products_of_scores",
    "ransacs",
]

DOUBLE: dict[str, Any] = {"dtype": torch.float64}
SIZE = (640, 480)
K = torch.tensor([[800.0, 0, 320], [0, 800, 240], [0, 0, 1]], **DOUBLE)
KERNELS: dict[str, RobustKernel | None] = {
    "none": None, "huber(1.5)": huber(1.5), "cauchy(2)": cauchy(2.0), "geman_mcclure(4)": geman_mcclure(4.0),
    "barron(-1, 3)": barron(-1.0, 3.0),
}  # fmt: skip
"""In units of sigma."""


class Setting(NamedTuple):
    """A kernel by its name, the share of wrong observations, how many points, and sigma in px."""

    kernel: str = "none"
    wrong: float = 0.0
    points: int = 50
    sigma: float = 1.0


class Stated(NamedTuple):
    """Of n estimates: the steps (n,P) that would take them to the truth, the covariances (n,P,P) that are stated of
    them, which of them are CONVERGED (n,), and the redundancy that sigma was estimated from (None: it is known)."""

    off: Tensor
    covariance: Tensor
    converged: Tensor
    freedom: int | None


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, **DOUBLE)


def uniform(g: torch.Generator, *shape: int) -> Tensor:
    return 2 * torch.rand(*shape, generator=g, **DOUBLE) - 1


def anywhere(g: torch.Generator, *shape: int) -> Tensor:
    """Pixels (…,2)."""
    return torch.rand(*shape, 2, generator=g, **DOUBLE) * torch.tensor(SIZE, **DOUBLE)


def observed(pixels: Tensor, setting: Setting, g: torch.Generator) -> Tensor:
    """Pixels (B,N,2) with noise, a share of each B drawn to be wrong."""
    B, N, _ = pixels.shape
    noisy = pixels + setting.sigma * normal(g, B, N, 2)
    wrong = torch.rand(B, N, generator=g).argsort(1) < round(setting.wrong * N)
    return torch.where(wrong[..., None], anywhere(g, B, N), noisy)


def steps_to(problem: Problem, x: State, truth: State) -> Tensor:
    """The tangent steps (B,P) that take x to the truth, by Gauss-Newton's method on the entries."""

    def flat(x: State) -> Tensor:
        return torch.cat([part.flatten() for part in ((x,) if isinstance(x, Tensor) else x)])

    def one(x: State, truth: State) -> Tensor:
        step = flat(x).new_zeros(problem.dof)
        for _ in range(4):
            J = jacfwd(lambda step: flat(problem.retract(x, step)))(step)
            step = step + torch.linalg.pinv(J) @ (flat(truth) - flat(problem.retract(x, step)))
        return step

    return vmap(one)(x, truth)


def gathered(parts: list[tuple[Tensor, Tensor, Tensor]], freedom: int) -> Stated:
    """What is stated of several solutions, each of some estimates."""
    off, C, converged = (torch.cat(of_all) for of_all in zip(*parts, strict=True))
    return Stated(off, C, converged, freedom)


def pose_steps(found: Tensor, truth: Tensor) -> Tensor:
    """(…,6), as `se3.retract` takes them."""
    turn = se3.log(truth[..., :3, :3] @ found[..., :3, :3].mT)
    return torch.cat([turn, truth[..., :3, 3] - found[..., :3, 3]], -1)


# ---- one pose ----


def scene(B: int, setting: Setting, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """points2d (B,N,2), points3d (B,N,3) in a box, weights (B,N), world_to_camera (B,4,4) in front of it."""
    points3d = uniform(g, B, setting.points, 3)
    truth = se3.from_rotvec_t(torch.cat([normal(g, B, 3), torch.tensor([0, 0, 5.0], **DOUBLE).expand(B, 3)], -1))
    points2d = observed(project(points3d, truth, K), setting, g)
    return points2d, points3d, torch.full(points2d.shape[:2], 1 / setting.sigma, **DOUBLE), truth


def poses(B: int, setting: Setting, g: torch.Generator, known: bool = False) -> list[Stated]:
    """`pnp` and `pose_covariance`; known: sigma is given."""
    points2d, points3d, weights, truth = scene(B, setting, g)
    kernel = KERNELS[setting.kernel]
    found = pnp(points2d, points3d, K, weights=weights, kernel=kernel)
    C = pose_covariance(
        points2d, points3d, K, found.x, weights=weights, kernel=kernel, sigma=1.0 if known else None
    )  # fmt: skip
    return [Stated(pose_steps(found.x, truth), C, found.converged, None if known else 2 * setting.points - 6)]


def ransacs(B: int, setting: Setting, g: torch.Generator, threshold: float = 4.0) -> list[Stated]:
    """`pnp_ransac`, and the covariance of the refined pose from its inliers; threshold in sigma."""
    points2d, points3d, weights, truth = scene(B, setting, g)
    options: dict[str, Any] = {"weights": weights, "kernel": KERNELS[setting.kernel]}
    found = pnp_ransac(points2d, points3d, K, threshold=threshold, generator=g, **options)
    C = pose_covariance(points2d, points3d, K, found.x, mask=found.inliers, **options)
    freedom = 2 * round((1 - setting.wrong) * setting.points) - 6
    return [Stated(pose_steps(found.x, truth), C, found.converged, freedom)]


def products_of_scores(B: int, setting: Setting, g: torch.Generator) -> list[Stated]:
    """`pnp`, and for B of A^-1 B A^-1 the sum of the products of every point's score with itself, by M / (M - P)."""
    points2d, points3d, weights, truth = scene(B, setting, g)
    kernel, numbers = KERNELS[setting.kernel], 2 * setting.points
    found = pnp(points2d, points3d, K, weights=weights, kernel=kernel)
    lens, seen = points2d.new_zeros(B, 0), torch.ones_like(weights, dtype=torch.bool)
    data = points2d, points3d, K.expand(B, 3, 3), lens, weights[..., None].expand(points2d.shape), seen
    problem = pnp_problem(kernel=kernel)
    r, J = jacobian(problem, found.x, data)
    psi = kernel_derivatives(kernel, r.square().sum(-1))[1][..., None] * r
    scores, inverse = (J.mT @ psi[..., None])[..., 0], torch.linalg.inv(exact_hessian(problem, found.x, data))
    C = numbers / (numbers - 6) * inverse @ scores.mT @ scores @ inverse
    return [Stated(pose_steps(found.x, truth), C, found.converged, numbers - 6)]


# ---- many views ----


def bundles(B: int, setting: Setting, g: torch.Generator, seen: int = 4, gps: bool = False) -> list[Stated]:
    """`bundle` of eight views about the points, each of which `seen` of them see: f and k1, poses, points.

    The first two poses are fixed; gps: none is, but the places of all cameras are known to 0.02, points being 5 away.
    """
    V, N, theta = 8, setting.points, torch.tensor([800.0, -0.1], **DOUBLE)
    angle = torch.linspace(-0.9, 0.9, V, **DOUBLE)
    turn = torch.stack([0.3 * (5 * angle).sin(), angle, 0.2 * (7 * angle).cos()], -1)
    truth = se3.from_rotvec_t(torch.cat([turn, torch.tensor([0.0, 0, 5], **DOUBLE).expand(V, 3)], -1))
    point = torch.arange(N).repeat_interleave(seen)
    lens = torch.tensor([-0.1, 0], **DOUBLE)
    fixed = torch.arange(V) < (0 if gps else 2)
    kernel, freedom = KERNELS[setting.kernel], 2 * len(point) + 3 * V * gps - 3 * N - 6 * int((~fixed).sum()) - 2
    parts: list[list[tuple[Tensor, Tensor, Tensor]]] = [[], [], []]
    for _ in range(B):
        X = uniform(g, N, 3)
        view = torch.rand(N, V, generator=g).argsort(1)[:, :seen].flatten()
        pixels = project(X[None], truth, K, lens)[view, point]
        prior = None
        if gps:
            centre = se3.centre(truth) + 0.02 * normal(g, V, 3)
            known = se3.make(truth[:, :3, :3], -(truth[:, :3, :3] @ centre[..., None])[..., 0])
            prior = Prior(known, torch.tensor([0, 0, 0, 50.0, 50, 50], **DOUBLE).expand(V, 6))
        points2d, weights = observed(pixels[None], setting, g)[0], torch.full(point.shape, 1 / setting.sigma, **DOUBLE)
        found = bundle(
            points2d, view, point, truth, X, K, lens, weights=weights, kernel=kernel, fixed_poses=fixed, prior=prior,
            free=("poses", "points", "f", "k1"), max_steps=200,
        )  # fmt: skip
        C = found.covariance(torch.arange(N))
        off = pose_steps(found.x.world_to_camera, truth)[~fixed], X - found.x.points3d, theta - found.state.theta
        blocks = C.cameras[~fixed, :6, :6], C.points, C.cameras[-1:, 6:, 6:]
        for part, a, b in zip(parts, off, blocks, strict=True):
            part.append((a, b, found.converged.expand(len(a))))
    return [gathered(part, freedom) for part in parts]


def boards(V: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """A target of 9 by 6 corners (54,3) and V poses of it (V,4,4) before the camera."""
    grid = torch.cartesian_prod(torch.arange(9.0), torch.arange(6.0)).double() - torch.tensor([4, 2.5], **DOUBLE)
    tilt = torch.cat([0.45 * uniform(g, V, 2), 0.3 * uniform(g, V, 1)], 1)
    place = torch.tensor([1.5, 1, 2], **DOUBLE) * uniform(g, V, 3) + torch.tensor([0, 0, 15.0], **DOUBLE)
    return torch.nn.functional.pad(grid, (0, 1)), se3.from_rotvec_t(torch.cat([tilt, place], 1))


def next_to(problem: CalibrationProblem, theta: Tensor, poses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What is stated of the minimum next to the truth, theta (P,) and poses (V,4,4)."""
    state = nested_start(problem, theta[None], poses[None])
    while not state.done.all() and state.steps < 100:
        state = nested_step(problem, state)
    return theta - state.theta, problem.covariance(state.theta, state.inner)[None], state.done


def calibrations(B: int, setting: Setting, g: torch.Generator, V: int = 8) -> list[Stated]:
    """`CalibrationProblem`, which `calibrate` solves, of four intrinsics and two coefficients: V views of a board."""
    theta = torch.tensor([800.0, 800, 320, 240, -0.2, 0.1], **DOUBLE)
    kernel, found = KERNELS[setting.kernel], []
    for _ in range(B):
        board, truth = boards(V, g)
        points2d = observed(project(board, truth, K, theta[4:]).flatten(0, 1)[None], setting, g)[0].view(V, -1, 2)
        mask = torch.ones(points2d.shape[:2], dtype=torch.bool)
        found.append(next_to(CalibrationProblem(points2d, board, mask, kernel=kernel), theta, truth))
    return [gathered(found, 2 * 54 * V - 6 - 6 * V)]


def one_focal_length(B: int, setting: Setting, g: torch.Generator, V: int = 10) -> list[Stated]:
    """The same of one focal length for V views of points in a box, as of the frames of a film."""
    kernel, found = KERNELS[setting.kernel], []

    def camera(theta: Tensor) -> tuple[Tensor, Tensor]:
        middle = K.new_tensor([[0, 0, 320.0], [0, 0, 240], [0, 0, 1]])
        return middle + theta * K.new_tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 0]]), K.new_zeros(0)

    for _ in range(B):
        points2d, points3d, _, truth = scene(V, setting, g)
        mask = torch.ones(points2d.shape[:2], dtype=torch.bool)
        problem = CalibrationProblem(points2d, points3d, mask, camera, kernel=kernel)
        found.append(next_to(problem, K.new_tensor([800.0]), truth))
    return [gathered(found, 2 * V * setting.points - 1 - 6 * V)]


# ---- tasks, by least squares ----


def of_problem(problem: Problem, found: Any, truth: State, data: tuple[Tensor, ...], freedom: int) -> list[Stated]:
    """What `covariance` states of a task's solution."""
    return [Stated(steps_to(problem, found.x, truth), covariance(problem, found.x, *data), found.converged, freedom)]


def homographies(B: int, setting: Setting, g: torch.Generator) -> list[Stated]:
    """In units of half the width of the image, about its middle: the entries of H are of one size."""
    N, half = setting.points, SIZE[0] / 2
    truth = torch.eye(3, **DOUBLE) + 0.2 * uniform(g, B, 3, 3)
    truth = truth / truth.square().sum((-2, -1), keepdim=True).sqrt()
    a = (anywhere(g, B, N) - K[:2, 2]) / half
    b = transfer(truth[:, None], a[:, :, None])[:, :, 0] + setting.sigma / half * normal(g, B, N, 2)
    return of_problem(homography_problem, homography(a, b), truth, (a, b, torch.ones(B, N, **DOUBLE)), 2 * N - 8)


def triangulations(B: int, setting: Setting, g: torch.Generator) -> list[Stated]:
    N, X = setting.points, uniform(g, B, 3)
    turn = torch.cat([0.3 * uniform(g, B, N, 3), torch.tensor([0, 0, 5.0], **DOUBLE) + uniform(g, B, N, 3)], -1)
    cameras = se3.from_rotvec_t(turn)
    pixels = project_camera_frame(se3.transform(cameras, X[:, None, None].expand(B, N, 1, 3)), K)[:, :, 0]
    data = pixels + setting.sigma * normal(g, B, N, 2), cameras, K.expand(B, N, 3, 3)
    weights = torch.ones(B, N, **DOUBLE)
    return of_problem(triangulation_problem, triangulation(*data), X, (*data, weights), 2 * N - 3)


def relative_poses(B: int, setting: Setting, g: torch.Generator) -> list[Stated]:
    N = setting.points
    X = uniform(g, B, N, 3) * 2 + torch.tensor([0, 0, 6.0], **DOUBLE)
    truth = se3.make(se3.exp(0.2 * uniform(g, B, 3)), normalize(uniform(g, B, 3), dim=-1))
    a, b = (project_camera_frame(p, K) for p in (X, se3.transform(truth, X)))
    a, b = (p + setting.sigma * normal(g, B, N, 2) for p in (a, b))
    cameras, weights = K.expand(B, 3, 3), torch.ones(B, N, **DOUBLE)
    data = a, b, cameras, cameras, weights
    return of_problem(relative_pose_problem, relative_pose(*data), truth, data, N - 5)


def registrations(B: int, setting: Setting, g: torch.Generator) -> list[Stated]:
    N, source = setting.points, uniform(g, B, setting.points, 3)
    truth = se3.make(1.5 * se3.exp(normal(g, B, 3)), uniform(g, B, 3))
    target = se3.transform(truth, source) + 0.01 * setting.sigma * normal(g, B, N, 3)
    found = point_registration(source, target, scale=True)
    return of_problem(similarity_problem, found, truth, (source, target), 3 * N - 7)


def hand_eyes(B: int, setting: Setting, g: torch.Generator) -> list[Stated]:
    """N motions that are measured one by one: those between all pairs of views share their noise."""
    N = setting.points
    truth = se3.from_rotvec_t(torch.cat([uniform(g, B, 3), 0.1 * uniform(g, B, 3)], -1))
    camera = se3.from_rotvec_t(torch.cat([uniform(g, B, N, 3), uniform(g, B, N, 3)], -1))
    gripper = truth[:, None] @ camera @ se3.inverse(truth)[:, None]
    gripper = se3.retract(gripper, 0.003 * setting.sigma * normal(g, B, N, 6))
    return of_problem(hand_eye_problem, hand_eye(gripper, camera), truth, (gripper, camera), 6 * N - 6)


def radial_poses(B: int, setting: Setting, g: torch.Generator) -> list[Stated]:
    N, truth = (
        setting.points,
        se3.from_rotvec_t(torch.cat([normal(g, B, 3), uniform(g, B, 2), 4 + uniform(g, B, 1)], -1)),
    )
    X, middle = uniform(g, B, N, 3), K[:2, 2].expand(B, 2)
    lens = truth, torch.full((B,), 600.0, **DOUBLE), torch.tensor([-0.1, 0.02], **DOUBLE).expand(B, 2)
    pixels = radial_projection(lens, X, middle) + setting.sigma * normal(g, B, N, 2)
    data = pixels, X, middle, torch.ones(B, N, **DOUBLE)
    return of_problem(radial_pnp_problem, radial_pnp(*data), lens, data, 2 * N - 9)


def rigs(B: int, setting: Setting, g: torch.Generator) -> list[Stated]:
    V, N = 4, 54
    views = [boards(V, g) for _ in range(B)]
    board, targets = views[0][0], torch.stack([pose for _, pose in views])
    rig = se3.from_rotvec_t(torch.cat([0.1 * uniform(g, B, 3), torch.tensor([-2.0, 0, 0], **DOUBLE).expand(B, 3)], -1))
    both = torch.stack([targets, rig[:, None] @ targets], 1)
    pixels = project_camera_frame(se3.transform(both, board), K) + setting.sigma * normal(g, B, 2, V, N, 2)
    data = pixels, board.expand(B, N, 3), K.expand(B, 2, 3, 3), K.new_zeros(B, 2, 0)
    problem = replace(stereo_rig_problem, dof=6 + 6 * V, alike=stereo_rig_problem.alike[:4] * (1 + V))
    return of_problem(problem, stereo_rig(*data), (rig, targets), data, 4 * V * N - 6 - 6 * V)


TASKS: dict[str, Callable[[int, Setting, torch.Generator], list[Stated]]] = {
    "homography": homographies, "triangulation": triangulations, "relative pose": relative_poses,
    "similarity registration": registrations, "hand-eye": hand_eyes, "PnP with an unknown lens": radial_poses,
    "stereo rig": rigs,
}  # fmt: skip
