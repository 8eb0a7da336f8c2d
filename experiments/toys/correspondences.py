"""2D-3D matches, many of them wrong: seeded and real ones, poses of drawn sets, and a network that weighs matches."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from datasets.images.matches import FrameMatches
from datasets.made.scenes import random_poses
from geometry import project, se3, unproject
from geometry.camera import matrix_from_intrinsics
from geometry.consensus.minimal import p3p

__all__ = ["MatchNetwork", "Matches", "box_matches", "camera_residual", "consensus", "make_matches", "pose_error"]

_RIDGE = 1e-3


class Matches(NamedTuple):
    """points2d (B,N,2) px, points3d (B,N,3), ratio (B,N) of descriptor distances (low is sure), mask (B,N) of those
    that are there, K (3,3); right (B,N) and world_to_camera_gt (B,4,4), of which a real match knows neither.
    """

    points2d: Tensor
    points3d: Tensor
    ratio: Tensor
    mask: Tensor
    K: Tensor
    right: Tensor | None = None
    world_to_camera_gt: Tensor | None = None


def make_matches(
    shares: Tensor,
    points: int,
    generator: torch.Generator,
    *,
    noise: float = 1.0,
    deceptive: float = 0.1,
    dtype: torch.dtype = torch.float64,
) -> Matches:
    """Seeded problems of `points` matches, of which shares (B,) are wrong.

    Points fill a box of sides 0.2 to 2, turned in any way, at a distance of 6 to 12 from a camera of f = 800 px and
    640 x 480 pixels; right pixels have Gaussian noise. Of the wrong ones, one half lies anywhere in the image, the
    other where another point of the box is. Ratios are normal, folded at 0.9, beyond which a matcher keeps nothing:
    right ones have a mean of 0.6 to 0.8 (one for each problem) and a deviation of 0.12, wrong ones 0.8 to 0.9 and 0.06,
    but for the share `deceptive`, which look as sure as right ones. (Of the box's inliers and outliers, the former are
    about 17 times as often below a ratio of 0.6, and hardly more often the lower it is.)
    """
    B = len(shares)

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(*size, generator=generator, dtype=torch.float64)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    points3d = uniform(-1, 1, B, points, 3) * uniform(0.1, 1, B, 1, 3)
    poses = random_poses(B, generator, depth=(6.0, 12.0))
    K = matrix_from_intrinsics(torch.tensor([800.0, 800.0, 319.5, 239.5], dtype=torch.float64))
    exact = project(points3d, poses, K)
    rank = uniform(0, 1, B, points).argsort(1).argsort(1)  # in any order: the first so many are wrong
    wrong = rank < (shares.double() * points).round()[:, None]
    other = (torch.arange(points) + 1 + (uniform(0, 1, B, points) * (points - 1)).long()) % points
    confused = exact.gather(1, other[..., None].expand(-1, -1, 2))
    wild = uniform(0, 1, B, points, 2) * torch.tensor([639.0, 479.0], dtype=torch.float64)
    confused = torch.where((rank % 2 == 0)[..., None], confused, wild)
    points2d = torch.where(wrong[..., None], confused, exact) + noise * normal(B, points, 2)
    sure, unsure = uniform(0.6, 0.8, B, 1), uniform(0.8, 0.9, B, 1)
    doubtful = wrong & (uniform(0, 1, B, points) >= deceptive)
    ratio = torch.where(doubtful, unsure + 0.06 * normal(B, points), sure + 0.12 * normal(B, points))
    ratio = (0.9 - (0.9 - ratio).abs()).clamp_min(0.05)
    points2d, points3d, ratio, K, poses = (d.to(dtype) for d in (points2d, points3d, ratio, K, poses))
    return Matches(points2d, points3d, ratio, torch.ones_like(wrong), K, ~wrong, poses)


def box_matches(
    frames: Sequence[FrameMatches], focal: float, image_size: tuple[int, int], dtype: torch.dtype = torch.float64
) -> Matches:
    """Real matches of all frames, padded; the principal point is taken to be the middle of the image."""
    width, height = image_size
    K = matrix_from_intrinsics(torch.tensor([focal, focal, (width - 1) / 2, (height - 1) / 2], dtype=dtype))

    def padded(tensors: list[Tensor]) -> Tensor:
        return pad_sequence(tensors, batch_first=True)

    points2d, points3d = padded([f.points2d for f in frames]), padded([f.points3d for f in frames])
    mask = padded([torch.ones(len(f.ratio), dtype=torch.bool) for f in frames])
    ratio = padded([f.ratio for f in frames])
    return Matches(points2d.to(dtype), points3d.to(dtype), ratio.to(dtype), mask, K)


# ---- poses of them ----


def pose_error(pose: Tensor, truth: Tensor) -> Tensor:
    """Angle in radians, plus the shift over the distance, of poses (…,4,4); of an angle a, 2 sin(a / 2) is taken."""
    angle = (pose[..., :3, :3] - truth[..., :3, :3]).flatten(-2).norm(dim=-1) / math.sqrt(2)
    return angle + (pose - truth)[..., :3, 3].norm(dim=-1) / truth[..., :3, 3].norm(dim=-1)


def consensus(matches: Matches, sets: Tensor, threshold: float) -> Tensor:
    """Of each pool of minimal sets (B,S,H,3), the pose that most matches agree with (B,S,4,4); NaN if there is none."""
    B, S, H, _ = sets.shape
    points2d, points3d, K = (d.double() for d in (matches.points2d, matches.points3d, matches.K))
    rows = torch.arange(B, device=sets.device)[:, None, None]
    index = sets.flatten(1, 2)
    rays, _ = unproject(points2d, K)
    pose = p3p(rays[rows, index], points3d[rows, index]).view(B, S * H * 4, 4, 4)
    seen = project(points3d[:, None], pose, K)
    near = (seen - points2d[:, None]).square().sum(-1) < threshold**2
    front = se3.transform(pose, points3d[:, None])[..., 2] > 0
    agree = (near & front & matches.mask[:, None]).sum(-1).view(B, S, H * 4)
    best = agree.argmax(-1)[..., None, None, None].expand(-1, -1, -1, 4, 4)
    return pose.view(B, S, H * 4, 4, 4).gather(2, best)[:, :, 0]


# ---- the network ----


def _mean(values: Tensor, share: Tensor) -> Tensor:
    """Mean (B,1,C) over the matches of values (B,N,C), of which each counts share (B,N,1)."""
    return (values * share).sum(1, keepdim=True) / share.sum(1, keepdim=True)


def _normalised(values: Tensor, share: Tensor) -> Tensor:
    """Mean zero over the matches, and variance one, for each problem and channel: context normalisation."""
    centred = values - _mean(values, share)
    return centred * (_mean(centred.square(), share) + 1e-5).rsqrt()


def camera_residual(points2d: Tensor, points3d: Tensor, weights: Tensor) -> Tensor:
    """How far each match (B,N,2), (B,N,3) is from the linear camera that weighted matches agree on: (B,N,2).

    That camera is the direct linear transform whose last entry is 1, which a camera has that sees the origin of
    points3d before it; weights (B,N) multiply the squared residual, which is the reprojection error times the depth
    over that of the origin. A small ridge stands in where matches do not determine it, as on a plane. Differentiable.
    """
    x = torch.cat([points3d, torch.ones_like(points3d[..., :1])], -1)
    none = torch.zeros_like(x)
    rows = torch.stack(
        [
            torch.cat([x, none, -points2d[..., :1] * points3d], -1),
            torch.cat([none, x, -points2d[..., 1:] * points3d], -1),
        ],
        2,
    )
    share = (weights / weights.sum(1, keepdim=True).clamp_min(1e-6)).repeat_interleave(2, 1)[..., None]
    A, b = rows.flatten(1, 2), points2d.flatten(1)[..., None]
    normal = A.mT @ (share * A) + _RIDGE * torch.eye(11, dtype=A.dtype, device=A.device)
    camera = torch.linalg.solve(normal, A.mT @ (share * b))
    return (A @ camera - b).view_as(points2d)


class _Block(nn.Module):
    """A residual layer on each match by itself, after context normalisation, which tells it of the others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor, share: Tensor) -> Tensor:
        return x + self.linear(torch.relu(_normalised(x, share)))


