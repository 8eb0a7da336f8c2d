"""The nonlinear regressions whose minima NIST has certified to eleven digits, in units that differ by ten orders.

National Institute of Standards and Technology, Statistical Reference Datasets, nonlinear least squares
(https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml): observations, two starts, the parameters, their standard
deviations and the sum of squares, as numbers in nist_strd.json; public domain.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, exp

from geometry import Problem, covariance, minimize

Model = Callable[[Tensor, Tensor], Tensor]
DATA = json.loads(Path(__file__).with_name("nist_strd.json").read_text())
NO_MINIMUM = {("BoxBOD", 0), ("MGH10", 0)}
"""Starts from which the descent runs to where an exponential has vanished, and says that this is no minimum."""
FEWER = {"Bennett5": 8.5}
"""Digits of parameters that the sum of squares determines to ten orders fewer than its own rounding."""
COARSE = {"Lanczos1": 2.5, "Lanczos2": 8, "Lanczos3": 8, "Bennett5": 7}
"""Digits of standard deviations whose matrices have conditions of 1e12 and more; Lanczos1 has residuals of 1e-13."""


def chwirut(b: Tensor, x: Tensor) -> Tensor:
    return exp(-b[0] * x) / (b[1] + b[2] * x)


def lanczos(b: Tensor, x: Tensor) -> Tensor:
    return b[0] * exp(-b[1] * x) + b[2] * exp(-b[3] * x) + b[4] * exp(-b[5] * x)


def peaks(b: Tensor, x: Tensor) -> Tensor:
    first, second = (b[i] * exp(-(((x - b[i + 1]) / b[i + 2]) ** 2)) for i in (2, 5))
    return b[0] * exp(-b[1] * x) + first + second


def quotient(degree: int) -> Model:
    def of(b: Tensor, x: Tensor) -> Tensor:
        above = sum(b[i] * x**i for i in range(degree + 1))
        return above / (1 + sum(b[degree + i] * x**i for i in range(1, degree + 1)))

    return of


def waves(b: Tensor, x: Tensor) -> Tensor:
    turn = 2 * math.pi * x
    periods = ((1, 12.0), (4, b[3]), (7, b[6]))
    every = [b[i] * torch.cos(turn / period) + b[i + 1] * torch.sin(turn / period) for i, period in periods]
    return b[0] + sum(every)


MODELS: dict[str, Model] = {
    "Bennett5": lambda b, x: b[0] * (b[1] + x) ** (-1 / b[2]),
    "BoxBOD": lambda b, x: b[0] * (1 - exp(-b[1] * x)),
    "Chwirut1": chwirut,
    "Chwirut2": chwirut,
    "DanWood": lambda b, x: b[0] * x ** b[1],
    "ENSO": waves,
    "Eckerle4": lambda b, x: b[0] / b[1] * exp(-(((x - b[2]) / b[1]) ** 2) / 2),
    "Gauss1": peaks,
    "Gauss2": peaks,
    "Gauss3": peaks,
    "Hahn1": quotient(3),
    "Kirby2": quotient(2),
    "Lanczos1": lanczos,
    "Lanczos2": lanczos,
    "Lanczos3": lanczos,
    "MGH09": lambda b, x: b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3]),
    "MGH10": lambda b, x: b[0] * exp(b[1] / (x + b[2])),
    "MGH17": lambda b, x: b[0] + b[1] * exp(-x * b[3]) + b[2] * exp(-x * b[4]),
    "Misra1a": lambda b, x: b[0] * (1 - exp(-b[1] * x)),
    "Misra1b": lambda b, x: b[0] * (1 - (1 + b[1] * x / 2) ** -2),
    "Misra1c": lambda b, x: b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5),
    "Misra1d": lambda b, x: b[0] * b[1] * x / (1 + b[1] * x),
    "Nelson": lambda b, x: b[0] - b[1] * x[:, 0] * exp(-b[2] * x[:, 1]),
    "Rat42": lambda b, x: b[0] / (1 + exp(b[1] - b[2] * x)),
    "Rat43": lambda b, x: b[0] / (1 + exp(b[1] - b[2] * x)) ** (1 / b[3]),
    "Roszman1": lambda b, x: b[0] - b[1] * x - torch.atan(b[2] / (x - b[3])) / math.pi,
    "Thurber": quotient(3),
}


def digits(found: Tensor, certified: Tensor) -> Tensor:
    """How many digits of all numbers agree (B,)."""
    return -torch.log10(((found - certified) / certified).abs().amax(-1).clamp_min(1e-15))


def test_there_is_a_model_of_each() -> None:
    assert sorted(MODELS) == sorted(DATA)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_certified_minima_are_found_from_both_starts(name: str) -> None:
    data, model = DATA[name], MODELS[name]
    rows = torch.tensor(data["rows"], dtype=torch.float64)
    y, x = rows[:, 0], rows[:, 1] if rows.shape[1] == 2 else rows[:, 1:]
    y = y.log() if name == "Nelson" else y
    certified, deviations = (torch.tensor(data[key], dtype=torch.float64) for key in ("certified", "deviations"))
    starts = torch.tensor(data["starts"], dtype=torch.float64)
    problem = Problem(lambda b, x, y: y - model(b, x), dof=len(certified))
    found = minimize(problem, starts, x[None], y[None], max_steps=1000, polish=4)
    stated = covariance(problem, found.x, x[None], y[None]).diagonal(dim1=-2, dim2=-1).sqrt()
    for i in range(2):
        if (name, i) in NO_MINIMUM:
            assert not found.converged[i]
        else:
            assert found.converged[i]
            assert digits(found.x, certified)[i] > FEWER.get(name, 9)
            assert digits(stated, deviations)[i] > COARSE.get(name, 9)
            # the sum of squares of Lanczos1 is 1.4e-25, from values near 1
            assert 2 * found.cost[i] == pytest.approx(data["squares"], rel=5e-3 if name == "Lanczos1" else 1e-9)
