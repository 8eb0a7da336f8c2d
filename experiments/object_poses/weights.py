"""Weights of backbones: files of torch and of safetensors, and those that timm publishes, by their names.

timm's resnet18.*, resnet34.* name their weights as torchvision does. Neither package is needed: torchvision has no CPU
build to depend on, and timm wants it.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import torch
from torch import Tensor

from datasets.download import fetch
from datasets.files import require_file

__all__ = ["TIMM", "read_weights", "weights_file"]

TIMM = "https://huggingface.co/timm"
"""Where timm's weights are, at TIMM/NAME/resolve/main/model.safetensors."""

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def weights_file(weights: Path, folder: Path) -> Path:
    """The file itself, or of a name of timm's, such as resnet34.a1_in1k, what is fetched once to `folder`.

    Raises FileNotFoundError for what is neither, OSError where it cannot be fetched.
    """
    if weights.exists() or not re.fullmatch(r"resnet(18|34)\.\w+", str(weights)):
        return require_file(weights)
    return fetch(f"{TIMM}/{weights}/resolve/main/model.safetensors", folder / f"{weights}.safetensors")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name, of a .safetensors or of a file of torch's; raises ValueError naming what is damaged."""
    try:
        if require_file(path).suffix == ".safetensors":
            return _safetensors(path.read_bytes())
        state = torch.load(path, weights_only=True, map_location="cpu")
        state = state.get("state_dict", state)
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("entries that are no tensors")
        return state
    except FileNotFoundError:
        raise
    except Exception as error:  # pickle, zip, JSON and torch each have their own
        raise ValueError(f"{path}: a file of weights wanted, found something else: {error}") from error


def _safetensors(raw: bytes) -> dict[str, Tensor]:
    """Eight bytes of the header's length, the header in JSON, and the numbers, little-endian."""
    start = 8 + int.from_bytes(raw[:8], "little")
    if not 8 < start <= len(raw):
        raise ValueError("a header that does not fit")
    found = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name == "__metadata__":
            continue
        dtype, shape, (first, last) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if last - first != math.prod(shape) * dtype.itemsize or not 0 <= first <= last <= len(raw) - start:
            raise ValueError(f"{name} of shape {shape} in bytes {first} to {last} of {len(raw) - start}")
        data = bytearray(raw[start + first : start + last])  # a copy, which a tensor may own
        found[name] = torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)
    return found
