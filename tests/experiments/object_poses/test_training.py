"""One step of the training: its gradient from the logits on, what its loss is made of, and when."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experiments.object_poses.crops import CropBatch
from experiments.object_poses.estimator import PoseEstimator
from experiments.object_poses.losses import Loss, heatmap_loss, regularisation
from experiments.object_poses.network import STRIDE, cells_of, read_heatmaps
from experiments.object_poses.training import Objective, Step, training_step
from geometry import project, se3
from tests.experiments.object_poses.test_estimator import MODELS, TINY, estimator
from tests.numbers import generator

LOSSES: tuple[Loss, ...] = ("heatmap", "mixture", "pose", "monte_carlo", "linear_covariance")
SIZE = 64
B = 4


class Said(nn.Module):
    """A network that says the same of every crop."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor, objects: Tensor) -> Tensor:
        return self.logits


@pytest.fixture(scope="module")
def made() -> PoseEstimator:
    return estimator()


@pytest.fixture(scope="module")
def batch(made: PoseEstimator) -> CropBatch:
    """Of both objects, the second symmetric; pictures of noise."""
    objects = torch.tensor([0, 1, 0, 1])
    c = (SIZE - 1) / 2
    K = torch.tensor([[3.4 * SIZE, 0, c], [0, 3.5 * SIZE, c], [0, 0, 1]], dtype=torch.float64).expand(B, 3, 3)
    rotvec = torch.randn(B, 3, generator=generator(1), dtype=torch.float64)
    pose = se3.make(se3.exp(rotvec), torch.tensor([0.0, 0, 560], dtype=torch.float64).expand(B, 3))
    images = torch.randint(0, 256, (B, 3, SIZE, SIZE), generator=generator(), dtype=torch.uint8)
    return CropBatch(images, K, pose, objects, torch.arange(B))


def truth(made: PoseEstimator, batch: CropBatch, symmetry: int = 0) -> Tensor:
    poses = batch.pose_gt @ made.symmetries[batch.objects, symmetry]
    return project(made.keypoints3d[batch.objects], poses, batch.K)


