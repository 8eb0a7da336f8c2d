"""Which drivers there are, and the presets of each, as their docstrings tell: they are read as text, none is imported.

A driver is a module that can be run. Its docstring says in its first sentence what it is, and lists its presets:

    Presets:

    - default: Learns the keypoints themselves, by Gauss-Newton through the layer.
    - smoke: Runs `default` in a few steps.

That list is what `--help` says of them, too. The standard library alone is imported here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.records.text import nearest

__all__ = ["FAMILIES", "Driver", "drivers", "preset_mistyped", "presets_told", "without_presets"]

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = {"": "Experiments", "tasks": "Tasks", "benchmarks": "Benchmarks"}
"""Folders that hold drivers, and what those are."""

_LIST = re.compile(r"^Presets:\n\n((?:- .*\n(?:  .*\n)*)+)\n?", re.MULTILINE)
_ITEM = re.compile(r"^- (\w+): (.*\n(?:  .*\n)*)", re.MULTILINE)


class Driver(NamedTuple):
    """What `python -m experiments.NAME` runs: what it is, in a sentence, and a sentence on each preset.

    is_run: it makes runs, with a summary each; else it is a command, a benchmark or a study of many runs.
    """

    name: str
    family: str
    title: str
    presets: Mapping[str, str]
    is_run: bool


def presets_told(docstring: str | None) -> dict[str, str]:
    """The presets that a driver's docstring lists, with what it says of each."""
    found = _LIST.search(f"{docstring or ''}\n")
    return {name: " ".join(text.split()) for name, text in _ITEM.findall(found[1])} if found else {}


def without_presets(docstring: str | None) -> str:
    """The docstring without that list."""
    return _LIST.sub("", f"{docstring or ''}\n").strip()


def drivers(root: Path = ROOT) -> dict[str, Driver]:
    """All drivers by name, in the order of their families."""
    found = {}
    for family in FAMILIES:
        for path in sorted((root / family).glob("[!_]*.py")):
            text = path.read_text(encoding="utf-8")
            if '\nif __name__ == "__main__":' in text:
                docstring = ast.get_docstring(ast.parse(text)) or ""
                title = " ".join(docstring.partition("\n\n")[0].split())
                name = f"{family}.{path.stem}".lstrip(".")
                found[name] = Driver(name, family, title, presets_told(docstring), "\n    command(" in text)
    return found


def preset_mistyped(driver: str, name: str, presets: Sequence[str]) -> str:
    """The sentence where there is no preset of that name; else nothing."""
    return "" if name in presets else f"{driver} has presets {', '.join(presets)}, not {name}{nearest(name, presets)}"
