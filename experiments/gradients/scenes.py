"""What the gradients are compared on: views of an object with wrong keypoints, and the network that is to mend them.

Every keypoint is observed off its place by a bias of its own, the same in all views, and by noise whose size a cue
tells, not quite right; wrong matches have a cue of their own. A network (`gradients.networks`) sees the observed pixels
and the two cues of each keypoint, and says where it should be and what it should weigh. It is trained with the true
poses alone.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from datasets.made.scenes import CUBE, random_poses
from geometry import project, se3
from geometry.camera import matrix_from_intrinsics

__all__ = ["CUES", "POINTS", "REGIMES", "Regime", "Scene", "Setting", "Views", "make_scene"]

Regime = Literal[
    "noise", "shared_noise", "outliers", "near_symmetric", "planar", "ambiguous", "far_keypoints", "wrong_init",
    "large_network",
]  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One regime. Lengths in half sides of the object, which is about [-1, 1]^3, or its plane z = 0."""

    text: str
    situation: str
    """What somebody has whom it speaks of."""
    planar: bool = False
    focal: float = 300.0
    """Pixels."""
    depth: tuple[float, float] = (4.0, 8.0)
    bias: float = 8.0
    """Rms distance in pixels of a keypoint from its place."""
    noise: tuple[float, float] = (1.0, 6.0)
    """Range of the standard deviations, log-uniform, in pixels."""
    shared: float = 0.0
    """Standard deviation in pixels of an offset that the first half of the keypoints have in common."""
    outliers: float = 0.0
    """Share of keypoints that lie anywhere."""
    turned: float = 0.0
    """Degrees by which the pose is off from which solvers start in training; 0: they search globally."""
    asymmetry: float = math.inf
    """How far from the second half of the keypoints a half turn about z takes the first; inf: they are no pairs."""
    exchanged: float = 0.0
    """Share of these pairs whose keypoints are taken for each other."""
    large: bool = False
    """Whether the network is `networks.LargeRefiner`."""


REGIMES: dict[Regime, Setting] = {
    "noise": Setting(
        "Twelve keypoints of a solid, biased by 8 px, with noise of 1 to 6 px",
        "noise that strikes each keypoint by itself",
    ),
    "shared_noise": Setting(
        "The same, but the first six keypoints have 1 px of noise of their own and 5 px in common, the others 3 px",
        "keypoints whose errors go together (occlusion, a shifted part)",
        shared=5.0,
    ),
    "outliers": Setting(
        "The same as noise, and 30 % of the keypoints lie anywhere in the image", "wrong matches", outliers=0.3
    ),
    "near_symmetric": Setting(
        "A half turn about an axis moves six keypoints to within 0.05 of the other six, and the two of a pair "
        "are taken for each other in 40 % of the cases",
        "a nearly symmetric object, whose keypoints are confused",
        asymmetry=0.05, exchanged=0.4,
    ),
    "planar": Setting(
        "Twelve keypoints in a plane, near by", "a plane near by", planar=True, noise=(1.0, 3.0)
    ),
    "ambiguous": Setting(
        "The same seen from afar: a plane tilted forward looks as if tilted back",
        "a plane far away",
        planar=True, focal=1500.0, depth=(20.0, 30.0), noise=(1.0, 3.0),
    ),
    "far_keypoints": Setting(
        "A solid's keypoints start 60 px off, each its own way",
        "keypoints that begin far from their places",
        bias=60.0, noise=(1.0, 3.0),
    ),
    "wrong_init": Setting(
        "As noise, but solvers are not to search in training: they start from a pose that is turned by 150 degrees",
        "a solver that must start from a bad pose",
        turned=150.0,
    ),
    "large_network": Setting(
        "As outliers, but the network is not 600 numbers that all keypoints share: it has 1.1 million and sees all "
        "keypoints at once",
        "a large network, and few views",
        outliers=0.3, large=True,
    ),
}  # fmt: skip

POINTS = 12
CUES = 2


