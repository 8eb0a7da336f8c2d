"""Where the real data sets lie. They are no part of the project, so a machine may lack them."""

import os
from difflib import get_close_matches
from pathlib import Path

__all__ = ["DATA_SETS", "AbsentDataError", "find", "locate"]

DATA_SETS = (
    "bal", "box_flat", "box_pnp", "bpnp_demo", "fisheye_chess", "libmv_ba", "linemod_cat", "opencv_chess_left",
    "opencv_corners", "sony_chess", "temple_sparse_ring", "tum_rgbd",
)  # fmt: skip
"""Those that experiments and tests read."""


class AbsentDataError(FileNotFoundError):
    """A real data set is not on this machine: nobody's mistake, and what wants it is skipped."""


def find(name: str) -> Path:
    """Folder of the real data set `name`, e.g. find("bal").

    It is looked for in $LEARNABLE_GEOMETRY_DATA where that is set, else in ../shared/data beside the project.
    Raises FileNotFoundError, saying how to provide it, when it is not there; one of DATA_SETS AbsentDataError.
    """
    root = Path(os.environ.get("LEARNABLE_GEOMETRY_DATA") or Path(__file__).parents[2] / "shared" / "data")
    folder = root / name
    if not name or not folder.is_dir():
        raise (AbsentDataError if name in DATA_SETS else FileNotFoundError)(
            f"data set {name!r} wanted as the folder {folder}, which does not exist: set "
            f"LEARNABLE_GEOMETRY_DATA to the folder that holds the data sets"
        )
    return folder


def locate(name: str) -> Path:
    """A file or folder as it is named, or else below the shared data.

    Raises AbsentDataError where it names one of DATA_SETS that is not there, and FileNotFoundError for any other path.
    """
    path = Path(name)
    if not path.exists() and path.parts and path.parts[0] in DATA_SETS:
        path = find(path.parts[0]).joinpath(*path.parts[1:])
    if not path.exists():
        there = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = "".join(f"; did you mean {path.parent / near}?" for near in get_close_matches(path.name, there, 1))
        raise FileNotFoundError(f"{path}: a file or folder, here or in the shared data, wanted, found nothing{hint}")
    return path
