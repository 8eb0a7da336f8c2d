"""What is installed: geometry alone, so that another package named `datasets` in the environment stays what it is."""

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

BUILD = """
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""

IMPORT = """
import datasets, geometry
from geometry import Problem, pnp
assert datasets.NAME == "somebody else's", datasets
print(geometry.__file__)
print(geometry.__version__)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["build_wheel", "build_editable"])
def test_an_install_beside_another_package_named_datasets(how: str, tmp_path: Path) -> None:
    """Both import what they should, from another folder than the checkout; and the files named are geometry's."""
    project, site = tmp_path / "project", tmp_path / "site-packages"
    for part in PARTS:
        shutil.copytree(ROOT / part, project / part, ignore=shutil.ignore_patterns("__pycache__", "web"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    (site / "datasets").mkdir(parents=True)
    (site / "datasets" / "__init__.py").write_text('NAME = "somebody else\'s"\n')

    built = python(BUILD, how, str(tmp_path), cwd=project).splitlines()[-1]
    with zipfile.ZipFile(tmp_path / built) as wheel:
        names = wheel.namelist()
        wheel.extractall(site)
    tops = {re.sub(r"-[\d.]+\.dist-info$", ".dist-info", name.split("/")[0]) for name in names}
    if how == "build_wheel":
        assert tops == {"geometry", "learnable_geometry.dist-info"}
        assert {"geometry/py.typed", "geometry/compiled/pose/solve.py"} <= set(names)
        home = site
    else:
        assert all(re.match(r"__editable__|learnable_geometry\.dist-info$", top) for top in tops), tops
        home = project
    file, version = python(IMPORT, str(site), cwd=tmp_path).splitlines()
    assert Path(file) == home / "geometry" / "__init__.py"
    assert re.match(r"\d+\.\d+", version)


def python(code: str, *arguments: str, cwd: Path) -> str:
    """What the code prints, with the packages in the folder that is its last argument, as if they were installed.

    This environment's own packages come behind them, but for the checkout that is installed in it: -S reads no .pth.
    """
    code = (
        f"import site, sys\nsite.addsitedir(sys.argv[-1])\nsys.path.append({sysconfig.get_path('purelib')!r})\n{code}"
    )
    command = [sys.executable, "-S", "-c", code, *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
