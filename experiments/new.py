"""The beginning of a geometry task of your own: its problem, its driver and its test, which run and pass at once.

It is called as `python -m experiments.new my_task`.
"""

from __future__ import annotations

import keyword
import sys
from pathlib import Path
from typing import Annotated

import tyro

import geometry

TEMPLATES = Path(__file__).parent / "templates"
PLACES = {
    "problem": "geometry/tasks/{}.py",
    "driver": "experiments/tasks/{}.py",
    "test": "tests/geometry/tasks/test_{}.py",
}


def new(name: Annotated[str, tyro.conf.Positional], root: Path = Path(__file__).parents[1]) -> list[Path]:
    """Write the three files of a task, none of which may exist; returns their paths.

    Args:
        name: Names the files, the call and the experiment, in lower case with underscores.
        root: Names the folder of the project.

    Raises ValueError for a name that is no identifier, FileExistsError naming the file that is there already, and
    FileNotFoundError where root is no checkout of the project.
    """
    if not name.isidentifier() or name != name.lower() or keyword.iskeyword(name) or name.startswith("_"):
        raise ValueError(f"name must be a lower-case Python identifier such as my_task, got {name!r}")
    paths = {kind: root / place.format(name) for kind, place in PLACES.items()}
    if name in geometry.__all__:
        raise ValueError(f"name must be none that `geometry` has already, got {name!r}")
    for path in paths.values():
        if path.exists():
            raise FileExistsError(f"{path} exists: choose another name, or remove it")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent}: no such folder; root must be a checkout of the project")
    for kind, path in paths.items():
        text = (TEMPLATES / f"{kind}.py.txt").read_text(encoding="utf-8")
        path.write_text(text.replace("my_task", name), encoding="utf-8")
    return list(paths.values())


def main() -> None:
    """The command."""
    try:
        paths = tyro.cli(new, description=__doc__, prog="python -m experiments.new")
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    print(*(f"wrote {path}" for path in paths), sep="\n")
    name = paths[0].stem
    print(f"run it:  {sys.executable} -m experiments.tasks.{name} smoke, then default")
    print(f"test it: {sys.executable} -m pytest {paths[-1]}")


if __name__ == "__main__":
    main()
