"""The smallest driver there can be: gradient descent on a quadratic, with noise from every random generator.

Environment variables, which are no part of the config, make it die: TOY_KILL_AT by SIGKILL, TOY_RAISE_AT by
an exception, both at the end of that step.
"""

import math
import os
import random
import signal
from dataclasses import dataclass

import numpy as np
import torch

from datasets.locate import AbsentDataError
from experiments.drawing.figures import loss_curve
from experiments.records.quantities import Quantity
from experiments.running.config import RunConfig
from experiments.running.run import Run, experiment
from experiments.running.telling import command


@dataclass(frozen=True)
class Config(RunConfig):
    iterations: int = 50
    """Steps of gradient descent."""
    rate: float = 0.1
    """Length of a step."""
    noise: float = 0.01
    """Random part of the gradient."""


PRESETS = {
    "default": Config(preset="default"),
    "paper": Config(preset="paper", rate=3.0),  # too long a step: it does not converge
    "real": Config(preset="real"),
    "smoke": Config(preset="smoke", iterations=3),
}


def read(config: Config) -> None:
    """The data of `real`, which are nowhere."""
    if config.preset == "real":
        raise AbsentDataError("The real quadratic is not on this machine.")


@experiment("toy_driver", read)
def main(run: Run, config: Config, _: None) -> dict:
    """Minimise |x - 1|^2 from a random start."""
    x, loss = torch.randn(4, 3, dtype=run.dtype, device=run.device), math.inf
    if saved := run.restore():
        x, loss = saved["x"], saved["loss"]
    cameras = torch.eye(4).repeat(2, 1, 1)
    cameras[:, 2, 3] = 4.0
    run.stage(points3d_gt=torch.ones(4, 3), targets={"loss": 0.1})
    for step in run.iterations(config.iterations):
        noise = torch.randn_like(x) + float(np.random.randn()) + random.gauss(0, 1)  # noqa: NPY002
        x = x - config.rate * (2 * (x - 1) + config.noise * noise)
        loss = (x - 1).square().sum().item()
        run.log(step, loss=loss, mean=x.mean())
        if run.records(step):
            run.frame(step, points3d=x, world_to_camera=cameras)
        if run.due(step):
            run.checkpoint(step, x=x, loss=loss)
        if str(step) == os.environ.get("TOY_KILL_AT"):
            os.kill(os.getpid(), signal.SIGKILL)
        if str(step) == os.environ.get("TOY_RAISE_AT"):
            raise KeyboardInterrupt
    run.figure("loss", config.iterations, loss_curve([loss], 0.1), final=True)
    return run.finish(
        converged=loss < 0.1, goal="loss below 0.1", iterations=config.iterations, loss=loss,
        errors={"x": (x - 1).abs().max()}, reference={"x": "0.5"},
        found={"mean": Quantity(x.mean().item(), x.std().item(), "m", 1.0)}, left_out={"view 3": "no board found"},
    )  # fmt: skip


if __name__ == "__main__":
    command(main, __doc__, PRESETS)
