"""What holds of every file of `geometry.tasks`, a user's among them."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import geometry.tasks
from geometry import Problem

TASKS = [module.name for module in pkgutil.iter_modules(geometry.tasks.__path__)]


@pytest.mark.parametrize("name", TASKS)
def test_a_problem_takes_at_most_thirty_lines(name: str) -> None:
    """Its residual, its retract and what they call of this file: lines of code, without blank ones and docstrings."""
    module = importlib.import_module(f"geometry.tasks.{name}")
    problems = [value for value in vars(module).values() if isinstance(value, Problem)]
    assert problems, f"geometry.tasks.{name} has no Problem"
    tree = ast.parse(Path(str(module.__file__)).read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for problem in problems:
        used: set[str] = set()
        wanted = {problem.residual.__name__, problem.retract.__name__} & functions.keys()
        while wanted:
            one = wanted.pop()
            used.add(one)
            called = {node.id for node in ast.walk(functions[one]) if isinstance(node, ast.Name)}
            wanted |= (called & functions.keys()) - used
        lines = sum(len(ast.unparse(without_docstring(functions[one])).splitlines()) for one in used)
        assert lines + 1 <= 30, f"{name}: {lines} lines in {sorted(used)}, and one for the Problem"


def without_docstring(function: ast.FunctionDef) -> ast.FunctionDef:
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and len(function.body) > 1:
        function.body = function.body[1:]
    return function
