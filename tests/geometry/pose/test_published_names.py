"""What was written for the published BPnP runs unchanged: the module of docs/coming_from_bpnp.md stands in for theirs.

Their names: `BPnP.BPnP.apply(pts2d, pts3d, K, ini_pose)`, poses (B,6); `BPnP.batch_project(P, pts3d, K, angle_axis)`.
"""

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from geometry import BPnP, pnp, project, se3
from tests.numbers import DOUBLE, central_difference, close, generator, normal

PAGE = Path(__file__).parents[3] / "docs" / "coming_from_bpnp.md"
K = torch.tensor([[300.0, 0, 128], [0, 300, 128], [0, 0, 1]], **DOUBLE)
CUBE = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], **DOUBLE)] * 3)
TRUTH = torch.tensor([[0.4, -0.3, 0.2, 0.1, 0.0, 4.0], [-0.5, 0.2, 1.1, 0.0, -0.2, 5.0]], **DOUBLE)


@pytest.fixture(scope="module")
def shim() -> ModuleType:
    """The page's BPnP.py."""
    (code,) = re.findall(r":caption: BPnP\.py\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    module = ModuleType("BPnP")
    exec(code, vars(module))
    return module


def test_it_has_the_published_names(shim: ModuleType) -> None:
    assert {"BPnP", "BPnP_fast", "BPnP_m3d", "batch_project"} <= {*vars(shim)}


def test_a_demo_learns_the_pose(shim: ModuleType) -> None:
    """A network's keypoints, with the last pose for a start, in the order of the published loop; float32."""
    torch.manual_seed(0)
    points3d, matrix = CUBE.float(), K.float()
    pose_gt = TRUTH[:1].float()
    wanted = shim.batch_project(pose_gt, points3d, matrix)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 16))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    bpnp, ini_pose, losses = shim.BPnP.apply, None, []
    for _ in range(250):
        pts2d = wanted + model(torch.ones(1, 4)).view(1, 8, 2)
        P_out = bpnp(pts2d, points3d, matrix, ini_pose)
        projected = shim.batch_project(P_out, points3d, matrix)
        loss = (projected - wanted).square().mean() + (projected - pts2d).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        ini_pose = P_out.detach()
        losses.append(loss.item())
    assert P_out.shape == (1, 6)
    assert losses[-1] < 1e-4 * losses[0]
    close(P_out.detach(), pose_gt, 1e-3)


@pytest.mark.parametrize("started", [False, True])
def test_its_gradients_are_those_of_differences(shim: ModuleType, started: bool) -> None:
    data = (shim.batch_project(TRUTH, CUBE, K) + normal(2, 8, 2), CUBE, K)
    along = [normal(*d.shape, seed=i) * size for i, (d, size) in enumerate(zip(data, (1.0, 1e-2, 1.0), strict=True))]
    along[2][2] = 0
    ini_pose = TRUTH + 0.05 * torch.randn(2, 6, generator=generator(4), **DOUBLE) if started else None

    def loss(points2d: Tensor, points3d: Tensor, matrix: Tensor) -> Tensor:
        P_out = shim.BPnP.apply(points2d, points3d, matrix, ini_pose)
        return (shim.batch_project(P_out, points3d, matrix) - data[0]).square().sum() + P_out.sum()

    moving = [d.clone().requires_grad_() for d in data]
    for gradient, d, direction in zip(torch.autograd.grad(loss(*moving), moving), data, along, strict=True):
        wanted = central_difference(
            lambda h, d=d, by=direction: loss(*(a + h * by if a is d else a for a in data)), 1e-2
        )
        close((gradient * direction).sum(), wanted, atol=1e-7 * float(wanted.abs()))


def test_what_a_layer_gives_it_takes(shim: ModuleType) -> None:
    layer, points2d = BPnP(CUBE, K, vector=True), project(CUBE, se3.from_rotvec_t(TRUTH), K) + normal(2, 8, 2)
    found = layer(points2d)
    close(layer(points2d, init=found.detach()), found, 1e-9)
    assert torch.equal(layer(points2d, init=TRUTH[0]), layer(points2d, init=TRUTH[0].expand(2, 6)))
    close(se3.from_rotvec_t(found), pnp(points2d, CUBE, K).x, 1e-12)
    matrices = se3.from_rotvec_t(found)
    close(shim.batch_project(matrices[:, :3], CUBE, K, angle_axis=False), shim.batch_project(found, CUBE, K), 1e-12)
    with pytest.raises(
        ValueError, match=r"^init must have shape \(B\|1,6\) or \(6,\) with vector=True .*got \(2, 4, 4\)"
    ):
        layer(points2d, init=matrices)
    with pytest.raises(ValueError, match=r"^init must have shape \(2\|1,4,4\) or \(4,4\), got \(2, 6\)"):
        BPnP(CUBE, K)(points2d, init=found)
