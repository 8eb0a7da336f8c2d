"""A small world of object poses, made anew for each test: two boxes, and pictures with depth of where they are."""

from pathlib import Path

import cv2
import numpy as np
import torch

from datasets.objects.layout import Instance, Model
from datasets.objects.rendering import render_depth
from datasets.ply import Mesh
from geometry import se3

K = np.array([[110.0, 0, 39.5], [0, 112, 29.5], [0, 0, 1]])
SIZE = (80, 60)


def box(x: float, y: float, z: float, turns: int = 1) -> Model:
    """A box of these sides, said to look the same after each of `turns` turns about z."""
    corners = np.array([[i, j, k] for i in (-0.5, 0.5) for j in (-0.5, 0.5) for k in (-0.5, 0.5)]) * (x, y, z)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = np.array([f for a, b, c, d in quads for f in ((a, b, c), (a, c, d))])
    angles = 2 * np.pi * torch.arange(turns, dtype=torch.float64) / turns
    R = se3.exp(angles[:, None] * torch.tensor([0.0, 0, 1], dtype=torch.float64))
    symmetries = se3.make(R, torch.zeros(turns, 3, dtype=torch.float64)).numpy()
    return Model(Mesh(corners, faces), float(np.linalg.norm((x, y, z))), symmetries)


MODELS = {1: box(60, 40, 30), 4: box(50, 50, 80, turns=4)}


def pose(*rotvec_t: float) -> np.ndarray:
    """(4,4) of a rotation vector and a translation."""
    return se3.from_rotvec_t(torch.tensor(rotvec_t, dtype=torch.float64)).numpy()


def moved(start: np.ndarray, *step: float) -> np.ndarray:
    """Turned by the first three numbers, in the camera's axes, and shifted by the others, in mm."""
    return se3.retract(torch.from_numpy(start), torch.tensor(step, dtype=torch.float64)).numpy()


def instances(folder: Path) -> list[Instance]:
    """Two pictures: one of object 1, and one of object 4 between two of object 1."""
    shown = {
        0: [(1, pose(0.5, -0.7, 0.2, 10, 5, 300))],
        7: [
            (1, pose(0.3, 0.9, 0.1, -60, 10, 400)),
            (4, pose(1.2, 0.1, -0.3, 0, 0, 390)),
            (1, pose(-0.8, 0.2, 0.6, 65, -5, 410)),
        ],
    }
    found = []
    for image, things in shown.items():
        depth, _ = render_depth(
            [MODELS[number].mesh for number, _ in things], np.stack([p for _, p in things]), K, SIZE
        )
        gray, far = folder / f"{image:06d}.png", folder / f"depth{image:06d}.png"
        cv2.imwrite(str(gray), np.uint8(40 + 100 * (depth > 0)))
        cv2.imwrite(str(far), np.rint(10 * depth).astype(np.uint16))
        for index, (number, truth) in enumerate(things):
            place = (2, image, number, index)
            found.append(Instance(*place, gray, K, truth, (0.0, 0, 1, 1), 1.0, depth=far, depth_scale=0.1))
    return found
