"""Toy images: what is drawn is what the truth says, as often as promised, and the seed decides."""

import math

import pytest
import torch
from torch import Tensor

from datasets.made.toy_images import SIDE, ToyImages, circle_cover, line_images, segment_cover, shape_images
from tests.numbers import generator


@pytest.fixture(scope="module")
def lines() -> ToyImages:
    return line_images(300, generator())


@pytest.fixture(scope="module")
def shapes() -> ToyImages:
    return shape_images(300, generator())


def pixels() -> Tensor:
    at = (torch.arange(SIDE) + 0.5) / SIDE
    return torch.stack(torch.meshgrid(at, at, indexing="xy"), -1)


@pytest.mark.parametrize("images", [line_images, shape_images])
def test_one_seed_one_set_of_images(images: object) -> None:
    assert callable(images)
    one, same, other = images(5, generator(3)), images(5, generator(3)), images(5, generator(4))
    for a, b in zip(one, same, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(one.images, other.images)
    assert one.images.shape == (5, 3, SIDE, SIDE)
    assert images(2, generator(), torch.float64).images.dtype == torch.float64
    g = generator(3)
    images(5, g)
    assert not torch.equal(images(5, g).images, one.images)  # the generator goes on


def test_a_line_is_drawn_where_the_truth_says(lines: ToyImages) -> None:
    n, d = lines.shape[:, :2], lines.shape[:, 2:]
    torch.testing.assert_close(n.norm(dim=-1), torch.ones(300))
    torch.testing.assert_close((lines.ends * n[:, None]).sum(-1), d.expand(-1, 2), rtol=0, atol=1e-6)
    length = (lines.ends[:, 0] - lines.ends[:, 1]).norm(dim=-1)
    assert length.min() >= 20 / SIDE
    middle = lines.ends.mean(1)
    assert ((middle >= 0) & (middle <= 1)).all()
    assert lines.ends.min() >= -5 / SIDE
    assert lines.ends.max() <= 1 + 5 / SIDE
    assert lines.ends.min() < 0
    assert not lines.is_circle.any()


def test_without_circles_there_is_a_line_of_one_colour_and_noise() -> None:
    alone = line_images(300, generator(1), circles=(0, 0))
    assert not alone.distractors.any()
    cover = segment_cover(alone.ends)[:, None]
    ink = ((alone.images - 0.5) * cover).sum((2, 3)) / cover.square().sum((2, 3))  # least squares
    assert ink.abs().max() < 0.6
    assert ink.abs().mean().item() == pytest.approx(0.25, abs=0.02)  # of a uniform colour less grey
    clean = 0.5 + ink[:, :, None, None] * cover
    noise = (alone.images - clean) / clean
    assert noise.mean().abs() < 1e-3
    assert noise[(clean > 0.2) & (clean < 0.7)].std().item() == pytest.approx(0.1, rel=0.01)  # speckle


def test_numbers_of_circles_and_strokes(lines: ToyImages, shapes: ToyImages) -> None:
    for data, low, high in ((lines, 2, 5), (shapes, 4, 10)):
        counts = data.distractors.bincount(minlength=high + 1)
        assert counts[:low].sum() == 0
        assert len(counts) == high + 1
        expected = 300 / (high - low + 1)
        assert (counts[low:] - expected).abs().max() < 5 * math.sqrt(expected)


def test_shapes_are_lines_or_circles_by_halves(shapes: ToyImages) -> None:
    share = shapes.is_circle.double().mean().item()
    assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(300)
    centre, radius = shapes.shape[shapes.is_circle].split([2, 1], dim=-1)
    assert ((centre - radius >= -1e-6) & (centre + radius <= 1 + 1e-6)).all()
    assert radius.min() >= 0.1
    assert radius.max() <= 0.4
    assert shapes.ends[shapes.is_circle].isnan().all()
    normal, offset = shapes.shape[~shapes.is_circle].split([2, 1], dim=-1)
    ends = shapes.ends[~shapes.is_circle]
    torch.testing.assert_close((ends * normal[:, None]).sum(-1), offset.expand(-1, 2), rtol=0, atol=1e-6)


def test_a_shape_stands_out_from_its_image(shapes: ToyImages) -> None:
    """On the true circle or segment the image differs from grey; a circle moved elsewhere does not find as much."""
    contrast = (shapes.images - 0.5).norm(dim=1)
    circle = shapes.is_circle
    cover = circle_cover(shapes.shape[circle, :2], shapes.shape[circle, 2])
    elsewhere = circle_cover(1 - shapes.shape[circle, :2], 0.5 - shapes.shape[circle, 2])

    def seen(cover: Tensor) -> Tensor:
        return (contrast[circle] * cover).sum((1, 2)) / cover.sum((1, 2)).clamp_min(1)

    assert seen(cover).mean() > 2 * seen(elsewhere).mean()


def test_covers_against_the_definition_of_distance() -> None:
    """A circle and a segment as fine polylines: cover is one minus the distance to the nearest of their points."""
    angle = torch.linspace(0, 2 * math.pi, 4000)
    centre, radius = torch.tensor([[0.3, 0.6]]), torch.tensor([0.25])
    circle = centre + radius * torch.stack([angle.cos(), angle.sin()], -1)
    ends = torch.tensor([[[0.1, 0.2], [0.8, 1.04]]])
    segment = torch.lerp(ends[0, 0], ends[0, 1], torch.linspace(0, 1, 4000)[:, None])
    for cover, outline in ((circle_cover(centre, radius), circle), (segment_cover(ends), segment)):
        distance = torch.cdist(pixels().view(-1, 2), outline).amin(1).view(1, SIDE, SIDE)
        torch.testing.assert_close(cover, (1 - SIDE * distance).clamp_min(0), rtol=0, atol=2e-2)
