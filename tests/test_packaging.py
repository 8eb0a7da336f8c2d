"""What is installed: geometry alone, typed, beside whatever other package named `datasets` an environment has.

The wheel is built and installed as anybody would, by pip, but offline and into throw-away folders.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("geometry", "datasets", "experiments")

EDITABLE = """
from setuptools import build_meta
print(build_meta.build_editable(sys.argv[1]))
"""

IMPORT = """
import datasets, geometry
from geometry import Problem, pnp
assert datasets.NAME == "somebody else's", datasets
print(geometry.__file__)
print(geometry.__version__)
"""

# What a user writes, with every family of the public API in it; mypy is to find nothing, and then one mistake.
USERS = """
import torch
from torch import Tensor

from geometry import BPnP, Bundle, PoseSolution, Problem, RansacSolution, Solution, SolverError, Status
from geometry import argmin, bundle, calibrate, covariance, huber, minimize, pnp, pnp_ransac, project, se3
from geometry.interop import opencv
from geometry.tasks.homography import homography


class Network(torch.nn.Module):
    def __init__(self, points3d: Tensor, K: Tensor) -> None:
        super().__init__()
        self.pose = BPnP(points3d, K, kernel=huber(1.0))

    def forward(self, points2d: Tensor) -> Tensor:
        found: Tensor = self.pose(points2d)
        return found


def train(points2d: Tensor, points3d: Tensor, K: Tensor, pose_gt: Tensor) -> Tensor:
    solution: PoseSolution = pnp(points2d, points3d, K, weights=None, gradient="exact", max_steps=MAX_STEPS)
    return (project(points3d, solution.x, K) - project(points3d, pose_gt, K)).square().mean()


def difference(x: Tensor, y: Tensor) -> Tensor:
    return x - y


def solve(x0: Tensor, y: Tensor, points2d: Tensor, points3d: Tensor, K: Tensor) -> list[str]:
    problem = Problem(difference, dof=3)
    solutions: list[Solution] = [minimize(problem, x0, y), argmin(problem, x0, y)]
    among: RansacSolution = pnp_ransac(points2d, points3d, K, threshold=4.0)
    sure: Tensor = covariance(problem, solutions[0].x, y)
    camera = calibrate(points2d, points3d, (640, 480))
    index = torch.arange(len(points2d))
    scene: Bundle = bundle(points2d[0], index, index, among.x, points3d, K).x
    rotvec, tvec = opencv.to_pose(se3.from_rotvec_t(torch.zeros(6)))
    try:
        camera.raise_if_failed()
        homography(points2d[0], points2d[1]).raise_if_failed()
    except SolverError as error:
        print(error, sure.shape, scene.points3d.shape, rotvec, tvec)
    return [Status(int(status)).name for solution in solutions for status in solution.status]
