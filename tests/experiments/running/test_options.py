"""Options in groups by the class that has them, and what is said of those that do nothing."""

import re
import sys
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import pytest
import tyro

from experiments.running.config import RunConfig, cli
from experiments.running.options import Acts, idle, laid_flat, shown, written


@dataclass(frozen=True)
class Lens:
    """What the picture is taken through."""

    k1: float = 0.0
    """Sets the first coefficient,
    that of the cube."""
    round: bool = True
    """Has no tangential part."""


@dataclass(frozen=True)
class Loss:
    beta: float = 1.0
    """Weighs the pose."""


@dataclass(frozen=True)
class SceneOptions:
    """What is looked at."""

    scene: str = "duck"
    """Names it."""
    points: int = 10
    """Sets how many points it has."""


@dataclass(frozen=True)
class Config(SceneOptions, RunConfig):
    acts: ClassVar[tuple[Acts, ...]] = (
        Acts(
            "with --method adam", ("rate", "lens.k1", "lens.round", "loss.beta"), lambda config: config.method == "adam"
        ),
        Acts("with a --scene of points", ("points", "masked"), lambda config: config.scene == "duck"),
    )

    method: Literal["newton", "adam"] = "newton"
    """Chooses how to go down."""
    rate: float = 0.1
    """Sets the length of a step."""
    masked: bool = True
    """Leaves out what is not seen."""
    lens: Lens = Lens()
    """Describes the lens."""
    loss: Annotated[Loss, tyro.conf.arg(name="")] = field(default_factory=Loss)
    """Describes the loss."""
    seed: int = 3
    """Seeds everything."""


PRESETS = {"newton": Config(preset="newton"), "adam": Config(preset="adam", method="adam", scene="none")}


def told(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", ["it", *arguments])
    return cli("What it is.", PRESETS, "python -m experiments.it")


def test_what_is_shown_says_the_same_when_it_is_laid_flat() -> None:
    for preset in PRESETS.values():
        for helping in (False, True):
            view, _ = shown(preset, helping)
            assert laid_flat(view, preset) == preset


def test_every_option_reaches_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "--rate 0.5 --method adam --scene duck --no-masked --lens.k1 2 --beta 2 --points 7 --seed 5 --dtype float32"
    found = told(monkeypatch, "newton", *words.split())
    assert found == Config(
        preset="newton", method="adam", rate=0.5, masked=False, lens=Lens(2.0), loss=Loss(2.0), points=7, seed=5,
        dtype="float32",
    )  # fmt: skip


def test_help_has_groups_and_says_where_the_rest_acts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        told(monkeypatch, "newton", "--help")
    printed = capsys.readouterr().out
    boxes = re.findall(r"^\W*((?:\w+ )?options)\W*$", printed, re.MULTILINE)
    assert boxes == ["options", "scene options", "run options"]  # of lens and loss nothing acts
    assert "More options act with --method adam: --rate, --lens.k1, --lens.no-round, --beta." in printed
    assert "--rate FLOAT" not in printed
    assert "Seeds everything. (default: 3)" in printed
    assert "CalibrationConfig" not in printed
    with pytest.raises(SystemExit):
        told(monkeypatch, "adam", "--help")
    printed = capsys.readouterr().out
    boxes = re.findall(r"^\W*((?:\w+ )?options)\W*$", printed, re.MULTILINE)
    assert boxes == ["options", "lens options", "loss options", "scene options", "run options"]
    assert "Sets the first coefficient, that of the cube. (default: 0.0)" in printed
    assert "More options act with a --scene of points: --points, --no-masked." in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("newton --rate 0.5", "--rate does nothing here: it acts with --method adam"),
        ("newton --rate 0.1", "--rate does nothing here: it acts with --method adam"),  # though it is the default
        ("newton --beta 2", "--beta does nothing here: it acts with --method adam"),
        ("newton --lens.k1 2", "--lens.k1 does nothing here: it acts with --method adam"),
        ("newton --lens.no-round", "--lens.no-round does nothing here: it acts with --method adam"),
        ("adam --scene a --no-masked", "--no-masked does nothing here: it acts with a --scene of points"),
        ("adam --method newton --rate 2", "--rate does nothing here: it acts with --method adam"),
    ],
)
def test_an_option_that_does_nothing_is_refused(monkeypatch: pytest.MonkeyPatch, arguments: str, sentence: str) -> None:
    with pytest.raises(SystemExit) as ended:
        told(monkeypatch, *arguments.split())
    assert ended.value.code == sentence


def test_where_options_act_is_collected_from_all_classes() -> None:
    assert idle(PRESETS["newton"]).keys() == {"rate", "lens.k1", "lens.round", "loss.beta"}
    assert {written(PRESETS["adam"])[name].option for name in idle(PRESETS["adam"])} == {"--points", "--no-masked"}
