"""Weights: safetensors written here as the format is described, and timm's names from an address on this machine."""

import json
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments.object_poses import weights
from experiments.object_poses.network import KeypointNetwork, load_backbone
from experiments.object_poses.weights import read_weights, weights_file
from tests.experiments.object_poses.test_network import published
from tests.numbers import generator

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def safetensors(state: dict[str, Tensor]) -> bytes:
    """huggingface.co/docs/safetensors: length of the header, the header, the numbers."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, value in state.items():
        raw = bytes(value.contiguous().reshape(-1).view(torch.uint8).tolist())
        header[name] = {
            "dtype": NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(raw)]
        }  # fmt: skip
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def test_every_type_and_shape_is_read(tmp_path: Path) -> None:
    state = {
        f"of {dtype}": (10 * torch.randn(3, 2, 5, generator=generator())).abs().to(dtype) for dtype in NAMES
    } | {"scalar": torch.tensor(7), "none": torch.zeros(0, 4)}  # fmt: skip
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors(state))
    found = read_weights(path)
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_what_is_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    whole = safetensors({"a": torch.ones(4), "b": torch.zeros(2, 3)})
    header = struct.unpack("<Q", whole[:8])[0]
    wrong = whole[8 : 8 + header].replace(b"[2, 3]", b"[2, 4]")
    for raw in (b"", whole[:6], whole[:20], whole[:-1], whole[:8] + wrong + whole[8 + header :], b"{" + whole):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=r"model\.safetensors: a file of weights wanted"):
            read_weights(path)
    torch.save({"a": 3}, tmp_path / "number.pth")
    with pytest.raises(ValueError, match=r"number\.pth: a file of weights wanted"):
        read_weights(tmp_path / "number.pth")


def test_a_name_of_timm_s_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "timm" / "resnet18.a1_in1k" / "resolve" / "main"
    place.mkdir(parents=True)
    (place / "model.safetensors").write_bytes(safetensors({"a": torch.ones(4)}))
    monkeypatch.setattr(weights, "TIMM", (tmp_path / "timm").as_uri())
    folder = tmp_path / "kept"
    path = weights_file(Path("resnet18.a1_in1k"), folder)
    assert torch.equal(read_weights(path)["a"], torch.ones(4))
    (place / "model.safetensors").unlink()
    assert weights_file(Path("resnet18.a1_in1k"), folder) == path
    own = tmp_path / "mine.pth"
    own.touch()
    assert weights_file(own, folder) == own
    for neither in ("resnet50.a1_in1k", "resnet18.pth/x", "nowhere.safetensors"):
        with pytest.raises(FileNotFoundError):
            weights_file(Path(neither), folder)


@pytest.mark.slow
def test_weights_by_timm_s_names_are_those_of_the_backbone(tmp_path: Path) -> None:
    """The 122 entries of timm's resnet18 are named, and shaped, as torchvision's."""
    state = published(counters=True)
    path = tmp_path / "resnet18.a1_in1k.safetensors"
    path.write_bytes(safetensors(state))
    network = KeypointNetwork(1, 4, "resnet18", 64, "batch")
    assert load_backbone(network, path) == ["fc.bias", "fc.weight"]
    ours = network.backbone.state_dict()
    assert sum(name in state for name in ours) == len(state) - 2
    for name, value in ours.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, state[name]), name
