"""Pictures of calibration targets by a made camera, whose marks are known exactly.

A print is an image of darkness, whose integral is interpolated: every sample is the mean of the print over its own
footprint, so that edges come out without steps. Blur, light that falls off to one side, things before the board and
noise come on top.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from geometry import project, se3
from geometry.camera import Model, unproject

__all__ = [
    "Camera",
    "Conditions",
    "Print",
    "charuco_print",
    "chessboard_print",
    "circle_print",
    "poses",
    "render",
    "tag_print",
]

_SAMPLES = 2
"""Samples along the side of a pixel."""


class Print(NamedTuple):
    """What is printed: points3d (N,3) of its marks; darkness (H,W), 1 is black; texels a unit, and where, in the unit
    of the marks, the corner of the first texel lies (2,)."""

    points3d: Tensor
    darkness: Tensor
    texels: float
    origin: tuple[float, float]


class Camera(NamedTuple):
    """K (3,3), distortion (k,) of `model`, image_size (width, height)."""

    K: Tensor
    distortion: Tensor
    image_size: tuple[int, int]
    model: Model = "radtan"

    def rays(self) -> Tensor:
        """Directions (H s, W s, 3) of s x s samples a pixel, of depth one."""
        width, height = self.image_size
        across, down = (
            (torch.arange(n * _SAMPLES, dtype=torch.float64) + 0.5) / _SAMPLES - 0.5 for n in (width, height)
        )
        pixels = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)
        rays = unproject(pixels.flatten(0, 1), self.K, self.distortion, model=self.model).directions
        return rays.view(*pixels.shape[:2], 3)


class Conditions(NamedTuple):
    """How a picture was taken: standard deviations of the blur in px and of the noise in greys of the whole range;
    light: how much more of it falls on one side than on the other; covers: how many things hide a part."""

    blur: float = 0.7
    noise: float = 0.01
    light: float = 0.3
    covers: int = 0


def chessboard_print(corners: tuple[int, int]) -> Print:
    """Unit squares around these inner corners, the first one black at its upper left."""
    columns, rows = corners
    i, j = torch.meshgrid(torch.arange(columns + 1), torch.arange(rows + 1), indexing="xy")
    return Print(_grid(corners), ((i + j) % 2 == 0).double(), 1.0, (-1.0, -1.0))


def charuco_print(corners: tuple[int, int], dictionary: str = "4X4_50") -> Print:
    """Unit squares around these inner corners, markers of three quarters of their side in the white ones."""
    import cv2

    size, words = (corners[0] + 1, corners[1] + 1), getattr(cv2.aruco, f"DICT_{dictionary}")
    board = cv2.aruco.CharucoBoard(size, 1.0, 0.75, cv2.aruco.getPredefinedDictionary(words))
    texels = 8 * (board.getDictionary().markerSize + 2)
    image = board.generateImage((size[0] * texels, size[1] * texels), marginSize=0)
    return Print(_grid(corners), _darkness(image), texels, (-1.0, -1.0))


def tag_print(tags: tuple[int, int], gap: float = 0.3, dictionary: str = "APRILTAG_36h11") -> Print:
    """Tags of side one, `gap` apart; four marks each, from the upper left corner clockwise. gap: in tenths."""
    import cv2

    words = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, f"DICT_{dictionary}"))
    board, texels = cv2.aruco.GridBoard(tags, 1.0, gap, words), 10 * (words.markerSize + 2)
    size = [round(n * texels + (n - 1) * gap * texels) for n in tags]
    points3d = torch.from_numpy(np.stack(board.getObjPoints()).reshape(-1, 3)).double()
    return Print(points3d, _darkness(board.generateImage((size[0], size[1]), marginSize=0)), texels, (0.0, 0.0))


def circle_print(circles: tuple[int, int], radius: float = 0.3, asymmetric: bool = False) -> Print:
    """Discs at distance one; asymmetric: every other row is half a distance to the right, at half a distance."""
    columns, rows = circles
    y, x = torch.meshgrid(torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij")
    if asymmetric:
        x, y = x + 0.5 * (y % 2), 0.5 * y
    points3d = torch.stack([x, y, torch.zeros_like(x)], -1).reshape(-1, 3)
    texels, margin = 120, 0.5
    at_x, at_y = ((torch.arange(int(texels * (float(c.max()) + 2 * margin))) + 0.5) / texels - margin for c in (x, y))
    darkness = torch.zeros(len(at_y), len(at_x), dtype=torch.float64)
    for cx, cy in points3d[:, :2].tolist():
        distance = ((at_x - cx).square() + (at_y - cy).square()[:, None]).sqrt()
        darkness = torch.maximum(darkness, ((radius - distance) * texels + 0.5).clamp(0, 1).double())
    return Print(points3d, darkness, texels, (-margin, -margin))


def _grid(corners: tuple[int, int]) -> Tensor:
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in corners[::-1]), indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)], -1).reshape(-1, 3)


def _darkness(image: np.ndarray) -> Tensor:
    return 1 - torch.from_numpy(image).double() / 255


def poses(board: Print, camera: Camera, views: int, g: torch.Generator, *, visible: float = 1.0) -> Tensor:
    """world_to_camera (V,4,4) of boards that fill a third to all of the picture, turned by some thirty degrees.

    visible: which part of the marks must be in the picture.
    """
    kept: list[Tensor] = []
    size, f = torch.tensor(camera.image_size).double(), camera.K[0, 0]
    extent, middle = (board.points3d.amax(0) - board.points3d.amin(0)).max(), board.points3d.mean(0)
    while len(kept) < views:
        drawn = torch.rand(3, generator=g, dtype=torch.float64)
        R = se3.exp(torch.randn(3, generator=g, dtype=torch.float64) * torch.tensor([0.45, 0.45, 0.3]))
        ray, valid = unproject((0.15 + 0.7 * drawn[:2])[None] * size, camera.K, camera.distortion, model=camera.model)
        away = extent * f / ((0.35 + 0.65 * drawn[2]) * size[0])
        pose = se3.make(R, away * ray[0] / ray[0].norm() - R @ middle)
        seen = project(board.points3d, pose, camera.K, camera.distortion, model=camera.model)
        ahead = (se3.transform(pose, board.points3d)[:, 2] > 0.2 * away).all()
        inside = ((seen > 10) & (seen < size - 11)).all(-1).double().mean()
        if bool(valid.all() & ahead) and float(inside) >= visible:
            kept.append(pose)
    return torch.stack(kept)


def render(board: Print, pose: Tensor, rays: Tensor, conditions: Conditions, g: torch.Generator) -> np.ndarray:
    """A grey image (H,W) of bytes of the board at `pose` (4,4), of a camera's rays, on white."""
    import cv2

    R, t = pose[:3, :3], pose[:3, 3]
    distance = (R[:, 2] @ t) / (rays @ R[:, 2])
    plane = ((rays * distance[..., None] - t) @ R)[..., :2]
    across = plane.diff(dim=1, append=2 * plane[:, -1:] - plane[:, -2:-1]).abs()
    down = plane.diff(dim=0, append=2 * plane[-1:] - plane[-2:-1]).abs()
    print_ = _mean(board, plane, torch.maximum(across, down)) * (distance > 0)
    grey: np.ndarray = 0.85 - 0.7 * print_.numpy()
    H, W = grey.shape[0] // _SAMPLES, grey.shape[1] // _SAMPLES
    if conditions.covers:
        y, x = np.mgrid[: grey.shape[0], : grey.shape[1]] / _SAMPLES
        for cx, cy, size, shade in torch.rand(conditions.covers, 4, generator=g).tolist():
            near = np.hypot(x - cx * W, y - cy * H) < (0.05 + 0.08 * size) * W
            grey = np.where(near, shade, grey)
    if conditions.blur > 0:
        grey = np.asarray(cv2.GaussianBlur(grey, (0, 0), conditions.blur * _SAMPLES))
    grey = grey.reshape(H, _SAMPLES, W, _SAMPLES).mean((1, 3))
    turn = 2 * np.pi * torch.rand(1, generator=g).item()
    y, x = np.mgrid[:H, :W]
    grey = grey * (1 + conditions.light * (np.cos(turn) * (x / W - 0.5) + np.sin(turn) * (y / H - 0.5)))
    grey = grey + conditions.noise * torch.randn(H, W, generator=g, dtype=torch.float64).numpy()
    return np.clip(np.round(255 * grey), 0, 255).astype(np.uint8)


