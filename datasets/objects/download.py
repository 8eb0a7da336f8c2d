"""Data sets of the BOP benchmark from where it publishes them, unpacked into the layout that `datasets.objects` reads.

    python -m datasets.objects.download lm my_bop          LINEMOD, to my_bop/lm

BOP's archives are NAME_base.zip, which holds the folder NAME, and NAME_models.zip, NAME_test_all.zip, NAME_train.zip,
NAME_train_pbr.zip, …, which hold what goes into it (bop.felk.cvut.cz/datasets). Archives that were fetched by other
means are taken from my_bop. Sets that BOP cuts into volumes (.z01, …) are not unpacked here.
"""

import os
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from datasets.download import fetch

__all__ = ["LINEMOD", "SOURCE", "download"]

SOURCE = "https://huggingface.co/datasets/bop-benchmark"
"""BOP's archives are at SOURCE/NAME/resolve/main/NAME_PART.zip."""
LINEMOD = ("base", "models", "test_all", "train_pbr")
"""What training on LINEMOD and evaluating on all of its pictures takes: some tens of gigabytes."""


def download(name: str, folder: str | Path, parts: Sequence[str] = LINEMOD, source: str = "") -> Path:
    """The data set `name` in FOLDER/name, with the archives `parts` of it unpacked; returns that folder.

    source: an address in place of `SOURCE`.
    Interrupted, it goes on where it was. An archive's contents appear in the set once all of it is unpacked and the
    sums in it are right; then it is removed. What is there is not fetched again.
    Raises OSError where an archive cannot be had (`datasets.download.fetch`), ValueError naming one that is damaged.
    """
    folder, home = Path(folder), Path(folder) / name
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".tmp-{name}.lock"):
        for part in parts:
            archive = f"{name}_{part}.zip"
            done = home / f".{archive}.unpacked"
            if not done.exists():
                path = fetch(f"{source or SOURCE}/{name}/resolve/main/{archive}", folder / archive)
                _unpack(path, home)
                done.touch()
                path.unlink()
    return home


def _unpack(path: Path, home: Path) -> None:
    """What the archive holds, in `home`; whole entries of it replace those of the same name."""
    temporary = home / f".tmp-{path.stem}"
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        try:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(temporary)  # checks every file's sum, and leaves no path outside
        except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            raise ValueError(f"{path}: BOP's archive wanted, found a damaged one ({error}): remove it") from None
        inner = temporary / home.name
        content = inner if inner.is_dir() else temporary  # the base holds the set's folder, all else what goes into it
        for entry in content.iterdir():
            target = home / entry.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(entry, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    import sys

    import tyro

    try:
        tyro.cli(download, config=(tyro.conf.PositionalRequiredArgs,))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
