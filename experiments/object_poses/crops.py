"""Crops of pictures around objects, as the pose network is fed them: geometry, loading and augmentation.

A crop is a square of S x S pixels about a box, drawn or reduced so that the box fills it but for a margin. Cropping and
scaling is an affine map of pixels, A, so that the crop is a picture of its own, of a camera A K.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from datasets.arrays import read_image
from datasets.objects.layout import Instance

__all__ = ["MARGIN", "Batches", "CropBatch", "Crops", "crop_loader", "crop_map", "cut"]

MARGIN = 1.4
"""Side of a crop over the longer side of its box: no keypoint's Gaussian is cut off, however a box was shifted."""


class CropBatch(NamedTuple):
    """B crops. images (B,3,S,S) uint8; K (B,3,3) of the crops, pose_gt (B,4,4), mm, float64; objects, rows (B,) int64.

    objects: positions among the objects of the network; rows: positions among the instances.
    """

    images: Tensor
    K: Tensor
    pose_gt: Tensor
    objects: Tensor
    rows: Tensor

    def to(self, device: torch.device) -> CropBatch:
        return CropBatch(*(value.to(device, non_blocking=True) for value in self))


def crop_map(box: Sequence[float], size: int, margin: float = MARGIN) -> np.ndarray:
    """The map A (3,3) from pixels of the picture to those of the crop.

    box (x, y, width, height) px, from centre to centre of its outermost pixels, as in BOP. Raises ValueError for an
    empty one.
    """
    x, y, width, height = box
    if not (min(width, height) >= 0 and max(width, height) > 0):
        raise ValueError(f"box must have a width and a height above zero, got {tuple(box)}")
    scale = size / (margin * max(width, height))
    centre = np.array([x + width / 2, y + height / 2])
    A = np.diag([scale, scale, 1.0])
    A[:2, 2] = (size - 1) / 2 - scale * centre
    return A


