import pkgutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import geometry.tasks
from experiments.benchmarks import device_checks, device_times
from experiments.benchmarks.device import BARS, SECTIONS, main, markdown
from experiments.benchmarks.device_checks import Check, compared, outcome
from experiments.benchmarks.places import Place
from experiments.benchmarks.sections import Row, Section, attempted, measured, run_all
from geometry import Solution
from tests.numbers import DOUBLE, generator

HERE = Place("stand-in")


@pytest.mark.slow
def test_the_command_runs_without_a_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    # what the tests below solve is left out, and what is float64's in another precision
    wanted = [s.title for s in SECTIONS if not s.title.startswith("Right") and not s.title.endswith("float32")]
    assert main(["--device", "stand-in", "--seconds", "10000", "--out", str(page), "--only", *wanted]) == 0
    text = page.read_text()
    assert text in capsys.readouterr().out
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == wanted
    assert " 0 of " in text.splitlines()[2], text
    assert "**" not in text
    assert "left out: no time" not in text
    assert "says how fast" in text


@pytest.mark.slow
@pytest.mark.parametrize("dtype", device_checks.PRECISION)
def test_what_a_device_would_solve_is_what_the_cpu_solves(dtype: torch.dtype) -> None:
    """Of the solvers that kernels run, every check, but for a search with each kernel; of the others, one."""
    searches = {f"pnp, no start, {kernel}" for kernel in ("cauchy", "Geman-McClure", "Barron")}
    checks = dict(device_checks.checks(HERE, {}, dtype))
    assert searches < checks.keys() or dtype == torch.float32  # which searches once as it is
    rows = {
        n: m()
        for n, m in checks.items()
        if n.startswith(("pnp", "BPnP", "pose", "linear", "hom")) and n not in searches
    }
    assert len(rows) > 15
    assert not {name: row.cells for name, row in rows.items() if row.figures["failures"]}


@pytest.mark.slow
def test_every_task_is_looked_at() -> None:
    tasks = {module.name for module in pkgutil.iter_modules(geometry.tasks.__path__)}
    assert device_checks.of_tasks().keys() == tasks


def test_without_a_device_one_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--out", str(tmp_path / "page.md")]) == 3
    assert capsys.readouterr().err.splitlines() == ["there is no CUDA device that torch can use: nothing was measured"]
    assert not list(tmp_path.iterdir())


def test_a_wrong_solution_gradient_and_status_are_seen() -> None:
    x, status = torch.randn(3, 4, generator=generator(0), **DOUBLE), torch.zeros(3, dtype=torch.int8)
    right = {"x": x, "status": status, "gradient of K": x + 1}
    assert compared(right, right, 1e-10).figures["failures"] == 0
    for name, wrong in {"x": x * (1 + 1e-9), "gradient of K": x + 1 + 1e-8, "status": status + 1}.items():
        assert compared({**right, name: wrong}, right, 1e-10).figures["failures"] == 1, name
    lost = x.clone()
    lost[0, 0] = torch.nan
    assert compared({**right, "x": lost}, right, 1e-10).figures["failures"] == 1
    # what was not solved may be anything, but for its gradient
    failed = {**right, "status": torch.tensor([0, 2, 0], dtype=torch.int8)}
    elsewhere = x.clone()
    elsewhere[1] += 1
    assert compared({**failed, "x": elsewhere}, failed, 1e-10).figures["failures"] == 0
    assert compared({**failed, "gradient of K": elsewhere}, failed, 1e-10).figures["failures"] == 1


def test_an_outcome_has_solution_cost_status_and_gradients() -> None:
    def call(a: torch.Tensor, n: torch.Tensor) -> Solution:
        return Solution((2 * a, a.square()), a.sum(1), n, n)

    inputs = {"a": torch.ones(2, 3, **DOUBLE), "n": torch.zeros(2, dtype=torch.int8)}
    found = outcome(Check(call, inputs), HERE, torch.float32)
    assert set(found) == {"x[0]", "x[1]", "cost", "status", "gradient of a"}
    assert found["gradient of a"].dtype == torch.float32
    assert found["gradient of a"].abs().min() > 0


def fails(place: Place, options: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], Row]]]:
    yield "bad", lambda: Row([str(1 // 0)])
    yield "good", lambda: Row(["fine"])
    raise RuntimeError("lost")


def dies(place: Place, options: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], Row]]]:
    import os

    yield "first", lambda: Row(["fine"])
    yield "second", lambda: os._exit(1)  # type: ignore[arg-type, return-value]


def hangs(place: Place, options: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], Row]]]:
    yield "first", lambda: Row(["fine"])
    yield "second", lambda: Row([str(time.sleep(10_000))])


def test_a_failure_is_a_line_and_the_next_is_measured() -> None:
    lines = dict(measured(Section("", ("",), 1, fails), HERE, {}, 1000.0))
    assert lines["bad"].cells == ["**failed**: ZeroDivisionError: integer division or modulo by zero"]
    assert lines["good"].cells == ["fine"]
    assert lines["the rest"].cells == ["**failed**: RuntimeError: lost"]
    late = dict(measured(Section("", ("",), 1, fails), HERE, {}, -1.0))
    assert late["good"].cells == ["left out: no time"]


@pytest.mark.slow
def test_a_section_that_dies_or_hangs_takes_no_other_along() -> None:
    sections = [Section(f.__name__, ("",), seconds, f) for f, seconds in ((dies, 100), (hangs, 5), (fails, 100))]
    found = {section.title: dict(lines) for section, lines in run_all(sections, HERE, {}, 10_000.0)}
    assert found["dies"]["first"].cells == found["hangs"]["first"].cells == ["fine"]
    assert found["dies"]["the rest"].cells == ["**failed**: its process has died"]
    assert found["hangs"]["the rest"].cells == ["**failed**: not ended after 10 s"]
    assert found["fails"]["good"].cells == ["fine"]


def test_bars_stand_beside_what_was_measured() -> None:
    name = "forward + backward, N = 64, B = 65536"
    figures = {f"float64, {name}": 0.004, f"CPU, float64, {name}": 0.002, f"float32, {name}": 0.001}
    found = [(SECTIONS[1], [("a", Row(["b"], figures))])]
    values = [value(figures) for _, value, _, _ in BARS]
    assert values == [65536 / 0.004, None, 0.5, 4.0, None, None]
    text = markdown(Place("cuda"), found, 1.0)
    assert [text.count(said) for said in ("| met |", "| **missed** |", "| not measured |")] == [2, 1, 3]


def test_traffic_and_operations_grow_with_the_problems() -> None:
    moved, done = device_times.counted(2, 64, 4, 8, False)
    assert moved == 2 * 7 * 64 * 8 * 9
    assert device_times.counted(4, 64, 4, 8, False) == (2 * moved, 2 * done)
    assert device_times.counted(2, 64, 4, 8, True) > (moved, done)


def test_a_check_that_cannot_be_made_is_told() -> None:
    row = attempted(lambda: compared({}, {"x": torch.zeros(1)}, 1.0))
    assert row.cells == ["**failed**: ValueError: what comes out differs: ['x']"]
    assert {torch.float64: 1e-10, torch.float32: 1e-4} == device_checks.PRECISION
