"""What is said of mistakes: an argument, what it must be and what it is; and the page of errors has the same words."""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from geometry import Problem, minimize

ROOT = Path(__file__).parents[1]
SOURCES = [path for room in ("geometry", "datasets", "experiments") for path in sorted((ROOT / room).rglob("*.py"))]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## Errors, by their text")[2]
HEADING = "### Torch, from inside a residual"


def texts(part: str) -> list[str]:
    """What stands in the first column of the tables."""
    return [cell for row in re.findall(r"(?m)^\| (`.*?) \|", part) for cell in re.findall(r"`([^`]+)`", row)]


OF_TORCH = texts(PAGE.partition(HEADING)[2].partition("\n### ")[0])
TEXTS = [text for text in texts(PAGE) if text not in OF_TORCH]


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


def filled(x: Tensor, t: Tensor) -> Tensor:
    r = torch.zeros(6)
    r[0] = x[0]
    return r - t


RESIDUALS: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda x, t: x[0] * t if x[0] > 0 else t,
    lambda x, t: x[0].item() * t,
    lambda x, t: x[0] * t + torch.randn(6),
    lambda x, t: torch.nn.functional.dropout(x[0] * t),
    lambda x, t: torch.from_numpy(x.numpy())[0] * t,
    lambda x, t: (x[0] * t)[t > 0.5],
    lambda x, t: (x[0] * t)[(t > 0.5).nonzero()[:, 0]],
    filled,
    lambda x, t: x[:, :1] * t,
    lambda x, t: (x[0] * t).sum(2),
    lambda x, t: torch.zeros(6, 2, dtype=torch.float64) @ x,
    lambda x, t: x * t,
]


def test_what_torch_says_of_a_residual_is_on_the_page_and_has_a_note() -> None:
    said = set()
    for residual in RESIDUALS:
        with pytest.raises((RuntimeError, IndexError)) as caught:
            minimize(Problem(residual, dof=2), torch.zeros(1, 2), torch.linspace(0, 1, 6)[None])
        known = {text for text in OF_TORCH if text in str(caught.value)}
        assert known, caught.value
        said |= known
        if sys.version_info >= (3, 11):
            (note,) = caught.value.__notes__
            assert note.startswith("raised inside residual, which is written for one instance")
    assert said == {*OF_TORCH}


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