class MatchNetwork(nn.Module):
    """Logits (B,N), of a match being right, in whatever order the matches come.

    Layers on each match by itself, with context normalisation over all (Yi et al., CVPR 2018, arXiv 1711.05971); after
    every stage but the last, matches weighted by what it says give a linear camera (`camera_residual`), and the next
    one also sees how far each match is from it. The network knows no K, no scale and no origin: pixels and points are
    centred and scaled by their own deviation.
    """

    def __init__(self, width: int = 32, blocks: int = 3, stages: int = 3) -> None:
        super().__init__()
        self.enter = nn.ModuleList(nn.Linear(6 if i == 0 else 10, width) for i in range(stages))
        self.blocks = nn.ModuleList(nn.ModuleList(_Block(width) for _ in range(blocks)) for _ in range(stages))
        self.leave = nn.ModuleList(nn.Linear(width, 1) for _ in range(stages))

    def forward(self, points2d: Tensor, points3d: Tensor, ratio: Tensor, mask: Tensor) -> Tensor:
        share = mask[..., None].to(points2d.dtype)
        points2d, points3d = (
            torch.where(mask[..., None], d - _mean(d, share), 0.0) for d in (points2d, points3d)
        )  # fmt: skip
        points2d, points3d = (d / _mean(d.square(), share).mean(-1, keepdim=True).sqrt() for d in (points2d, points3d))
        seen = torch.cat([points2d, points3d, 10 * (ratio - 0.8)[..., None]], -1)
        x = seen
        logits = seen[..., 0]
        for number, (enter, blocks, leave) in enumerate(zip(self.enter, self.blocks, self.leave, strict=True)):
            if number:
                r = camera_residual(points2d, points3d, logits.sigmoid() * mask)
                far = (r.square().sum(-1) + 1e-6).log()
                x = torch.cat([seen, r.clamp(-2, 2), far[..., None], logits[..., None]], -1)
            x = enter(x)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, share)
            logits = leave(torch.relu(_normalised(x, share)))[..., 0]
        return logits
