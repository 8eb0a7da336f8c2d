"""Where the real data sets lie. They are no part of the project, so a machine may lack them."""

import os
from pathlib import Path

__all__ = ["find"]


def find(name: str) -> Path:
    """Folder of the real data set `name`, e.g. find("bal").

    It is looked for in $LEARNABLE_GEOMETRY_DATA where that is set, else in ../shared/data beside the project.
    Raises FileNotFoundError, saying how to provide it, when it is not there.
    """
    root = Path(os.environ.get("LEARNABLE_GEOMETRY_DATA") or Path(__file__).parents[2] / "shared" / "data")
    folder = root / name
    if not name or not folder.is_dir():
        raise FileNotFoundError(
            f"data set {name!r} wanted as the folder {folder}, which does not exist: set "
            f"LEARNABLE_GEOMETRY_DATA to the folder that holds the data sets"
        )
    return folder


def locate(name: str) -> Path:
    """A file or folder as it is named, or else below the shared data. Raises FileNotFoundError as `find` does."""
    path = Path(name)
    return path if path.exists() else find(path.parts[0]).joinpath(*path.parts[1:])
