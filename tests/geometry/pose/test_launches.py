"""What `pnp` in tensors asks of a device: operations launched, and times that the host waits for it.

On an accelerator these are what a call costs, whatever the size of the batch.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from experiments.benchmarks.places import Launches
from geometry import pnp, se3
from geometry.camera import Model
from geometry.pose import tensors
from tests.numbers import DOUBLE, generator


@pytest.mark.parametrize(
    ("model", "lens", "start", "launches"),
    [("radtan", False, True, 820), ("radtan", False, False, 3000), ("radtan", True, True, 1300),
     ("radtan", True, False, 5200), ("fisheye", True, True, 1250), ("fisheye", True, False, 4600)],
)  # fmt: skip
def test_launches_and_waits(
    make_scene: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    model: Model,
    lens: bool,
    start: bool,
    launches: int,
) -> None:
    monkeypatch.setattr("geometry.pose.layer._back_end", lambda data, options: tensors)
    scene = make_scene(32, 64, 1.0, model=model, distorted=lens)
    near = se3.retract(scene.world_to_camera_gt, 0.02 * torch.randn(32, 6, generator=generator(2), **DOUBLE))
    options = {"distortion": scene.distortion, "model": model} | ({"init": near} if start else {})
    pixels = scene.points2d.clone().requires_grad_()
    pnp(pixels, *scene[1:3], **options)  # constants are made once
    with Launches() as counted:
        found = pnp(pixels, *scene[1:3], **options)
    assert found.converged.all()
    assert counted.names.total() <= launches
    assert counted.waits <= 5


def test_what_counts_as_a_launch() -> None:
    x = torch.ones(3, 3)
    with Launches() as counted:
        (x.mT[0] + x[:, 0]).unsqueeze(0)
        assert (x > 0).any()
    assert counted.names == {"add": 1, "gt": 1, "any": 1, "_local_scalar_dense": 1}
    assert counted.waits == 1
