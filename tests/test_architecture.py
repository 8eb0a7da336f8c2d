"""The house: who imports whom, what stands at the top of a folder, and that docs/architecture.md says the same."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import geometry

importlinter = pytest.importorskip("importlinter.api", reason="import-linter is not installed: pip install -e .[dev]")

ROOT = Path(__file__).parents[1]


def test_imports_go_down_the_floors_and_in_no_circle() -> None:
    linted = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert linted.returncode == 0, linted.stdout


def contract(name: str) -> list[list[str]]:
    """The floors of the contract whose name begins so, from the top down, each a list of rooms."""
    contracts = importlinter.read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    layers = next(c["layers"] for c in contracts if c["name"].startswith(name))
    return [re.split(r"[\s|]+", floor.strip()) for floor in layers]


def test_every_module_directly_in_experiments_is_a_driver() -> None:
    drivers = sorted(path for path in (ROOT / "experiments").glob("*.py") if path.name != "__init__.py")
    assert [path.stem for path in drivers] == sorted(contract("experiments: ")[0])
    for path in drivers:
        last = ast.parse(path.read_text()).body[-1]
        assert isinstance(last, ast.If), path
        assert ast.unparse(last.test) == "__name__ == '__main__'", path


def test_the_top_of_geometry_can_be_taken_in_at_a_glance() -> None:
    top = [path for path in (ROOT / "geometry").iterdir() if path.name not in ("__pycache__", "py.typed")]
    assert len(top) <= 16


def test_no_package_bears_the_name_of_a_public_function() -> None:
    """`from geometry import pnp` must never mean a module."""
    packages = [path.parent for path in (ROOT / "geometry").rglob("__init__.py")]
    assert not {package.name for package in packages} & set(geometry.__all__)
    for room in ("optim", "consensus", "pose", "bundle_adjustment", "reconstruction"):
        modules = {path.stem for path in (ROOT / "geometry" / room).glob("*.py")}
        assert not modules & set(importlib.import_module(f"geometry.{room}").__all__), room


def test_files_are_short_enough_to_read() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    code = [ROOT / name for name in tracked.split("\0") if name.endswith((".py", ".js", ".html", ".txt"))]
    code = [path for path in code if path.exists() and ".bundle." not in path.name]
    long = {str(path.relative_to(ROOT)): lines for path in code if (lines := path.read_text().count("\n")) > 450}
    assert not long


def test_no_function_takes_more_than_seven_arguments_by_position() -> None:
    """What travels together is one argument. Kernels are no exception: they take tuples, and name their parts."""
    long = set()
    for path in (p for room in ("geometry", "datasets", "experiments") for p in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
                if len(names) - (names[:1] in (["self"], ["cls"])) > 7:
                    long.add(f"{path.relative_to(ROOT)} {getattr(node, 'name', 'lambda')}")
    assert not long


def test_public_names_are_those_that_tools_see_and_the_documentation_lists() -> None:
    tree = ast.parse((ROOT / "geometry" / "__init__.py").read_text())
    (seen,) = (node for node in tree.body if isinstance(node, ast.If))  # if TYPE_CHECKING
    imported = {}
    for node in seen.body:
        assert isinstance(node, ast.ImportFrom)
        imported[node.module] = {alias.name for alias in node.names}
    assert sorted(name for names in imported.values() for name in names) == sorted(geometry.__all__)
    listed = {
        room: set(re.findall(r"`(\w+)`", names))
        for room, names in re.findall(
            r"^\| \{py:mod\}`(geometry\.\w+)` \| (.*) \|$", (ROOT / "docs/api.md").read_text(), re.M
        )
    }
    assert listed == imported


@pytest.mark.slow
def test_every_public_name_is_loaded_when_it_is_asked_for() -> None:
    asked = "import sys, geometry\nassert not any(m.startswith('geometry.') for m in sys.modules)\n"
    asked += "assert 'torch' not in sys.modules\nfrom geometry import *\n"
    asked += (
        "assert all(name in globals() for name in geometry.__all__)\nassert set(geometry.__all__) <= set(dir(geometry))"
    )
    subprocess.run([sys.executable, "-c", asked], cwd=ROOT, check=True)
    assert isinstance(geometry.__version__, str)
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = geometry.absent


@pytest.mark.parametrize("package", ["geometry", "datasets", "experiments"])
def test_the_page_shows_the_floors_that_the_linter_checks(package: str) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    _, _, part = page.partition(f"## {package}\n")
    part, _, _ = part.partition("\n## ")
    shown = [re.findall(r"`(\w+)`", floor.split("|")[1]) for floor in re.findall(r"^\| `.*\|$", part, re.M)]
    floors = contract(f"{package}: ")
    if package == "experiments":
        floors = floors[1:]  # the drivers
    assert shown == floors
