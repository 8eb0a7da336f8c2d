"""The two back ends of `bundle` keep one contract: the same status, cost and gradient for every bundle."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from geometry import BundleSolution, Status, barron, cauchy, geman_mcclure, huber, se3
from geometry.bundle_adjustment import operator, products
from geometry.robust import RobustKernel
from tests.geometry.bundle_adjustment.scenes import Tracks, keep_only, make_tracks, two_scenes, with_gradient
from tests.numbers import DOUBLE, generator

KERNELS: dict[str, RobustKernel | None] = {
    "none": None,
    "huber": huber(1.5),
    "cauchy": cauchy(1.5),
    "geman_mcclure": geman_mcclure(4.0),
    "barron": barron(-1.0, 3.0),
}
InTensors = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def in_tensors(monkeypatch: pytest.MonkeyPatch) -> InTensors:
    """A context in which observations and products with their blocks are computed as on a GPU."""

    @contextmanager
    def context() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(operator, "supported", lambda *_: False)
            patch.setattr(products, "_kernels", lambda *_: False)
            patch.setattr(products, "_reduce", products._reduce_in_tensors)
            yield

    return context


def both(in_tensors: InTensors, tracks: Tracks, **options: Any) -> list[tuple[BundleSolution, dict[str, Tensor]]]:
    compiled = with_gradient(tracks, **options)
    assert compiled[0].task.problem._compiled(compiled[0].task.data)
    with in_tensors():
        return [compiled, with_gradient(tracks, **options)]


def unlike(found: list[tuple[BundleSolution, dict[str, Tensor]]]) -> dict[str, Any]:
    """What differs: statuses, what is said of observations and points, and, of what converged, cost and gradients."""
    (one, g), (other, h) = found
    apart = {"status": (one.status, other.status)} if one.status != other.status else {}
    if not (one.converged and other.converged):
        return apart
    for name in ("left_out", "behind", "undetermined"):
        if not torch.equal(getattr(one, name), getattr(other, name)):
            apart[name] = getattr(one, name), getattr(other, name)
    if (one.cost - other.cost).abs() > 1e-10 * other.cost + 1e-18:
        apart["cost"] = one.cost, other.cost
    return apart | {n: (g[n] - h[n]).norm() / h[n].norm() for n in g if (g[n] - h[n]).norm() > 1e-7 * h[n].norm()}


def assert_alike(in_tensors: InTensors, tracks: Tracks, status: Status, **options: Any) -> None:
    found = both(in_tensors, tracks, **options)
    assert not unlike(found)
    assert Status(int(found[0][0].status)) == status


def with_outliers(tracks: Tracks, wrong: float, seed: int) -> Tracks:
    """A share of the pixels lies up to 100 px off."""
    g = generator(seed)
    some = torch.rand(len(tracks.points2d), 1, generator=g, **DOUBLE) < wrong
    return replace(
        tracks, points2d=tracks.points2d + some * 200 * (torch.rand(len(some), 2, generator=g, **DOUBLE) - 0.5)
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_among_outliers(kernel: str, in_tensors: InTensors) -> None:
    """Next to the same start lies the same minimum, unless a step leads one of them over a ridge."""
    alike = []
    for seed, wrong in enumerate((0.0, 0.3, 0.6)):
        tracks = with_outliers(make_tracks(5, 14, seen=1.0, seed=seed), wrong, seed)
        alike.append(not unlike(both(in_tensors, tracks, kernel=KERNELS[kernel], max_steps=40)))
    assert alike[0]
    assert sum(alike) >= 2


LENSES: dict[str, dict[str, Any]] = {
    "pinhole": {"lens": 0, "free": ()},
    "own f, k1, k2": {"lens": 2, "free": ("f", "k1", "k2")},
    "shared, tangential": {"lens": 5, "cameras": 1, "free": ("fx", "fy", "p1", "p2")},
    "twelve coefficients, fixed": {"lens": 12, "cameras": 2, "free": ("cx",)},
    "fisheye, equidistant": {"model": "fisheye", "lens": 0, "free": ("f",)},
    "fisheye": {"model": "fisheye", "lens": 4, "cameras": 1, "free": ("fx", "fy", "cx", "k1", "k3")},
}


@pytest.mark.parametrize("gauge", ["fixed", "free"])
@pytest.mark.parametrize("lens", LENSES)
def test_lenses_and_gauges(lens: str, gauge: str, in_tensors: InTensors) -> None:
    shape = dict(LENSES[lens])
    free = ("poses", "points", *shape.pop("free"))
    tracks = make_tracks(5, 25, noise=0.2, seen=1.0, **shape)
    assert_alike(in_tensors, tracks, Status.CONVERGED, gauge=gauge, free=free)


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_far_origins_and_units(unit: float, in_tensors: InTensors) -> None:
    tracks = make_tracks(5, 16)
    away = torch.tensor([5e5, 4e6, -3e2], **DOUBLE)
    pose = tracks.world_to_camera.clone()
    pose[:, :3, 3] *= unit
    far = replace(tracks, points3d=unit * (tracks.points3d + away), world_to_camera=se3.about(pose, -unit * away))
    assert_alike(in_tensors, far, Status.CONVERGED, kernel=huber(1.0))


def degenerate(kind: str) -> tuple[Tracks, Status]:
    tracks = make_tracks(5, 16, seen=1.0)
    view, point = tracks.camera_index, tracks.point_index
    pose, points = tracks.world_to_camera.clone(), tracks.points3d.clone()
    if kind == "a point seen once":
        return keep_only(tracks, (point != 3) | (view == 2)), Status.CONVERGED
    if kind == "a view of two points":
        return keep_only(tracks, (view != 3) | (point < 2)), Status.CONVERGED
    if kind == "one listed twice besides":
        some = ((view != 3) | (point < 2)).nonzero().flatten()
        return keep_only(tracks, torch.cat([some, some[(view[some] == 3)][:1]])), Status.CONVERGED
    if kind == "cameras in one place":
        pose[:] = torch.eye(4, **DOUBLE)
        return replace(tracks, world_to_camera=pose, points3d=points + pose.new_tensor([0, 0, 7])), Status.CONVERGED
    if kind == "a point far away":
        points[3] = 1e7 * (points[3] - se3.centre(pose)[0])
        return replace(tracks, points3d=points), Status.CONVERGED
    if kind == "two scenes":
        return two_scenes(), Status.SINGULAR
    if kind == "a pixel whose square is no number":
        return replace(tracks, points2d=tracks.points2d.index_fill(0, torch.tensor([7]), 1e200)), Status.INFEASIBLE
    return keep_only(tracks, (view < 2) & (point < 4)), Status.TOO_FEW


@pytest.mark.parametrize(
    "kind",
    ["a point seen once", "a view of two points", "one listed twice besides", "cameras in one place",
     "a point far away", "two scenes", "a pixel whose square is no number", "two views of four"],
)  # fmt: skip
def test_what_is_degenerate(kind: str, in_tensors: InTensors) -> None:
    tracks, status = degenerate(kind)
    assert_alike(in_tensors, tracks, status)
