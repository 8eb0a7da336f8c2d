"""Expectations over draws against sums over everything that can be drawn, and gradients against finite differences."""

import itertools

import pytest
import torch
from torch import Tensor

from geometry import draw_sets, expected_loss, relaxed_sets, score_function_loss, set_log_probability, soft_inliers
from tests.numbers import generator

WEIGHTS = torch.tensor([[0.3, -0.5, 1.2, 0.0, -2.0], [0.0, 0.0, -torch.inf, 2.0, 0.5]], dtype=torch.float64)
ORDERED = torch.tensor(list(itertools.permutations(range(5), 2)))


def test_probabilities_of_all_ordered_sets_sum_to_one() -> None:
    p = set_log_probability(WEIGHTS, ORDERED.expand(2, -1, -1)).exp()
    torch.testing.assert_close(p.sum(1), torch.ones(2, dtype=torch.float64))
    assert (p[1, (ORDERED == 2).any(1)] == 0).all()
    # first 2 then 0, by hand
    w = WEIGHTS[0].exp()
    by_hand = w[2] / w.sum() * w[0] / (w.sum() - w[2])
    at = ORDERED.eq(torch.tensor([2, 0])).all(1).nonzero().item()
    torch.testing.assert_close(p[0, int(at)], by_hand)


def test_sets_are_drawn_with_their_probability() -> None:
    draws = 200_000
    index = draw_sets(WEIGHTS, 2, draws, generator())
    assert (index[..., 0] != index[..., 1]).all()
    code = index[..., 0] * 5 + index[..., 1]
    p = set_log_probability(WEIGHTS, ORDERED.expand(2, -1, -1)).exp()
    for b in range(2):
        share = code[b].bincount(minlength=25)[ORDERED[:, 0] * 5 + ORDERED[:, 1]] / draws
        error = (p[b] * (1 - p[b]) / draws).sqrt()
        assert ((share - p[b]).abs() <= 4.5 * error).all()


@pytest.mark.slow
def test_relaxed_sets_have_the_law_of_the_others() -> None:
    """Chi-square of 200,000 ordered pairs, by SciPy: against the probabilities, and against draws of `draw_sets`."""
    from scipy.stats import chi2_contingency, chisquare

    draws = 200_000
    relaxed, drawn = relaxed_sets(WEIGHTS, 2, draws, generator=generator()), draw_sets(WEIGHTS, 2, draws, generator(1))
    assert (relaxed.gate == 1).all()
    p = set_log_probability(WEIGHTS, ORDERED.expand(2, -1, -1)).exp()
    for b in range(2):
        possible = p[b] > 0
        counts = [
            (index[b, :, 0] * 5 + index[b, :, 1]).bincount(minlength=25)[ORDERED[:, 0] * 5 + ORDERED[:, 1]]
            for index in (relaxed.drawn, drawn)
        ]
        assert (counts[0][~possible] == 0).all()
        known, other = (count[possible].numpy() for count in counts)
        assert chisquare(known, draws * p[b, possible].numpy()).pvalue > 1e-3
        assert chi2_contingency([known, other]).pvalue > 1e-3


def test_the_gate_has_the_gradient_of_the_softmax() -> None:
    """At a high temperature the noise no longer matters: d gate_i / d log_weight_j is (delta_ij - 1/N) / (N t)."""
    weights, t = WEIGHTS[:1].clone().requires_grad_(), 1e6
    index, gate = relaxed_sets(weights, 3, 4, temperature=t, generator=generator())
    for s in range(4):
        for k in range(3):
            (found,) = torch.autograd.grad(gate[0, s, k], weights, retain_graph=True)
            expected = torch.full((1, 5), -1 / 25, dtype=torch.float64)
            expected[0, index[0, s, k]] += 1 / 5
            torch.testing.assert_close(t * found, expected, rtol=0, atol=1e-4)
    # a constant on all odds moves no gate
    (found,) = torch.autograd.grad((gate * torch.rand(gate.shape, dtype=torch.float64)).sum(), weights)
    assert found.sum().abs() < 1e-12 * found.abs().sum() + 1e-20


