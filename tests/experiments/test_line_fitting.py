"""The line-fitting toy: what each method learns from, that it learns, and that a killed run goes on."""

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datasets.made.toy_images import SIDE, line_images
from experiments import line_fitting
from experiments.line_fitting import PRESETS, Config, Learner, main
from experiments.toys.networks import ImageNetwork, PointNetwork
from experiments.toys.shapes import LINE
from tests.experiments.toys.scene import Place

TINY = replace(
    PRESETS["smoke"],
    methods=("dsac", "ng_dsac", "direct"),
    dtype="float64",
    iterations=4,
    batch=4,
    test_images=10,
    log_every=2,
    hypotheses=8,
    pools=2,
    width=2,
)


def learner(method: str, config: Config = TINY) -> Learner:
    torch.manual_seed(0)
    return Learner(method, config, Place())  # type: ignore[arg-type]


def some(count: int, seed: int = 0, most: int = 5) -> tuple[Tensor, Tensor]:
    data = line_images(count, torch.Generator().manual_seed(seed), torch.float64, circles=(min(2, most), most))
    return data.images, data.shape


def test_points_start_in_their_patches_and_stay_within_reach() -> None:
    torch.manual_seed(0)
    network = PointNetwork(2, reach=0.1, extra=1).double()
    images, _ = some(3)
    points, extra = network(images)
    assert points.shape == (3, 64, 2)
    assert extra.shape == (3, 64, 1)
    middles = torch.tensor([[(8 * j + 4) / 64, (8 * i + 4) / 64] for i in range(8) for j in range(8)])
    assert (points - middles).abs().max() <= 0.1
    # a point looks at its own surroundings: what changes in one corner moves the point there most
    network.eval()
    changed = images.clone()
    changed[:, :, :8, :8] = 0
    moved = (network(changed)[0] - network(images)[0]).norm(dim=-1)
    assert (moved.argmax(1) % 8 < 4).all()
    assert (moved.argmax(1) // 8 < 4).all()
    assert ImageNetwork(2, 4).double()(images).shape == (3, 4)
    assert not network.state_dict().keys() & {"middles"}


@pytest.mark.parametrize("kind", [PointNetwork, ImageNetwork])
def test_bfloat16_is_the_same_network_but_for_rounding(kind: type[PointNetwork | ImageNetwork]) -> None:
    """In the images' dtype: outputs a few roundings of 2^-9 away, gradients (some ReLUs change sides) much the same."""
    images = some(4)[0].float()
    told: list[Tensor] = []
    slopes: list[Tensor] = []
    for bfloat16 in (False, True):
        torch.manual_seed(0)
        network = kind(4, 2, bfloat16=bfloat16)
        out = network(images)
        out = out if isinstance(out, Tensor) else out[0]
        (out - out.mean(0)).square().sum().backward()
        (first, *_) = network.parameters()
        assert first.grad is not None
        assert out.dtype == first.grad.dtype == torch.float32
        told.append(out.detach())
        slopes.append(first.grad)
    assert not torch.equal(told[0], told[1])
    assert (told[1] - told[0]).norm() < 0.05 * told[0].norm()
    assert nn.functional.cosine_similarity(slopes[0].flatten(), slopes[1].flatten(), dim=0) > 0.95


@pytest.mark.parametrize("method", ["dsac", "direct"])
def test_a_step_goes_down_the_gradient_of_the_expected_loss(method: str) -> None:
    """The whole of it, image to loss, against finite differences in a direction of all the network's parameters."""
    made = learner(method)
    images, truth = some(4)
    parameters = list(made.network.parameters())
    start = [p.detach().clone() for p in parameters]
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def loss(step: float) -> Tensor:
        torch.manual_seed(1)  # the same minimal sets
        with torch.no_grad():
            for p, p0, d in zip(parameters, start, direction, strict=True):
                p.copy_(p0 + step * d)
        return made.fit(images, truth).loss.mean()

    gradient = torch.autograd.grad(loss(0.0), parameters)
    slope = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
    assert isinstance(slope, Tensor)
    h = 1e-7  # further away, some of the network's ReLUs change sides
    numeric = (loss(h) - loss(-h)) / (2 * h)
    assert slope.item() == pytest.approx(numeric.item(), rel=1e-6)


def test_guidance_is_learned_from_what_was_drawn() -> None:
    """ng_dsac's loss is a mean of DSAC's over pools, and its log weights get a gradient of their own."""
    made = learner("ng_dsac")
    images, truth = some(4)
    fit = made.fit(images, truth)
    assert fit.found is not None
    loss = LINE.error(fit.found.model, truth[:, None])
    loss = made.config.scale * loss / (made.config.scale + loss)
    chosen = (made.config.alpha * fit.found.score.view(4, 2, 4)).softmax(-1)
    torch.testing.assert_close(fit.loss, (chosen * loss.view(4, 2, 4)).sum(-1).mean(1))
    head = made.network.layers[-1]
    fit.loss.sum().backward()
    assert isinstance(head.weight.grad, Tensor)
    assert head.weight.grad[2].abs().max() > 0


@pytest.mark.slow
def test_dsac_learns_lines_that_it_has_not_seen() -> None:
    """Without circles a hundred steps are enough for far more than chance, which is one line in a hundred."""
    config = replace(PRESETS["default"], iterations=100, batch=16, width=8, dtype="float64", hypotheses=32)
    made = learner("dsac", config)
    for step in range(100):
        made.learn(*some(16, seed=step, most=0))
    made.network.eval()
    images, truth = some(200, seed=10_000, most=0)
    with torch.no_grad():
        error = SIDE * LINE.error(made.fit(images, truth).line, truth)
    assert (error < 5).double().mean() > 0.2


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Summary and folder of a run."""
    out = tmp_path_factory.mktemp("whole")
    return main(replace(TINY, out=out)), out / "line_fitting" / "smoke-seed0"


@pytest.mark.slow
def test_a_run_leaves_what_there_is_to_see(whole: tuple[dict[str, Any], Path]) -> None:
    summary, folder = whole
    assert summary["figures"][0] == "examples.png"
    assert set(summary["figures"]) == {"examples.png", "curves.png"}
    for method in ("dsac", "ng_dsac", "direct"):
        assert 0 <= summary["errors"][f"{method}_correct"] <= 1
        assert 0 < summary["errors"][f"{method}_median_px"] < 3 * SIDE
        assert summary["errors"][f"{method}_seconds"] > 0
    assert json.loads((folder / "summary.json").read_text()) == summary
    logged = (folder / "metrics.csv").read_text().splitlines()
    assert len(logged) == 5
    assert logged[0].startswith("step,loss,dsac_loss,dsac_px,dsac_correct")


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_numbers(
    whole: tuple[dict[str, Any], Path], same_when_resumed: Callable[..., dict[str, Any]]
) -> None:
    same_when_resumed(main, TINY, at=3, whole=whole)


@pytest.mark.slow
def test_a_schedule_that_has_ended_is_not_prolonged(whole: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    shutil.copytree(whole[1], tmp_path / "line_fitting" / whole[1].name)
    with pytest.raises(SystemExit, match=f"iterations must stay {TINY.iterations}"):
        main(replace(TINY, out=tmp_path, iterations=TINY.iterations + 5, resume=True))


@pytest.mark.slow
def test_all_methods_are_tested_on_the_same_images_and_no_two_seeds_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(Learner, "fit", remembering(Learner.fit, seen))
    config = replace(TINY, iterations=1, out=tmp_path)
    for seed in (0, 1):
        main(replace(config, seed=seed))
    first, second = seen[:6], seen[6:]
    for images in first[1:3]:
        torch.testing.assert_close(images, first[0])  # the methods' training step
    for tested in (first[3:], second[3:]):
        for images in tested[1:]:
            torch.testing.assert_close(images, tested[0])
    for one, other in itertools.combinations([first[0], first[3], second[0], second[3]], 2):
        assert not torch.equal(one[:4], other[:4])


def remembering(fit: Callable[..., Any], seen: list[Tensor]) -> Callable[..., Any]:
    def remembered(self: Learner, images: Tensor, truth: Tensor) -> Any:
        seen.append(images.detach().clone())
        return fit(self, images, truth)

    return remembered


@pytest.mark.slow
def test_images_get_harder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def line_images_noted(*args: Any, circles: tuple[int, int] = (2, 5)) -> Any:
        asked.append(circles)
        return line_images(*args, circles=circles)

    monkeypatch.setattr(line_fitting, "line_images", line_images_noted)
    main(replace(TINY, methods=("direct",), iterations=8, easy=6, out=tmp_path))
    assert asked == [(0, 0), (1, 1), (2, 2), (2, 3), (2, 4), (2, 5), (2, 5), (2, 5), (2, 5)]


def test_the_paper_s_numbers() -> None:
    paper = PRESETS["paper"]
    assert (paper.hypotheses, paper.threshold, paper.alpha, paper.beta) == (64, 0.05, 0.5, 100)
    assert np.isinf(paper.scale)
