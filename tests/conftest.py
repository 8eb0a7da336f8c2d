"""What every test may ask for."""

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datasets.locate import find
from tests.commands import PATIENCE

# A job in the background ignores Ctrl-C, and so would the programs that tests start and end with it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: processes that share the files end together, on quick ones."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """Gives the folder of a real data set by name; the test is skipped where the machine lacks it."""

    def folder(name: str) -> Path:
        try:
            return find(name)
        except FileNotFoundError as error:
            pytest.skip(str(error))

    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium (playwright's Browser); the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"there is no browser to open pages in: none of {', '.join(names)}")
    flags = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]  # WebGL without a GPU
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=found, args=flags)
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """visit(path or address, width=, height=): the page, opened as a person would; its console must stay clean.

    A file is opened without a network: it asks for nothing but itself.
    """
    troubles: list[str] = []
    contexts: list[Any] = []
    closing = False

    def opened(address: Path | str, width: int = 1400, height: int = 900) -> Any:
        local = isinstance(address, Path)
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, offline=local))
        contexts[-1].set_default_timeout(1000 * PATIENCE)
        page = contexts[-1].new_page()
        page.on("console", lambda m: troubles.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("requestfailed", lambda request: closing or troubles.append(f"asked for {request.url}"))
        page.goto(address.resolve().as_uri() if isinstance(address, Path) else address)
        return page

    yield opened
    closing = True  # a page that follows a run may be asking just now
    for context in contexts:
        context.close()
    assert troubles == []