def _mean(board: Print, plane: Tensor, footprint: Tensor) -> Tensor:
    """Mean darkness of the print around places (…,2) of its plane, within boxes of a footprint (…,2)."""
    integral = torch.nn.functional.pad(board.darkness.cumsum(0).cumsum(1), (1, 0, 1, 0))
    size = torch.tensor([integral.shape[1] - 1, integral.shape[0] - 1])
    centre = (plane - torch.tensor(board.origin, dtype=plane.dtype)) * board.texels
    half = (footprint * board.texels / 2).clamp(1e-6, 1e6)
    low, high = (torch.minimum(c.clamp_min(0), size.to(c)) for c in (centre - half, centre + half))

    def at(x: Tensor, y: Tensor) -> Tensor:
        """The integral of a print of flat texels is bilinear between their corners."""
        i, j = x.long().clamp_max(int(size[0]) - 1), y.long().clamp_max(int(size[1]) - 1)
        u, v = x - i, y - j
        top, bottom = ((1 - u) * integral[k, i] + u * integral[k, i + 1] for k in (j, j + 1))
        return (1 - v) * top + v * bottom

    (x0, y0), (x1, y1) = low.unbind(-1), high.unbind(-1)
    total = at(x1, y1) - at(x0, y1) - at(x1, y0) + at(x0, y0)
    return total / (4 * half[..., 0] * half[..., 1])
