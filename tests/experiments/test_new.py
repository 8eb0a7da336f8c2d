"""The beginning of a task, in a copy of the project: it runs, its tests pass, and no existing file is touched."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.new import new
from tests.commands import python_m

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a task needs of the project."""
    skipped = shutil.ignore_patterns("__pycache__", "web")
    for package in ("geometry", "datasets", "experiments"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=skipped)
    shared = ("numbers.py", "commands.py", "geometry/conftest.py")
    for name in (*shared, "geometry/tasks/test_every_task.py", "experiments/tasks/test_every_driver.py"):
        (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests" / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "experiments/viewers/web", tmp_path / "experiments/viewers/web")
    return tmp_path


def run(*arguments: str, cwd: Path) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def fingerprints(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and "cache" not in str(path))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_a_new_task_runs_and_passes_at_once(checkout: Path) -> None:
    before = fingerprints(checkout)
    said = python_m("experiments.new", "shift_2d", "--root", str(checkout))
    after = fingerprints(checkout)
    added = {"geometry/tasks/shift_2d.py", "experiments/tasks/shift_2d.py", "tests/geometry/tasks/test_shift_2d.py"}
    assert after.keys() - before.keys() == added
    assert {name: after[name] for name in before} == before
    assert all(name in said for name in added)
    said = run("pytest", "-q", "-p", "no:cacheprovider", "-k", "shift_2d", cwd=checkout)
    assert "8 passed" in said  # three gradients, the closed form, bad input; and of every task: lines, smoke, presets
    run("ruff", "check", *sorted(added), cwd=checkout)
    run("ruff", "format", "--check", *sorted(added), cwd=checkout)


@pytest.mark.parametrize("name", ["", "My_task", "my-task", "2d", "for", "_task", "a/b", "../x"])
def test_a_name_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lower-case Python identifier"):
        new(name, tmp_path)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    for folder in ("geometry/tasks", "experiments/tasks", "tests/geometry/tasks"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "tests/geometry/tasks/test_mine.py").write_text("kept")
    with pytest.raises(FileExistsError, match=r"test_mine\.py exists"):
        new("mine", tmp_path)
    assert [path.name for path in tmp_path.rglob("*.py")] == ["test_mine.py"]
    with pytest.raises(FileNotFoundError, match="root must be a checkout"):
        new("mine", tmp_path / "elsewhere")
