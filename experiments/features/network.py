"""The network that refines keypoints: from a patch and the mean of its track's others, an offset and a weight."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from experiments.features.patches import SIDE, Aligned, align, others_mean
from experiments.features.tracked import Tracked
from experiments.running import saved

__all__ = ["Refined", "RefinementNetwork", "load_network", "refine_tracks", "save_network"]

_FARTHEST = 0.5
"""Units of the patch by which the network moves an observation at the most, but for what all of its track have."""
_SPAN = 3.0
"""Log-weights lie within as much of zero."""


class Refined(NamedTuple):
    """points2d (M,2) px and weights (M,), float64, for a bundle."""

    points2d: Tensor
    weights: Tensor


class RefinementNetwork(nn.Module):
    """Aligned patches to points2d and weights. At first it leaves them where they are, with weights of one.

    It sees a patch, the mean of the track's others and their difference; how well they fit, how far alignment moved
    the observation, how many the track has, and how the plane lies in the picture. A track as a whole stays where it
    is: where on the surface its point lies nobody can tell, and all of them moved alike would turn the cameras.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3), nn.GELU(),
            nn.Conv2d(width, 2 * width, 3, 2), nn.GELU(),
            nn.Conv2d(2 * width, 2 * width, 3), nn.GELU(),
            nn.Flatten(),
        )  # fmt: skip
        left = ((SIDE - 2) - 3) // 2 + 1 - 2
        self.head = nn.Sequential(nn.Linear(2 * width * left**2 + 6, 64), nn.GELU(), nn.Linear(64, 3))
        for parameter in self.head[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, patches: Tensor, traits: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (M,SIDE,SIDE) of tracks (M,) and their traits (M,6) to offsets (M,2), in units of the patch, and
        log-weights (M,)."""
        own = patches.flatten(1)
        other = others_mean(own, point)
        seen = torch.stack([own, other, own - other], 1).view(-1, 3, SIDE, SIDE)
        out = self.head(torch.cat([self.layers(seen), traits], 1))
        offset = _FARTHEST * torch.tanh(out[:, :2])
        total = offset.new_zeros(int(point.max()) + 1, 2).index_add(0, point, offset)
        mean = total / torch.bincount(point)[:, None].clamp_min(1)
        return offset - mean[point], _SPAN * torch.tanh(out[:, 2] / _SPAN)

    def refine(self, aligned: Aligned, point: Tensor) -> Refined:
        """What becomes of the observations (M,) of tracks, with gradients to the network."""
        offset, log_weight = self(aligned.patches, _traits(aligned, point), point)
        moved = (aligned.jacobian @ offset.double()[..., None]).squeeze(-1)
        return Refined(aligned.points2d + moved, log_weight.double().exp())


def _traits(aligned: Aligned, point: Tensor) -> Tensor:
    """What patches do not show (M,6), float32: fit, shift, number of observations, and the unit's lengths in px."""
    count = torch.bincount(point)[point]
    lengths = torch.linalg.svdvals(aligned.jacobian).clamp_min(1e-3).log()
    misfit = (1 - aligned.correlation).clamp_min(1e-4).log()
    return torch.cat([misfit[:, None], 4 * aligned.shift, count.log()[:, None], lengths], 1).float()


@torch.no_grad()
def refine_tracks(tracked: Tracked, network: RefinementNetwork) -> Refined:
    """Align the patches of tracks and refine them by a network: points2d and weights of each observation."""
    return network.refine(align(tracked), tracked.point)


def save_network(path: Path, network: RefinementNetwork) -> None:
    """Write what `load_network` reads."""
    saved.save(path, {"width": network.width, "state": network.state_dict()}, check=True)


def load_network(path: Path) -> RefinementNetwork:
    """A network that was trained. Raises FileNotFoundError, or ValueError for a file that is something else."""
    value, _ = saved.load(path, "a network of experiments.keypoint_refinement")
    network = RefinementNetwork(value["width"])
    network.load_state_dict(value["state"])
    return network
