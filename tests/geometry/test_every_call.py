"""What every public function promises of a call: the same bits again, in threads and in a forked process, an input that
is as it was, no graph where nobody asks for a gradient, and numbers of the dtype that was given.

The calls are those of `tests.geometry.test_shared`, which knows every public function.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import geometry
from geometry import Problem, SolverError
from tests.commands import PATIENCE
from tests.geometry.test_shared import CALLS, DATA, TRACKED, Call, marked, outcome, tensors
from tests.numbers import DOUBLE

EVERY = CALLS | {
    name: call._replace(shared={n: t[None] for n, t in call.shared.items()}) for name, call in DATA.items()
}
"""What problems share has leading size 1 among data, which may be anything."""
OF_THE_GLOBAL_GENERATOR = {"find_structure"}  # one stream of numbers, which threads would share
IN_FLOAT64 = {"calibrate_rig"}
"""What says that it solves in float64, and answers in it."""
OF_ONE_DTYPE = {"ransac", "pose_set"}  # whose calls, in that table, know numbers of float64 by themselves

SLOW = {"hand_eye", "homography", "radial_pnp", "rolling_shutter", "triangulate"}  # beside those that `marked` knows


def named(*without: str) -> pytest.MarkDecorator:
    """All calls but some."""
    every = [p for p in marked(EVERY) if p.values[0] not in without]
    slow = [pytest.param(*p.values, marks=[*p.marks, pytest.mark.slow]) if p.values[0] in SLOW else p for p in every]
    return pytest.mark.parametrize("name", slow)


def given(call: Call, change: Callable[[Tensor], Tensor] = torch.clone) -> dict[str, Any]:
    """All arguments, with every tensor of floating-point numbers changed."""
    every = call.own | call.shared | call.options
    return {n: change(t) if isinstance(t, Tensor) and t.is_floating_point() else t for n, t in every.items()}


def bits(call: Call) -> list[Tensor]:
    """Values, and gradients where there are any."""
    values, gradients = outcome(call, call.shared)
    return [*values, *gradients.values()]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@named()
def test_a_call_has_the_same_bits_every_time(name: str) -> None:
    assert_equal(bits(EVERY[name]), bits(EVERY[name]))


@pytest.mark.slow
@named(*OF_THE_GLOBAL_GENERATOR)
def test_calls_in_python_threads_have_the_bits_of_one_alone(name: str) -> None:
    """Beside calls of itself and of another function."""
    names = (name, "pnp, init", name, name, "pnp, init", name)
    expected = {one: bits(EVERY[one]) for one in {*names}}
    with ThreadPoolExecutor(3) as pool:
        for one, found in zip(names, pool.map(lambda one: bits(EVERY[one]), names), strict=True):
            assert_equal(found, expected[one])


@named()
def test_no_argument_is_changed_and_no_graph_is_kept_where_nobody_asks_for_a_gradient(name: str) -> None:
    call = EVERY[name]
    arguments, before = given(call), given(call)
    found = [*tensors(call.function(**arguments))]
    for argument, value in before.items():
        if isinstance(value, Tensor):
            assert torch.equal(arguments[argument], value), argument
    with torch.no_grad():
        found += tensors(call.function(**given(call, lambda t: t.clone().requires_grad_())))
    assert found
    assert not any(t.grad_fn for t in found)  # what is fixed in a bundle may be the argument itself


@named(*OF_ONE_DTYPE)
def test_float32_in_is_float32_out(name: str) -> None:
    call = EVERY[name]
    found = {t.dtype for t in tensors(call.function(**given(call, Tensor.float))) if t.is_floating_point()}
    assert found == {torch.float64 if name in IN_FLOAT64 else torch.float32}


NOBODY = {"mask": torch.zeros(8, dtype=torch.bool)}
LOGARITHM = Problem(lambda x, y: torch.log(x) - y, dof=1)
NEGATIVE, Y = torch.tensor([[1.0], [-1.0], [1.0]], **DOUBLE), torch.zeros(3, 1, **DOUBLE)
FAILING: dict[str, Callable[..., Any]] = {
    **{
        name: lambda name=name, **throw: EVERY[name].function(**given(EVERY[name]) | NOBODY, **throw)
        for name in ("pnp", "pnp_ransac", "rig_pnp", "rig_pnp_ransac")
    },
    "bundle": lambda **throw: EVERY["bundle"].function(**TRACKED, max_steps=0, **throw),
    "minimize": lambda **throw: geometry.minimize(LOGARITHM, NEGATIVE, Y, **throw),
    "argmin": lambda **throw: geometry.argmin(LOGARITHM, NEGATIVE, Y, **throw),
    "quadratic_program": lambda **throw: geometry.quadratic_program(-torch.eye(1, **DOUBLE), Y, **throw),
}


@pytest.mark.parametrize("name", FAILING)
def test_throw_raises_an_error_that_names_the_failed_problems(name: str) -> None:
    FAILING[name](throw=False)
    said = r"^stopped before" if name == "bundle" else r"^\d of \d problems failed: problem \d: \w"
    with pytest.raises(SolverError, match=said):
        FAILING[name](throw=True)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def in_a_fork(pipe: Any, names: list[str]) -> None:
    torch.set_num_threads(1)  # as the workers of a data loader have it
    pipe.send([[t.tolist() for t in bits(EVERY[name])] for name in names])


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")
def test_a_forked_process_has_the_bits_of_its_parent() -> None:
    """After the parent has used its threads, which a forked process does not have."""
    names = ["pnp", "pnp_ransac", "rig_pnp", "bundle", "argmin", "quadratic_program", "triangulate", "homography"]
    expected = [[t.tolist() for t in bits(EVERY[name])] for name in names]
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    worker = context.Process(target=in_a_fork, args=(theirs, names))
    worker.start()
    try:
        assert mine.poll(PATIENCE), "the forked process does not answer"
        assert mine.recv() == expected
    finally:
        worker.kill()
