"""The starts of `experiments.structure_routes`: tracks made here or a file's, K known, and where a route sets out."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from datasets.made.scenes import duck
from experiments.structure.alignment import rms_radius, shape_errors
from experiments.structure.tracks import noise, observed, pinhole, read_tracks, views_that_see
from geometry import Solution, cauchy, pnp, se3
from geometry.camera import Model, in_front, project_camera_frame
from geometry.optim import descend
from geometry.reconstruction import Points, as_table
from geometry.robust import RobustKernel, kernel_derivatives

Regime = Literal[
    "overlap", "few_views", "ring", "weak_perspective", "outliers", "outliers_robust", "random_start", "tracks"
]
REGIMES: dict[Regime, str] = {
    "overlap": "24 views all around 300 points, each sees half of them; a start 3 degrees, 5 % off",
    "few_views": "3 views 20 degrees apart, 100 points, all seen; a start 3 degrees, 5 % off",
    "ring": "60 cameras on a circle look outward, 600 points seen by 5 neighbours each; a start that has drifted away",
    "weak_perspective": "as overlap, 12 views, from 25 times as far with 25 times the focal length",
    "outliers": "as overlap, 10 % of the observations anywhere in the image",
    "outliers_robust": "the same with a Cauchy kernel of 1 px",
    "random_start": "12 views, 80 points, each view sees half of them; random points, poses sought globally",
    "tracks": "tracks of a reconstruction file; its poses and points are the start",
}


@dataclass(frozen=True)
class Tracks:
    """M observations points2d (M,2) px of N points by V cameras, K (V,3,3) and distortion (V,k) known, and the start.

    poses None: to be sought globally, wherever the points are. points_gt (N,3), poses_gt (V,4,4): the truth, or None.
    """

    points2d: Tensor
    camera: Tensor
    point: Tensor
    K: Tensor
    distortion: Tensor
    points: Tensor
    poses: Tensor | None
    model: Model = "radtan"
    kernel: RobustKernel | None = None
    points_gt: Tensor | None = None
    poses_gt: Tensor | None = None
    note: str = ""

    @cached_property
    def dense(self) -> tuple[Tensor, Tensor]:
        """points2d (V,N,2), zero where not visible (V,N)."""
        return as_table(self.points2d, self.camera, self.point, len(self.K), len(self.points))

    @cached_property
    def packed(self) -> tuple[Tensor, Tensor, Tensor]:
        """For PnP, the points that each view sees: which (V,m) of the points, seen (V,m), points2d (V,m,2)."""
        points2d, visible = self.dense
        most = int(visible.sum(1).max())
        which = visible.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
        return which, visible.gather(1, which), points2d.gather(1, which[..., None].expand(-1, -1, 2))

    def place_poses(self, points: Tensor, poses: Tensor | None) -> Solution:
        """Every pose (V,4,4) at the minimum of its own cost, next to `poses` or else the global one."""
        which, seen, points2d = self.packed
        return pnp(
            points2d, points[which], self.K, distortion=self.distortion, mask=seen, init=poses, model=self.model,
            kernel=self.kernel,
        )  # fmt: skip

    def behind(self, points: Tensor, poses: Tensor) -> Tensor:
        """Whether the point of each observation is behind its camera, (M,)."""
        p = observed(poses, points, self.camera, self.point)
        return ~in_front(p, self.distortion[self.camera], model=self.model).squeeze(1)

    def seen(self, poses: Tensor) -> Points:
        """The points as problems of their own, the cameras known."""
        camera = self.camera
        return Points(
            self.points2d, self.point, poses[camera], self.K[camera], self.distortion[camera], self.model,
            len(self.points), lambda s: kernel_derivatives(self.kernel, s)[:2],
        )  # fmt: skip

    def point_costs(self, points: Tensor, poses: Tensor) -> Tensor:
        """Half the (robust) squared errors of each point (N,); infinite where a camera that sees it has it behind."""
        return self.seen(poses).at(points).cost

    def place_points(self, points: Tensor, poses: Tensor, most: int = 5) -> Tensor:
        """Every point (N,3) near the minimum of its own cost, in front of cameras.

        0.1 s on Ladybug. `geometry.triangulate`, which begins with the rays, takes 13 s there;
        the bundle that holds the poses 0.1 s (and two to three times as long as this on the made scenes), but it lets
        points go behind cameras, where PnP cannot start.
        """
        seen = self.seen(poses)
        return descend(seen, seen.at(points), 1e-3, most).at.points3d

    def error(self, points: Tensor) -> float:
        """Rms distance from the truth after similarity alignment, as a share of the truth's rms radius; NaN without."""
        if self.points_gt is None or not points.isfinite().all():
            return math.nan
        return shape_errors(points, self.points_gt)["rms_share"]


def moved(poses: Tensor, turn: Tensor, share: Tensor) -> Tensor:
    """Poses (V,4,4) turned by `turn` (V,3) radians about the world's origin, t scaled by 1 + share (V,3)."""
    return se3.make(poses[:, :3, :3] @ se3.exp(turn), poses[:, :3, 3] * (1 + share))


