"""The paper's network against its definition."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from experiments.paper.vgg import ConstantVgg11

CHANNELS = [3, 64, 128, 256, 256, 512, 512, 512, 512]
POOLED_AFTER = {0, 1, 3, 5, 7}


@pytest.fixture(scope="module")
def model() -> ConstantVgg11:
    torch.manual_seed(0)
    return ConstantVgg11(16)


def convolutions(model: ConstantVgg11) -> list[nn.Conv2d]:
    return [layer for layer in model.features if isinstance(layer, nn.Conv2d)]


def test_parameters_are_counted_as_published(model: ConstantVgg11) -> None:
    shapes = [tuple(layer.weight.shape) for layer in convolutions(model)]
    assert shapes == [(b, a, 3, 3) for a, b in pairwise(CHANNELS)]
    assert sum(p.numel() for p in model.features.parameters()) == 9_220_480
    assert sum(p.numel() for p in model.parameters()) == 9_220_480 + 16 * (25088 + 1)


def test_weights_start_as_he_et_al_say(model: ConstantVgg11) -> None:
    for layer in convolutions(model):
        expected = math.sqrt(2 / (9 * layer.out_channels))
        n = layer.weight.numel()
        # five standard errors of a normal sample's deviation, and of its mean
        assert layer.weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * n))
        assert abs(layer.weight.mean().item()) < 5 * expected / math.sqrt(n)
        kurtosis = (layer.weight / expected).double().pow(4).mean().item()
        assert kurtosis == pytest.approx(3, abs=5 * math.sqrt(96 / n))  # normal, not uniform (1.8)
        assert layer.bias is not None
        assert not layer.bias.any()


def test_the_last_layer_starts_as_torch_does(model: ConstantVgg11) -> None:
    bound = 1 / math.sqrt(25088)
    weight = model.classifier.weight
    assert 0.999 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)


def test_forward_is_the_formula(model: ConstantVgg11) -> None:
    x = torch.ones(1, 3, 32, 32)
    for i, layer in enumerate(convolutions(model)):
        x = functional.conv2d(x, layer.weight, layer.bias, padding=1).clamp_min(0)
        if i in POOLED_AFTER:
            x = functional.max_pool2d(x, 2)
    assert x.shape == (1, 512, 1, 1)
    expected = model.classifier.weight.view(16, 512, 49).sum(-1) @ x.flatten() + model.classifier.bias
    assert model().shape == (16,)
    torch.testing.assert_close(model(), expected, rtol=1e-4, atol=1e-6)


def test_one_seed_one_network(model: ConstantVgg11) -> None:
    torch.manual_seed(0)
    same = ConstantVgg11(16)
    assert torch.equal(same(), model())
    torch.manual_seed(1)
    assert not torch.allclose(ConstantVgg11(16)(), model())


def test_every_parameter_learns_and_keeps_its_type() -> None:
    torch.manual_seed(0)
    model = ConstantVgg11(3).double()
    output = model()
    assert output.dtype == torch.float64
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
