"""Every driver that resumes, killed where it writes: what it says in the end is what one in one go says."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments import (
    camera_calibration,
    expert_selection,
    gradient_comparison,
    keypoint_refinement,
    line_fitting,
    pose_estimation,
    robust_pose,
    structure_from_motion,
    structure_routes,
    sudoku,
)
from experiments.tasks import homography
from tests.experiments.running import toy_driver
from tests.experiments.summaries import without_times

Main = Callable[[Any], dict[str, Any]]


def kills(main: Main, config: Any, left: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the run in one go says. In folders of `left`: what a SIGKILL right before each checkpoint, and right before

    the summary, leaves; of the toy driver before each file. Files in between make no difference to what is resumed.
    """
    replaced = os.replace
    run = config.out / main.__module__.rpartition(".")[2] / f"{config.preset}-seed{config.seed}"

    def watched(source: Any, target: Any) -> None:
        if Path(target).name in ("checkpoint.pt", "summary.json") or main is toy_driver.main:
            shutil.copytree(run, left / str(len(list(left.iterdir()))) / run.relative_to(config.out))
        replaced(source, target)

    left.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", watched)
        return main(config)


SHORT: dict[str, tuple[Main, Any]] = {
    "toy_driver": (toy_driver.main, replace(toy_driver.PRESETS["smoke"], log_every=2)),
    "camera_calibration": (camera_calibration.main, replace(camera_calibration.PRESETS["smoke"], iterations=4)),
    "camera_calibration sgd": (
        camera_calibration.main, replace(camera_calibration.PRESETS["smoke"], method="sgd", iterations=4, log_every=2),
    ),
    "pose_estimation": (pose_estimation.main, replace(pose_estimation.PRESETS["smoke"], iterations=4, log_every=2)),
    "structure_from_motion": (structure_from_motion.main, structure_from_motion.PRESETS["smoke"]),
    "structure_from_motion vgg11": (
        structure_from_motion.main,
        replace(structure_from_motion.PRESETS["smoke"], method="vgg11_adam", points=12, iterations=3, log_every=2),
    ),
    "keypoint_refinement": (
        keypoint_refinement.main, replace(keypoint_refinement.PRESETS["smoke"], scenes=1, test_scenes=1, log_every=2),
    ),
    "line_fitting": (
        line_fitting.main, replace(line_fitting.PRESETS["smoke"], iterations=4, test_images=6, log_every=2),
    ),
    "expert_selection": (
        expert_selection.main,
        replace(expert_selection.PRESETS["smoke"], iterations=4, alone=2, test_images=6, log_every=2),
    ),
    "robust_pose": (
        robust_pose.main, replace(robust_pose.PRESETS["smoke"], iterations=4, test_problems=6, log_every=2),
    ),
    "sudoku": (
        sudoku.main,
        replace(sudoku.PRESETS["smoke"], iterations=4, puzzles=20, test_puzzles=6, watched=6, log_every=3),
    ),
    "gradient_comparison": (
        gradient_comparison.main,
        replace(gradient_comparison.PRESETS["smoke"], methods=("exact",), steps=2, seeds=1, test_views=4, problems=2),
    ),
    "structure_routes": (
        structure_routes.main, replace(structure_routes.PRESETS["smoke"], steps=3, rounds=2, adam_steps=2),
    ),
    "homography": (homography.main, homography.PRESETS["smoke"]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("driver", SHORT)
def test_it_ends_the_same_wherever_it_was_killed(driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main, config = SHORT[driver]
    whole = told(kills(main, replace(config, out=tmp_path / "whole"), tmp_path / "left", monkeypatch))
    outs = sorted((tmp_path / "left").iterdir(), key=lambda out: int(out.name))
    assert len(outs) > 1
    some = outs if main is toy_driver.main else [outs[0], outs[len(outs) // 2], outs[-1]]
    for out in dict.fromkeys(some):
        assert told(main(replace(config, out=out, resume=True))) == whole, out


def told(summary: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on the machine's load; the verdict of structure_routes is about seconds."""
    return without_times(summary) | ({"note": ""} if summary["experiment"] == "structure_routes" else {})
