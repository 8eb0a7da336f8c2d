"""RANSAC for PnP by threads of a device, as plain Python: the samples, inliers and costs of the kernels of the CPU."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.benchmarks.places import StandIn, simulated_grid
from geometry import Status, pnp_ransac
from geometry.camera import Model
from geometry.pose import cuda, ransac
from geometry.pose.data import PnPData
from geometry.pose.ransac import _Compiled, _OnDevice
from tests.geometry.pose.test_ransac_back_ends import problems
from tests.numbers import DOUBLE, close, generator


@pytest.fixture(autouse=True, params=["cuda", "warp"])
def _simulated(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Poses are improved by a thread, or by a team of four, which stands for the 32 of a warp."""
    for team in ("cuda", request.param):
        simulated_grid(team)  # importing it makes constants
    for module in (cuda, ransac):
        monkeypatch.setattr(module, "grid", simulated_grid)
    monkeypatch.setattr(cuda, "_MANY", 0 if request.param == "cuda" else math.inf)
    monkeypatch.setattr(cuda, "_WARP", 4)
    monkeypatch.setattr(_OnDevice, "ROUNDS", (64, 256))  # those of the CPU


def given(B: int = 3, N: int = 12, **options: Any) -> list[Tensor]:
    """The data and candidates of a few problems."""
    data = problems(N, **options)
    shared = data["K"][None], data["distortion"][None], torch.ones(1, 1, 1, **DOUBLE), torch.ones(1, 1) == 1
    return [data["points2d"][:B], data["points3d"][:B], *shared, torch.ones(1, 1, **DOUBLE)]


def assert_alike(tensors: list[Tensor], hypotheses: int = 192, model: Model = "radtan") -> Tensor:
    """Inliers, samples, presence and chance, and what each thinks of its poses. Returns the samples."""
    one, other = (b(PnPData(*tensors[:6]), tensors[6], 4.0, model) for b in (_Compiled, _OnDevice))
    expected, found = (b.search(hypotheses, 0.9999, generator()) for b in (one, other))
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[2], expected[2])
    assert torch.equal(found[3], expected[3])
    close(found[4], expected[4], 0.0, 1e-12)
    (cost, (inliers,)), (reference, (support,)) = other.score(found[0]), one.score(expected[0])
    close(cost, reference, 1e-12, 1e-9)  # a millionth of a pixel, squared, is as good as nothing
    assert torch.equal(inliers, support)
    return found[2]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("wrong", [0.0, 0.25, 0.5])
def test_outliers(wrong: float, flat: bool) -> None:
    drawn = assert_alike(given(wrong=wrong, flat=flat))
    assert (drawn.max() > 64) == (wrong == 0.5)


def test_the_best_of_all_samples_is_kept_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ransac, "REFINE", 0)
    tensors = given(N=10)
    one, other = (b(PnPData(*tensors[:6]), tensors[6], 4.0, "radtan") for b in (_Compiled, _OnDevice))
    expected, found = (b.search(192, 1.0, generator()) for b in (one, other))
    assert not torch.allclose(one.search(64, 1.0, generator())[0], expected[0])  # later rounds have better ones
    close(found[0], expected[0], 1e-7)
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("lens", ["tangential", "rational", "fisheye"])
def test_lenses(lens: str) -> None:
    assert_alike(given(B=2, lens=lens), model="fisheye" if lens == "fisheye" else "radtan")


def test_what_is_said_of_each_point() -> None:
    tensors = given()
    tensors[4] = 0.5 + torch.rand(3, 12, 2, generator=generator(5), **DOUBLE)
    tensors[5] = torch.rand(3, 12, generator=generator(4)) < 0.8
    tensors[0][~tensors[5]] = torch.nan
    tensors[6] = (torch.rand(3, 12, generator=generator(6), **DOUBLE) - 0.2).clamp_min(0)
    assert_alike(tensors)


@pytest.mark.parametrize("kind", ["collinear", "one point", "one pixel", "two points", "all masked"])
def test_what_is_degenerate_fails_alone(kind: str) -> None:
    tensors = given(wrong=0.0)
    mask = torch.ones(3, 12, dtype=torch.bool)
    if kind == "collinear":
        tensors[1][1] = torch.linspace(-1, 1, 12, **DOUBLE)[:, None] * torch.tensor([0.5, 0.3, 0.2], **DOUBLE)
    if kind == "one point":
        tensors[1][1] = 0.3
    if kind == "one pixel":
        tensors[0][1] = tensors[0][1, :1].clone()
    if kind == "two points":
        mask[1, 2:] = False
    if kind == "all masked":
        mask[1] = False
    assert_alike([*tensors[:5], mask, tensors[6]], 64)


@pytest.mark.parametrize("name", ["points2d", "points3d", "K", "distortion", "weights", "candidates"])
def test_what_is_not_as_it_should_be_ends_its_own_problem(name: str) -> None:
    tensors = [d.expand(3, *d.shape[1:]).clone() for d in given(lens="tangential", wrong=0.0)]
    tensors[4], tensors[6] = torch.ones(3, 12, 2, **DOUBLE), torch.ones(3, 12, **DOUBLE)
    expected = _OnDevice(PnPData(*tensors[:6]), tensors[6], 4.0, "radtan").search(64, 0.9999, generator())
    names = ["points2d", "points3d", "K", "distortion", "weights", "mask", "candidates"]
    tensors[names.index(name)][1].view(-1)[0] = torch.inf
    found = _OnDevice(PnPData(*tensors[:6]), tensors[6], 4.0, "radtan").search(64, 0.9999, generator())
    assert found[3][1] == -1
    assert not found[1][1].any()
    assert torch.equal(found[0][1], torch.eye(4, **DOUBLE))
    for f, e in zip(found, expected, strict=True):
        assert torch.equal(f[[0, 2]], e[[0, 2]])


def test_a_call_waits_for_nothing_and_launches_two_kernels_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {name: d[:2] if len(d) == 12 else d for name, d in problems(12, wrong=0.25).items()}
    data["points2d"] = data["points2d"].clone()
    expected = pnp_ransac(**data, hypotheses=300, generator=generator())
    monkeypatch.setattr(ransac, "_back_end", lambda *_: _OnDevice)
    launched = []
    for grid in {simulated_grid("cuda"), simulated_grid("warp")}:
        monkeypatch.setattr(grid, "run", lambda name, *rest, run=grid.run: (launched.append(name), run(name, *rest)))
    with StandIn() as device:
        found = pnp_ransac(**data, hypotheses=300, generator=generator())
    assert device.waits == 0
    assert [name for name in launched if name.startswith("ransac")] == [
        "ransac_survey", *["ransac_sample", "ransac_improve"] * 5, "ransac_score",
    ]  # fmt: skip
    assert found.status.tolist() == [Status.CONVERGED] * 2
    assert torch.equal(found.inliers, expected.inliers)
    assert torch.equal(found.steps, expected.steps)
    close(found.cost, expected.cost, 0.0, 1e-9)
