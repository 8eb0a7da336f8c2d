"""What is said of mistakes: an argument, what it must be and what it is; and the page of errors has the same words."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [path for room in ("geometry", "datasets", "experiments") for path in sorted((ROOT / room).rglob("*.py"))]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## Errors, by their text")[2]
TEXTS = [cell for row in re.findall(r"(?m)^\| (`.*?) \|", PAGE) for cell in re.findall(r"`([^`]+)`", row)]


def as_printed(node: ast.AST) -> str:
    """A string of the source, with … for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(as_printed(part) for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"


@pytest.fixture(scope="module")
def printed() -> set[str]:
    """Every string of the sources."""
    nodes = (node for path in SOURCES for node in ast.walk(ast.parse(path.read_text())))
    return {as_printed(node) for node in nodes if isinstance(node, ast.JoinedStr | ast.Constant)}


def test_there_are_texts() -> None:
    assert len(TEXTS) > 40
    assert len({*TEXTS}) >= len(TEXTS) - 1  # one is said of cameras and of poses


@pytest.mark.parametrize("text", sorted({*TEXTS}))
def test_a_text_of_the_page_is_one_of_the_sources(text: str, printed: set[str]) -> None:
    """Its words, in their order, within one string: the page may show … in place of more than is filled in."""
    words = re.compile(".*".join(map(re.escape, filter(None, text.split("…")))), re.DOTALL)
    assert any(words.search(string) for string in printed), text


def raised_by_geometry() -> Iterator[tuple[str, str]]:
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith("geometry/") or name.startswith("geometry/compiled/"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ValueError":
                yield f"{name}:{node.lineno}", as_printed(node.args[0])


def test_every_value_error_of_geometry_says_what_is_wanted_and_what_came() -> None:
    """The argument first; then what it must be; then what it is, or what another library says of it."""
    said = dict(raised_by_geometry())
    assert len(said) > 100
    wrong = {
        place: text
        for place, text in said.items()
        if not re.search(r"\bgot\b|…$", text) or not re.match(r"…|[A-Za-z]\w*\b", text)
    }
    assert not wrong