def maps(points2d: Tensor, sigma: float = 1.2, noise: float = 0.3) -> Tensor:
    cells = cells_of(points2d)
    grid = torch.arange(SIZE // STRIDE, dtype=torch.float64)
    x, y = (-0.5 * ((grid - cells[..., i, None]) / sigma) ** 2 for i in (0, 1))
    logits = y[..., :, None] + x[..., None, :]
    return logits + noise * torch.randn(logits.shape, generator=generator(2), dtype=torch.float64)


def step(made: PoseEstimator, network: nn.Module, batch: CropBatch, progress: float, **options: Any) -> Step:
    objective = Objective(**{"precision": "float32", **options})
    return training_step(made, network, batch, objective, progress, generator=generator(5))


def off(made: PoseEstimator, batch: CropBatch) -> Tensor:
    points2d = truth(made, batch)
    return points2d + 0.8 * torch.randn(points2d.shape, generator=generator(3), dtype=torch.float64)


@pytest.mark.parametrize("progress", [0.25, 0.9])
@pytest.mark.parametrize("loss", ["heatmap", "mixture", "pose"])
def test_the_whole_step_s_gradient_is_finite_differences(
    made: PoseEstimator, batch: CropBatch, loss: Loss, progress: float
) -> None:
    """From the logits of all maps to the number that is minimised, as it stands in the training, but for bounds."""
    if progress < 0.3:  # while a symmetric object's target is not the nearest one: bounds are what its errors meet
        batch = CropBatch(*(value[batch.objects == 0] for value in batch))
    for options in ({"balance": "paper", "beta": 0.01}, {"balance": "robust"}):
        network = Said(maps(off(made, batch)))
        start = network.logits.detach().clone()
        found = step(made, network, batch, progress, loss=loss, **options)
        (gradient,) = torch.autograd.grad(found.loss, network.logits)
        for seed in range(4):
            direction = torch.randn(start.shape, generator=generator(seed), dtype=torch.float64)
            ends = []
            for h in (1e-4, -1e-4):
                with torch.no_grad():
                    network.logits.copy_(start + h * direction)
                ends.append(step(made, network, batch, progress, loss=loss, **options).loss.item())
            numeric = (ends[0] - ends[1]) / 2e-4
            assert abs(numeric) > 1e-4
            assert (gradient * direction).sum().item() == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_teaches_every_sample(made: PoseEstimator, batch: CropBatch, loss: Loss) -> None:
    network = Said(maps(off(made, batch)))
    found = step(made, network, batch, 0.9, loss=loss)
    found.loss.backward()
    assert network.logits.grad is not None
    assert torch.isfinite(network.logits.grad).all()
    assert network.logits.grad.flatten(1).norm(dim=1).min() > 1e-5
    assert found.loss.item() == pytest.approx((found.heatmap + Objective.beta * found.pose).item(), rel=1e-9)
    assert (found.pose_seconds > 0) == (loss != "heatmap")
    assert not any(value.requires_grad for value in found[1:4])


@pytest.mark.parametrize("loss", LOSSES)
def test_before_the_warm_up_all_learn_heatmaps(made: PoseEstimator, batch: CropBatch, loss: Loss) -> None:
    """l_h alone; with the paper's balance there is no warm-up."""
    network = Said(maps(off(made, batch)))
    one, other = (step(made, network, batch, 0.05, loss=name) for name in (loss, "heatmap"))
    assert one.loss.item() == other.loss.item()
    assert one.pose == one.pose_seconds == 0
    paper = step(made, network, batch, 0.05, loss=loss, balance="paper")
    assert (paper.loss.item() == other.loss.item()) == (loss == "heatmap")


def test_what_the_losses_are_made_of(made: PoseEstimator, batch: CropBatch) -> None:
    """l_h and l_reg where the warm-up is over and halfway, the pose's part weighed as much as it has risen."""
    # object 3, which looks like nothing else
    some = CropBatch(*(value[batch.objects == 0] for value in batch))
    network = Said(maps(off(made, some)))
    logits, cells = network.logits.detach(), cells_of(truth(made, some))
    l_h = heatmap_loss(logits, cells, 1.7).mean().item()
    l_reg = regularisation(read_heatmaps(logits), 1.7).mean().item()
    options = dict(sigma=1.7, beta=0.2, warm_up=(0.2, 0.6))
    mixed, posed = (step(made, network, some, 1.0, loss=name, **options) for name in ("mixture", "pose"))
    assert mixed.heatmap.item() == pytest.approx(l_h, rel=1e-9)
    assert posed.heatmap.item() == pytest.approx(l_reg, rel=1e-9)
    assert mixed.pose.item() == posed.pose.item() > 0
    assert mixed.loss.item() == pytest.approx(l_h + 0.2 * mixed.pose.item(), rel=1e-9)
    half_mixed, half_posed = (step(made, network, some, 0.4, loss=name, **options) for name in ("mixture", "pose"))
    assert half_mixed.loss.item() == pytest.approx(l_h + 0.1 * mixed.pose.item(), rel=1e-9)
    assert half_posed.heatmap.item() == pytest.approx((l_h + l_reg) / 2, rel=1e-9)
    distance = (read_heatmaps(logits).points2d - truth(made, some)).norm(dim=-1).flatten().sort().values
    assert mixed.keypoint_px.item() == pytest.approx(distance[(len(distance) - 1) // 2].item(), rel=1e-9)


def test_after_the_warm_up_a_symmetric_pose_as_good_as_the_truth_costs_as_little(
    made: PoseEstimator, batch: CropBatch
) -> None:
    """Before, one of them is to be learned, whatever is said."""
    some = CropBatch(*(value[batch.objects == 1] for value in batch))
    said = [Said(maps(truth(made, some, symmetry), noise=0)) for symmetry in range(4)]
    options = {"loss": "heatmap", "sigma": 1.2}
    early, late = ([step(made, network, some, at, **options).loss.item() for network in said] for at in (0.0, 0.9))
    assert late == pytest.approx([0] * 4, abs=1e-9)
    assert max(early) > 1


def test_equal_parts_of_a_batch_have_gradients_whose_mean_is_the_whole_s(made: PoseEstimator, batch: CropBatch) -> None:
    """As several processes average them; a sample without a pose counts, too."""
    logits = maps(off(made, batch))
    logits[2] = 0
    network = Said(logits)
    whole = step(made, network, batch, 0.9)
    (wanted,) = torch.autograd.grad(whole.loss, network.logits)
    values, gradients = [], torch.zeros_like(wanted)
    for rows in (slice(0, 2), slice(2, 4)):
        part = Said(logits[rows])
        found = step(made, part, CropBatch(*(value[rows] for value in batch)), 0.9)
        values.append(found.loss.item())
        gradients[rows] = torch.autograd.grad(found.loss, part.logits)[0] / 2
    assert np.mean(values) == pytest.approx(whole.loss.item(), rel=1e-12)
    torch.testing.assert_close(gradients, wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_a_few_steps_learn_a_batch_by_heart(batch: CropBatch, loss: Loss) -> None:
    """The network itself, in bfloat16, and an optimiser like the driver's: the keypoints get nearer."""
    torch.manual_seed(0)
    fresh = PoseEstimator.of_models(TINY, MODELS)
    fresh.network.train()
    optimizer = torch.optim.AdamW(fresh.network.parameters(), lr=5e-3)
    objective = Objective(loss=loss, warm_up=(0.0, 0.0))
    errors = []
    for i in range(25):
        found = training_step(fresh, fresh.network, batch, objective, (i + 1) / 25, generator=generator(i))
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        errors.append(found.keypoint_px.item())
        assert all(torch.isfinite(p.grad).all() for p in fresh.network.parameters() if p.grad is not None)
    if loss != "pose":  # whose beginning needs heatmaps, which it has in the warm-up
        assert errors[-1] < 0.7 * errors[0]
