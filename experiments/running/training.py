"""How networks learn: one optimiser and schedule for all methods, and methods that are trained side by side."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.running.config import RunConfig, told_in_a_sentence
from experiments.running.run import Run

__all__ = ["Training", "TrainingConfig", "keep_memory", "side_by_side"]


@dataclass(frozen=True)
class TrainingConfig(RunConfig):
    iterations: int = 400
    """Sets the number of steps of each method."""
    batch: int = 32
    """Sets the number of problems or images a step, the same for all methods."""
    learning_rate: float = 3e-3
    """Sets the highest rate of AdamW's one-cycle schedule."""


class Training:
    """A network and how it is trained: AdamW, its rate rising over a tenth of the iterations and falling to nothing.

    (One cycle, Smith and Topin 2017, arXiv 1708.07120.) `seconds` is what was spent inside `timed`, over all resumes.
    """

    def __init__(self, network: nn.Module, learning_rate: float, iterations: int) -> None:
        self.network, self.seconds = network, 0.0
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-4, fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, learning_rate, total_steps=max(iterations, 2), pct_start=0.1
        )

    def step(self, loss: Tensor) -> None:
        """One step down the loss ()."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count what happens inside."""
        begun = time.monotonic()
        yield
        self.seconds += time.monotonic() - begun

    def state(self) -> dict[str, Any]:
        """For `Run.checkpoint`."""
        return {name: getattr(self, name).state_dict() for name in _PARTS} | {"seconds": self.seconds}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave. Raises ValueError where that was to end at another iteration."""
        planned, asked = state["schedule"]["total_steps"], self.schedule.total_steps
        if planned != asked:
            raise ValueError(f"iterations must stay {planned}, over which the learning rate falls, got {asked}")
        for name in _PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.seconds = state["seconds"]


_PARTS = ("network", "optimizer", "schedule")


def keep_memory() -> None:
    """Have this process, and those it forks, keep the memory that tensors leave rather than hand it back each time.

    A tensor of megabytes is else mapped, and zeroed page by page, anew at every step: a tenth of a training's time on a
    CPU. Nothing happens where the C library is not GNU's.
    """
    with suppress(AttributeError, OSError):
        library, mmap_threshold, trim_threshold = ctypes.CDLL(None), -3, -1
        for parameter in (mmap_threshold, trim_threshold):
            library.mallopt(parameter, 1 << 30)


def side_by_side(
    run: Run,
    config: TrainingConfig,
    trainings: Mapping[str, Training],
    learn: Callable[[int, torch.Generator], Mapping[str, float]],
) -> dict[str, float]:
    """Train several methods on the same data, drawn by `learn(step, generator)`; the metrics of the last step.

    learn takes one step of each method and returns its METHOD_loss and what else there is to log; the first method's
    loss is the run's.
    """
    generator = torch.Generator().manual_seed(config.seed)
    columns: dict[str, float] = {}
    loss = f"{next(iter(trainings))}_loss"
    if saved := run.restore():
        generator.set_state(saved["generator"])
        columns = saved["columns"]
        with told_in_a_sentence():
            for method, training in trainings.items():
                training.load(saved[method])
    for step in run.iterations(config.iterations):
        columns |= learn(step, generator)
        run.log(step, loss=columns[loss], **columns)
        if run.due(step):
            states = {method: training.state() for method, training in trainings.items()}
            run.checkpoint(step, generator=generator.get_state(), columns=columns, **states)
    return columns
