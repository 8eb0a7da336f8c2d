import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROBE = """
import importlib, json, pkgutil, sys
import geometry
found = {}
for module in ["geometry"] + [f"geometry.{m.name}" for m in pkgutil.iter_modules(geometry.__path__)]:
    for name in [n for n in sys.modules if n.split(".")[0] == "geometry"]:
        del sys.modules[name]
    importlib.import_module(module)  # alone, as the first of the package
    found[module] = sorted({n.split(".")[0] for n in sys.modules})
print(json.dumps(found))
"""


def test_every_module_of_geometry_imports_alone_and_brings_torch_only() -> None:
    output = subprocess.run([sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = json.loads(output)
    assert {"geometry", "geometry.se3", "geometry.optim", "geometry.pnp"} <= set(found)
    heavy = {
        "kornia",
        "open3d",
        "pytorch3d",
        "cv2",
        "matplotlib",
        "tensorboard",
        "scipy",
        "poselib",
        "tyro",
    }  # torch itself imports tqdm
    ours = {"datasets", "experiments"}
    for module, loaded in found.items():
        assert "torch" in loaded or module == "geometry"
        assert not (heavy | ours) & set(loaded), module
