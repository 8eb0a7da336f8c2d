"""A problem has the same bits in every batch, whatever its neighbours in the compiled tiles are and need."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from geometry import Status, barron, huber, pnp, project, se3
from geometry.robust import Kernel
from tests.numbers import DOUBLE, generator

KERNELS = {"none": None, "huber": huber(2.0), "barron": barron(0.5, 2.0)}
KINDS = ("good", "exact", "thin", "line", "point", "plane", "far", "outliers", "behind", "weightless", "too few")


class Problems(NamedTuple):
    points2d: Tensor
    points3d: Tensor
    K: Tensor
    distortion: Tensor
    weights: Tensor
    init: Tensor
    mask: Tensor


def pool(dtype: torch.dtype, N: int, lens: bool) -> Problems:
    """Two of each of the KINDS, in turns."""
    kinds, g = KINDS * 2, generator(4)
    B = len(kinds)
    at = {kind: torch.tensor([k == kind for k in kinds]) for kind in KINDS}
    points3d = 2 * torch.rand(B, N, 3, generator=g, **DOUBLE) - 1
    line = torch.linspace(-1, 1, N, **DOUBLE)[:, None] * torch.tensor([0.5, 0.3, 0.2], **DOUBLE)
    points3d[at["line"]], points3d[at["point"]] = line, 0.3
    # about as thin as rounding lets be told from a line, where a last bit decides the status
    points3d[at["thin"]] = line + torch.tensor([1e-7, 1e-6], **DOUBLE)[:, None, None] * points3d[at["thin"]]
    points3d[at["plane"], :, 2] = 0
    depth = torch.where(at["far"], 60.0, 6.0).double()
    ahead = torch.stack([0 * depth, 0 * depth, depth], -1)
    truth = se3.make(se3.rotation_from_quat_wxyz(torch.randn(B, 4, generator=g, **DOUBLE)), ahead)
    K = torch.tensor([[800.0, 0, 320], [0, 780, 240], [0, 0, 1]], **DOUBLE).repeat(B, 1, 1)
    distortion = torch.tensor([-0.28, 0.11, 0.0011, -0.0015, -0.02] if lens else [], **DOUBLE).repeat(B, 1)
    noise = torch.where(at["exact"], 0.0, 0.5)[:, None, None] * torch.randn(B, N, 2, generator=g, **DOUBLE)
    points2d = project(points3d, truth, K, distortion) + noise
    points2d[at["outliers"], : N // 2] = 640 * torch.rand(2, N // 2, 2, generator=g, **DOUBLE)
    init = se3.retract(truth, 0.1 * torch.randn(B, 6, generator=g, **DOUBLE))
    init[at["behind"], 2, 3] = -6
    weights, mask = 0.5 + torch.rand(B, N, 2, generator=g, **DOUBLE), torch.ones(B, N, dtype=torch.bool)
    weights[at["weightless"], : N // 3], mask[at["too few"], 2:] = 0, False
    return Problems(*(d.to(dtype) for d in (points2d, points3d, K, distortion, weights, init)), mask)


def solved(problems: Problems, which: Tensor, kernel: Kernel | None, start: str) -> dict[str, Tensor]:
    """All that `pnp` says of some of the problems, and the gradients."""
    part = Problems(*(d[which] for d in problems))
    leaves = {name: getattr(part, name).clone().requires_grad_() for name in ("points2d", "points3d", "K", "weights")}
    init = part.init if start == "init" else None
    found = pnp(**leaves, distortion=part.distortion, mask=part.mask, init=init, kernel=kernel)
    said = {"x": found.x, "cost": found.cost, "status": found.status, "steps": found.steps}
    if found.second is not None and found.ratio is not None:
        said |= {"second": found.second, "ratio": found.ratio}
    covector = torch.arange(16, dtype=found.cost.dtype).view(4, 4)
    gradients = torch.autograd.grad((found.x * covector).sum(), [*leaves.values()])  # type: ignore[operator]
    for name, gradient in zip(leaves, gradients, strict=True):
        assert (gradient[found.status != Status.CONVERGED] == 0).all(), name
        said[f"gradient by {name}"] = gradient
    return {name: value.detach() for name, value in said.items()}


@pytest.mark.parametrize("start", ["init", "global"])
@pytest.mark.parametrize(("kernel", "lens"), [("none", False), ("none", True), ("huber", False), ("barron", True)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_batch_is_a_loop_to_the_bit(dtype: torch.dtype, kernel: str, lens: bool, start: str) -> None:
    """Four copies of one problem are it alone: fewer are added up in another order (`cpu._spread`)."""
    problems, g = pool(dtype, 12, lens), generator(7)
    B = len(problems.K)
    alone = [solved(problems, torch.tensor([i] * 4), KERNELS[kernel], start) for i in range(B)]
    expected = {name: torch.stack([a[name][0] for a in alone]) for name in alone[0]}
    assert len(expected["status"].unique()) >= (3 if start == "global" else 4)
    for size in (4, 7, 13, B):
        which = torch.randperm(B, generator=g)[:size]
        for name, value in solved(problems, which, KERNELS[kernel], start).items():
            assert torch.equal(value, expected[name][which]), (name, size)


@pytest.mark.parametrize(("N", "sizes"), [(300, (1, 2, 3, 22)), (12, (1, 2, 3))])
def test_problems_that_fill_the_lanes_by_themselves_have_no_neighbours(N: int, sizes: tuple[int, ...]) -> None:
    problems = pool(torch.float64, N, True)
    whole = [solved(problems, torch.tensor([i]), None, "global") for i in range(sizes[-1])]
    for size in sizes:
        for name, value in solved(problems, torch.arange(size), None, "global").items():
            assert torch.equal(value, torch.cat([one[name] for one in whole[:size]])), (name, size)
