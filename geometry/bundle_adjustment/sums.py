"""Sums over groups on a device: what a thread adds to is its own, so that they have the same bits every time.

Atomic additions would be as fast, in an order that changes from run to run.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from geometry.compiled.launch import compiles_for, grid

__all__ = ["Groups", "add_up", "grouped", "on_device", "start"]


class Groups(NamedTuple):
    """Numbers 0 … n - 1 sorted by their groups, and cut into K runs, each of one group.

    order (n,): those of no group come last. bounds (K+1,): where runs begin in it. begin (G+1,): where the groups'
    runs begin among the runs.
    """

    order: Tensor
    bounds: Tensor
    begin: Tensor

    @property
    def runs(self) -> tuple[Tensor, Tensor]:
        """What kernels call runs."""
        return self.order, self.bounds


def on_device(tensor: Tensor) -> bool:
    """Whether kernels on a device take what lies there."""
    return not tensor.is_cpu and compiles_for(tensor)


def start(name: str, threads: int, arguments: tuple[Any, ...], device: torch.device) -> None:
    """Start a kernel of `geometry.compiled.bundle_adjustment.threads`; waits for nothing."""
    if threads:
        grid("cuda").run(f"bundle_{name}", threads, arguments, device)


def grouped(group: Tensor, groups: int, most: int) -> Groups:
    """Cut numbers into runs of at most so many. group (n,): which one they belong to; `groups` or above, to none."""
    order = torch.argsort(group, stable=True)
    counts = torch.bincount(group, minlength=groups)[:groups]
    first, runs = counts.cumsum(0) - counts, (counts + (most - 1)) // most
    begin = torch.cat([runs.new_zeros(1), runs.cumsum(0)])
    owner = torch.arange(groups, device=group.device).repeat_interleave(runs)
    within = torch.arange(len(owner), device=group.device) - begin[owner]
    return Groups(order, torch.cat([first[owner] + most * within, counts.sum()[None]]), begin)


def add_up(values: Tensor, groups: Groups) -> Tensor:
    """Sums (G,…) of what runs have, values (K,…)."""
    out = values.new_empty(len(groups.begin) - 1, *values.shape[1:])
    rows = values[:, None].flatten(1).contiguous()
    start("add_up", out.numel(), (rows, groups.begin, out[:, None].flatten(1)), values.device)
    return out
