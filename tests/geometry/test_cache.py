"""Where compiled kernels are kept, when a package cannot be written, and when processes compile at once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import geometry

# A kernel that is compiled in a second.
TINY = """
import numpy as np
from numba import njit
from geometry.compiled.vectors import load, store, total

@njit(["void(float64[::1], float64[::1])"], cache=True)
def doubled(x, out):
    store(out, 0, load(x, 0) + load(x, 0))

@njit(["float64(float64[::1])"], cache=True)
def summed(x):
    return total(load(x, 0))

out = np.zeros(8)
doubled(np.arange(8.0), out)
print(summed(out), doubled._cache.cache_path)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package with that kernel, in a folder of its own."""
    source = Path(geometry.__file__).parent
    target = tmp_path / "site" / "geometry"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    (target / "compiled" / "pose" / "tiny.py").write_text(TINY)
    return target


def at_once(package: Path, home: str, processes: int = 4) -> list[tuple[str, str]]:
    """What as many processes that import the kernel at the same time print."""
    places = {"HOME": home, "XDG_CACHE_HOME": home, "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"} | places
    command = [sys.executable, "-W", "always", "-c", "import geometry.compiled.pose.tiny"]
    started = [
        subprocess.Popen(
            command, env=environment, cwd=package.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(processes)
    ]
    return [process.communicate() for process in started]


@pytest.mark.slow
def test_a_package_that_cannot_be_written_compiles_and_says_so_once(package: Path, tmp_path: Path) -> None:
    (package / "compiled" / "pose" / "__pycache__").touch()  # no folder, which root could write into
    for printed, said in at_once(package, home=str(package / "py.typed" / "nowhere"), processes=2):
        total, folder = printed.split()
        assert float(total) == 56
        assert not Path(folder).exists()  # it was this process's own, and is gone with it
        assert said.count("can be written: what is compiled is lost") == 1
        assert said.count("NUMBA_CACHE_DIR") >= 1


@pytest.mark.slow
def test_processes_that_compile_at_once_are_right_and_leave_a_cache_that_is(package: Path, tmp_path: Path) -> None:
    for _ in range(2):  # compiled, and out of the cache
        for printed, said in at_once(package, home=str(tmp_path)):
            assert printed == f"56.0 {package / 'compiled' / 'pose' / '__pycache__'}\n", said
            assert "lost" not in said
    assert len(list((package / "compiled" / "pose" / "__pycache__").glob("tiny.*.nbi"))) == 2
