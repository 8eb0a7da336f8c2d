"""Samples of observations, and the numbers that they are drawn by: every problem has a stream of its own.

A stream is counter-based: number n of it follows from its seed and n alone (SplitMix64: Steele, Lea and Flood, OOPSLA
2014). So a problem draws the same samples whatever is in the batch beside it, in kernels and in tensors, and no number
is made that nobody wants.
"""

import torch
from torch import Tensor

from geometry.compiled.constants import MIX, STRIDE

__all__ = ["draw", "seeds", "uniform"]


def seeds(B: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """A seed (B,) int64 for each problem: one number of the generator each, in their order."""
    return torch.randint(-(1 << 63), (1 << 63) - 1, (B,), generator=generator, device=device)


def uniform(seed: Tensor, begin: int, H: int, size: int) -> Tensor:
    """The numbers (B,H,size) in [0, 1) of the samples begin to begin + H - 1, by the seeds (B,) of their problems."""
    n = torch.arange(begin * size + 1, (begin + H) * size + 1, device=seed.device)
    z = seed[:, None] + n * _signed(STRIDE)
    for shift, factor in zip((30, 27), MIX, strict=True):
        z = (z ^ _shifted(z, shift)) * _signed(factor)
    return (_shifted(z ^ _shifted(z, 31), 11).double() * 2.0**-53).view(-1, H, size)


def _signed(word: int) -> int:
    """The number that has the bits of 64 unsigned ones: products and sums are the same, modulo 2^64."""
    return word - (1 << 64 if word >> 63 else 0)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """The bits of z moved to the right, zeros from the left, as if it had no sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def draw(candidates: Tensor, uniform: Tensor) -> Tensor:
    """Samples without replacement, index (B,H,size), by uniform (B,H,size) numbers in [0, 1).

    candidates (B,N): the odds; an observation that has none is never drawn.
    One observation after the other, by the inverse of the cumulated odds, in which those before leave no gap. Where
    fewer than `size` of them have odds, a sample repeats some.
    """
    odds = candidates.detach().to(torch.float64)
    ends = odds.cumsum(1)
    starts = ends - odds
    last = torch.where(odds > 0, torch.arange(odds.shape[1], device=odds.device), 0).amax(1)[:, None]
    drawn: list[Tensor] = []
    cuts: list[tuple[Tensor, Tensor]] = []  # begin and width of what is drawn, in the order of begin
    left = ends[:, -1:]
    for j in range(uniform.shape[-1]):
        # choose a place on what is left of the line, and put the cuts back in
        at = uniform[..., j] * left.clamp_min(0)
        for begin, width in cuts:
            at = torch.where(at >= begin, at + width, at)
        index = torch.minimum(torch.searchsorted(ends, at, right=True), last)
        drawn.append(index)
        begin, width = starts.gather(1, index), odds.gather(1, index)
        left = left - width
        for k, (other, its) in enumerate(cuts):
            swap = begin < other
            cuts[k] = torch.where(swap, begin, other), torch.where(swap, width, its)
            begin, width = torch.where(swap, other, begin), torch.where(swap, its, width)
        cuts.append((begin, width))
    return torch.stack(drawn, -1)
