"""What the scenes of tracks have in common: made here or read, M observations as a list or as a table."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from datasets.reconstructions.model import Reconstruction
from datasets.reconstructions.read import read_reconstruction
from geometry import se3
from geometry.camera import in_front, matrix_from_intrinsics


class Flat(NamedTuple):
    """Tracks as a list: points2d (M,2) px, camera (M,), point (M,), and the number of views."""

    points2d: Tensor
    camera: Tensor
    point: Tensor
    views: int

    def only(self, kept: Tensor) -> "Flat":
        """Some of the observations, of the same views and points."""
        return self._replace(points2d=self.points2d[kept], camera=self.camera[kept], point=self.point[kept])


def noise(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal, float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pinhole(fx: float, fy: float, cx: float, cy: float) -> Tensor:
    """K (3,3), float64."""
    return matrix_from_intrinsics(torch.tensor([fx, fy, cx, cy], dtype=torch.float64))


def observed(poses: Tensor, points: Tensor, camera: Tensor, point: Tensor) -> Tensor:
    """The point of each observation in its camera's frame, (M,1,3) of poses (V,4,4), points (N,3)."""
    return se3.transform(poses[camera], points[point][:, None])


def views_that_see(seen: Tensor, scene: str, names: Sequence[str] = ()) -> None:
    """Raise ValueError unless all views (V,) of a scene, two at least, see a point; seen: how many each does."""
    if len(seen) < 2:
        raise ValueError(f"scene {scene}: at least two views wanted, found {len(seen)}")
    if blind := (seen == 0).nonzero().flatten().tolist():
        told = ", ".join(names[v] if names else str(v) for v in blind)
        raise ValueError(f"scene {scene}: a visible point in every view wanted, found none in view {told}")


def read_tracks(path: Path) -> tuple[Reconstruction, str]:
    """A file's reconstruction with the observations that can be learned from, and a note on the rest.

    A point behind one of its cameras has no reprojection error there; a track of one view is no track. The points stay,
    seen or not.
    """
    given = read_reconstruction(path)
    camera, point = given.camera_index, given.point_index
    p, lens = observed(given.world_to_camera, given.points3d, camera, point), given.intrinsics_index[camera]
    keep = in_front(p, given.distortion[lens], model=given.model).squeeze(1)
    V, N = len(given.world_to_camera), len(given.points3d)
    pairs = (V * point + camera)[keep].unique()  # a file may have a point twice in a view
    keep &= (torch.bincount(pairs // V, minlength=N) >= 2)[point]
    note = f"{int((~keep).sum())} of {len(keep)} observations left out: behind their camera, or of one view only"
    kept = replace(given, camera_index=camera[keep], point_index=point[keep], points2d=given.points2d[keep])
    return kept, note
