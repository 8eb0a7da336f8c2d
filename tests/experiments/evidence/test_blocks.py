"""The blocks of README and pages: what they read, where they stand, and that they are those of results/reference."""

from pathlib import Path

import pytest

from experiments.evidence import blocks
from experiments.evidence.blocks import BLOCKS, figure, made, tables_of

ROOT = Path(__file__).parents[3]
REFERENCE = ROOT / "results" / "reference"
PAGE = """before
<!-- made by python -m experiments.claims tables: one -->
old
<!-- end of one -->
after
"""


@pytest.mark.parametrize("page", BLOCKS)
def test_a_page_has_the_blocks_of_the_reference(page: str) -> None:
    text = (ROOT / page).read_text()
    assert text == made(text, page, REFERENCE), "run: python -m experiments.claims tables"


def test_tables_are_found_with_their_headings() -> None:
    page = "# A\n\n| x | y |\n|---|---|\n| a | 1 |\n| b | 2 |\n\n"
    page += "## B\n\n| in | method | z |\n| :-- | --- | --: |\n| a | p | 3 |\n"
    first, second = tables_of(page)
    assert (first.heading, first.corner) == ("A", "x")
    assert first.rows == {"a": {"x": "a", "y": "1"}, "b": {"x": "b", "y": "2"}}
    assert (second.heading, second.rows["a p"]["z"]) == ("B", "3")
    assert tables_of("no table | here\n\n| nor | here |\n") == []


@pytest.mark.parametrize(
    ("cell", "found"), [("4.6 (1)", "4.6"), ("99.58%", "99.58"), ("2.0e-12 / 5e-12", "2.0e-12"), ("6,440", "6,440")]
)
def test_the_first_number_of_a_cell_is_as_it_is_written(cell: str, found: str) -> None:
    assert figure(cell) == found


def test_a_cell_without_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="a cell with a number wanted, got 'never'"):
        figure("never")


def test_a_block_takes_the_place_of_the_old_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(blocks, "BLOCKS", {"page.md": {"one": lambda reference: f"made of {reference.name}\n"}})
    once = made(PAGE, "page.md", tmp_path)
    assert once == PAGE.replace("old", f"\nmade of {tmp_path.name}\n")
    assert made(once, "page.md", tmp_path) == once
    for lost in ("before\nafter\n", PAGE.replace("end of", "end")):
        with pytest.raises(ValueError, match="the comments around the block 'one' wanted"):
            made(lost, "page.md", tmp_path)
    (tmp_path / "page.md").write_text(PAGE)
    blocks.rewrite(tmp_path, tmp_path)
    assert (tmp_path / "page.md").read_text() == once
