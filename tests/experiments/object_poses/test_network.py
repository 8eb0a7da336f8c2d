"""How heatmaps are read, to the pixel; what the network keeps apart; weights of torchvision's files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.object_poses.crops import CropBatch
from experiments.object_poses.estimator import logits_of
from experiments.object_poses.network import STRIDE, KeypointNetwork, cells_of, load_backbone, read_heatmaps
from tests.numbers import DOUBLE


def random(*shape: int, seed: int = 0, **options: Any) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


# ---- reading ----


def test_a_map_with_all_in_one_cell_means_the_middle_of_that_cell_s_pixels() -> None:
    """A cell covers STRIDE x STRIDE pixels of the crop: the mean of their coordinates, by pooling the coordinates."""
    H, W = 5, 7
    v, u = torch.meshgrid(*(torch.arange(STRIDE * n, **DOUBLE) for n in (H, W)), indexing="ij")
    pooled = F.avg_pool2d(torch.stack([u, v])[None], STRIDE)[0]
    places = [(0, 0), (4, 6), (3, 1)]
    logits = torch.full((1, len(places), H, W), -1000.0, **DOUBLE)
    for n, (i, j) in enumerate(places):
        logits[0, n, i, j] = 0
    found = read_heatmaps(logits)
    wanted = torch.stack([pooled[:, i, j] for i, j in places])
    assert torch.equal(found.points2d[0], wanted)
    cells = torch.tensor([[j, i] for i, j in places], **DOUBLE)
    assert torch.equal(cells_of(found.points2d)[0], cells)
    # what it is not told is where inside the cell: a uniform density of the cell's width
    torch.testing.assert_close(found.deviation, torch.full_like(found.deviation, STRIDE / 12**0.5))


@pytest.mark.parametrize("sigma", [(1.5, 1.5), (2.5, 1.1)])
def test_position_and_deviation_of_a_gaussian(sigma: tuple[float, float]) -> None:
    cell = torch.tensor([20.3, 14.8], **DOUBLE)
    x, y = (-0.5 * ((torch.arange(n, **DOUBLE) - cell[i]) / sigma[i]) ** 2 for i, n in ((0, 44), (1, 32)))
    found = read_heatmaps((y[:, None] + x)[None, None])
    torch.testing.assert_close(cells_of(found.points2d)[0, 0], cell, rtol=0, atol=1e-8)
    wanted = STRIDE * (torch.tensor(sigma, **DOUBLE) ** 2 + 1 / 12).sqrt()
    torch.testing.assert_close(found.deviation[0, 0], wanted, rtol=1e-6, atol=0)
    assert found.probability.sum().item() == pytest.approx(1)


def test_a_constant_more_on_a_map_changes_nothing() -> None:
    logits = random(2, 3, 8, 9, **DOUBLE)
    shifted = logits + random(2, 3, 1, 1, seed=1, **DOUBLE) * 100
    for one, other in zip(read_heatmaps(logits), read_heatmaps(shifted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("rows", "columns"), [(0, 1), (1, 0), (-2, 3)])
def test_a_map_moved_by_cells_moves_its_point_by_strides(rows: int, columns: int) -> None:
    logits = torch.full((1, 1, 12, 12), -50.0, **DOUBLE)
    logits[..., 4:8, 4:8] = random(4, 4, **DOUBLE)
    one, other = read_heatmaps(logits), read_heatmaps(logits.roll((rows, columns), (-2, -1)))
    moved = torch.tensor([columns, rows], **DOUBLE) * STRIDE
    torch.testing.assert_close(other.points2d, one.points2d + moved)
    torch.testing.assert_close(other.deviation, one.deviation)


def test_every_map_is_read_by_itself() -> None:
    logits = random(2, 3, 8, 8, **DOUBLE)
    whole = read_heatmaps(logits)
    for b in range(2):
        for n in range(3):
            single = read_heatmaps(logits[b : b + 1, n : n + 1])
            torch.testing.assert_close(single.points2d[0, 0], whole.points2d[b, n])
            torch.testing.assert_close(single.deviation[0, 0], whole.deviation[b, n])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_sixteen_bits_are_read_in_thirty_two(dtype: torch.dtype) -> None:
    found = read_heatmaps(random(1, 2, 8, 8).to(dtype))
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert {value.dtype for value in found} == {wanted}


# ---- the network ----


def network(objects: int = 2, keypoints: int = 5, **options: Any) -> KeypointNetwork:
    """With a last layer that says something."""
    torch.manual_seed(0)
    made = KeypointNetwork(objects, keypoints, "resnet10", 8, **options)
    torch.nn.init.normal_(made.head, std=0.3)
    return made


def images(B: int, side: int = 64, seed: int = 0) -> Tensor:
    return torch.rand(B, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize("depth", ["resnet10", "resnet18"])
def test_the_maps_size(side: int, depth: Any) -> None:
    made = KeypointNetwork(3, 5, depth, 8)
    assert made(images(2, side), torch.tensor([2, 0])).shape == (2, 5, side // STRIDE, side // STRIDE)


def test_every_object_has_maps_of_its_own() -> None:
    made, crops = network(objects=3), images(1)
    with torch.no_grad():
        maps = [made(crops, torch.tensor([number])) for number in range(3)]
        assert (maps[0] - maps[1]).abs().max() > 0.1
        mixed = made(crops.expand(3, -1, -1, -1), torch.tensor([2, 0, 1]))
    for row, number in enumerate((2, 0, 1)):
        torch.testing.assert_close(mixed[row : row + 1], maps[number], rtol=0, atol=1e-4)
    made(crops, torch.tensor([1])).square().sum().backward()
    assert made.head.grad is not None
    changes = made.head.grad.view(3, -1).abs().sum(1) > 0
    assert changes.tolist() == [False, True, False]


def test_what_others_show_does_not_matter_to_a_crop() -> None:
    """In training, too: the group norm knows one sample at a time, and batch norm does not."""
    objects = torch.tensor([0, 1, 0])
    one, other = images(3), images(3)
    other[1:] = 3 * images(2, seed=5)
    for norm, alone in (("group", True), ("batch", False)):
        made = network(norm=norm).train()
        with torch.no_grad():
            a, b = (made(some, objects)[0] for some in (one, other))
            single = made(one[:1], objects[:1])[0]
        assert torch.allclose(a, b, atol=1e-4) == alone
        assert torch.allclose(a, single, atol=1e-4) == alone


def test_gradients_of_halves_of_a_batch_have_the_mean_of_the_whole() -> None:
    made, objects = network(norm="group"), torch.tensor([0, 1, 1, 0])

    def gradient(rows: slice) -> Tensor:
        made.zero_grad()
        read_heatmaps(made(images(4)[rows], objects[rows])).points2d.square().mean().backward()
        return torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None])

    whole, halves = gradient(slice(4)), (gradient(slice(2)) + gradient(slice(2, 4))) / 2
    assert (whole - halves).norm() < 1e-5 * whole.norm()
    assert whole.norm() > 0


def test_a_network_in_bfloat16_says_nearly_the_same_and_says_it_in_float32() -> None:
    made = network().eval()
    crops = (255 * images(2)).byte()
    one = torch.zeros(2, 3, 3), torch.zeros(2, 4, 4)
    batch = CropBatch(crops, *one, torch.tensor([0, 1]), torch.arange(2))
    with torch.no_grad():
        exact, rough = (logits_of(made, batch, precision) for precision in ("float32", "bfloat16"))
    assert exact.dtype == rough.dtype == torch.float32
    off = (exact - rough).square().mean().sqrt()
    assert 0 < off < 0.03 * exact.std()
    assert (read_heatmaps(exact).points2d - read_heatmaps(rough).points2d).abs().max() < 0.5
    # the last layer is not rounded: neighbours in bfloat16 are 1/256 of a value apart, and these are closer
    assert (rough.bfloat16().float() != rough).float().mean() > 0.9


# ---- weights from files ----


def published(layers: tuple[int, ...] = (2, 2, 2, 2), counters: bool = False) -> dict[str, Tensor]:
    """Random weights by the names and of the shapes of torchvision's ResNet of basic blocks.

    counters: as files of torch >= 0.4.1 have them; those that torchvision offers are older.
    """
    state: dict[str, Tensor] = {}
    seeds = iter(range(1000))

    def convolution(name: str, *shape: int) -> None:
        fan = shape[1] * shape[2] * shape[3]
        state[f"{name}.weight"] = random(*shape, seed=next(seeds)) * (2 / fan) ** 0.5

    def norm(name: str, channels: int) -> None:
        for part in ("running_mean", "running_var", "weight", "bias"):
            value = 0.2 * random(channels, seed=next(seeds))
            state[f"{name}.{part}"] = value.abs() + 0.8 if part in ("running_var", "weight") else value
        if counters:
            state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    convolution("conv1", 64, 3, 7, 7)
    norm("bn1", 64)
    channels = 64
    for stage, count in enumerate(layers):
        width = 64 << stage
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            convolution(f"{name}.conv1", width, channels, 3, 3)
            norm(f"{name}.bn1", width)
            convolution(f"{name}.conv2", width, width, 3, 3)
            norm(f"{name}.bn2", width)
            if channels != width:
                convolution(f"{name}.downsample.0", width, channels, 1, 1)
                norm(f"{name}.downsample.1", width)
            channels = width
    state["fc.weight"], state["fc.bias"] = torch.zeros(1000, 512), torch.zeros(1000)
    return state


def stages(state: dict[str, Tensor], x: Tensor, layers: tuple[int, ...]) -> list[Tensor]:
    """What the stages of a ResNet of basic blocks (He et al. 2016, figure 5 left) make of pictures x."""

    def norm(name: str, x: Tensor) -> Tensor:
        return F.batch_norm(x, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    x = (norm("bn1", F.conv2d(x, state["conv1.weight"], stride=2, padding=3))).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    found = []
    for stage, count in enumerate(layers):
        for block in range(count):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            inner = norm(f"{name}.bn1", F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)).relu()
            inner = norm(f"{name}.bn2", F.conv2d(inner, state[f"{name}.conv2.weight"], padding=1))
            if f"{name}.downsample.0.weight" in state:
                x = norm(f"{name}.downsample.1", F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride))
            x = (x + inner).relu()
        found.append(x)
    return found


@pytest.fixture(scope="module")
def wide() -> KeypointNetwork:
    return KeypointNetwork(1, 4, "resnet18", 64, "batch")


@pytest.mark.slow
@pytest.mark.parametrize("counters", [True, False])
def test_the_backbone_with_published_weights_is_the_published_network(
    wide: KeypointNetwork, tmp_path: Path, counters: bool
) -> None:
    state = published(counters=counters)
    assert len(state) == (122 if counters else 102)  # as resnet18() has, and as resnet18-5c106cde.pth
    path = tmp_path / "resnet18.pth"
    torch.save({"state_dict": state} if counters else state, path)
    assert load_backbone(wide, path) == ["fc.bias", "fc.weight"]
    crops = images(2)
    features: list[Tensor] = []
    hooks = [
        getattr(wide.backbone, f"layer{i}").register_forward_hook(lambda _, __, out: features.append(out))
        for i in (1, 2, 3, 4)
    ]
    wide.eval()
    with torch.no_grad():
        wide(crops, torch.zeros(2, dtype=torch.long))
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        wanted = stages(state, (crops - mean.view(3, 1, 1)) / deviation.view(3, 1, 1), (2, 2, 2, 2))
    for hook in hooks:
        hook.remove()
    for one, other in zip(features, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_three_stages_take_their_weights_and_leave_the_fourth_s(tmp_path: Path) -> None:
    state, path = published(), tmp_path / "resnet18.pth"
    torch.save(state, path)
    made = KeypointNetwork(1, 4, "resnet18", 64, stages=3)
    left = load_backbone(made, path)
    assert {name.split(".")[0] for name in left} == {"layer4", "fc"}
    assert {name for name in state if name.startswith(("layer4", "fc"))} == set(left)
    torch.testing.assert_close(made.backbone.layer3[1].conv2.weight, state["layer3.1.conv2.weight"])
    assert made(images(2), torch.zeros(2, dtype=torch.long)).shape == (2, 4, 64 // STRIDE, 64 // STRIDE)


@pytest.mark.slow
def test_weights_that_do_not_fit_are_named(wide: KeypointNetwork, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    before = {name: value.clone() for name, value in wide.state_dict().items()}

    def refused(state: Any, message: str, into: KeypointNetwork = wide) -> None:
        torch.save(state, path)
        with pytest.raises(ValueError, match=message) as caught:
            load_backbone(into, path)
        assert str(path) in str(caught.value)

    state = published()
    refused(state, r"conv1.weight of shape \(32, 3, 7, 7\) wanted, found \(64, 3, 7, 7\)", KeypointNetwork(1, 4))
    without = {name: value for name, value in state.items() if name != "layer3.1.bn2.bias"}
    refused(without, r"layer3\.1\.bn2\.bias of shape \(256,\) wanted, found nothing")
    refused(published((3, 4, 6, 3)), r"without layer1\.2\.")  # resnet34's
    refused(state, r"without layer1\.0\.bn1\.running_mean", KeypointNetwork(1, 4, "resnet18", 64, "group"))
    refused([1, 2], "found something else")
    path.write_text("no weights")
    with pytest.raises(ValueError, match=r"weights\.pth: a file of weights wanted, found something else"):
        load_backbone(wide, path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_backbone(wide, tmp_path / "nowhere.pth")
    assert all(torch.equal(before[name], value) for name, value in wide.state_dict().items())
