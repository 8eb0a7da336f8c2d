"""Robust poses: the problems are what they say, the network takes matches in any order, methods learn, runs go on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.robust_pose import PRESETS, Config, Learner, all_odds, drawn_right, errors_of, main
from experiments.toys.correspondences import Matches, MatchNetwork, camera_residual, consensus, make_matches, pose_error
from geometry import draw_sets, project, se3
from tests.experiments.toys.scene import Place

TINY = replace(
    PRESETS["smoke"], dtype="float64", iterations=4, batch=4, width=8, points=40, pools=4, sets=2, log_every=2,
    budgets=(8, 16), shares=(0.3, 0.6), test_problems=10,
)  # fmt: skip


def learner(method: str, config: Config = TINY) -> Learner:
    torch.manual_seed(0)
    return Learner(method, config, Place())  # type: ignore[arg-type]


def some(count: int, share: float = 0.5, seed: int = 0, points: int = 40, **options: Any) -> Matches:
    return make_matches(torch.full((count,), share), points, torch.Generator().manual_seed(seed), **options)


def logits(network: MatchNetwork, matches: Matches) -> Tensor:
    return network(matches.points2d, matches.points3d, matches.ratio, matches.mask)


# ---- the problems ----


def test_as_many_are_wrong_as_were_asked_for() -> None:
    shares = torch.tensor([0.0, 0.1, 0.5, 0.9])
    matches = make_matches(shares, 100, torch.Generator().manual_seed(0), noise=0.0)
    assert matches.right is not None
    assert matches.world_to_camera_gt is not None
    assert (~matches.right).sum(1).tolist() == [0, 10, 50, 90]
    error = (project(matches.points3d, matches.world_to_camera_gt, matches.K) - matches.points2d).norm(dim=-1)
    assert error[matches.right].max() < 1e-9
    assert (error[~matches.right] > 1).double().mean() > 0.99
    assert matches.ratio.min() > 0
    assert matches.ratio.max() <= 0.9
    assert matches.ratio[matches.right].mean() < matches.ratio[~matches.right].mean() - 0.05
    # wrong ones are not all at one end, and one half of them is where another point of the same box is
    assert 0 < matches.right[3].nonzero().min() < matches.right[3].nonzero().max()
    seen = project(matches.points3d, matches.world_to_camera_gt, matches.K)
    taken = (matches.points2d[3, :, None] - seen[3]).norm(dim=-1).amin(1) < 1e-9
    assert (taken & ~matches.right[3]).sum() == 45


def test_noise_is_as_large_as_it_says_and_seeds_are_told_apart() -> None:
    matches = some(50, 0.2, noise=2.0)
    assert matches.world_to_camera_gt is not None
    error = project(matches.points3d, matches.world_to_camera_gt, matches.K) - matches.points2d
    assert error[matches.right].std().item() == pytest.approx(2.0, rel=0.05)
    for one, same, other in zip(some(2), some(2), some(2, seed=1), strict=True):
        assert torch.equal(one, same)
        assert one.dtype == torch.bool or one.ndim == 2 or not torch.equal(one, other)
    assert some(2, dtype=torch.float32).points2d.dtype == torch.float32


# ---- the network ----


def test_the_order_of_matches_does_not_matter() -> None:
    torch.manual_seed(0)
    network, matches = MatchNetwork(8).double(), some(3)
    said = logits(network, matches)
    order = torch.randperm(40)
    parts = (d[:, order] for d in (matches.points2d, matches.points3d, matches.ratio, matches.mask))
    torch.testing.assert_close(network(*parts), said[:, order])
    # nor that of problems, nor who else is in the batch, nor units of length, nor the camera's zoom and shift
    one = Matches(*(d[1:2] for d in matches[:4]), matches.K)
    torch.testing.assert_close(logits(network, one), said[1:2])
    moved = matches._replace(points2d=3 * matches.points2d + 50, points3d=0.1 * matches.points3d - 4)
    torch.testing.assert_close(logits(network, moved), said)


def test_an_absent_match_says_nothing() -> None:
    torch.manual_seed(0)
    network, matches = MatchNetwork(8).double(), some(2)
    said = logits(network, matches)

    def longer(values: Tensor, fill: float) -> Tensor:
        return torch.cat([values, torch.full_like(values[:, :7], fill)], 1)

    padded = (longer(d, 1e3) for d in (matches.points2d, matches.points3d, matches.ratio))
    torch.testing.assert_close(network(*padded, longer(matches.mask, False))[:, :40], said)


def test_right_matches_lie_on_the_linear_camera_that_they_weigh_in_for() -> None:
    """Exact ones but for the ridge; what has no weight does not count, and its residual is its error in depths."""
    matches = some(4, 0.5, noise=0.0)
    right, truth = matches.right, matches.world_to_camera_gt
    assert right is not None
    assert truth is not None
    points2d = (matches.points2d - matches.K[:2, 2]) / 80
    r = camera_residual(points2d, matches.points3d, 1e6 * right.double())
    assert r[right].abs().max() < 0.02 * points2d.abs().max()
    depth = se3.transform(truth, matches.points3d)[..., 2:] / truth[:, None, 2:3, 3]
    error = depth * (project(matches.points3d, truth, matches.K) - matches.points2d) / 80
    assert (r - error)[~right].abs().max() < 0.05 * error[~right].abs().max()


# ---- learning ----


def test_consensus_finds_the_truth_where_a_set_is_right() -> None:
    matches = some(3, 0.5, noise=0.0)
    right, truth = matches.right, matches.world_to_camera_gt
    assert right is not None
    assert truth is not None
    torch.manual_seed(0)
    log_weights = torch.where(right, 0.0, -torch.inf)
    good, bad = draw_sets(log_weights, 3, 8), draw_sets(torch.where(right, -torch.inf, 0.0), 3, 8)
    sets = torch.stack([torch.cat([bad[:, :7], good[:, :1]], 1), bad], 1)  # one right set in eight, and none
    pose = consensus(matches, sets, 4.0)
    error = pose_error(pose, truth[:, None])
    assert error[:, 0].max() < 1e-6
    assert not (error[:, 1] < 0.05).any()


def test_pose_errors_are_angles_and_shares_of_the_distance() -> None:
    truth = se3.from_rotvec_t(torch.tensor([[0.3, -0.2, 0.1, 0.0, 0.0, 8.0]], dtype=torch.float64))
    turned = se3.retract(truth, torch.tensor([[0.0, 0.02, 0.0, 0.0, 0.0, 0.16]], dtype=torch.float64))
    angle, shift = errors_of(turned, truth)
    assert angle.item() == pytest.approx(np.rad2deg(0.02))
    assert shift.item() == pytest.approx(0.02)
    assert pose_error(turned, truth).item() == pytest.approx(2 * np.sin(0.01) + 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sampling", "weights", "classify"])
def test_a_fixed_batch_is_learned(method: str) -> None:
    """Forty steps on the same problems: the right ones become likelier to be drawn, whatever is minimised."""
    made = learner(method, replace(TINY, iterations=40, pools=8, learning_rate=1e-2))
    matches = some(8, 0.6)
    steps = [made.learn(matches) for _ in range(40)]
    assert np.isfinite([step["loss"] for step in steps]).all()
    before, after = steps[0]["right"], steps[-1]["right"]
    assert after > before + 0.02
    assert np.mean([step["loss"] for step in steps[-5:]]) < np.mean([step["loss"] for step in steps[:5]])


@pytest.mark.parametrize("method", ["sampling", "weights"])
def test_labels_are_not_seen(method: str) -> None:
    made, matches = learner(method), some(4)
    assert matches.right is not None
    losses = []
    for right in (matches.right, ~matches.right):
        torch.manual_seed(1)
        losses.append(made.loss(matches._replace(right=right), logits(made.network, matches)))
    torch.testing.assert_close(*losses)


def test_a_step_of_weights_goes_down_the_gradient_of_the_pose_s_error() -> None:
    """Through PnP, against finite differences, where the start is the same."""
    made, matches = learner("weights"), some(4, 0.3)
    given = logits(made.network, matches).detach()
    direction = torch.randn(given.shape, generator=torch.Generator().manual_seed(0), dtype=given.dtype)

    def loss(step: Tensor | float) -> Tensor:
        torch.manual_seed(1)
        return made.loss(matches, given + step * direction).sum()

    at = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(at), at)
    h = 1e-4
    assert slope.item() == pytest.approx(((loss(h) - loss(-h)) / (2 * h)).item(), rel=1e-5)


def test_odds_of_absent_matches_are_zero() -> None:
    matches = some(3)
    assert matches.right is not None
    mask = torch.arange(40).expand(3, 40) < 30
    made: dict[Any, Learner] = {"classify": learner("classify")}
    with torch.no_grad():
        odds = all_odds(made, matches._replace(mask=mask), {"ratio": 3.0})
    assert set(odds) == {"classify", "ratio", "ratio_sharp", "uniform", "labels"}
    pair = odds["ratio"][:, :2], odds["ratio_sharp"][:, :2]
    torch.testing.assert_close((pair[0][:, 0] / pair[0][:, 1]) ** 3, pair[1][:, 0] / pair[1][:, 1])
    for values in odds.values():
        assert (values[~mask] == 0).all()
        assert (values >= 0).all()
    assert drawn_right(odds["labels"], matches.right).tolist() == [1.0, 1.0, 1.0]
    torch.testing.assert_close(drawn_right(odds["uniform"], matches.right), matches.right[:, :30].double().mean(1))


# ---- runs ----


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_numbers(same_when_resumed: Callable[..., dict[str, Any]]) -> None:
    whole = same_when_resumed(main, TINY, at=3, files=("metrics.csv", "table.md", "rows.json"))
    assert whole["figures"] == ["success.png", "curves.png"]
    assert {
        f"{name}_success_8" for name in (*TINY.methods, "sampling_sharp", "ratio", "ratio_sharp", "uniform", "labels")
    } <= set(whole["errors"])


def box_file(folder: Path) -> Path:
    """Two frames in the real file's format, of which a fifth is wrong."""
    matches = some(2, 0.2, points=60, noise=0.5)
    columns = torch.cat([matches.points2d, matches.points3d, matches.ratio[..., None]], -1).numpy()
    np.savez(folder / "frames.npz", f000=columns[0], f010=columns[1][:50])
    return folder / "frames.npz"


@pytest.mark.slow
def test_real_matches_are_searched_against_a_long_search(tmp_path: Path) -> None:
    config = replace(
        TINY, matches=box_file(tmp_path), focal=800.0, long=500, repeats=3, methods=("classify",), iterations=1,
        real_budgets=(1, 64), shares=(0.3,), out=tmp_path,
    )  # fmt: skip
    summary = main(config)
    assert summary["figures"] == ["success.png", "curves.png", "real.png"]
    errors = summary["errors"]
    assert errors["uniform_box_64"] == errors["ratio_box_64"] == 1
    assert errors["uniform_box_1"] < 1
    assert "classify_box_64" in errors
    assert "Real matches" in (tmp_path / "robust_pose" / "smoke-seed0" / "table.md").read_text()
