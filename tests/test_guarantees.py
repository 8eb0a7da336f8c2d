"""What docs/guarantees.md says of every public function is shown by what it names: tests that exist and run, benchmarks
and their tables."""

import ast
import inspect
import re
from functools import cache
from pathlib import Path

import pytest

import geometry

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "guarantees.md").read_text()
TESTS = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
BENCHMARKS = sorted({*re.findall(r"experiments\.benchmarks\.(\w+)", PAGE)})
TABLES = sorted({*re.findall(r"`(results/reference/[\w.]+)`", PAGE)})
NOT_CALLED = {"GaugeChoice"}
"""Public names that nothing is promised of by themselves: words that an argument may be."""


@cache
def written_in(path: str) -> dict[str, ast.FunctionDef]:
    """The tests of a file by name."""
    body = ast.parse((ROOT / path).read_text()).body
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def never_runs(path: str, name: str) -> bool:
    """Whether a test, or its whole file, is marked to be skipped or to fail; not on some platform alone."""
    marks = [ast.unparse(decorator) for decorator in written_in(path)[name].decorator_list]
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            marks.append(ast.unparse(node.value))
    return any(re.search(r"mark\.(skip|xfail)\b", mark) for mark in marks)


def rows() -> list[list[str]]:
    """The cells of all tables, without their heads."""
    cells = [line.strip("|").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    return [row for row in cells if row[0].strip() != "what is promised"]


def test_every_row_has_a_promise_of_something_and_names_what_shows_it() -> None:
    assert len(rows()) > 150
    for row in rows():
        assert len(row) == 3, row
        assert all(cell.strip() for cell in row), row
        assert re.search(r"`tests/[\w/]+\.py::test_\w+`|`experiments\.benchmarks\.\w+`", row[2]), row[0]
        left = re.sub(r"`tests/[\w/]+\.py::test_\w+`|`experiments\.benchmarks\.\w+`|\(`results/[\w/.]+`\)", "", row[2])
        assert not left.strip(" ,"), f"{row[0]}: {left} is neither a test nor a benchmark"


def test_every_test_exists_and_runs() -> None:
    assert len(TESTS) > 200
    lost = [f"{path}::{name}" for path, name in TESTS if not (ROOT / path).is_file() or name not in written_in(path)]
    assert not lost
    assert not [f"{path}::{name}" for path, name in TESTS if never_runs(path, name)]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_can_be_run(name: str) -> None:
    path = ROOT / "experiments" / "benchmarks" / f"{name}.py"
    assert path.is_file()
    last = ast.parse(path.read_text()).body[-1]
    assert ast.unparse(last).startswith("if __name__ == '__main__'")


@pytest.mark.parametrize("table", TABLES)
def test_every_table_is_there(table: str) -> None:
    assert (ROOT / table).is_file()


def test_every_public_function_is_named() -> None:
    called = {
        name for name in geometry.__all__ if inspect.isroutine(it := getattr(geometry, name)) or inspect.isclass(it)
    }
    assert {*geometry.__all__} - called == NOT_CALLED
    promised = " ".join(row[1] for row in rows())
    named = {*re.findall(r"`(\w+)", promised)}
    assert sorted(called - named) == []
