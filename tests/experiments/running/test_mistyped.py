"""What is said of mistyped names, by the options of a config of every kind."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from experiments.running.config import RunConfig, cli
from experiments.running.mistyped import mistyped, options


@dataclass(frozen=True)
class Lens:
    free: tuple[Literal["f", "k1"], ...] | None = None


@dataclass(frozen=True)
class Config(RunConfig):
    lens: Lens = field(default_factory=Lens)
    inner: Annotated[Lens, tyro.conf.arg(name="")] = field(default_factory=Lens)
    sizes: Literal[8, 12] = 8
    scene_seed: int = 0
    masked: bool = True
    data: Path | None = None
    hidden: tyro.conf.Suppress[int] = 0


PRESETS = {"default": Config(preset="default"), "smoke": Config(preset="smoke", masked=False)}


def test_options_are_those_of_the_command_line() -> None:
    found = options(PRESETS["default"])
    own = {name: found[name] for name in found.keys() - options(RunConfig()).keys()}
    names = ("f", "k1", "None")
    free = {"--lens.free": names, "--free": names}
    assert own == {**free, "--sizes": ("8", "12"), "--scene-seed": (), "--no-masked": (), "--data": ()}
    assert "--masked" in options(PRESETS["smoke"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("", "toy wants a preset first: default, smoke; --help says what each of them is"),
        ("--seed 3", "toy wants a preset first: default, smoke; --help says what each of them is"),
        ("defalt", "toy has presets default, smoke, not defalt; did you mean default?"),
        ("qqq", "toy has presets default, smoke, not qqq"),
        ("default --sede 3", "toy has no option --sede; did you mean --seed?"),
        ("default --scen_seed=3", "toy has no option --scen-seed; did you mean --scene-seed?"),
        ("default --qqq", "toy has no option --qqq; --help lists them"),
        ("default --masked", "toy has no option --masked; did you mean --no-masked?"),
        ("default --dtype float23", "--dtype takes float32, float64, not float23; did you mean float32?"),
        ("default --lens.free f kk1", "--lens.free takes f, k1, None, not kk1; did you mean k1?"),
        ("default --free=kk1", "--free takes f, k1, None, not kk1; did you mean k1?"),
        ("default --sizes 9", "--sizes takes 8, 12, not 9"),
    ],
)
def test_a_mistyped_name_is_told_with_the_nearest(
    arguments: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mistyped("toy", arguments.split(), PRESETS) == sentence
    monkeypatch.setattr(sys, "argv", ["toy", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        cli("", PRESETS, "python -m experiments.toy")
    assert ended.value.code == sentence  # which the interpreter prints before it exits with 1


@pytest.mark.parametrize(
    "arguments",
    [
        "default",
        "default --seed -1 --scene_seed 2",
        "default --free f k1 --seed 2",
        "smoke --lens.free None",
        "qq --help",
    ],
)
def test_nothing_is_said_of_what_is_right_or_asks_for_help(arguments: str) -> None:
    assert mistyped("toy", arguments.split(), PRESETS) == ""
