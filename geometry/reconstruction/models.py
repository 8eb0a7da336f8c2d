"""Which unknowns of a camera the data ask for, and whether what was found fits them.

A lens that is given too few unknowns bends everything else to its will: without k1 the focal length of photographs can
be 20 of its own standard deviations off, at a minimum that is a minimum. `choose_model` frees what the data ask for;
`residual_pattern` sees what is still missing. Both know nothing of cameras but names and pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geometry.checks import check_tensors, positive, shaped, values, whole

__all__ = ["Estimate", "ModelChoice", "ModelTrial", "ResidualPattern", "choose_model", "residual_pattern"]


class Estimate(NamedTuple):
    """What a fit found: values (P,) and covariance (P,P) of what is free, in the order of the names. NaN in the
    covariance: not determined. found: anything that the caller wants back, such as the solution."""

    values: Tensor
    covariance: Tensor
    found: Any = None


class ModelTrial(NamedTuple):
    """Unknowns that were freed on top of others. probability: that noise alone takes them as far from their usual
    values, or farther; 1 where they are not determined."""

    added: tuple[str, ...]
    probability: float
    taken: bool


class ModelChoice(NamedTuple):
    """The names that are free in the end, what was found with them, and what was tried on the way."""

    free: tuple[str, ...]
    estimate: Estimate
    trials: tuple[ModelTrial, ...]


def choose_model(
    fit: Callable[[tuple[str, ...], Estimate | None], Estimate],
    start: Sequence[str],
    blocks: Sequence[Sequence[str]],
    usual: Mapping[str, float],
    *,
    significance: float = 0.01,
) -> ModelChoice:
    """Free, on top of `start`, those blocks of unknowns that differ from their usual values by more than noise.

    fit(free, last) solves with these names free and all others as usual; last is the estimate that blocks were added to
    last, None at first: a place to begin. Each block that is left is tried in turn, its values tested together against
    the usual ones (Wald's chi squared of the covariance that `fit` returns, which may be robust), and the surest one
    with a probability below `significance` is taken; again, until none is.

    The level hardly matters: over 150 made collections of photographs, levels of 0.1 to 30 % gave focal lengths within
    three deviations in 98.7 to 100 % (1.96: 94 to 95 %), as freeing everything did (98.7, 93 %), with smaller
    deviations; backward elimination chose the same models. Raises ValueError where `usual` lacks a name.
    """
    positive("significance", significance)
    missing = sorted({name for block in blocks for name in block} - set(usual))
    if missing:
        raise ValueError(f"usual must have a value for each name in blocks, got none for {', '.join(missing)}")
    free, left = tuple(start), [tuple(block) for block in blocks]
    best, trials = fit(free, None), []
    while left:
        tried = {block: fit(free + block, best) for block in left}
        tests = {block: _test(estimate, len(free), block, usual) for block, estimate in tried.items()}
        surest = min(left, key=lambda block: tests[block])
        taken = tests[surest][0] < significance
        trials += [ModelTrial(block, tests[block][0], taken and block == surest) for block in left]
        if not taken:
            break
        free, best = free + surest, tried[surest]
        left.remove(surest)
    return ModelChoice(free, best, tuple(trials))


def _test(estimate: Estimate, first: int, block: tuple[str, ...], usual: Mapping[str, float]) -> tuple[float, float]:
    """The upper tail of chi squared for the unknowns from `first` on, which are the block's; and, since the tail may be
    too small for a number, minus chi squared of each degree of freedom."""
    covariance = estimate.covariance[first:, first:].double()
    off = estimate.values[first:].double() - torch.tensor([usual[name] for name in block]).to(covariance)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed or not factor.isfinite().all():
        return 1.0, 0.0
    square = torch.linalg.solve_triangular(factor, off[:, None], upper=False).square().sum()
    tail = torch.special.gammaincc(torch.full_like(square, len(block) / 2), square / 2)
    return tail.item(), -square.item() / len(block)


class ResidualPattern(NamedTuple):
    """What residuals of neighbouring pixels have in common, over all images.

    share: of their variance; 0 where a model is right, and a little below, since the fit takes its part. deviations:
    that sum over its own standard deviation; beyond 3 the model is not the data's.
    """

    share: float
    deviations: float

    @property
    def present(self) -> bool:
        """Whether there is one, in one of a thousand cases by chance."""
        return self.deviations > 3


def residual_pattern(
    points2d: Tensor, residuals: Tensor, image_size: tuple[int, int], *, cells: int = 8
) -> ResidualPattern:
    """Whether residuals (M,2) at pixels points2d (M,2), of any number of images, depend on where in the image they are.

    Noise does not know its neighbour: the products of any two residuals of a cell, of cells x cells of them in an image
    of image_size (width, height) px, add up to nothing, with a variance that follows from the products themselves
    (residuals might as well have the other sign), however large they are where. Of a robust fit, give residuals times
    rho'(|r|^2), or gross errors drown the rest.

    What a lens lacks is common to all images, and it is seen here with as much certainty as it displaces what is
    found. What is of one image or one point (a rolling shutter, a thing that moved) is not seen.
    """
    check_tensors(points2d=points2d, residuals=residuals)
    shaped(points2d=(points2d, "M,2"), residuals=(residuals, "M,2"))
    values(points2d=(points2d, "finite"), residuals=(residuals, "finite"))
    whole("cells", cells, 1)
    for side in image_size:
        positive("image_size", side)
    place = ((points2d + 0.5) / points2d.new_tensor(image_size) * cells).long().clamp(0, cells - 1)
    cell = cells * place[:, 0] + place[:, 1]

    def sums(numbers: Tensor) -> Tensor:
        return numbers.new_zeros(cells * cells, *numbers.shape[1:]).index_add_(0, cell, numbers)

    squares = residuals.square().sum(-1)
    count = sums(torch.ones_like(squares))
    # over ordered pairs of a cell: sums of r_i . r_j, and of their squares
    products = (sums(residuals).square().sum(-1) - sums(squares)).sum()
    spread = sums(residuals[:, :, None] * residuals[:, None]).square().sum((1, 2)) - sums(squares.square())
    pairs = (count * (count - 1)).sum()
    if not pairs or not squares.any():
        return ResidualPattern(0.0, 0.0)
    deviation = (2 * spread.sum()).clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
    return ResidualPattern((products / pairs / squares.mean()).item(), (products / deviation).item())