@pytest.mark.slow
@pytest.mark.parametrize(("size", "reached"), [(1, 0.03), (2, 0.5)])
def test_descent_through_the_gate_draws_what_lowers_the_loss(size: int, reached: float) -> None:
    """Each observation brings a number; the expected sum over a set, by enumeration, falls from the mean, 0.4 each.

    Of one observation to its least, 0; of two not to 0.2: once one has nearly all of the softmax the gate of the
    other says little.
    """
    brings = torch.tensor([0.5, 0.2, 0.9, 0.0, 0.4], dtype=torch.float64)
    ordered = torch.tensor(list(itertools.permutations(range(5), size)))
    weights, g = torch.zeros(1, 5, dtype=torch.float64).requires_grad_(), generator()
    optimizer = torch.optim.Adam([weights], lr=0.1)

    def expected() -> float:
        p = set_log_probability(weights.detach(), ordered[None]).exp()[0]
        return (p * brings[ordered].sum(-1)).sum().item()

    assert expected() == pytest.approx(0.4 * size)
    for _ in range(200):
        drawn, gate = relaxed_sets(weights, size, 32, generator=g)
        optimizer.zero_grad()
        (gate * brings[drawn]).sum(-1).mean().backward()
        optimizer.step()
    assert expected() < reached


def test_relaxed_sets_of_too_few_observations() -> None:
    weights = torch.tensor([[0.0, -torch.inf, 1.0, -torch.inf], [-torch.inf] * 4], dtype=torch.float64).requires_grad_()
    index, gate = relaxed_sets(weights, 3, 50, generator=generator())
    assert index[0].sort(-1).values.flatten(0, 0).diff(dim=-1).eq(0).any(-1).all()
    assert set(index[0].unique().tolist()) == {0, 2}
    assert (gate == 1).all()
    (gradient,) = torch.autograd.grad((gate * index).sum(), weights)
    assert torch.isfinite(gradient).all()
    assert gradient[0, 0] != 0
    assert (gradient[0, [1, 3]] == 0).all()
    assert (gradient[1] == 0).all()
    with pytest.raises(ValueError, match="size must be at most the number of observations 4, got 5"):
        relaxed_sets(weights, 5, 1)


def test_a_constant_on_the_weights_changes_nothing_and_draws_repeat() -> None:
    one, other = (draw_sets(w, 3, 50, generator(7)) for w in (WEIGHTS, WEIGHTS + 3.0))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(
        set_log_probability(WEIGHTS, one[..., :2]), set_log_probability(WEIGHTS + 3.0, one[..., :2])
    )


def test_log_probability_is_differentiable_and_absent_ones_get_nothing() -> None:
    weights = WEIGHTS.clone().requires_grad_()
    index = draw_sets(WEIGHTS, 3, 6, generator())
    set_log_probability(weights, index).sum().backward()
    assert weights.grad is not None
    assert weights.grad[1, 2] == 0
    assert torch.isfinite(weights.grad).all()
    known = WEIGHTS[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda w: set_log_probability(w, index[:1]), known)

    weights.grad = None
    impossible = torch.tensor([[[0, 1]], [[0, 2]]])
    p = set_log_probability(weights, impossible)
    assert p[1, 0] == -torch.inf
    p[1].sum().backward()
    assert (weights.grad == 0).all()
    lonely = torch.tensor([[0.0, -torch.inf, -torch.inf]], dtype=torch.float64, requires_grad=True)
    sets = torch.cat([draw_sets(lonely, 3, 1), torch.tensor([[[0, 1, 2]]])], 1)
    p = set_log_probability(lonely, sets)
    assert (p == -torch.inf).all()
    p.sum().backward()
    assert (lonely.grad == 0).all()


def test_too_few_observations_are_named() -> None:
    with pytest.raises(ValueError, match="size must be at most the number of observations 5, got 6"):
        draw_sets(WEIGHTS, 6, 1)


