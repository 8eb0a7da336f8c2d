"""Networks that say where keypoints belong and what they weigh, R of them side by side.

observed (R,B,N,2) and cues (R,B,N,2) -> points2d (R,B,N,2), log_weights (R,B,N). They begin with what is observed, at a
weight of 1/8 per pixel, and no weight is more than e^5 times more or less than that. Every run's parameters are leaves
of their own, so that it can have its own learning rate.
"""

import math

import torch
from torch import Tensor, nn

from experiments.gradients.scenes import CUES, POINTS

__all__ = ["LargeRefiner", "Refiner"]

REACH = 20.0  # pixels that one unit of output moves a keypoint
LOG_WEIGHT, SPAN = math.log(1 / 8), 5.0


class Refiner:
    """A layer of tanh units that all keypoints share, but for a vector of its own: 614 parameters."""

    HIDDEN = 32

    def __init__(self, seeds: list[int]) -> None:
        self.runs = [[nn.Parameter(layer) for layer in self.made(torch.Generator().manual_seed(s))] for s in seeds]

    def made(self, g: torch.Generator) -> list[Tensor]:
        """The parameters of one run, the last of them zero."""
        first = torch.randn(2 + CUES, self.HIDDEN, generator=g, dtype=torch.float64) / 2
        own = torch.randn(POINTS, self.HIDDEN, generator=g, dtype=torch.float64)
        return [first, own, torch.zeros(self.HIDDEN + CUES, 3, dtype=torch.float64)]

    def output(self, layers: list[Tensor], seen: Tensor, cues: Tensor) -> Tensor:
        """What is made (R,B,N,3) of what is seen (R,B,N,2 + CUES)."""
        first, own, last = layers
        hidden = torch.tanh(torch.einsum("rbnf,rfh->rbnh", seen, first) + own[:, None])
        return torch.einsum("rbnh,rho->rbno", torch.cat([hidden, cues], -1), last)

    def __call__(self, observed: Tensor, cues: Tensor) -> tuple[Tensor, Tensor]:
        layers = [torch.stack(some) for some in zip(*self.runs, strict=True)]
        out = self.output(layers, torch.cat([(observed - 128) / 128, cues], -1), cues)
        return observed + REACH * out[..., :2], LOG_WEIGHT + SPAN * torch.tanh(out[..., 2] / 2)


class LargeRefiner(Refiner):
    """Two layers of a thousand rectified units that see all keypoints at once: 1.1 million parameters, in float32."""

    HIDDEN = 1024

    def made(self, g: torch.Generator) -> list[Tensor]:
        def layer(inputs: int, outputs: int) -> Tensor:
            return torch.randn(inputs, outputs, generator=g, dtype=torch.float32) * math.sqrt(2 / inputs)

        F, H = POINTS * (2 + CUES), self.HIDDEN
        one, two = (torch.zeros(1, H, dtype=torch.float32) for _ in range(2))
        return [layer(F, H), one, layer(H, H), two, torch.zeros(H, POINTS * 3, dtype=torch.float32)]

    def output(self, layers: list[Tensor], seen: Tensor, cues: Tensor) -> Tensor:
        first, one, second, two, last = layers
        hidden = torch.relu(torch.baddbmm(one, seen.flatten(2).float(), first))
        hidden = torch.relu(torch.baddbmm(two, hidden, second))
        return torch.bmm(hidden, last).double().unflatten(-1, (POINTS, 3))
