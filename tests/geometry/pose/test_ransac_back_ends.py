"""The two back ends of `pnp_ransac`, from one generator state, end at the same inliers and cost."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from geometry import RansacSolution, Status, pnp_ransac, project, se3
from geometry.camera import Model
from geometry.pose import ransac
from geometry.pose.ransac import _Compiled
from geometry.pose.ransac_tensors import TensorSearch
from tests.numbers import DOUBLE, close, generator

torch.set_num_threads(1)
LENSES = {
    "pinhole": (),
    "tangential": (-0.28, 0.11, 0.0011, -0.0015, -0.02),
    "rational": (-0.2, 0.1, 0.001, -0.001, 0.01, 0.05, -0.02, 0.003),
    "fisheye": (0.06, -0.012, 0.004, -0.001),
}
B = 12


def problems(
    N: int = 40, lens: str = "pinhole", wrong: float = 0.3, noise: float = 0.5, flat: bool = False, away: float = 0.0
) -> dict[str, Any]:
    """Cubes, or squares, seen from six units away, a share of their pixels anywhere in the image."""
    g = generator()
    points3d = 2 * torch.rand(B, N, 3, generator=g, **DOUBLE) - 1
    if flat:
        points3d[..., 2] = 0
    ahead = torch.tensor([0.0, 0.0, 6.0], **DOUBLE).expand(B, 3)
    pose = se3.from_rotvec_t(torch.cat([0.6 * torch.randn(B, 3, generator=g, **DOUBLE), ahead], -1))
    K = torch.tensor([[800.0, 0, 320], [0, 780, 240], [0, 0, 1]], **DOUBLE)
    distortion = torch.tensor(LENSES[lens], **DOUBLE)
    model: Model = "fisheye" if lens == "fisheye" else "radtan"
    points2d = project(points3d, pose, K, distortion, model=model) + noise * torch.randn(B, N, 2, generator=g, **DOUBLE)
    wild = torch.rand(B, N, 2, generator=g, **DOUBLE) * torch.tensor([640.0, 480.0], **DOUBLE)
    outlier = torch.rand(B, N, generator=g).argsort(1).argsort(1) < round(wrong * N)
    points2d = torch.where(outlier[..., None], wild, points2d)
    points3d = points3d + away * torch.tensor([1.0, -0.5, 0.7], **DOUBLE)
    return {"points2d": points2d, "points3d": points3d, "K": K, "distortion": distortion, "model": model}


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[RansacSolution, RansacSolution]]:
    """A function that calls `pnp_ransac` on both back ends, with one generator state."""

    def solve(**data: Any) -> tuple[RansacSolution, RansacSolution]:
        found = []
        for back_end in (_Compiled, TensorSearch):
            monkeypatch.setattr(ransac, "_Compiled", back_end)
            found.append(pnp_ransac(**data, hypotheses=512, generator=generator()))
        return found[0], found[1]

    return solve


def assert_alike(found: tuple[RansacSolution, RansacSolution]) -> None:
    """The same statuses; where there is a pose, the same samples and inliers, and the cost to rounding."""
    one, other = found
    assert torch.equal(one.status, other.status)
    good = one.converged
    assert torch.equal(one.steps[good], other.steps[good])
    assert torch.equal(one.inliers[good], other.inliers[good])
    close(one.cost[good], other.cost[good], rtol=1e-9, atol=1e-15)


Solved = Callable[..., tuple[RansacSolution, RansacSolution]]


@pytest.mark.slow
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("wrong", [0.0, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("lens", LENSES)
def test_lenses_and_outliers(lens: str, wrong: float, flat: bool, solved: Solved) -> None:
    found = solved(**problems(lens=lens, wrong=wrong, flat=flat))
    assert_alike(found)
    assert found[0].converged.all()


@pytest.mark.slow
@pytest.mark.parametrize("away", [1e3, 1e6])
def test_far_origins(away: float, solved: Solved) -> None:
    found = solved(**problems(away=away))
    assert_alike(found)
    assert found[0].converged.all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mask", "weights", "candidates"])
def test_what_is_said_of_each_point(name: str, solved: Solved) -> None:
    given = {
        "mask": torch.rand(B, 40, generator=generator(4)) < 0.8,
        "weights": 0.5 + torch.rand(B, 40, 2, generator=generator(5), **DOUBLE),
        "candidates": (torch.rand(B, 40, generator=generator(6), **DOUBLE) - 0.3).clamp_min(0),
    }
    found = solved(**problems(), **{name: given[name]})
    assert_alike(found)
    assert found[0].converged.all()


@pytest.mark.slow
@pytest.mark.parametrize("N", [4, 5, 6])
def test_few_points(N: int, solved: Solved) -> None:
    assert_alike(solved(**problems(N, wrong=0.0)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["collinear", "one point", "one pixel", "fewer than a sample", "all masked"])
def test_what_is_degenerate_fails_alike_and_alone(kind: str, solved: Solved) -> None:
    data, mask = problems(wrong=0.0), torch.ones(B, 40, dtype=torch.bool)
    if kind == "collinear":
        data["points3d"][::2] = torch.linspace(-1, 1, 40, **DOUBLE)[:, None] * torch.tensor([0.5, 0.3, 0.2], **DOUBLE)
    if kind == "one point":
        data["points3d"][::2] = 0.3
    if kind == "one pixel":
        data["points2d"][::2] = data["points2d"][::2, :1]
    if kind == "fewer than a sample":
        mask[::2, 2:] = False
    if kind == "all masked":
        mask[::2] = False
    found = solved(**data, mask=mask)
    assert_alike(found)
    assert found[0].converged.tolist() == [False, True] * (B // 2)
    if kind in ("fewer than a sample", "all masked"):
        assert (found[0].status[::2] == Status.TOO_FEW).all()


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [0.0, 0.5])
def test_where_many_points_are_at_the_rim_the_scores_are_close(wrong: float, solved: Solved) -> None:
    """An eighth of the right points lie beyond the threshold: which ones are inliers has several stable answers.

    Descents of a different order of steps end at different ones. None may be far above the other.
    """
    one, other = solved(**problems(60, wrong=wrong, noise=2.0))
    assert torch.equal(one.status, other.status)
    close(one.cost, other.cost, rtol=0.02, atol=0)
