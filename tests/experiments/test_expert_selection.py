"""The expert-selection toy: its gradient against the sum over everything that can be drawn, its choices, its runs."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datasets.made.toy_images import shape_images
from experiments import expert_selection
from experiments.expert_selection import PRESETS, Config, Learner, choose, draw_experts, esac_loss, main
from experiments.toys.shapes import CIRCLE, LINE
from geometry import expected_loss
from tests.experiments.toys.scene import Place

TINY = replace(
    PRESETS["smoke"], iterations=4, alone=2, batch=4, test_images=10, log_every=2, hypotheses=8, pools=2, width=2
)


def learner(stage: str, config: Config = TINY) -> Learner:
    torch.manual_seed(0)
    return Learner(stage, config, Place())  # type: ignore[arg-type]


def some(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    data = shape_images(count, torch.Generator().manual_seed(seed), torch.float64)
    return data.images, data.shape, data.is_circle.long()


def test_esac_s_gradient_is_that_of_the_expectation_over_all_draws() -> None:
    """Two experts, two pools of two hypotheses: sixteen ways to draw them, in one sum, and 4,000 draws of them."""
    g = torch.Generator().manual_seed(0)
    gate = torch.tensor([[0.4, -0.3]], dtype=torch.float64, requires_grad=True)
    score, loss = (torch.rand(1, 2, 4, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2))
    log_gate = gate.log_softmax(-1)
    expectation = torch.zeros((), dtype=torch.float64)
    for drawn in itertools.product((0, 1), repeat=4):
        p = log_gate[0, list(drawn)].sum().exp()
        at = torch.tensor(drawn), torch.arange(4)
        each = expected_loss(score[0][at].view(2, 2), loss[0][at].view(2, 2), 3.0)
        expectation = expectation + p * each.mean()
    inputs = (gate, score, loss)
    truth = torch.cat([t.flatten() for t in torch.autograd.grad(expectation, inputs)])

    torch.manual_seed(1)
    draws = 4000
    gates, scores, losses = (t.detach().expand(draws, *t.shape[1:]).clone().requires_grad_() for t in inputs)
    value = esac_loss(gates.log_softmax(-1), scores, losses, pools=2, alpha=3.0)
    found = torch.autograd.grad(value.sum(), (gates, scores, losses))
    samples = torch.cat([t.flatten(1) for t in found], 1)
    error = samples.std(0) / draws**0.5
    assert ((samples.mean(0) - truth).abs() <= 4 * error + 1e-12).all()
    assert error[:2].max() < 0.2 * truth[:2].abs().max()
    assert abs(value.mean() - expectation) <= 4 * value.std() / draws**0.5


def test_experts_are_drawn_as_often_as_the_gate_says() -> None:
    log_gate = torch.tensor([[0.2, 0.8], [0.999, 0.001]], dtype=torch.float64).log()
    torch.manual_seed(0)
    share = draw_experts(log_gate, 100_000).double().mean(1)
    assert share[0].item() == pytest.approx(0.8, abs=5 * (0.16 / 1e5) ** 0.5)
    assert share[1].item() == pytest.approx(0.001, abs=5 * (0.001 / 1e5) ** 0.5)


def test_the_best_of_those_asked_wins() -> None:
    score = torch.tensor([[[1.0, 8.0, 2.0, 0.0], [9.0, 0.0, 6.0, 7.0]]])
    sure = torch.tensor([[0.0, -torch.inf]])
    assert [int(t) for t in choose(sure, score, "mixture")] == [0, 1]
    assert [int(t) for t in choose(sure, score, "hard")] == [0, 1]
    # evenly: 0 and 2 of expert 0, 1 and 3 of expert 1
    assert [int(t) for t in choose(sure, score, "even")] == [1, 3]
    other = torch.tensor([[-2.0, -0.1]])
    assert [int(t) for t in choose(other, score, "hard")] == [1, 0]


def test_a_wrong_kind_costs_the_most_and_is_never_correct() -> None:
    made = learner("esac")
    images, truth, kind = some(12)
    log_gate, said = made.gate(images), made.ask_all(images, truth, kind)
    torch.testing.assert_close(log_gate.exp().sum(1), torch.ones(12, dtype=torch.float64))
    wrong = torch.arange(12), 1 - kind
    assert (said.loss[wrong] == TINY.scale).all()
    assert said.error[wrong].isinf().all()
    for i in range(12):
        shape = CIRCLE if kind[i] else LINE
        error = shape.error(said.model[i, kind[i]], truth[i])
        torch.testing.assert_close(said.error[i, kind[i]], 64 * error)
        torch.testing.assert_close(said.loss[i, kind[i]], TINY.scale * error / (TINY.scale + error))


def test_a_gate_that_sees_blocks_sees_nothing_smaller() -> None:
    """Noise whose mean over each block is nothing changes nothing for it, and much for one that sees the image."""
    images = some(4)[0]
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(images.shape, generator=generator, dtype=torch.float64)
    noise = noise - noise.unfold(2, 8, 8).unfold(3, 8, 8).mean((-1, -2)).repeat_interleave(8, 2).repeat_interleave(8, 3)
    for blocks in (1, 8):
        made = learner("esac", replace(TINY, blocks=blocks))
        made.network.double().eval()
        told = (made.gate(images), made.gate(images + noise))
        assert torch.allclose(*told, rtol=0, atol=1e-9) == (blocks == 8)
        assert made.gate(images).std(0).max() > 1e-6


@pytest.mark.parametrize("wrong", [{"alone": 4}, {"alone": -1}, {"blocks": 0}, {"blocks": 7}])
def test_a_schedule_or_block_that_cannot_be_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(TINY, **wrong)


@pytest.mark.parametrize("stage", ["begun", "separate", "esac"])
def test_who_learns_from_what(stage: str) -> None:
    """Apart, an expert sees its own kind of image alone; together, its scores count elsewhere as well."""
    made = learner(stage)
    images, truth, _ = some(8)
    kind = torch.zeros(8, dtype=torch.int64)  # say that all are lines
    before = [p.detach().clone() for p in made.network.parameters()]
    made.learn(images, truth, kind)
    gating, line, circle = made.network
    for network in (gating, line):
        assert any(p.grad is not None and p.grad.any() for p in network.parameters())
    taught = any(p.grad is not None and p.grad.any() for p in circle.parameters())
    assert taught == (stage == "esac")
    assert any(not torch.equal(p, q) for p, q in zip(made.network.parameters(), before, strict=True))


def test_the_loss_apart_is_that_of_each_network_alone() -> None:
    """Cross-entropy of the gate, and each image's own expert; asked of all images, in eval mode, they say the same."""
    made = learner("separate")
    made.network.eval()
    images, truth, kind = some(10)
    torch.manual_seed(0)
    loss, expert, error = made.apart(images, truth, kind)
    torch.manual_seed(0)
    log_gate = made.gate(images)
    expected = -log_gate[torch.arange(10), kind].mean()
    for number in (0, 1):
        mine = kind == number
        said = made.ask(number, images[mine], truth[mine], mine[mine])
        expected = expected + expected_loss(said.score, said.loss, made.config.alpha).sum() / 10
        best = said.error[torch.arange(len(said.error)), said.score.argmax(1)]
        wrong = expert[mine] != number
        assert error[mine][wrong].isinf().all()
        torch.testing.assert_close(error[mine][~wrong], best[~wrong])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(expert, log_gate.argmax(1))


