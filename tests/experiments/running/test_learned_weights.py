"""What a run of learned weights says of its error beside that of the inliers alone."""

from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from torch import Tensor

from experiments.running.learned_weights import FITTED, Task, TaskConfig, learn_weights
from geometry import Solution
from tests.numbers import DOUBLE


def mean(values: Tensor, weights: Tensor) -> Solution:
    """The weighted mean of numbers, which minimises the weighted sum of squares."""
    square = weights.square()
    x = (square * values).sum(1, keepdim=True) / square.sum(1, keepdim=True)
    return Solution(x, x[:, 0], torch.zeros(1, dtype=torch.int8), torch.ones(1, dtype=torch.int32))


@pytest.mark.parametrize(("noise", "below"), [(0.5, True), (0.0, False)])
def test_a_run_says_what_an_error_below_that_of_the_inliers_means(noise: float, below: bool) -> None:
    """Without noise the inliers alone make no error, and nothing lies below that."""
    values = torch.tensor([[noise, noise, noise, -0.1 * noise, 9.0]], **DOUBLE)
    wrong = torch.tensor([False, False, False, False, True])
    run = SimpleNamespace(
        dtype=torch.float64, device="cpu", restore=lambda: None, iterations=range, due=lambda step: False,
        log=lambda *_, **__: None, figure=lambda *_, **__: None, finish=lambda **said: said,
    )  # fmt: skip
    task = Task(lambda weights: mean(values, weights), lambda x: x.abs().sum(), wrong, lambda *_: plt.figure())
    said: Any = learn_weights(run, TaskConfig(preset="test", iterations=60), task)  # type: ignore[arg-type]
    plt.close("all")
    assert said["converged"]
    assert (said["errors"]["learned"] < said["errors"]["inliers_alone"]) == below
    assert said["note"] == (FITTED if below else "")
