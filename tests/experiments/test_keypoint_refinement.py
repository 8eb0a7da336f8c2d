"""The driver of refined keypoints: what it compares, keeps and leaves."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments import keypoint_refinement
from experiments.features.network import load_network
from experiments.features.tracked import Made
from experiments.keypoint_refinement import PRESETS, main, prepared

TINY = replace(PRESETS["smoke"], iterations=2, scenes=1, test_scenes=1, log_every=1)


@pytest.mark.slow
def test_ways_are_compared_and_scenes_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(TINY, out=tmp_path)
    summary = main(config)
    folder = tmp_path / "keypoint_refinement" / "smoke-seed0"
    table = (folder / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["sift", "corner", "aligned", "poses", "residuals"]
    judged = json.loads((folder / "judged.json").read_text())
    assert summary["errors"]["aligned_residual_px"] == judged["aligned"][0]["residual_px"]
    assert summary["errors"]["aligned_residual_px"] < summary["errors"]["sift_residual_px"]
    assert (folder / "errors.png").exists()

    def not_again(*_: object) -> Made:
        raise AssertionError("the scene is there already")

    monkeypatch.setattr(keypoint_refinement, "made_scene", not_again)
    some = prepared(config, 0)
    refined = load_network(folder / "network.pt").refine(some.aligned, some.made.tracked.point)
    # two steps have moved what began at zero, by little
    moved = (refined.points2d - some.aligned.points2d).norm(dim=-1)
    assert 0 < moved.max() < 0.1
    assert not torch.equal(refined.weights, torch.ones_like(refined.weights))


def test_scenes_to_test_on_are_none_to_learn_from() -> None:
    """Of any run: its own training scenes, and those of other seeds."""
    config = PRESETS["default"]
    assert config.scenes < 1000
    assert config.test_scenes < 1000
    assert keypoint_refinement._TEST > 1000 * 900