def test_the_right_expert_is_learned_from_losses_alone() -> None:
    """One number per image says who is right, scores say nothing: a linear gate finds out without being told."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 1, generator=generator, dtype=torch.float64)
    right = (x[:, 0] > 0).long()
    loss = torch.ones(256, 2, 8, dtype=torch.float64)
    loss[torch.arange(256), right] = 0
    score = torch.rand(256, 2, 8, generator=generator, dtype=torch.float64)
    gate = torch.nn.Linear(1, 2).double()
    with torch.no_grad():
        gate.weight.copy_(torch.tensor([[1.0], [-1.0]]))  # wrong, to begin with
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.1)
    torch.manual_seed(0)
    for _ in range(150):
        optimizer.zero_grad()
        esac_loss(gate(x).log_softmax(-1), score, loss, pools=2, alpha=1.0).mean().backward()
        optimizer.step()
    assert (gate(x).argmax(1) == right).double().mean() > 0.97


@pytest.mark.slow
def test_a_run_leaves_what_there_is_to_see_and_resumes(same_when_resumed: Callable[..., dict[str, Any]]) -> None:
    summary = same_when_resumed(main, TINY, at=3)
    assert summary["figures"] == ["examples.png", "curves.png"]
    usual = {"begun": "hard", "esac": "mixture", "separate": "hard"}
    for stage, how in usual.items():
        for name in (stage, *(f"{stage}_{other}" for other in {"mixture", "even", "hard", "told"} - {how})):
            right, correct = (summary["errors"][f"{name}_{key}"] for key in ("right_expert", "correct"))
            assert 0 <= correct <= right <= 1
        assert summary["errors"][f"{stage}_told_right_expert"] == 1
        assert (
            summary["errors"][f"{stage}_told_correct"]
            >= summary["errors"][f"{stage}{'_hard' * (how != 'hard')}_correct"]
        )


@pytest.mark.slow
def test_what_goes_on_begins_where_learning_apart_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rate of nothing all networks end as they began, which is not where they were made."""
    seen: dict[str, Learner] = {}

    def tested(config: Config, run: Any, learners: dict[str, Learner]) -> dict[str, float]:
        seen.update(learners)
        return dict.fromkeys([f"{stage}_correct" for stage in learners], 0.0)

    monkeypatch.setattr(expert_selection, "test", tested)
    monkeypatch.setattr(expert_selection.Run, "figure", lambda *arguments, **named: None)
    main(replace(TINY, together_rate=1e-30, out=tmp_path))
    begun = list(seen["begun"].network.parameters())
    for method in TINY.methods:
        for p, q in zip(seen[method].network.parameters(), begun, strict=True):
            torch.testing.assert_close(p, q)
    made = learner("begun").network.float().parameters()
    assert any(not torch.allclose(p, q) for p, q in zip(made, begun, strict=True))