def test_soft_inliers_become_a_count() -> None:
    error = torch.tensor([0.0, 0.9, 1.1, 5.0, torch.nan, torch.inf, 0.1], dtype=torch.float64)
    mask = torch.tensor([True] * 6 + [False])
    assert soft_inliers(error, 1.0, 1000.0) == pytest.approx(3)
    assert soft_inliers(error, 1.0, 1000.0, mask) == pytest.approx(2)
    finite = error[:4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda e: soft_inliers(e, 1.0, 3.0), finite)
    grad = torch.autograd.grad(soft_inliers(error.requires_grad_(), 1.0, 3.0), error)[0]
    assert torch.isfinite(grad).all()


def test_expected_loss_leaves_failures_out() -> None:
    g = generator()
    score, loss = (torch.randn(3, 6, generator=g, dtype=torch.float64) for _ in range(2))
    by_hand = ((2 * score).softmax(1) * loss).sum(1)
    torch.testing.assert_close(expected_loss(score, loss, 2.0), by_hand)
    assert torch.autograd.gradcheck(expected_loss, (score.requires_grad_(), loss.requires_grad_(), 2.0))

    failed_score, failed_loss = score.detach().clone(), loss.detach().clone()
    failed_score[0, 1], failed_loss[0, 2] = torch.nan, torch.inf
    failed_score[2] = -torch.inf
    failed_score.requires_grad_()
    failed_loss.requires_grad_()
    found = expected_loss(failed_score, failed_loss, 2.0)
    kept = [0, 3, 4, 5]
    torch.testing.assert_close(found[0], expected_loss(score[:1, kept], loss[:1, kept], 2.0)[0])
    torch.testing.assert_close(found[1], by_hand[1])
    assert found[2] == 0
    found.sum().backward()
    for t in (failed_score, failed_loss):
        assert t.grad is not None
        assert torch.isfinite(t.grad).all()
        assert (t.grad[2] == 0).all()


@pytest.mark.slow
def test_the_gradient_of_a_hard_choice_is_unbiased() -> None:
    """The loss of a drawn pair is a table without a derivative: against the enumerated expectation, 1,000 times."""
    weights = WEIGHTS[:1].clone().requires_grad_()
    table = torch.randn(5, 5, generator=generator(1), dtype=torch.float64)
    p = set_log_probability(weights, ORDERED[None]).exp()
    expected = (p * table[ORDERED[:, 0], ORDERED[:, 1]]).sum()
    (truth,) = torch.autograd.grad(expected, weights)
    g = generator(2)
    values, found = [], []
    for _ in range(1000):
        index = draw_sets(weights, 2, 8, g)
        loss = score_function_loss(table[index[..., 0], index[..., 1]], set_log_probability(weights, index))
        values.append(loss.detach())
        found.append(torch.autograd.grad(loss.sum(), weights)[0])
    gradients = torch.cat(found)
    error = gradients.std(0) / 1000**0.5
    assert ((gradients.mean(0) - truth[0]).abs() <= 4 * error).all()
    assert error.max() < 0.1 * truth.abs().max()
    value = torch.cat(values)
    assert (value.mean() - expected).abs() <= 4 * value.std() / 1000**0.5


def test_the_baseline_takes_away_what_all_losses_share() -> None:
    """A constant on all losses changes no gradient, where REINFORCE alone would be all noise."""
    index = draw_sets(WEIGHTS, 2, 8, generator())

    def gradient(shift: float) -> Tensor:
        weights = WEIGHTS.clone().requires_grad_()
        loss = index.sum(-1).double() + shift
        score_function_loss(loss, set_log_probability(weights, index)).sum().backward()
        assert weights.grad is not None
        return weights.grad

    torch.testing.assert_close(gradient(0.0), gradient(1e6), rtol=1e-6, atol=1e-8)


def test_a_differentiable_loss_keeps_its_own_gradient() -> None:
    x = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64, requires_grad=True)
    score_function_loss(x.square(), torch.zeros(1, 3, dtype=torch.float64)).sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach() / 3)


def test_bad_draws_are_named() -> None:
    with pytest.raises(ValueError, match="at least two draws"):
        score_function_loss(torch.zeros(2, 1), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"log_probability must have shape \(2\|1,3\) or \(3,\)"):
        score_function_loss(torch.zeros(2, 3), torch.zeros(2, 2))
