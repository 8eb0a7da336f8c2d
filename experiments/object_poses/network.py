"""From a picture of an object to its keypoints: a residual network with one heatmap a keypoint, and how it is read.

The backbone is MONAI's ResNet in two dimensions, whose parameters are named as torchvision's are, so that files of
torchvision's and timm's weights can be loaded (`experiments.object_poses.weights`).
The head adds the four stages up from coarse to fine (feature pyramid, Lin et al. 2017, arXiv 1612.03144).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import torch
from kornia.geometry.subpix import spatial_expectation2d, spatial_softmax2d
from torch import Tensor, nn
from torch.nn.functional import interpolate

from experiments.object_poses.weights import read_weights

__all__ = ["STRIDE", "Heatmaps", "KeypointNetwork", "cells_of", "load_backbone", "read_heatmaps"]

STRIDE = 4
"""Pixels of the crop along either side of a cell of the heatmaps."""

_LAYERS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
# ImageNet's mean and deviation (Krizhevsky et al. 2012), which published weights expect.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class KeypointNetwork(nn.Module):
    """Crops (B,3,S,S) in [0,1] to heatmap logits (B,keypoints,S/4,S/4) of the objects asked for.

    Every object has its own channels of the last layer, all else is shared. The last layer computes in single
    precision whatever surrounds it: bfloat16 has eight bits, and the expected coordinates would show it.

    backbone: the depth; width: channels of its first stage, 64 as published; norm: "batch", or "group" (Wu and He 2018,
    arXiv 1803.08494), which mixes no samples and so is the same for any number of processes, but slower on a CPU;
    stages: of the backbone's four: the last holds three quarters of the weights and, in small crops, little to see.
    S: a multiple of 32.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        objects: int,
        keypoints: int,
        backbone: Literal["resnet10", "resnet18", "resnet34"] = "resnet18",
        width: int = 32,
        norm: Literal["batch", "group"] = "batch",
        stages: int = 4,
    ) -> None:
        super().__init__()
        from monai.networks.nets.resnet import ResNet  # seconds to import

        widths = [width << stage for stage in range(4)]
        self.backbone = ResNet(
            "basic", list(_LAYERS[backbone]), widths, spatial_dims=2, conv1_t_stride=2, feed_forward=False,
            bias_downsample=False,
        )  # fmt: skip
        for unused in range(stages, 4):
            delattr(self.backbone, f"layer{unused + 1}")
        if norm == "group":
            _group_norms(self.backbone)
        inner = width
        self.lateral = nn.ModuleList(nn.Conv2d(channels, inner, 1) for channels in widths[:stages])
        self.smooth = nn.Sequential(nn.Conv2d(inner, inner, 3, padding=1), nn.ReLU(inplace=True))
        self.head = nn.Parameter(0.01 * torch.randn(objects, keypoints, inner))
        self.bias = nn.Parameter(torch.zeros(objects, keypoints, 1))
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION)[:, None, None], persistent=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on a CPU

    def forward(self, images: Tensor, objects: Tensor) -> Tensor:
        """images (B,3,S,S), objects (B,) int64: which of the objects each shows."""
        body = self.backbone
        x = ((images - self.mean) / self.deviation).contiguous(memory_format=torch.channels_last)
        x = body.act(body.bn1(body.conv1(x)))
        x, features = body.maxpool(x), []
        for stage in range(len(self.lateral)):
            x = getattr(body, f"layer{stage + 1}")(x)
            features.append(x)
        total = self.lateral[-1](features[-1])
        for lateral, feature in zip(reversed(self.lateral[:-1]), reversed(features[:-1]), strict=True):
            total = lateral(feature) + interpolate(total, scale_factor=2.0, mode="nearest")
        total = self.smooth(total)
        # the head's 1x1 convolution, of each sample's own object alone
        with torch.autocast(total.device.type, enabled=False):
            logits = torch.baddbmm(self.bias[objects], self.head[objects], total.float().flatten(2))
        return logits.unflatten(2, total.shape[2:])


def _group_norms(module: nn.Module) -> None:
    """Group normalisation in place of each batch normalisation; MONAI's own argument reaches the first one only."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(8, child.num_features))
        _group_norms(child)


def load_backbone(network: KeypointNetwork, path: Path) -> list[str]:
    """Give the backbone the weights of a file, torchvision's or timm's ResNet or ours; returns the entries left out.

    Raises ValueError where a weight of the backbone is missing, of another shape or of a further layer: the width must
    be 64, the norm "batch" and the depth that of the file. Raises FileNotFoundError where there is no file.
    """
    state = read_weights(path)
    ours = network.backbone.state_dict()
    # batch norm's counters came after torchvision's files, and only count
    wanted = {name: value for name, value in ours.items() if not name.endswith("num_batches_tracked")}
    for name, value in wanted.items():
        found = tuple(state[name].shape) if name in state else "nothing"
        if found != tuple(value.shape):
            raise ValueError(
                f"{path}: {name} of shape {tuple(value.shape)} wanted, found {found}; torchvision's and timm's "
                f"resnet18 and resnet34 fit width 64 and norm batch"
            )
    left = sorted(state.keys() - ours.keys())
    if deeper := [name for name in left if name.startswith("layer") and hasattr(network.backbone, name.split(".")[0])]:
        raise ValueError(f"{path}: a backbone of the file's depth and norm wanted, found one without {deeper[0]}")
    network.backbone.load_state_dict({name: state[name] for name in wanted})
    return left


class Heatmaps(NamedTuple):
    """What the network says of N keypoints in the pixels of its crop.

    probability (B,N,H,W), each map summing to one; points2d (B,N,2) their expectations, px; deviation (B,N,2)
    their standard deviations along x and y, px. All float32 at least, and differentiable.
    """

    probability: Tensor
    points2d: Tensor
    deviation: Tensor


def read_heatmaps(logits: Tensor, stride: float = STRIDE) -> Heatmaps:
    """Logits (B,N,H,W) through a softmax over each map, and its first two moments.

    Expected coordinates: Sun et al. 2018, arXiv 1711.08229, equation 3; Nibali et al. 2018, arXiv 1801.07372.
    Cell (i, j) of a map stands for the pixels around (stride i + (stride - 1) / 2, ...).
    """
    probability = spatial_softmax2d(logits if logits.dtype == torch.float64 else logits.float())
    points2d = spatial_expectation2d(probability, normalized_coordinates=False)
    H, W = logits.shape[-2:]
    x = torch.arange(W, dtype=probability.dtype, device=logits.device) - points2d[..., :1]
    y = torch.arange(H, dtype=probability.dtype, device=logits.device) - points2d[..., 1:]
    variance = torch.stack([(probability.sum(-2) * x**2).sum(-1), (probability.sum(-1) * y**2).sum(-1)], -1)
    # a cell cannot tell where inside it the point is: the variance of a uniform density of its width
    deviation = stride * (variance + 1 / 12).sqrt()
    return Heatmaps(probability, stride * points2d + (stride - 1) / 2, deviation)


def cells_of(points2d: Tensor, stride: float = STRIDE) -> Tensor:
    """Pixels of the crop to heatmap coordinates, (0, 0) being the centre of the first pixel and of the first cell."""
    return (points2d - (stride - 1) / 2) / stride
