"""Object poses from crops: the network, the keypoints it was trained to find, and PnP; one thing to save and load."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from datasets.arrays import read_image
from datasets.objects.layout import Estimate, Instance, Model
from experiments.object_poses.crops import CropBatch, Crops, crop_loader
from experiments.object_poses.losses import solve_pose
from experiments.object_poses.network import KeypointNetwork, read_heatmaps
from experiments.running.saved import load, save, this_version

__all__ = ["Estimated", "Network", "PoseEstimator", "Precision", "farthest_points", "load_estimator", "logits_of"]

Precision = Literal["bfloat16", "float32"]
_BATCH = 32


@dataclass(frozen=True)
class Network:
    """How the network is built, and how it is read."""

    size: int = 128
    """Sets the side of the crops in pixels, a multiple of 32."""
    keypoints: int = 24
    """Sets the number of keypoints of each object: points of its mesh farthest from each other."""
    backbone: Literal["resnet10", "resnet18", "resnet34"] = "resnet18"
    """Chooses the depth of the residual network."""
    width: int = 32
    """Sets the channels of its first stage; they are 64 as published."""
    stages: Literal[3, 4] = 3
    """Sets the stages of the residual network; the fourth sees the whole of larger crops."""
    norm: Literal["batch", "group"] = "batch"
    """Chooses the normalisation; group is slower, and the same for any number of processes."""
    weighted: bool = True
    """Says whether PnP weighs each keypoint by the inverse spread of its heatmap."""
    views: int = 5
    """Sets the crops an estimate is made of, their boxes moved and scaled as in training; their keypoints' median
    counts."""


class Estimated(NamedTuple):
    """An instance's estimate and the keypoints (N,2) it was made of, with their heatmaps' standard deviations (N,2).

    In pixels of the picture.
    """

    estimate: Estimate
    keypoints2d: np.ndarray
    deviation: np.ndarray


class PoseEstimator(nn.Module):
    """objects: their numbers; keypoints3d (O,N,3) mm, diameters (O,) mm, symmetries (O,S,4,4), float64.

    Objects of fewer symmetries than another have the identity repeated.
    """

    keypoints3d: Tensor
    diameters: Tensor
    symmetries: Tensor

    def __init__(
        self, setup: Network, objects: Sequence[int], keypoints3d: Tensor, diameters: Tensor, symmetries: Tensor
    ):
        super().__init__()
        self.setup, self.objects = setup, list(objects)
        self.network = KeypointNetwork(
            len(self.objects), setup.keypoints, setup.backbone, setup.width, setup.norm, setup.stages
        )
        for name, value in {"keypoints3d": keypoints3d, "diameters": diameters, "symmetries": symmetries}.items():
            self.register_buffer(name, value)

    @classmethod
    def of_models(cls, setup: Network, models: Mapping[int, Model]) -> PoseEstimator:
        """Untrained, for these objects."""
        most = max(len(model.symmetries) for model in models.values())
        symmetries = [
            np.concatenate([model.symmetries, np.tile(np.eye(4), (most - len(model.symmetries), 1, 1))])
            for model in models.values()
        ]
        keypoints3d = [farthest_points(model.mesh.vertices, setup.keypoints) for model in models.values()]
        diameters = [model.diameter for model in models.values()]
        tensors = (torch.from_numpy(np.stack(values)) for values in (keypoints3d, diameters, symmetries))
        return cls(setup, list(models), *tensors)

    def save(self, path: Path) -> None:
        """All that `load_estimator` needs, in one file; whole or not at all."""
        saved = {"setup": asdict(self.setup), "objects": self.objects, "state": self.state_dict()}
        save(path, saved)

    @torch.no_grad()
    def estimate(
        self,
        instances: Sequence[Instance],
        *,
        precision: Precision = "float32",
        views: int | None = None,
        workers: int = 0,
        read: Callable[[Any], np.ndarray] = read_image,
    ) -> Iterator[Estimated]:
        """An estimate for each instance, in order, from its picture, K, object and box; its pose is not looked at.

        views: crops each is made of; left out, as set up.

        score: the inverse of the spread of the heatmaps, in 1 / px of the crop. time: -1, as BOP has it where it was
        not measured. A pose that PnP did not find is NaN. read: what makes a picture (H,W,3) of an instance's path.
        """
        self.eval()
        device, views = self.keypoints3d.device, views or self.setup.views
        indices = [(view or None, row) for row in range(len(instances)) for view in range(views)]
        size = views * max(_BATCH // views, 1)
        batches = [indices[first : first + size] for first in range(0, len(indices), size)]
        # an instance's estimate does not depend on the others that are asked for
        shown = Crops(instances, self.objects, self.setup.size, roll=0.0, read=read, alike=True)
        for batch in crop_loader(shown, batches, workers):
            crops = batch.to(device)
            heatmaps = read_heatmaps(logits_of(self.network, crops, precision))
            rows, objects = batch.rows[::views], crops.objects[::views]
            K = _matrices(instances, rows).to(crops.K)
            back = K.repeat_interleave(views, 0) @ torch.linalg.inv(crops.K)
            each = heatmaps.points2d.double() @ back[:, :2, :2].mT + back[:, None, :2, 2]
            # a symmetric object may look one way in some crops and the other in the rest, between which no mean lies
            points2d = each.unflatten(0, (-1, views)).median(1).values
            spread = heatmaps.deviation.double() * back.diagonal(dim1=-2, dim2=-1)[:, None, :2]
            deviation = spread.unflatten(0, (-1, views)).mean(1)
            weighing = deviation if self.setup.weighted else None
            poses, converged = solve_pose(points2d, weighing, self.keypoints3d[objects], K)
            poses = torch.where(converged[:, None, None], poses, torch.nan)
            score = 1 / heatmaps.deviation.mean((1, 2)).unflatten(0, (-1, views)).mean(1)
            for i, row in enumerate(rows.tolist()):
                some = instances[row]
                estimate = Estimate(
                    some.scene, some.image, some.object, score[i].item(), poses[i].double().cpu().numpy(), -1.0
                )
                yield Estimated(estimate, points2d[i].cpu().numpy(), deviation[i].cpu().numpy())


def _matrices(instances: Sequence[Instance], rows: Tensor) -> Tensor:
    return torch.from_numpy(np.stack([instances[row].K for row in rows.tolist()]))


def logits_of(network: nn.Module, batch: CropBatch, precision: Precision) -> Tensor:
    """What the network makes of crops, all of it but the last layer computed in `precision`."""
    images = batch.images.float() / 255
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return network(images, batch.objects)


def load_estimator(path: Path, device: torch.device | str = "cpu") -> PoseEstimator:
    """What `PoseEstimator.save` wrote. Raises ValueError naming the file where it is something else."""
    wanted = "the estimator of an object_pose run"
    saved, written_by = load(path, wanted, device)
    try:
        state = saved["state"]
        tables = (state[name] for name in ("keypoints3d", "diameters", "symmetries"))
        estimator = PoseEstimator(Network(**saved["setup"]), saved["objects"], *tables)
        estimator.load_state_dict(state)
    except Exception as error:  # whatever something else leads to
        found = f"something else ({type(error).__name__}), written by {written_by}; this is {this_version()}"
        raise ValueError(f"{path}: {wanted} wanted, found {found}") from error
    return estimator.to(device)


def farthest_points(vertices: np.ndarray, count: int) -> np.ndarray:
    """`count` of the vertices (V,3), each farthest from those before it, from the first on (Eldar et al. 1997)."""
    import open3d as o3d

    if not 4 <= count <= len(vertices):
        raise ValueError(f"keypoints must be between 4 and the mesh's {len(vertices)} vertices, got {count}")
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(vertices))
    return np.asarray(cloud.farthest_point_down_sample(count).points)
