"""Files of tensors that say who wrote them, and that are looked at before they are trusted."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

import geometry
from datasets.files import replacing, require_file

__all__ = ["Saved", "load", "save", "this_version"]


class Saved(NamedTuple):
    """What a file holds, and the versions that wrote it."""

    value: Any
    written_by: str


def this_version() -> str:
    """Of this project, and of torch."""
    return f"learnable-geometry {geometry.__version__} with torch {torch.__version__}"


def save(path: Path, value: Any, *, check: bool = False) -> None:
    """Write what `load` reads, whole or not at all; `check`: fail now where it could not be read again."""
    with replacing(path) as temporary:
        torch.save(value, temporary)
        if check:
            torch.load(temporary, weights_only=True)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(_record(archive), this_version())


def load(path: Path, wanted: str, device: torch.device | str = "cpu") -> Saved:
    """What `save` wrote. torch checks no checksum when it reads, and would take a flipped bit for another number.

    Raises FileNotFoundError, or ValueError naming the file, what is wanted of it, and who wrote it where it is damaged.
    """
    written_by = "an unknown version"
    try:
        with zipfile.ZipFile(require_file(path)) as archive:
            if _record(archive) in archive.namelist():
                written_by = archive.read(_record(archive)).decode()
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} is another")
        return Saved(torch.load(path, weights_only=True, map_location=device), written_by)
    except OSError:
        raise
    except Exception as error:  # zip, pickle and torch each have their own, torch's of many lines
        raise ValueError(
            f"{path}: {wanted} wanted, found a file that is damaged or something else ({_first_line(error)}); it was "
            f"written by {written_by}, this is {this_version()}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _record(archive: zipfile.ZipFile) -> str:
    """The record that is added to torch's archive, all of which has one folder. It is read where tensors cannot be."""
    return archive.namelist()[0].partition("/")[0] + "/written_by"
