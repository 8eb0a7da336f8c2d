"""Similarity alignment against scipy, linear least squares and what it must be invariant to."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from geometry import Similarity, align_similarity
from tests.numbers import normal


@settings(max_examples=60, deadline=None)
@given(
    log_scale=st.floats(-5, 5),
    rotvec=st.tuples(*[st.floats(-3, 3)] * 3),
    t=st.tuples(*[st.floats(-50, 50)] * 3),
    seed=st.integers(0, 1000),
    planar=st.booleans(),
)
def test_a_known_similarity_is_recovered(
    log_scale: float, rotvec: tuple[float, ...], t: tuple[float, ...], seed: int, planar: bool
) -> None:
    source = normal(9, 3, seed=seed)
    if planar:
        source[:, 2] = 0.3
    R = torch.from_numpy(Rotation.from_rotvec(rotvec).as_matrix())
    truth = Similarity(torch.tensor(math.exp(log_scale)).double(), R, torch.tensor(t, dtype=torch.float64))
    found = align_similarity(source, truth.apply(source))
    torch.testing.assert_close(found.scale, truth.scale, rtol=1e-11, atol=0)
    torch.testing.assert_close(found.R, R, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.apply(source), truth.apply(source), rtol=0, atol=1e-11 * (100 + found.scale))


def test_apply_is_the_formula() -> None:
    R = torch.from_numpy(Rotation.from_rotvec([0.3, -1, 2]).as_matrix())
    similarity = Similarity(torch.tensor(2.5).double(), R, torch.tensor([1.0, 2, 3]).double())
    points = normal(4, 3)
    expected = [2.5 * R.numpy() @ p + [1, 2, 3] for p in points.numpy()]
    np.testing.assert_allclose(similarity.apply(points), expected, rtol=1e-13)


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])  # at 3.0 half of the unconstrained optima are reflections
def test_against_scipy_and_linear_least_squares(noise: float) -> None:
    reflections = 0
    for seed in range(20):
        source = normal(6, 3, seed=seed)
        R = Rotation.random(random_state=seed)
        target = torch.from_numpy(R.apply(source.numpy())) + noise * normal(6, 3, seed=seed + 100) + 7
        found = align_similarity(source, target)
        a, b = source - source.mean(0), target - target.mean(0)
        reflections += int(torch.linalg.det(b.T @ a) < 0)
        expected, _ = Rotation.align_vectors(b.numpy(), a.numpy())
        np.testing.assert_allclose(found.R, expected.as_matrix(), atol=1e-8)
        # given R, scale and translation are linear
        columns = torch.cat([(source @ found.R.T).reshape(-1, 1), torch.eye(3).double().repeat(6, 1)], 1)
        linear = torch.linalg.lstsq(columns, target.reshape(-1, 1)).solution.squeeze(1)
        torch.testing.assert_close(torch.cat([found.scale[None], found.t]), linear, rtol=1e-9, atol=1e-9)
    if noise == 3.0:
        assert reflections >= 5


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirror_image_does_not_match(axis: int) -> None:
    source = normal(12, 3)
    flip = torch.ones(3, dtype=torch.float64)
    flip[axis] = -1
    found = align_similarity(source, source * flip)
    torch.testing.assert_close(torch.linalg.det(found.R), torch.tensor(1.0).double())
    assert (found.apply(source) - source * flip).norm(dim=-1).mean() > 0.3


def test_leading_dimensions_are_independent() -> None:
    source, target = normal(2, 3, 8, 3), normal(2, 3, 8, 3, seed=1)
    together = align_similarity(source, target)
    assert [tuple(part.shape) for part in together] == [(2, 3), (2, 3, 3, 3), (2, 3, 3)]
    for i in range(2):
        for j in range(3):
            alone = align_similarity(source[i, j], target[i, j])
            for one, part in zip(alone, together, strict=True):
                torch.testing.assert_close(one, part[i, j], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(alone.apply(source[i, j]), together.apply(source)[i, j], rtol=1e-12, atol=1e-12)


def test_the_order_of_the_points_does_not_matter() -> None:
    source, target = normal(10, 3), normal(10, 3, seed=1)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    for a, b in zip(align_similarity(source, target), align_similarity(source[order], target[order]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_weight_is_the_root_of_how_often_a_pair_counts() -> None:
    generator = torch.Generator().manual_seed(5)
    source, target = torch.randn(2, 2, 6, 3, generator=generator, dtype=torch.float64)
    times = torch.tensor([1, 3, 0, 2, 1, 4])
    found = align_similarity(source, target, times.double().sqrt().expand(2, 6))
    wanted = align_similarity(*(points.repeat_interleave(times, 1) for points in (source, target)))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


CUBE = torch.tensor(list(product((-1.0, 1.0), repeat=3)), dtype=torch.float64)


@pytest.mark.parametrize(
    "source", [normal(7, 3), CUBE, normal(7, 3) * torch.tensor([1, 1, 0])], ids=["any", "cube", "flat"]
)
def test_two_derivatives_are_those_of_differences(source: Tensor) -> None:
    """Of a cube as well, whose singular values agree: a derivative of the decomposition itself is NaN there."""
    R = torch.from_numpy(Rotation.from_rotvec([0.5, 1, -2]).as_matrix())
    weights = 1 + normal(len(source), seed=3).square()
    inputs = [a.requires_grad_() for a in (source.clone(), 1.7 * source @ R.T + 2, weights)]

    def align(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(align_similarity(*inputs))

    assert torch.autograd.gradcheck(align, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(align, inputs)


@pytest.mark.parametrize("origin", [0.0, 5e5])
@pytest.mark.parametrize("kind", ["collinear", "in one place", "one", "two"])
def test_what_many_rotations_fit_has_gradient_zero(kind: str, origin: float) -> None:
    line = normal(20, 1) * torch.tensor([1, 0.3, -0.7])
    source = {"collinear": line, "in one place": line[:1].expand(20, 3), "one": line[:1], "two": line[:2]}[
        kind
    ] + origin
    target = source @ torch.from_numpy(Rotation.from_rotvec([0.5, 1, -2]).as_matrix()).T + 3
    inputs = [source.clone().requires_grad_(), target.clone().requires_grad_()]
    found = align_similarity(*inputs)
    assert float((found.apply(source) - target).abs().max()) < 1e-12 * (10 + origin)
    torch.testing.assert_close(found.scale, torch.ones_like(found.scale), rtol=1e-9, atol=0)
    for gradient in torch.autograd.grad(sum(part.sum() for part in found), inputs):
        assert (gradient == 0).all()
