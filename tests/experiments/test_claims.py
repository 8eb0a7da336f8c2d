"""claims.py with a toy driver: what it states, and what it says of fresh seeds."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import claims
from experiments.evidence.listed import CLAIMS, ELSEWHERE, GOAL, ITERATIONS, Claim, error
from experiments.evidence.tables import Found, Reference, Stated, stated
from experiments.running import launch
from experiments.running.config import cli

REFERENCE = Path(__file__).parents[2] / "results" / "reference"

# A driver without torch: seeds from 900 on take longer, 950 dies, and the preset real has no data.
STUB = """
import json, pathlib, sys
preset, _, seed, _, out, _, name, *options = sys.argv[1:]
if preset == "real":
    sys.exit(print("The data are absent.", file=sys.stderr) or 3)
if seed == "950":
    raise ValueError("no such luck")
folder = pathlib.Path(out) / "toy" / name
folder.mkdir(parents=True, exist_ok=True)
with (folder / "runs").open("a") as runs:
    runs.write("once ")
(folder / "checkpoint.pt").write_text("a gigabyte")
summary = {"converged": True, "goal": "", "undetermined": [], "iterations": 10 + int(seed) % 5, "note": ""}
summary |= {"errors": {"px": 0.5}, "loss": 0, "seconds": 1}
if int(seed) >= 900:
    summary |= {"iterations": 400}
(folder / "summary.json").write_text(json.dumps(summary))
"""
TOY = Claim("default", "toy", "default", (GOAL, ITERATIONS, error("px", "error, px")), ("--rate", "2"))
ABSENT = Claim("real", "toy", "real", (GOAL,))

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """claims.main with the toy driver, in tmp_path."""
    package = tmp_path / "experiments"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "toy.py").write_text(STUB)
    monkeypatch.setattr(launch, "ROOT", tmp_path)
    monkeypatch.setattr(claims, "rewrite", lambda root, reference: None)

    def main(preset: str, some: tuple[Claim, ...] = (TOY, ABSENT), **changes: object) -> int:
        places = {"out": tmp_path / "out", "reference": tmp_path}
        return claims.main(replace(claims.PRESETS[preset], **places, **changes), some)  # type: ignore[arg-type]

    return main


def test_fresh_seeds_stay_within_what_was_stated(run: Run, tmp_path: Path) -> None:
    assert run("state") == 0
    page = (tmp_path / "claims.md").read_text()
    assert "| `toy default --rate 2` | 200 to 219 | reach the goal | 20 of 20 | 11 or more of 20 |" in page
    assert "|  |  | iterations until then | 12 (10 to 14) |" in page
    assert "|  |  | error, px | 0.5 | 0.497 to 0.503 |" in page
    assert run("default") == 0
    assert "Every statement holds." in (tmp_path / "out" / "claims.md").read_text()
    assert Reference.read(tmp_path / "out" / "claims.json").claims[TOY.name].seeds == list(range(300, 320))
    assert "Nothing is stated yet of `toy real`." in page
    assert not list(tmp_path.rglob("checkpoint.pt"))


def test_what_has_changed_is_told_with_exit_code_1(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("state") == 0
    assert run("default", first_seed=900, only=("toy default",)) == 1
    told = capfd.readouterr().err
    assert "toy default --rate 2 --seed 950" not in told
    assert "toy default --rate 2: iterations until then: 400" in told
    assert "reach the goal" not in told
    assert "1 statements do not hold." in (tmp_path / "out" / "claims.md").read_text()


def test_what_has_no_data_here_is_left_out(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Reference({}, {}).updated({ABSENT.name: Found([1, 2], {"reach the goal": [True, True]})}, "today").write(
        tmp_path / "claims.json"
    )
    assert run("default") == 0
    assert "| `toy real` |  |  |  |  |  | left out: no run |" in capfd.readouterr().out


def test_a_run_that_dies_is_told_and_nothing_is_stated_from_the_others(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("state", first_seed=940) == 1
    assert "toy default --rate 2 --seed 950: exit code 1" in capfd.readouterr().err
    assert not (tmp_path / "claims.json").exists()


def test_finished_runs_are_kept_where_that_is_asked_for(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "toy" / "default-rate-2-seed200"
    run("state")
    asked = launch.Asked("experiments.toy", "default", 200, ("--rate", "2"), folder.name)
    assert TOY.asked(200) == asked
    assert (folder / "runs").read_text() == "once "
    run("state", resume=True)  # which the toy driver is told, and does not heed
    assert (folder / "runs").read_text() == "once once "


def test_state_keeps_what_it_has_of_the_others(run: Run, tmp_path: Path) -> None:
    other = replace_name(TOY, "other")
    Reference({}, {}).updated({other.name: Found([1, 2], {m.name: [1.0, 2.0] for m in TOY.measures})}, "today").write(
        tmp_path / "claims.json"
    )
    assert run("state", some=(TOY, other), only=("toy",)) == 0
    stored = Reference.read(tmp_path / "claims.json")
    assert stored.claims.keys() == {other.name, TOY.name}
    assert stored.dates[other.name] == "today" != stored.dates[TOY.name]
    assert "`other default --rate 2`" in (tmp_path / "claims.md").read_text()


def replace_name(claim: Claim, driver: str) -> Claim:
    return claim._replace(driver=driver)


def test_claims_are_asked_for_by_the_beginning_of_their_command(run: Run) -> None:
    with pytest.raises(SystemExit, match="beginnings of toy default --rate 2, toy real wanted, got 'nosuch'"):
        run("default", only=("nosuch",))


def test_no_share_of_a_whole_is_above_it() -> None:
    values = [90.0, 99.0, 100.0]
    beyond, within = (Stated.of(values, 20, *most) for most in ((), (100.0,)))
    assert beyond.interval is not None
    assert within.interval is not None
    assert within.interval == beyond.interval._replace(high=100)
    assert beyond.interval.high > 100


def test_measures_are_told_apart_by_their_names() -> None:
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert len({measure.name for measure in claim.measures}) == len(claim.measures)


def test_every_claim_is_a_run_that_its_driver_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    for claim in CLAIMS:
        module = importlib.import_module(f"experiments.{claim.driver}")
        asked = claim.asked(7)
        monkeypatch.setattr(sys, "argv", ["", asked.preset, "--seed", "7", "--name", asked.name, *asked.options])
        config = cli(module.__doc__, module.PRESETS)
        assert (config.preset, config.seed, config.name) == (claim.preset, 7, asked.name)


def test_the_reference_is_of_the_claims_and_its_page_is_made_of_it() -> None:
    reference = Reference.read(REFERENCE / "claims.json")
    claims = {claim.name: claim for claim in CLAIMS}
    for name, found in reference.claims.items():
        claim = claims[name]
        # seeds that were tried later are added: what is stated of the next is of all that were seen
        assert len(found.seeds) >= claim.seeds >= 5
        assert list(found.values) == [measure.name for measure in claim.measures]
    assert (REFERENCE / "claims.md").read_text() == stated(CLAIMS, reference)


def test_every_table_of_the_reference_has_its_command() -> None:
    for path in REFERENCE.glob("*.md"):
        assert path.name in ELSEWHERE or "python -m experiments." in path.read_text(), path
    for name, (command, _) in ELSEWHERE.items():
        assert (REFERENCE / name).exists()
        module, preset = [*command.split(), ""][:2]
        assert preset in ("", *getattr(importlib.import_module(f"experiments.{module}"), "PRESETS", ())), command
