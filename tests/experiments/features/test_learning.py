"""What the network says at first, and what is told it through the bundle, against finite differences."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments.features.network import Refined, RefinementNetwork, load_network, save_network
from experiments.features.objectives import pose_loss, residual_loss
from experiments.features.patches import SIDE, Aligned
from experiments.features.tracked import Made, adjusted, residuals
from tests.experiments.features.scene import points_on_wall

Loss = Callable[[Made, Refined], Tensor]


def some_aligned(made: Made) -> Aligned:
    g = torch.Generator().manual_seed(1)
    M = len(made.tracked.camera)
    patches = torch.randn(M, SIDE, SIDE, generator=g)
    J = torch.eye(2, dtype=torch.float64) + 0.1 * torch.randn(M, 2, 2, generator=g, dtype=torch.float64)
    correlation = torch.rand(M, generator=g)
    return Aligned(made.tracked.points2d, patches, J, correlation, 0.1 * torch.randn(M, 2, generator=g).double())


def test_a_network_begins_where_alignment_ends() -> None:
    made = points_on_wall(6, 3)
    aligned = some_aligned(made)
    network = RefinementNetwork(4)
    refined = network.refine(aligned, made.tracked.point)
    assert torch.equal(refined.points2d, aligned.points2d)
    assert torch.equal(refined.weights, torch.ones(18, dtype=torch.float64))
    (refined.points2d[0].sum() + refined.weights.sum()).backward()
    (*_, weight, bias) = network.parameters()
    assert weight.grad is not None
    assert bias.grad is not None
    assert weight.grad.abs().amax(1).min() > 0  # to both coordinates and the weight
    assert bias.grad[2] > 0


def test_offsets_are_in_the_frame_of_the_patch_and_leave_the_track_where_it_is() -> None:
    made = points_on_wall(6, 3)
    aligned, point = some_aligned(made), made.tracked.point
    network = RefinementNetwork(4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(
                0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
        moved = network.refine(aligned, point).points2d - aligned.points2d
        (*_, last) = network.parameters()
        last[:2] += 0.3  # what all observations have is no matter
        again = network.refine(aligned, point).points2d - aligned.points2d
    offset = torch.linalg.solve(aligned.jacobian, moved)
    assert offset.norm(dim=-1).max() > 0.01
    for n in range(6):
        torch.testing.assert_close(offset[point == n].mean(0), torch.zeros(2).double(), atol=1e-7, rtol=0)
    assert (again - moved).norm() < 0.3 * moved.norm()


def test_a_network_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = points_on_wall(6, 3)
    aligned = some_aligned(made)
    network = RefinementNetwork(4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_network(tmp_path / "network.pt", network)
    again = load_network(tmp_path / "network.pt")
    for one, other in zip(*(n.refine(aligned, made.tracked.point) for n in (network, again)), strict=True):
        assert torch.equal(one, other)
    (tmp_path / "other.pt").write_bytes(b"no network")
    with pytest.raises(ValueError, match=r"other\.pt"):
        load_network(tmp_path / "other.pt")


@pytest.mark.parametrize(("loss", "within"), [(pose_loss, 1e-3), (residual_loss, 1e-6)])
def test_losses_have_the_gradient_of_what_the_bundle_finds(loss: Loss, within: float) -> None:
    """Points and weights together; the wall is flat, so that where a ray meets it does not matter. The gauge of poses
    is the start's to first order: what noise of 0.02 px adds to it is less than a thousandth."""
    made = points_on_wall(20, 4, noise_px=0.02)
    x = made.tracked.points2d.clone().requires_grad_()
    w = torch.linspace(0.5, 3, len(x), dtype=torch.float64).requires_grad_()
    gradient = torch.autograd.grad(loss(made, Refined(x, w)), (x, w))
    g = torch.Generator().manual_seed(0)
    dx, dw = (torch.randn(t.shape, generator=g, dtype=torch.float64) for t in (x, w))
    slope = (gradient[0] * dx).sum() + (gradient[1] * dw).sum()
    h = 1e-6
    with torch.no_grad():
        ends = [loss(made, Refined(x + s * h * dx, w + s * h * dw)) for s in (1, -1)]
    assert slope.item() == pytest.approx(((ends[0] - ends[1]) / (2 * h)).item(), rel=within)


@pytest.mark.slow
def test_the_losses_fall_with_the_noise() -> None:
    for loss in (pose_loss, residual_loss):
        values = []
        for noise in (0.02, 0.1, 0.5):
            made = points_on_wall(30, 4, noise_px=noise)
            ones = torch.ones(len(made.tracked.camera), dtype=torch.float64)
            values.append(loss(made, Refined(made.tracked.points2d, ones)).item())
        assert values == sorted(values)
        assert values[0] < values[-1] - 0.1


@pytest.mark.slow
def test_where_noise_is_known_its_weights_are_better_than_equal_ones() -> None:
    """Both losses prefer them, or they would teach something else than to trust what is exact."""
    gains = {pose_loss: 0.0, residual_loss: 0.0}
    for seed in range(4):
        made = points_on_wall(20, 4, seed=seed)
        g = torch.Generator().manual_seed(seed)
        M = len(made.tracked.camera)
        sigma = torch.where(torch.rand(M, generator=g) < 0.5, 0.02, 0.3).double()
        x = made.tracked.points2d + sigma[:, None] * torch.randn(M, 2, generator=g, dtype=torch.float64)
        for loss in gains:
            known, equal = (loss(made, Refined(x, w)).item() for w in (0.1 / sigma, torch.ones_like(sigma)))
            gains[loss] += equal - known
    assert all(gain > 0 for gain in gains.values())


def test_cameras_that_are_held_stay() -> None:
    made = points_on_wall(15, 3, noise_px=0.3)
    found = adjusted(made.tracked, poses=made.world_to_camera_gt)
    assert torch.equal(found.x.world_to_camera, made.world_to_camera_gt)
    off = residuals(made.tracked, found, made.tracked.points2d)
    assert 0.05 < off.square().mean().sqrt() < 0.3
