"""Learning through a choice: minimal sets drawn, hypotheses scored, one of them taken.

RANSAC takes the hypothesis with the best score, and no gradient passes an argmax. Two ways around it, and both at once:

- Where the choice is a softmax over scores, the expected loss is differentiable in the scores and in the hypotheses:
  DSAC (Brachmann et al., CVPR 2017, arXiv 1611.05705, eq. 10).
- Where what is drawn has a known probability, the gradient of the expected loss is that of its logarithm, times the
  loss, which need not be differentiable itself: NG-RANSAC (Brachmann and Rother, ICCV 2019, arXiv 1905.04132, eqs. 7
  to 9) for the minimal sets, ESAC (the same, ICCV 2019, arXiv 1908.02484, eq. 12) for the expert that makes them.

`geometry.consensus.search` draws, solves and scores; what is here turns that into a loss.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from geometry.checks import check_tensors, indices, leading, positive, spread, whole
from geometry.consensus.samples import draw

__all__ = [
    "RelaxedSets",
    "draw_sets",
    "expected_loss",
    "relaxed_sets",
    "score_function_loss",
    "set_log_probability",
    "soft_inliers",
]


def _rows(**named: Tensor) -> tuple[Tensor, ...]:
    """The tensors as (B,n) each, of what may be shared: (B|1,n) or (n,). ValueError for other tensors and shapes."""
    check_tensors(**named)
    (first, like), *others = named.items()
    if like.ndim not in (1, 2):
        raise ValueError(f"{first} must have two dimensions, the problems first, or one, got {tuple(like.shape)}")
    like = spread(like, 1, *((value, 1) for _, value in others))
    B, n = like.shape
    return like, *(leading(name, value, B, (n,)).expand(B, n) for name, value in others)


def draw_sets(log_weights: Tensor, size: int, count: int, generator: torch.Generator | None = None) -> Tensor:
    """`count` sets of `size` different observations for each problem, likelier ones first drawn. (B,count,size) int64.

    log_weights (B,N) or (N,): of drawing an observation first, up to a constant; -inf for one that is absent. The
    others are drawn from what is left, with the same odds (`samples.draw`). Where fewer than `size` are present a set
    repeats some: its probability is zero. Raises ValueError where N is smaller than `size`.

    >>> draw_sets(torch.zeros(10), size=3, count=5).shape
    torch.Size([1, 5, 3])
    """
    (log_weights,) = _rows(log_weights=log_weights)
    whole("size", size, 1)
    whole("count", count, 1)
    N = log_weights.shape[1]
    if size > N:
        raise ValueError(f"size must be at most the number of observations {N}, got {size}")
    largest = log_weights.detach().amax(1, keepdim=True)
    shape = (len(log_weights), count, size)
    numbers = torch.rand(shape, generator=generator, dtype=torch.float64, device=log_weights.device)
    return draw((log_weights.detach() - largest).exp().nan_to_num(0.0), numbers)


class RelaxedSets(NamedTuple):
    """drawn (B,count,size) int64: indices; gate (B,count,size): ones, which carry the gradient to the odds."""

    drawn: Tensor
    gate: Tensor


def relaxed_sets(
    log_weights: Tensor,
    size: int,
    count: int,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> RelaxedSets:
    """The draws of `draw_sets`, through which a gradient passes: nabla-RANSAC's sampler (arXiv 2212.13185).

    A set is what is largest of log_weights + g, g standard Gumbel: its law, and that of its order, is the one of
    `draw_sets` (Yellott 1977; Kool et al. 2019, arXiv 1903.06059). Multiply what the observations of a set bring, their
    weights for example, by its gate: 1 in value, and in derivative softmax((log_weights + g) / temperature) at the
    observation (straight-through Gumbel-softmax, Jang et al., arXiv 1611.01144). That gradient is biased, unlike
    `score_function_loss`'s: it asks what the loss would do if an observation counted a little more, not if it were
    another one, and of a set in which one observation has nearly all of the softmax it says little about the others.
    The lower the temperature, the less bias and the more variance.

    log_weights (B,N) or (N,): up to a constant; -inf for an absent observation. Where fewer than `size` are present a
    set repeats its first, with gates that have no gradient. Raises ValueError where N is smaller than `size`.

    >>> relaxed_sets(torch.zeros(10), size=3, count=5).gate.shape
    torch.Size([1, 5, 3])
    """
    (log_weights,) = _rows(log_weights=log_weights)
    whole("size", size, 1)
    whole("count", count, 1)
    positive("temperature", temperature)
    B, N = log_weights.shape
    if size > N:
        raise ValueError(f"size must be at most the number of observations {N}, got {size}")
    shape, tiny = (B, count, N), torch.finfo(torch.float64).tiny
    numbers = torch.rand(shape, generator=generator, dtype=torch.float64, device=log_weights.device)
    gumbel = -(-numbers.clamp_min(tiny).log()).clamp_min(tiny).log()
    absent = torch.isneginf(log_weights)[:, None].expand(shape)
    # a row without any observation keeps its softmax finite: its gates are cut off below
    lost = absent.all(-1, keepdim=True)
    perturbed = torch.where(absent & ~lost, -torch.inf, torch.where(absent, 0.0, log_weights[:, None]) + gumbel)
    index = perturbed.detach().topk(size, dim=-1).indices
    repeated = absent.gather(-1, index)
    soft = (perturbed / temperature).softmax(-1).gather(-1, index)
    index = torch.where(repeated, index[..., :1], index)
    soft = torch.where(repeated, soft.detach(), soft)
    return RelaxedSets(index, (soft - soft.detach() + 1).to(log_weights.dtype))


def set_log_probability(log_weights: Tensor, index: Tensor) -> Tensor:
    """Logarithm of the probability (B,S) with which `draw_sets` draws index (B|1,S,size) or (S,size), in that order.

    Differentiable in log_weights (B|1,N) or (N,): the Plackett-Luce model. -inf, with gradient zero, for a set that
    repeats an observation, or holds an absent one.

    >>> set_log_probability(torch.zeros(4), torch.tensor([[0, 1]])).exp()
    tensor([[0.0833]])
    """
    (log_weights,) = _rows(log_weights=log_weights)
    log_weights = spread(log_weights, 1, (index, 2))
    B = len(log_weights)
    indices("index", index)
    if index.ndim == 2 or index.shape[:1] == (1,):
        index = index.expand(B, *index.shape[-2:])
    if index.ndim != 3 or len(index) != B:
        raise ValueError(f"index must have shape ({B}|1,S,size) or (S,size), got {tuple(index.shape)}")
    index = index.long()
    absent = torch.isneginf(log_weights)
    left = log_weights[:, None].expand(-1, index.shape[1], -1)
    wrong = absent[:, None].expand_as(left).gather(-1, index).any(-1)
    wrong = wrong | (index.sort(-1).values.diff(dim=-1) == 0).any(-1)
    left = torch.where(wrong[..., None], 0.0, left)  # so that nothing below divides by nothing
    total = left.new_zeros(left.shape[:2])
    for drawn in index.unbind(-1):
        chosen = left.gather(-1, drawn[..., None])[..., 0]
        total = total + chosen - left.logsumexp(-1)
        left = left.scatter(-1, drawn[..., None], -torch.inf)
    return torch.where(wrong, -torch.inf, total)


def soft_inliers(error: Tensor, threshold: float, beta: float, mask: Tensor | None = None) -> Tensor:
    """How many observations agree with a hypothesis, differentiably: sum of sigmoid(beta (threshold - error)). (...)

    error (...,N): norms of the residuals; one that is not finite counts for nothing. mask (...,N): absent ones as well.
    (DSAC++, Brachmann and Rother, CVPR 2018, arXiv 1711.10228, eq. 10.)

    >>> soft_inliers(torch.tensor([0.0, 1.0, 9.0]), threshold=1.0, beta=20.0)
    tensor(1.5000)
    """
    check_tensors(error=error)
    positive("threshold", threshold)
    positive("beta", beta)
    present = torch.isfinite(error) if mask is None else torch.isfinite(error) & mask
    agree = torch.sigmoid(beta * (threshold - torch.where(present, error, 0.0)))
    return torch.where(present, agree, 0.0).sum(-1)


def expected_loss(score: Tensor, loss: Tensor, alpha: float = 1.0) -> Tensor:
    """Expected loss (B,) when hypothesis j of H is taken with probability softmax(alpha score)_j.

    score, loss (B|1,H) or (H,): differentiable in both. A hypothesis that failed (score or loss not finite) is never
    taken, and gets no gradient; where all failed the expectation is zero.

    >>> expected_loss(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]))
    tensor([2.])
    """
    score, loss = _rows(score=score, loss=loss)
    ok = torch.isfinite(score) & torch.isfinite(loss)
    logits = torch.where(ok, alpha * torch.where(ok, score, 0.0), -torch.inf)
    logits = torch.where(ok.any(-1, keepdim=True), logits, 0.0)
    return (logits.softmax(-1) * torch.where(ok, loss, 0.0)).sum(-1)


def score_function_loss(loss: Tensor, log_probability: Tensor) -> Tensor:
    """The mean loss (B,) of S draws, whose gradient is an unbiased one of the expected loss.

    loss (B|1,S) or (S,): of each draw, differentiable or not; log_probability, likewise: of that draw, differentiable
    in what it was drawn from. d E[loss] = E[(loss - b) d log p + d loss] (REINFORCE, Williams 1992); the baseline b of
    a draw is the mean loss of the other draws, which does not depend on it and so leaves the mean as it is (Kool et al.
    2019). Loss must be finite: give a failed draw the largest loss there is. Raises ValueError for S < 2, which has no
    baseline.

    >>> log_odds = torch.zeros(1, 2, requires_grad=True)
    >>> score_function_loss(torch.tensor([[1.0, 3.0]]), log_odds.log_softmax(1)).backward()
    >>> log_odds.grad  # the second costs more
    tensor([[-1.,  1.]])
    """
    loss, log_probability = _rows(loss=loss, log_probability=log_probability)
    B, S = loss.shape
    if S < 2:
        raise ValueError(f"loss must have shape (B,S) with at least two draws, got {(B, S)}")
    others = (loss.sum(1, keepdim=True) - loss) / (S - 1)
    advantage = (loss - others).detach()
    impossible = torch.isneginf(log_probability.detach())
    log_probability = torch.where(impossible, 0.0, log_probability)
    return (loss + advantage * (log_probability - log_probability.detach())).mean(1)
