"""Flat, small objects: where a pose has two looks and its score many minima. Made ones, and the box of a video."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.images.matches import read_box_matches
from datasets.locate import find
from geometry import project, se3

__all__ = ["Matches", "frames", "made", "score"]

FOCAL = 634.0
K = torch.tensor([[FOCAL, 0, 319.5], [0, FOCAL, 239.5], [0, 0, 1]], dtype=torch.float64)
SIZES = (40.0, 240.0)  # pixels of an object, of one that lies across the line of sight
NOISE = (0.5, 2.0)  # pixels
COUNTS = (60, 300)  # matches
THICKEST = 0.3  # in parts of the length
TILTED = 75.0  # degrees from lying across the line of sight, at most


@dataclass(frozen=True)
class Matches:
    """Problems of one number of matches: points2d (B,N,2), points3d (B,N,3), K (3,3)."""

    points2d: Tensor
    points3d: Tensor
    K: Tensor


def made(count: int, batch: int, right: tuple[float, float], seed: int) -> Iterator[Matches]:
    """`count` boxes of length 1 and random breadth, thickness, size, pose, noise and share of right matches.

    One in five is flat wholly. Of the wrong pixels half lie anywhere in the image, half on the object.
    """
    g = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=g, dtype=torch.float64)

    for first in range(0, count, batch):
        B = min(batch, count - first)
        N = int(torch.randint(COUNTS[0], COUNTS[1] + 1, (), generator=g))
        thickness = torch.where(uniform(B) < 0.2, 0.0, uniform(B, high=THICKEST))
        extent = torch.stack([torch.ones(B).double(), uniform(B, low=0.3), thickness], -1)
        points3d = extent[:, None] * uniform(B, N, 3, low=-0.5, high=0.5)
        pixels = SIZES[0] * (SIZES[1] / SIZES[0]) ** uniform(B)
        depth = FOCAL / pixels
        cosine, about, roll = uniform(B, low=math.cos(math.radians(TILTED))), *(2 * math.pi * uniform(2, B))
        none = torch.zeros_like(roll)
        tilt = torch.acos(cosine)[:, None] * torch.stack([about.cos(), about.sin(), none], -1)
        R = se3.exp(tilt) @ se3.exp(torch.stack([none, none, roll], -1))
        room = torch.tensor([640.0, 480.0]) - pixels[:, None]
        aside = (uniform(B, 2) - 0.5) * room / FOCAL * depth[:, None]
        pose = se3.make(R, torch.cat([aside, depth[:, None]], -1))
        noise = uniform(B, 1, 1, low=NOISE[0], high=NOISE[1])
        points2d = project(points3d, pose, K) + noise * torch.randn(B, N, 2, generator=g, dtype=torch.float64)
        low, high = points2d.amin(1, keepdim=True), points2d.amax(1, keepdim=True)
        anywhere = uniform(B, N, 2) * torch.tensor([640.0, 480.0])
        wild = torch.where(uniform(B, N, 1) < 0.5, anywhere, low + (high - low) * uniform(B, N, 2))
        rank = uniform(B, N).argsort(1).argsort(1)
        wrong = rank >= (uniform(B, 1, low=right[0], high=right[1]) * N).round()
        yield Matches(torch.where(wrong[..., None], wild, points2d), points3d, K)


def frames(name: str, count: int, seed: int) -> Iterator[Matches]:
    """Every frame of the data set `name`, `count` times, its matches in an order of its own each: others are drawn."""
    g = torch.Generator().manual_seed(seed)
    for matches in read_box_matches(find(name)):
        order = torch.rand(count, len(matches.points2d), generator=g).argsort(1)
        yield Matches(matches.points2d.double()[order], matches.points3d.double()[order], K)


def score(problems: Matches, world_to_camera: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The MSAC score (B,): the sum of min(|r|^2, threshold^2), what lies behind the camera counting in full; and the
    number of inliers (B,)."""
    square = (project(problems.points3d, world_to_camera, problems.K) - problems.points2d).square().sum(-1)
    inliers = (se3.transform(world_to_camera, problems.points3d)[..., 2] > 0) & (square < threshold**2)
    return torch.where(inliers, square, threshold**2).sum(-1), inliers.sum(-1)
