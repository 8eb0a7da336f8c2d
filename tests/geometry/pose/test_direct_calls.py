"""Operators are called directly where nothing looks on, and only there; the bits are the same, whatever came before."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from geometry import pnp
from geometry.pose import data


class Names(TorchDispatchMode):
    """Gathers the names of the library's operators that torch calls."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if f.namespace == "learnable_geometry":
            self.names.append(f.overloadpacket.__name__)
        return f(*args, **(kwargs or {}))


def test_a_mode_sees_every_operator(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(2, 8, 1.0)
    pixels = scene.points2d.clone().requires_grad_()
    expected = pnp(pixels, scene.points3d, scene.K).x
    with Names() as seen:
        found = pnp(pixels, scene.points3d, scene.K).x
        found.sum().backward()
    assert seen.names == ["pnp_search", "pnp", "pnp_adjoint"]
    assert torch.equal(found, expected)


def test_tensors_without_numbers_have_poses_without_numbers(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(2, 8, 1.0)
    with FakeTensorMode() as mode:
        found = pnp(*(mode.from_tensor(t) for t in (scene.points2d, scene.points3d, scene.K)))
    assert found.x.shape == (2, 4, 4)


def test_a_trace_follows_its_argument(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(2, 8, 1.0)
    solve = lambda x: pnp(x, scene.points3d, scene.K, init=scene.world_to_camera_gt).x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: sizes are constants to a trace, and it is deprecated
        traced = torch.jit.trace(solve, scene.points2d, check_trace=False)
        assert torch.equal(traced(scene.points2d + 1), solve(scene.points2d + 1))


def test_what_a_call_in_inference_mode_keeps_serves_a_gradient(make_scene: Callable[..., Any]) -> None:
    scene = make_scene(2, 8, 1.0)
    data._kept.cache_clear()
    with torch.inference_mode():
        expected = pnp(scene.points2d, scene.points3d, scene.K).x
    pixels = scene.points2d.clone().requires_grad_()
    found = pnp(pixels, scene.points3d, scene.K).x
    found.sum().backward()
    assert torch.equal(found, expected)
    assert pixels.grad is not None
    assert pixels.grad.abs().max() > 0


ORDER = """
import torch
from geometry import pnp, project, se3
from geometry.pose import cpu
if {first}: cpu._kernel("adjoint")
g = torch.Generator().manual_seed(0)
of = dict(generator=g, dtype=torch.float64)
K = torch.tensor([[800.0, 0, 320], [0, 780, 240], [0, 0, 1]]).double()
for _ in range(40):
    X, init = torch.rand(6, 3, **of), se3.from_rotvec_t(torch.randn(1, 6, **of) + torch.tensor([0, 0, 0, 0, 0, 6.0]))
    found = pnp(project(X, init, K) + torch.randn(1, 6, 2, **of), X, K, init=init)
    print([v.hex() for v in [*found.x.flatten().tolist(), *found.cost.tolist()]])
"""


@pytest.mark.slow
def test_bits_do_not_depend_on_which_kernel_comes_first() -> None:
    """Kernels share functions, and those of the first one that is loaded serve all."""
    run = lambda first: (
        subprocess.run(
            [sys.executable, "-c", ORDER.format(first=first)], capture_output=True, text=True, check=True
        ).stdout
    )
    assert run(True) == run(False)
