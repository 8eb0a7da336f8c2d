"""What is damaged or half written is told, or removed, before anything is computed."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.running import saved
from experiments.running.run import Run
from tests.experiments.running import toy_driver
from tests.experiments.running.toy_driver import PRESETS, Config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return replace(PRESETS["default"], out=tmp_path)


def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path, rng = tmp_path / "some.pt", np.random.default_rng(0)
    values = {"x": torch.arange(40.0), "text": "abc", "numbers": [1, 2.5]}
    saved.save(path, values)
    whole = path.read_bytes()
    errors = []
    for bit in rng.choice(8 * len(whole), 300, replace=False):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(flipped)
        try:
            found = saved.load(path, "some values").value
        except ValueError as error:
            errors.append(str(error))
        else:
            assert torch.equal(found.pop("x"), values["x"])
            assert found == {"text": "abc", "numbers": [1, 2.5]}
    assert len(errors) > 20
    for error in errors:
        assert error.startswith(f"{path}: some values wanted, found a file that is damaged")
        assert saved.this_version() in error


def test_who_wrote_a_damaged_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some.pt"
    monkeypatch.setattr(saved, "this_version", lambda: "an older one")
    saved.save(path, torch.full((50,), 7.25))
    monkeypatch.undo()
    assert saved.load(path, "a tensor").written_by == "an older one"
    content = path.read_bytes()
    number = np.float32(7.25).tobytes()
    path.write_bytes(content.replace(number, np.float32(7.5).tobytes(), 1))
    with pytest.raises(ValueError, match=rf"written by an older one, this is {re.escape(saved.this_version())}"):
        saved.load(path, "a tensor")
    torch.save(1, path)
    assert saved.load(path, "a number") == (1, "an unknown version")


@pytest.mark.parametrize(
    "damaged", ["checkpoint.pt", "recording/frame-00000003.npz", "recording/stage-000.npz", "metrics.csv"]
)
def test_damage_is_told_before_anything_is_computed(
    config: Config, interrupted: Callable[..., None], monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    interrupted(toy_driver.main, config, at=16)
    path = config.out / "toy_driver" / "default-seed0" / damaged
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    monkeypatch.setattr(Run, "iterations", lambda *_: pytest.fail("it was begun"))
    with pytest.raises(SystemExit, match=re.escape(str(path))):
        toy_driver.main(replace(config, resume=True))
    path.write_bytes(content)
    monkeypatch.undo()
    assert toy_driver.main(replace(config, resume=True))["converged"]


def test_what_a_killed_process_had_half_written_is_removed(config: Config, interrupted: Callable[..., None]) -> None:
    interrupted(toy_driver.main, config, at=16)
    folder = config.out / "toy_driver" / "default-seed0"
    half = [folder / name for name in (".tmp-checkpoint.pt", "recording/.tmp-frame-00000016.npz")]
    for path in half:
        path.write_bytes(b"half")
    toy_driver.main(replace(config, resume=True, iterations=16))
    assert not any(path.exists() for path in half)


def test_rows_that_the_checkpoint_counted_on_must_be_there(config: Config, interrupted: Callable[..., None]) -> None:
    """One byte less than at the checkpoint is too few, as many are enough."""
    interrupted(toy_driver.main, config, at=16)
    folder = config.out / "toy_driver" / "default-seed0"
    size = torch.load(folder / "checkpoint.pt", weights_only=True)["metrics_bytes"]
    rows = (folder / "metrics.csv").read_bytes()
    assert len(rows) > size
    (folder / "metrics.csv").write_bytes(rows[: size - 1])
    with pytest.raises(SystemExit, match=r"metrics\.csv is shorter than it was at the checkpoint"):
        toy_driver.main(replace(config, resume=True))
    (folder / "metrics.csv").write_bytes(rows[:size])
    toy_driver.main(replace(config, resume=True, iterations=16))
    assert (folder / "metrics.csv").read_bytes() == rows
