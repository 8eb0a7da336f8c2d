"""Asking the command line, and reading what it wrote."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from datasets.objects.layout import Instance
from experiments import predict


def told(out: Path) -> dict[str, Any]:
    return json.loads((out / "poses.json").read_text())


def entries(out: Path) -> list[dict[str, Any]]:
    """What poses.json has of objects, in order."""
    return [entry for picture in told(out)["pictures"] for entry in picture["objects"]]


def call(*arguments: object) -> int:
    return predict.main([str(a) for a in arguments])


def refused(capsys: pytest.CaptureFixture[str], out: Path, *arguments: object) -> str:
    """What stderr says of arguments that cannot be: one line; the exit code is 2, and nothing is written."""
    assert call(*arguments, "--out", out) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert not out.exists()
    return captured.err.strip()


def write_boxes(path: Path, boxes: Sequence[tuple[int, int, int, Sequence[float], float]]) -> Path:
    keys = ("scene_id", "image_id", "category_id", "bbox", "score")
    path.write_text(json.dumps([dict(zip(keys, box, strict=True)) for box in boxes]))
    return path


def boxes_of(instances: Sequence[Instance]) -> list[tuple[int, int, int, Sequence[float], float]]:
    return [(some.scene, some.image, some.object, some.box, 0.5) for some in instances]
