import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROBE = """
import importlib, json, multiprocessing, pkgutil, sys
import geometry, torch

def loaded_by(module):
    importlib.import_module(module)  # alone, as the first of the package
    return sorted({name.split(".")[0] for name in sys.modules})

modules = [m.name for m in pkgutil.walk_packages(geometry.__path__, "geometry.") if "geometry.compiled" not in m.name]
with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:  # each in a process of its own
    print(json.dumps(dict(zip(modules, pool.map(loaded_by, modules, chunksize=1)))))
"""


@pytest.mark.slow
def test_every_module_of_geometry_imports_alone_and_brings_torch_only() -> None:
    output = subprocess.run([sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = json.loads(output)
    assert {"geometry.se3", "geometry.optim.problem", "geometry.pose.layer", "geometry.pose.operator"} <= set(found)
    heavy = {
        "kornia",
        "open3d",
        "pytorch3d",
        "cv2",
        "matplotlib",
        "tensorboard",
        "scipy",
        "poselib",
        "pycolmap",
        "tyro",
        "numba",  # a kernel is imported when it is first used
    }  # torch itself imports tqdm
    ours = {"datasets", "experiments"}
    for module, loaded in found.items():
        assert not (heavy | ours) & set(loaded), module
