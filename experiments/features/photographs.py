"""Photographs with measured cameras, as far as SIFT and a first reconstruction bring them."""

from pathlib import Path

import cv2
import torch
from torch import Tensor

from datasets import locate
from datasets.arrays import read_image
from experiments.features.tracked import Tracked
from experiments.structure.scenes import SceneOptions, read_scene

__all__ = ["photographs_folder", "read_photographs"]


def photographs_folder(name: str) -> Path:
    """The folder of a Middlebury set. Raises AbsentDataError where that is not on this machine, else ValueError."""
    folder = locate.locate(name)
    if not list(folder.glob("*_par.txt")):
        raise ValueError(f"photographs: a folder with cameras (*_par.txt) wanted, found {folder}")
    return folder


def read_photographs(name: str, seed: int) -> tuple[Tracked, Tensor]:
    """A Middlebury set as `structure_from_motion real` sees it after its first reconstruction, and its cameras (V,4,4).

    Raises AbsentDataError where the set is not on this machine, ValueError where its cameras are not given.
    """
    folder, scene = photographs_folder(name), read_scene(SceneOptions(scene=name), seed)
    assert scene.poses_gt is not None
    assert scene.points_start is not None
    assert scene.poses_start is not None
    camera, point = scene.visible.nonzero().T.contiguous()
    pictures = torch.stack([_grey(folder / name) for name in scene.names])
    flat = scene.points2d[camera, point], camera, point
    return Tracked(pictures, scene.K[0], *flat, scene.poses_start, scene.points_start), scene.poses_gt


def _grey(path: Path) -> Tensor:
    return torch.from_numpy(cv2.cvtColor(read_image(path), cv2.COLOR_RGB2GRAY)).float() / 255