class Views(NamedTuple):
    """B views: observed (B,N,2) px, cues (B,N,2), pose_gt (B,4,4), init (B,4,4) or None, whitener (B,N,N).

    whitener: what turns the true noise of the N keypoints into noise of unit covariance, and wrong matches into zero.
    """

    observed: Tensor
    cues: Tensor
    pose_gt: Tensor
    init: Tensor | None
    whitener: Tensor

    def part(self, begin: int, end: int) -> "Views":
        return Views(*(None if d is None else d[begin:end] for d in self))  # type: ignore[arg-type]


class Scene(NamedTuple):
    """points3d (N,3), K (3,3), bias (N,2) px, views to train and to test on, and the regime and seed that made them."""

    points3d: Tensor
    K: Tensor
    bias: Tensor
    train: Views
    test: Views
    regime: Regime
    seed: int


def make_scene(regime: Regime, seed: int, train: int, test: int) -> Scene:
    """Object, biases and views of one seed, float64."""
    setting = REGIMES[regime]
    g = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    points3d = torch.cat([CUBE, 2 * uniform(POINTS - len(CUBE), 3) - 1])
    if math.isfinite(setting.asymmetry):
        half = 2 * uniform(POINTS // 2, 3) - 1
        apart = nn.functional.normalize(2 * uniform(POINTS // 2, 3) - 1, dim=-1)
        points3d = torch.cat([half, half * half.new_tensor([-1, -1, 1]) + setting.asymmetry * apart])
    if setting.planar:
        points3d = torch.cat([2 * uniform(POINTS, 2) - 1, torch.zeros(POINTS, 1, dtype=torch.float64)], 1)
    K = matrix_from_intrinsics(torch.tensor([setting.focal, setting.focal, 128, 128], dtype=torch.float64))
    angle = 2 * math.pi * uniform(POINTS)
    bias = setting.bias * torch.stack([angle.cos(), angle.sin()], 1)
    to_train, to_test = (_views(setting, points3d, K, bias, count, g) for count in (train, test))
    return Scene(points3d, K, bias, to_train, to_test, regime, seed)


def _views(setting: Setting, points3d: Tensor, K: Tensor, bias: Tensor, B: int, g: torch.Generator) -> Views:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    N = len(points3d)
    pose = random_poses(B, g, setting.depth)
    low, high = (math.log(sigma) for sigma in setting.noise)
    log_sigma = low + (high - low) * torch.rand(B, N, generator=g, dtype=torch.float64)
    if setting.shared:
        log_sigma = torch.tensor([1.0, 3.0], dtype=torch.float64).log().repeat_interleave(N // 2).expand(B, N)
    offset = log_sigma.exp()[..., None] * normal(B, N, 2)
    if setting.shared:
        offset = offset + setting.shared * normal(B, 1, 2) * (torch.arange(N) < N // 2)[:, None]
    seen = project(points3d, pose, K)
    wrong = torch.rand(B, N, generator=g, dtype=torch.float64) < setting.outliers
    anywhere = 256 * torch.rand(B, N, 2, generator=g, dtype=torch.float64)
    observed = torch.where(wrong[..., None], anywhere, seen + bias + offset)
    if setting.exchanged:
        wrong = (torch.rand(B, N // 2, generator=g, dtype=torch.float64) < setting.exchanged).repeat(1, 2)
        observed = torch.where(wrong[..., None], seen.roll(N // 2, 1) + bias + offset, observed)
    cues = torch.stack([log_sigma - (low + high) / 2 + 0.2 * normal(B, N), wrong + 0.25 * normal(B, N)], -1)
    axis = nn.functional.normalize(normal(B, 3), dim=-1)
    init = None
    if setting.turned:
        init = se3.retract(pose, math.radians(setting.turned) * torch.cat([axis, torch.zeros_like(axis)], -1))
    common = setting.shared * (torch.arange(N) < N // 2).to(pose.dtype)
    factor = torch.linalg.cholesky(torch.diag_embed((2 * log_sigma).exp()) + common[:, None] * common)
    whitener = torch.linalg.inv(factor) * ~wrong[:, None] * ~wrong[..., None]
    return Views(observed, cues, pose, init, whitener)
