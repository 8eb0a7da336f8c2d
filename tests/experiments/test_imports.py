"""What training brings along: nothing to look at things with, until there is something to see."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VIEWERS = {"open3d", "plotly", "matplotlib", "playwright", "experiments.viewers", "experiments.view"}
DRIVERS = [
    "bundle_adjustment", "camera_calibration", "expert_selection", "gradient_comparison", "keypoint_refinement",
    "line_fitting", "object_pose", "pose_estimation", "predict", "robust_pose", "structure_from_motion",
    "structure_routes", "sudoku",
]  # fmt: skip

PROBE = """
import importlib, json, sys

def loaded_with(module):  # and with those before it: the first that brings a viewer is the one to blame
    importlib.import_module(module)
    return sorted(sys.modules)

print(json.dumps([loaded_with(module) for module in sys.argv[1:]]))
"""

TRAINING = """
import json, sys
from dataclasses import replace
from pathlib import Path
from experiments.pose_estimation import PRESETS, main

main(replace(PRESETS["smoke"], out=Path(sys.argv[1])))
print(json.dumps(sorted(sys.modules)))
"""


def python(code: str, *arguments: str) -> list:
    run = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
def test_importing_a_driver_imports_no_viewer() -> None:
    modules = [f"experiments.{name}" for name in DRIVERS]
    for module, loaded in zip(modules, python(PROBE, *modules), strict=True):
        assert module in loaded
        assert not (VIEWERS | {"monai"}) & set(loaded), module


@pytest.mark.slow
def test_a_whole_run_draws_without_a_window_s_library(tmp_path: Path) -> None:
    loaded = set(python(TRAINING, str(tmp_path)))
    assert "matplotlib" in loaded
    assert not {"open3d", "plotly", "matplotlib.pyplot"} & loaded
