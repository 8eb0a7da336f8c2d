"""What npm's packages say of the pages: types hold, the bundle is that of its modules, anyone can use them (axe)."""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.viewers.index import write_index
from experiments.viewers.page import WEB, write_page
from tests.experiments.viewers.recordings import keypoints, sphere, written

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


@pytest.mark.parametrize("kind", ["run", "index"])
def test_axe_finds_nothing_serious(kind: str, npm: Any, tmp_path: Path, visit: Callable[..., Any]) -> None:
    """Contrast, names, roles and focus, by day and by night, on a desk and on a phone."""
    results = tmp_path / "results" / "toy"
    for recording in (keypoints(), replace(sphere(), summary=sphere().summary | {"converged": False})):
        written(recording, results / recording.title.rpartition(" ")[2])
    write_page(keypoints(), results / "keypoints" / "index.html")
    tab = visit(results / "keypoints" / "index.html" if kind == "run" else write_index(results.parent))
    tab.evaluate((WEB / "node_modules" / "axe-core" / "axe.min.js").read_text("utf-8"))
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        for width, height in ((1100, 700), (390, 844)):
            tab.set_viewport_size({"width": width, "height": height})
            if kind == "run":
                tab.wait_for_function("viewer.draws > 0")
                tab.evaluate("() => { for (const folded of document.querySelectorAll('details')) folded.open = true; }")
            found = tab.evaluate("axe.run().then((told) => told.violations)")
            grave = [
                f"{rule['id']}: {node['html']} {node['failureSummary']}"
                for rule in found if rule["impact"] in ("serious", "critical") for node in rule["nodes"]
            ]  # fmt: skip
            assert grave == [], (scheme, width)