def solid(
    views: int,
    points: int,
    generator: torch.Generator,
    *,
    far: float = 1.0,
    arc: float | None = None,
    share: float = 0.5,
    wrong: float = 0.0,
    kernel: RobustKernel | None = None,
) -> Tracks:
    """A duck of unit rms radius, 5 * far away, seen with 0.5 px of noise by cameras of 800 * far px.

    arc: degrees between views in a row, None for all around. share of the points, those nearest, in each view. wrong:
    share of the observations that lie anywhere in an image of 640 x 480 px.
    """
    X = duck(points, generator)
    X = (X - X.mean(0)) / rms_radius(X)
    if arc is None:
        R = se3.rotation_from_quat_wxyz(noise(generator, views, 4))
    else:
        angle = math.radians(arc) * torch.arange(views, dtype=torch.float64)
        R = se3.exp(torch.stack([0.3 * angle, angle, torch.zeros_like(angle)], -1))
    poses = se3.make(R, torch.tensor([0.0, 0.0, 5 * far], dtype=torch.float64).expand(views, 3))
    K = pinhole(800 * far, 800 * far, 319.5, 239.5).expand(views, 3, 3)
    p = se3.transform(poses, X)
    camera, point = (p[..., 2] <= p[..., 2].quantile(share, dim=1, keepdim=True)).nonzero().T
    points2d = project_camera_frame(p, K)[camera, point] + 0.5 * noise(generator, len(camera), 2)
    anywhere = torch.rand(len(camera), 2, generator=generator, dtype=torch.float64) * torch.tensor([639.0, 479.0])
    gross = torch.rand(len(camera), 1, generator=generator) < wrong
    start = moved(poses, math.radians(3) * noise(generator, views, 3), 0.05 * noise(generator, views, 3))
    return Tracks(
        torch.where(gross, anywhere, points2d), camera, point, K, K.new_zeros(views, 0),
        X + 0.05 * noise(generator, *X.shape), start, kernel=kernel, points_gt=X, poses_gt=poses,
    )  # fmt: skip


def ring(views: int, points: int, neighbours: int, generator: torch.Generator) -> Tracks:
    """Cameras one unit apart on a circle, looking outward at points 4 to 8 units away, each seen by its neighbours.

    The start drifts: the error of every pose is the last one's and 0.2 degrees and 0.01 units more, each point keeps
    its place in the frame of the first camera that sees it.
    """
    angle = 2 * math.pi * torch.arange(views, dtype=torch.float64) / views
    zero = torch.zeros_like(angle)
    R = se3.exp(torch.stack([zero, -angle, zero], -1))
    centre = views / (2 * math.pi) * torch.stack([angle.sin(), zero, angle.cos()], -1)
    poses = se3.make(R, -(R @ centre[..., None]).squeeze(-1))
    K = pinhole(500.0, 500.0, 319.5, 239.5).expand(views, 3, 3)
    first = torch.randint(views, (points,), generator=generator)
    offset = torch.rand(points, 3, generator=generator, dtype=torch.float64)
    local = torch.stack([6 * (offset[:, 0] - 0.5), 3 * (offset[:, 1] - 0.5), 4 + 4 * offset[:, 2]], -1)
    middle = (first + neighbours // 2) % views
    X = se3.transform(se3.inverse(poses)[middle], local[:, None]).squeeze(1)
    camera = ((first[:, None] + torch.arange(neighbours)) % views).flatten()
    point = torch.arange(points).repeat_interleave(neighbours)
    pixels = project_camera_frame(observed(poses, X, camera, point), K[camera]).squeeze(1)
    walk = torch.cat([math.radians(0.2) * noise(generator, views, 3), 0.01 * noise(generator, views, 3)], -1)
    start = se3.retract(poses, (walk - walk[:1]).cumsum(0))
    drifted = se3.inverse(start)[first] @ poses[first]
    return Tracks(
        pixels + 0.5 * noise(generator, *pixels.shape), camera, point, K, K.new_zeros(views, 0),
        se3.transform(drifted, X[:, None]).squeeze(1), start, points_gt=X, poses_gt=poses,
    )  # fmt: skip


def read_file(path: Path) -> Tracks:
    """A file's tracks, and the points that have one. Raises ValueError where a view has none."""
    scene, note = read_tracks(path)
    views_that_see(torch.bincount(scene.camera_index, minlength=len(scene.world_to_camera)), str(path), scene.names)
    index = scene.intrinsics_index
    used, point = scene.point_index.unique(return_inverse=True)
    return Tracks(
        scene.points2d, scene.camera_index, point, scene.K[index], scene.distortion[index], scene.points3d[used],
        scene.world_to_camera, scene.model, note=note,
    )  # fmt: skip


def make_starts(regime: Regime, *, seed: int, starts: int, given: Tracks | None = None) -> list[Tracks]:
    """The scene of a regime, once for every start: so many `starts` where they are random. given: those of `tracks`."""
    generator = torch.Generator().manual_seed(seed)
    if regime == "tracks":
        assert given is not None
        return [given]
    if regime == "ring":
        return [ring(60, 600, 5, generator)]
    if regime == "random_start":
        scene = replace(solid(12, 80, generator), poses=None)
        return [replace(scene, points=noise(generator, 80, 3) / math.sqrt(3)) for _ in range(starts)]
    if regime == "few_views":
        return [solid(3, 100, generator, arc=20.0, share=1.0)]
    if regime == "weak_perspective":
        return [solid(12, 300, generator, far=25.0)]
    wrong = 0.1 if regime.startswith("outliers") else 0.0
    kernel = cauchy(1.0) if regime == "outliers_robust" else None
    return [solid(24, 300, generator, wrong=wrong, kernel=kernel)]
