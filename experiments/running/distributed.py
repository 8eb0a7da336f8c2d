"""Several processes on one training, as torchrun starts them: python or torchrun, the driver is the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Group", "joined"]


class Group(NamedTuple):
    """This process's number among `world`; process 0 is the one that writes."""

    rank: int = 0
    world: int = 1

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network with its gradients averaged over all processes."""
        return DistributedDataParallel(network) if self.world > 1 else network

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes."""
        if self.world > 1:
            distributed.all_reduce(values)
            values = values / self.world
        return values

    def shared(self, value: Any) -> Any:
        """Process 0's value, in every process."""
        if self.world > 1:
            values = [value]
            distributed.broadcast_object_list(values)
            return values[0]
        return value


@contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """The group that torchrun says there is (WORLD_SIZE), over NCCL on GPUs and gloo otherwise; alone without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Group()
        return
    if device.type == "cuda" and device.index is None:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
