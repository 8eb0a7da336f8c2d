"""What a driver's command says at its end, and its exit code: where the goal was reached, where not, and where there
are no data."""

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from experiments.records.files import EXIT_MISSED, EXIT_SKIPPED, UNSAID
from experiments.records.quantities import Quantity
from experiments.running.telling import LONGEST, tell
from tests.commands import ended, python_m

TOY = "tests.experiments.running.toy_driver"


def test_a_goal_that_is_reached(tmp_path: Path) -> None:
    said = python_m(TOY, "default", "--out", str(tmp_path)).splitlines()
    folder = tmp_path / "toy_driver" / "default-seed0"
    assert said[1] == "Goal reached: loss below 0.1"
    assert said[2].startswith("toy_driver default, seed 0: 50 iterations, ")
    assert said[3].split() == ["found", "deviation", "unit", "truth", "or", "reference"]
    found = json.loads((folder / "summary.json").read_text())["found"]["mean"]
    name, value, deviation, *rest = said[4].split()
    assert (name, rest) == ("mean", ["m", "1"])
    assert abs(float(value) - found["value"]) < 0.1 * found["deviation"]
    assert float(deviation) == pytest.approx(found["deviation"], rel=0.06)
    assert said[5].split() == ["x", said[5].split()[1], "0.5"]
    assert said[-3:] == [
        "Left out: view 3 (no board found)",
        f"page  {folder}/index.html",
        f"view  python -m experiments.view {folder}",
    ]


def test_a_goal_that_is_missed_and_a_run_that_is_finished(tmp_path: Path) -> None:
    for more in ([], ["--resume"]):  # what is finished is told once more
        code, said = ended(TOY, "paper", "--out", str(tmp_path), *more)
        assert code == EXIT_MISSED == 4
        assert said.splitlines()[1] == "Goal not reached: loss below 0.1"


def test_torchrun_is_not_told_of_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert "Goal not reached" in python_m(TOY, "paper", "--out", str(tmp_path))


def test_absent_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(TOY, "real", "--out", str(tmp_path)) == (EXIT_SKIPPED, "")
    assert capsys.readouterr().err == "The real quadratic is not on this machine.\n"


def told(**summary: object) -> str:
    whole = {"experiment": "e", "preset": "p", "seed": 0, "iterations": 1, "seconds": 1.0, "loss": 0.0, "note": ""}
    whole |= UNSAID | {"converged": False, "errors": {}, "reference": {}} | summary
    tell(whole, "results/e/p", Console(file=(printed := io.StringIO()), width=200))
    return printed.getvalue()


def test_what_is_undetermined_and_what_texts_say_is_told_as_it_is() -> None:
    said = told(undetermined=["[b]Two[/b] points are seen once."], note="see [1]", goal="x < [y]")
    for text in ("[b]Two[/b] points are seen once.", "Note: see [1]", "Goal not reached: x < [y]"):
        assert text in said


def test_units_stand_apart_from_names() -> None:
    said = told(errors={"rotation_deg": 0.5, "left-5 rms_px": 0.25, "pnp_seconds": 3, "deg": 1.0})
    rows = [line.split() for line in said.splitlines()]
    for row in (["rotation", "0.5", "deg"], ["left-5", "rms", "0.25", "px"], ["pnp", "3", "s"], ["deg", "1"]):
        assert row in rows


def test_a_long_table_says_where_the_rest_is() -> None:
    said = told(errors={f"x{i}": i for i in range(LONGEST + 5)})
    assert f"x{LONGEST - 1} " in said
    assert f"x{LONGEST} " not in said
    assert "… and 5 more in summary.json" in said


@pytest.mark.parametrize(
    ("quantity", "texts"),
    [
        (Quantity(800.03141, 0.2345, "px", 801.25), ("800.03", "0.23", "801.2")),
        (Quantity(800.03141, 23.45), ("800", "23", "")),
        (Quantity(1.23456e-5, 2.3e-7), ("0.00001235", "0.00000023", "")),
        (Quantity(0.123456, reference="0.1 (OpenCV)"), ("0.1235", "", "0.1 (OpenCV)")),
        (Quantity(5.0, math.nan), ("5", "nan", "")),
        (Quantity(5.25, 0.0), ("5.25", "0", "")),
    ],
)
def test_a_value_has_the_digits_that_its_deviation_bears_out(quantity: Quantity, texts: tuple[str, ...]) -> None:
    assert quantity.texts() == texts
    assert Quantity.read(json.loads(json.dumps(quantity._asdict()))) == pytest.approx(quantity, nan_ok=True)