"""


def project_copy(folder: Path) -> Path:
    """A copy of the project, as building writes beside it."""
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "web"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder, project_copy(folder / "project"))
    (built,) = folder.glob("*.whl")
    return built


def other_datasets(site: Path) -> dict[str, bytes]:
    """Another package of that name, installed there; its files."""
    for name, text in {
        "datasets/__init__.py": 'NAME = "somebody else\'s"\n',
        "datasets-9.9.dist-info/METADATA": "Metadata-Version: 2.1\nName: datasets\nVersion: 9.9\n",
        "datasets-9.9.dist-info/INSTALLER": "pip\n",
        "datasets-9.9.dist-info/RECORD": "datasets/__init__.py,,\ndatasets-9.9.dist-info/METADATA,,\n",
    }.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    return {str(path.relative_to(site)): path.read_bytes() for path in site.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_wheel_is_installed_beside_another_package_named_datasets(wheel: Path, tmp_path: Path) -> None:
    """Both import what they should, from another folder than the checkout, and nothing of the other one has changed."""
    site = tmp_path / "site-packages"
    before = other_datasets(site)
    pip("install", "--no-index", "--target", site, wheel)
    assert {name: (site / name).read_bytes() for name in before} == before
    tops = {re.sub(r"-[\d.]+\.dist-info$", ".dist-info", path.name) for path in site.iterdir()}
    assert tops - {"__pycache__"} == {"geometry", "learnable_geometry.dist-info", "datasets", "datasets.dist-info"}
    file, version = python(IMPORT, str(site), cwd=tmp_path).splitlines()
    assert Path(file) == site / "geometry" / "__init__.py"
    assert version == re.search(r'(?m)^version = "(.*)"$', (ROOT / "pyproject.toml").read_text())[1]  # type: ignore[index]


@pytest.mark.slow
def test_a_wheel_holds_all_of_geometry_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
    sources = (path for path in (ROOT / "geometry").rglob("*.py") if "__pycache__" not in path.parts)
    assert names == {"geometry/py.typed", *(str(path.relative_to(ROOT)) for path in sources)}
    wanted = re.findall(r"(?m)^Requires-Dist: ([\w-]+)[^;\n]*$", metadata)
    assert sorted(wanted) == ["numba", "numpy", "torch"]
    assert "License-File: LICENSE" in metadata


@pytest.mark.slow
def test_an_editable_install_stands_beside_it_as_well(tmp_path: Path) -> None:
    project, site = project_copy(tmp_path / "project"), tmp_path / "site-packages"
    other_datasets(site)
    built = python(EDITABLE, str(tmp_path), cwd=project).splitlines()[-1]
    with zipfile.ZipFile(tmp_path / built) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        archive.extractall(site)
    assert all(re.match(r"__editable__|learnable_geometry-[\d.]+\.dist-info$", top) for top in tops), tops
    file, _ = python(IMPORT, str(site), cwd=tmp_path).splitlines()
    assert Path(file) == project / "geometry" / "__init__.py"


@pytest.mark.slow
def test_a_users_file_passes_mypy_strict_against_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """And a wrong argument does not, or its types would not have been seen at all."""
    pytest.importorskip("mypy", reason="mypy is not installed: pip install -e .[dev]")
    installed = tmp_path / "installed"
    pip("install", "--no-index", "--target", installed, wheel)
    # an interpreter that has these packages: what is installed here, behind the wheel
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "these.pth").write_text(f"{installed}\n{sysconfig.get_path('purelib')}\n")
    (tmp_path / "right.py").write_text(USERS.replace("MAX_STEPS", "9"))
    (tmp_path / "wrong.py").write_text(USERS.replace("MAX_STEPS", '"9"'))
    done = subprocess.run(
        [
            sys.executable, "-m", "mypy", "--strict", "--python-executable", tmp_path / "venv" / "bin" / "python",
            "--cache-dir", tmp_path / "cache", "right.py", "wrong.py",
        ],
        cwd=tmp_path, env=clean(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    *said, last = done.stdout.splitlines()
    assert len(said) == 1, done.stdout + done.stderr
    assert re.match(r'wrong\.py:\d+: error: Argument "max_steps" to "pnp" has incompatible type "str"', said[0]), said
    assert last.startswith("Found 1 error in 1 file (checked 2 source files)")


def test_sources_are_written_for_the_oldest_python() -> None:
    """Its grammar; ruff, whose rules follow requires-python, refuses what else is newer."""
    (oldest,) = re.findall(r'(?m)^requires-python = ">=3\.(\d+)"$', (ROOT / "pyproject.toml").read_text())
    for part in PARTS:
        for path in (ROOT / part).rglob("*.py"):
            ast.parse(path.read_text(), str(path), feature_version=(3, int(oldest)))


def clean() -> dict[str, str]:
    """The environment without what would put a checkout in front of what is installed."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}


def pip(command: str, *arguments: str | Path) -> None:
    """A command of pip that asks no index and no dependency."""
    call = [sys.executable, "-m", "pip", "--disable-pip-version-check", command, "--no-deps", *map(str, arguments)]
    done = subprocess.run(call, env=clean(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def python(code: str, *arguments: str, cwd: Path) -> str:
    """What the code prints, with the packages in the folder that is its last argument, as if they were installed.

    This environment's own packages come behind them, but for the checkout that is installed in it: -S reads no .pth.
    """
    code = (
        f"import site, sys\nsite.addsitedir(sys.argv[-1])\nsys.path.append({sysconfig.get_path('purelib')!r})\n{code}"
    )
    command = [sys.executable, "-S", "-c", code, *arguments]
    done = subprocess.run(command, cwd=cwd, env=clean(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
