"""The command line, and which folder a run goes to: it is named by preset, data and seed, or by whoever launches it."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import pytest

from experiments.running.config import RunConfig, cli
from experiments.running.launch import Asked
from tests.experiments.running import toy_driver


@dataclass(frozen=True)
class Board:
    source: tuple[str, ...] = ("shared",)


@dataclass(frozen=True)
class Config(RunConfig):
    names_data: ClassVar[tuple[str, ...]] = ("board.source", "matches")

    board: Board = field(default_factory=Board)
    matches: Path | None = None


PRESETS = {"real": Config(preset="real"), "video": Config(preset="video", matches=Path("box"))}


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("real", "real-seed0"),
        ("real --board.source shared", "real-seed0"),
        ("real --board.source my_images --seed 3", "real-my_images-seed3"),
        ("real --board.source ../other/my.images/", "real-other-my-seed0"),
        ("real --board.source /home/me/böse ähnlich/1.png", "real-böse_ähnlich-1-seed0"),
        ("real --board.source left right --matches m.npz", "real-left-right-m-seed0"),
        ("real --board.source my_images --name mine", "mine"),
        ("video --matches None", "video-seed0"),
    ],
)
def test_the_folder_says_the_data_of_the_user(arguments: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = arguments.replace("böse ähnlich", "böse~ähnlich").split()
    monkeypatch.setattr(sys, "argv", ["toy", *(word.replace("~", " ") for word in words)])
    assert cli("", PRESETS).folder("toy") == Path("results/toy") / name


def test_the_working_folder_has_its_own_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "argv", ["toy", "real", "--board.source", "."])
    assert cli("", PRESETS).folder("toy").name == "real-here-seed0"


def test_a_long_path_makes_a_name_that_a_file_system_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["toy", "real", "--board.source", *(f"cameras/{'x' * 200}{i}" for i in range(9))])
    assert len(cli("", PRESETS).folder("toy").name) < 200


def test_whoever_launches_a_run_knows_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever options it has: the name is told."""
    asked = Asked("experiments.toy", "real", 3, ("--board.source", "my_images"))
    monkeypatch.setattr(sys, "argv", asked.command(tmp_path, False)[2:])
    assert cli("", PRESETS).folder("toy") == asked.folder(tmp_path)


def test_a_config_keeps_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["toy", "smoke", "--seed", "3", "--resume"])
    found = cli("", toy_driver.PRESETS, "python -m experiments.toy")
    assert found.command == ("python", "-m", "experiments.toy", "smoke", "--seed", "3", "--resume")


def test_cli_overrides_a_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["toy", "smoke", "--seed", "3", "--resume", "--out", "elsewhere"])
    assert cli("", toy_driver.PRESETS) == replace(
        toy_driver.PRESETS["smoke"], seed=3, resume=True, out=Path("elsewhere")
    )


@pytest.mark.parametrize("arguments", [["smoke", "--seed", "-1"], ["smoke", "--seed", "one"], ["smoke", "--seed"]])
def test_cli_exits_2_on_values_that_are_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["toy", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli("", toy_driver.PRESETS)
    assert ended.value.code == 2
    assert len("".join(capsys.readouterr())) > 20
