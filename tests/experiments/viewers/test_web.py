"""The page's JavaScript: its types hold, and the bundle that pages are made of is what its modules say."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.viewers.page import WEB

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def npm() -> Callable[..., None]:
    """npm("run", "check") in the page's folder, with the packages that package.json names; it must succeed."""
    command = shutil.which("npm")
    if command is None:
        pytest.skip("npm is not installed: the page's JavaScript is neither checked nor bundled anew")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([command, *arguments], cwd=WEB, capture_output=True, text=True, check=False)

    installed = run("install", "--no-package-lock", "--no-audit", "--no-fund", "--fetch-retries=0")
    if installed.returncode:
        pytest.skip(f"npm cannot install what package.json names, so the JavaScript is not checked: {installed.stderr}")

    def succeed(*arguments: str) -> None:
        ended = run(*arguments)
        assert ended.returncode == 0, ended.stdout + ended.stderr

    return succeed


def test_the_types_hold(npm: Callable[..., None]) -> None:
    npm("run", "check")


def test_the_bundle_is_that_of_the_modules(npm: Callable[..., None], tmp_path: Path) -> None:
    npm("run", "build", "--", f"--outfile={tmp_path / 'bundle.js'}")
    committed, made = (
        (folder / name).read_text("utf-8") for folder, name in ((WEB, "page.bundle.js"), (tmp_path, "bundle.js"))
    )
    assert committed == made, "page.bundle.js is not that of its modules: npm run build"
