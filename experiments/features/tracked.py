"""Pictures, the tracks that SIFT finds in them, and a reconstruction of these: what refinement begins with."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import cv2
import torch
from torch import Tensor

from datasets.images.tracks import find_tracks
from datasets.made.surfaces import Solids, draw_solids, take_pictures
from geometry import BundleSolution, bundle, cauchy, se3, triangulate

__all__ = ["ROBUST_PX", "Made", "Tracked", "adjusted", "made_scene", "residuals"]

ROBUST_PX = 0.25
"""Scale of the Cauchy kernel of all bundles, as of `structure_from_motion real`."""
_INLIER_PX = 1.0
"""What lies farther from its point's projection is left out, as there."""


class Tracked(NamedTuple):
    """V pictures (V,H,W) float32, 0 … 1, by one lens K (3,3); M observations: points2d (M,2) px, camera and point (M,);
    and a reconstruction from them: world_to_camera (V,4,4), points3d (N,3)."""

    pictures: Tensor
    K: Tensor
    points2d: Tensor
    camera: Tensor
    point: Tensor
    world_to_camera: Tensor
    points3d: Tensor

    def of(self, points: Tensor) -> tuple["Tracked", Tensor]:
        """The tracks of some of the points (n,), and which observations are theirs (M,)."""
        place = torch.full((len(self.points3d),), -1).index_put((points,), torch.arange(len(points)))
        kept = place[self.point] >= 0
        few = self._replace(
            points2d=self.points2d[kept],
            camera=self.camera[kept],
            point=place[self.point[kept]],
            points3d=self.points3d[points],
        )
        return few, kept


class Made(NamedTuple):
    """A rendered scene: its tracks, and the truth: cameras (V,4,4) and the solids that they saw."""

    tracked: Tracked
    world_to_camera_gt: Tensor
    solids: Solids


def adjusted(
    tracked: Tracked, points2d: Tensor | None = None, weights: Tensor | None = None, *, poses: Tensor | None = None
) -> BundleSolution:
    """The robust bundle of its tracks, next to its reconstruction; of other points2d (M,2), with weights (M,).

    poses (V,4,4): hold the cameras there, and find the points alone.
    """
    return bundle(
        tracked.points2d if points2d is None else points2d, tracked.camera, tracked.point,
        tracked.world_to_camera if poses is None else poses, tracked.points3d, tracked.K, weights=weights,
        free=("points",) if poses is not None else ("poses", "points"), kernel=cauchy(ROBUST_PX), gauge="free",
    )  # fmt: skip


def residuals(tracked: Tracked, solution: BundleSolution, points2d: Tensor) -> Tensor:
    """From points2d (M,2) to the projections of a solution's points by its cameras (M,2)."""
    pose = solution.x.world_to_camera[tracked.camera]
    p = se3.transform(pose, solution.x.points3d[tracked.point][:, None]).squeeze(1) @ tracked.K.mT
    return p[:, :2] / p[:, 2:] - points2d


def made_scene(seed: int, views: int, image_size: tuple[int, int], most: int) -> Made:
    """A scene of this seed: pictures, their tracks, at most so many, and a bundle of those that agree.

    The bundle starts at the true cameras, which a first reconstruction is to find: that is another's affair.
    """
    generator = torch.Generator().manual_seed(seed)
    solids, skin = draw_solids(generator)
    taken = take_pictures(solids, skin, generator, views=views, image_size=image_size)
    with tempfile.TemporaryDirectory() as folder:
        for v, picture in enumerate(taken.pictures):
            cv2.imwrite(str(Path(folder) / f"{v:03d}.png"), picture.numpy())
        found = find_tracks(folder)
    camera, point, K = found.camera_index, found.point_index, taken.K
    N = int(point.max()) + 1
    visible = torch.zeros(views, N, dtype=torch.bool).index_put((camera, point), torch.tensor(True))
    points2d = K.new_zeros(views, N, 2).index_put((camera, point), found.points2d)
    lenses = K.expand(views, 3, 3), K.new_zeros(views, 0)
    points3d = triangulate(points2d, visible, taken.world_to_camera, *lenses).x
    pictures = taken.pictures.float() / 255
    tracked = Tracked(pictures, K, found.points2d, camera, point, taken.world_to_camera, points3d)
    tracked, _ = tracked.of(torch.randperm(N, generator=generator)[:most])
    for _ in range(2):
        tracked = _agreeing(tracked)
    return Made(tracked, taken.world_to_camera, solids)


def _agreeing(tracked: Tracked) -> Tracked:
    """What its bundle finds of it, without the observations that do not agree and the points that lose all but one."""
    solution = adjusted(tracked)
    off = residuals(tracked, solution, tracked.points2d).norm(dim=-1)
    kept = off < _INLIER_PX
    count = torch.bincount(tracked.point[kept], minlength=len(tracked.points3d))
    kept &= count[tracked.point] >= 2
    points, point = tracked.point[kept].unique(return_inverse=True)
    return tracked._replace(
        points2d=tracked.points2d[kept],
        camera=tracked.camera[kept],
        point=point,
        points3d=solution.x.points3d[points],
        world_to_camera=solution.x.world_to_camera,
    )