def cut(picture: np.ndarray, A: np.ndarray, size: int) -> np.ndarray:
    """The crop (S,S,3) that A makes of a picture (H,W,3), without aliasing; what lies outside is grey."""
    import cv2

    factor = int(1 / np.hypot(A[0, 0], A[0, 1]))
    if factor > 1:  # the mean of factor x factor pixels, then what is left of the scale
        height, width = (side // factor * factor for side in picture.shape[:2])
        picture = cv2.resize(
            np.ascontiguousarray(picture[:height, :width]), (width // factor, height // factor),
            interpolation=cv2.INTER_AREA,
        )  # fmt: skip
        A = A @ np.array([[factor, 0, (factor - 1) / 2], [0, factor, (factor - 1) / 2], [0, 0, 1]])
    return cv2.warpAffine(
        np.ascontiguousarray(picture), A[:2], (size, size), flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT, borderValue=(128, 128, 128),
    )  # fmt: skip


class Crops(Dataset):
    """Crops of instances as the network is fed them. An index is (draw, row): draw seeds the box, None leaves it.

    The boxes of training are moved by up to `shift` of their longer side and scaled by up to `zoom`, as a detector's
    might be, and the camera is turned about its axis by up to `roll` radians. What is drawn depends on (seed, draw,
    row) alone, and with alike=True on no row: on no worker, process, order or resumption.
    read: what makes a picture (H,W,3) of an instance's path.
    """

    def __init__(
        self, instances: Sequence[Instance], objects: Sequence[int], size: int, seed: int = 0, *,
        shift: float = 0.08, zoom: float = 0.15, roll: float = 0.35, read: Callable[[Any], np.ndarray] = read_image,
        alike: bool = False,
    ) -> None:  # fmt: skip
        self.instances, self.size, self.seed, self.read = instances, size, seed, read
        self.shift, self.zoom, self.roll, self.alike = shift, zoom, roll, alike
        self.position = {number: i for i, number in enumerate(objects)}

    def __len__(self) -> int:
        return len(self.instances)

    def __getitem__(self, index: tuple[int | None, int]) -> tuple[int, CropBatch]:
        draw, row = index
        instance = self.instances[row]
        box = np.asarray(instance.box, dtype=np.float64)
        generator = np.random.default_rng((self.seed, draw or 0, 0 if self.alike else row))
        turn = np.eye(3)  # of the camera, about its axis: a picture of another pose, without having taken it
        if draw is not None:
            dx, dy, zoom, roll = generator.uniform(-1, 1, 4)
            c, s = np.cos(self.roll * roll), np.sin(self.roll * roll)
            turn[:2, :2] = [[c, -s], [s, c]]
        turned = instance.K @ turn @ np.linalg.inv(instance.K)  # from pixels of the picture to those after the turn
        if draw is not None:
            centre = (turned @ [*(box[:2] + box[2:] / 2), 1])[:2] + self.shift * max(box[2:]) * np.array([dx, dy])
            box[2:] *= 1 + self.zoom * zoom
            box[:2] = centre - box[2:] / 2
        A = crop_map(box.tolist(), self.size)
        image = cut(self.read(instance.path), A @ turned, self.size)
        pose = np.vstack([turn @ instance.pose[:3], instance.pose[3:]])
        return int(generator.integers(2**62)), CropBatch(
            torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(A @ instance.K), torch.from_numpy(pose),
            torch.tensor(self.position[instance.object]), torch.tensor(row),
        )  # fmt: skip


class Batches(Sampler):
    """The indices of each step's crops, from step `start` to `stop`: a permutation of all rows an epoch.

    Of `world` processes each takes every world-th of the same batch. A step's rows depend on (seed, step) alone.
    """

    def __init__(self, rows: int, batch: int, seed: int, start: int, stop: int, rank: int = 0, world: int = 1) -> None:
        if batch % world or batch > rows:
            raise ValueError(f"batch must be a multiple of the {world} processes and at most {rows}, got {batch}")
        self.rows, self.batch, self.seed, self.start, self.stop = rows, batch, seed, start, stop
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return max(self.stop - self.start, 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = self.rows // self.batch
        order, known = np.zeros(0, np.int64), -1
        for step in range(self.start, self.stop):
            epoch, place = divmod(step, per_epoch)
            if epoch != known:
                order, known = np.random.default_rng((self.seed, epoch)).permutation(self.rows), epoch
            rows = order[place * self.batch : (place + 1) * self.batch]
            yield [(step, int(row)) for row in rows[self.rank :: self.world]]


def crop_loader(crops: Crops, batches: Iterable[list[Any]], workers: int, augmented: bool = False) -> DataLoader:
    """`CropBatch`es in order, made ahead by `workers` processes; with none, when they are asked for."""
    if workers:
        _one_thread()  # a forked worker would wait for ever for threads of OpenCV's that it does not have
    return DataLoader(
        crops, batch_sampler=batches, num_workers=workers, collate_fn=Collate(augmented),
        pin_memory=torch.cuda.is_available(), prefetch_factor=4 if workers else None, worker_init_fn=_one_thread,
    )  # fmt: skip


def _one_thread(_: int = 0) -> None:
    import cv2

    cv2.setNumThreads(1)


class Collate:
    """Stack crops, and augment them where that is asked for: in the workers, where it costs the training nothing.

    Brightness, contrast, noise and erased parts, by kornia. What is drawn depends on the first crop's index alone.
    """

    def __init__(self, augmented: bool) -> None:
        self.augmentation = None
        if augmented:
            from kornia import augmentation as K

            self.augmentation = K.AugmentationSequential(
                K.RandomBrightness((0.7, 1.3), p=0.8),  # hue, saturation and blur cost twice as much as all of this
                K.RandomContrast((0.7, 1.3), p=0.8),
                K.RandomGaussianNoise(std=0.03, p=0.3),
                K.RandomErasing(scale=(0.02, 0.12), ratio=(0.4, 2.5), value=0.5, p=0.4),
                data_keys=["input"],
            )

    def __call__(self, crops: Sequence[tuple[int, CropBatch]]) -> CropBatch:
        batch = CropBatch(*(torch.stack(values) for values in zip(*(crop for _, crop in crops), strict=True)))
        if self.augmentation is None:
            return batch
        with torch.random.fork_rng([]), torch.no_grad():
            torch.manual_seed(crops[0][0])
            images = self.augmentation(batch.images.float() / 255)
        return batch._replace(images=(255 * images).round().clamp(0, 255).byte())
