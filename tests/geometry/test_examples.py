"""Every public name has an example in its docstring, and it says what comes out.

They run after the lines that docs/api.md shows, each for itself.
"""

import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import geometry

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
SLOW = {"calibrate", "calibrate_rig", "CalibrationSolution", "JointCalibration", "find_structure", "rig_pnp_ransac"}
ALIASES = {"GaugeChoice"}  # words, which have no docstring


@pytest.fixture
def before() -> Iterator[dict[str, Any]]:
    """The names that an example may use."""
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    dtype, names = torch.get_default_dtype(), dict[str, Any]()
    exec(code, names)
    yield names
    torch.set_default_dtype(dtype)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in geometry.__all__ if name not in ALIASES],
)
def test_the_example_says_what_comes_out(name: str, before: dict[str, Any]) -> None:
    text = getattr(geometry, name).__doc__
    example = doctest.DocTestParser().get_doctest(text, before, name, None, None)
    assert example.examples, f"{name} has no example"
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.append)
    assert not said, "".join(said)
