"""Reconstructions of any format the project reads, told apart by their paths."""

from pathlib import Path

from datasets.files import read_packed, require_file
from datasets.reconstructions.bal import read_bal
from datasets.reconstructions.bundler import read_bundler
from datasets.reconstructions.colmap import read_colmap
from datasets.reconstructions.libmv import read_libmv
from datasets.reconstructions.model import Reconstruction

__all__ = ["read_reconstruction"]

_ACCEPTED = (
    "a folder with cameras.bin or cameras.txt (COLMAP), a file *.out (Bundler), *.bin (libmv), or a text file, "
    "maybe packed as .bz2 or .gz, that starts with three counts (BAL)"
)


def read_reconstruction(path: str | Path) -> Reconstruction:
    """Read COLMAP (a folder with cameras.bin or .txt), Bundler (*.out), libmv (*.bin) or BAL (any other file).

    Raises FileNotFoundError where there is nothing, ValueError saying what is accepted where nothing is recognised, and
    what the format's own reader raises.
    """
    path = Path(path)
    if path.is_dir():
        if any((path / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt")):
            return read_colmap(path)
        raise ValueError(f"{path}: {_ACCEPTED} wanted, found a folder without cameras.bin and cameras.txt")
    require_file(path)
    if path.suffix == ".out":
        return read_bundler(path)
    if path.suffix == ".bin":
        return read_libmv(path)
    counts = read_packed(path, 100).split()[:3]
    if len(counts) < 3 or not all(count.isdigit() for count in counts):
        raise ValueError(f"{path}: {_ACCEPTED} wanted, found none of them")
    return read_bal(path)
