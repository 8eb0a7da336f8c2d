"""The folder of a run: what may be continued there, what may be replaced, and that one process writes it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from experiments.records import recording
from experiments.records.files import plain, read_summary, write_json
from experiments.running import saved
from experiments.running.config import RunConfig

__all__ = ["FREE_ON_RESUME", "Earlier", "check", "prepare"]

FREE_ON_RESUME = {"command", "resume", "overwrite", "threads", "out", "name", "log_every", "iterations"}
"""What may differ between an interrupted run and the one that continues it."""

_FREE_ON_REPEAT = FREE_ON_RESUME - {"iterations"} | {"device"}
_LOCK = ".lock"


class Earlier(NamedTuple):
    """Of the run to be resumed: its summary where it is finished, its last checkpoint where it is not."""

    summary: dict[str, Any] | None = None
    checkpoint: dict[str, Any] | None = None

    @property
    def start(self) -> int:
        """First iteration that is still to be computed."""
        return 0 if self.checkpoint is None else self.checkpoint["step"] + 1


def prepare(folder: Path, experiment: str, config: RunConfig, locked: ExitStack) -> Earlier:
    """Leave the folder ready for what is to come, and say what there is to continue from; else it is emptied.

    No other process writes it until `locked` is closed. Raises ValueError where an earlier run cannot be resumed, and
    FileExistsError as `check` does.
    """
    checkpoint, summary = folder / "checkpoint.pt", folder / "summary.json"
    stored, wanted = check(folder, experiment, config)
    if config.resume and (checkpoint.exists() or summary.exists()):
        for field in sorted((stored.keys() | wanted.keys()) - FREE_ON_RESUME):
            was, now = stored.get(field), wanted.get(field)
            if was != now:
                raise ValueError(f"cannot resume {folder}: {field} was {was!r}, is now {now!r}")
        if summary.exists() and stored.get("iterations") == wanted.get("iterations"):
            return Earlier(summary=read_summary(summary))
    folder.mkdir(parents=True, exist_ok=True)
    _lock(folder, locked)
    earlier = Earlier()
    if config.resume and checkpoint.exists():
        earlier = _read_checkpoint(folder)
        if wanted.get("iterations", earlier.start) < earlier.start:
            raise ValueError(f"cannot resume {folder}: it is at iteration {earlier.start} already")
    elif config.resume:
        print(f"{folder} has no checkpoint: starting at iteration 0", file=sys.stderr)
    summary.unlink(missing_ok=True)
    (folder / "index.html").unlink(missing_ok=True)
    recording.drop_frames(folder, earlier.start)
    for half in folder.rglob(".tmp-*"):  # of a process that was killed
        half.unlink()
    if earlier.checkpoint is None:
        # The checkpoint first and config.json never: whenever this is killed, what is left is a run of
        # ours that does not pretend to be finished or resumable.
        checkpoint.unlink(missing_ok=True)
        for child in folder.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            elif child.name not in ("config.json", _LOCK):
                child.unlink()
    write_json(folder / "config.json", wanted)
    return earlier


def check(folder: Path, experiment: str, config: RunConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config that is stored in the folder, {} where there is none, and the one that is wanted.

    Raises FileExistsError where the folder holds what must not be replaced: files that are no run of this experiment,
    or results of another config, unless config.overwrite. A run of the same config may be repeated. Fields that are new
    are of a later version; one that is gone had a value that nothing here has.
    """
    stored = _stored_config(folder, experiment)
    wanted = plain({"experiment": experiment, **asdict(config)})
    has_results = (folder / "checkpoint.pt").exists() or (folder / "summary.json").exists()
    if has_results and not (config.resume or config.overwrite):
        was, now = ({key: some[key] for key in some.keys() - _FREE_ON_REPEAT} for some in (stored, wanted))
        if told := list(_differences(was, now)):
            said = "; ".join(told[:3])
            raise FileExistsError(
                f"{folder} holds a run of another config ({said}): give this one a --name, or replace that one with "
                "--overwrite"
            )
    return stored, wanted


def _differences(was: Any, now: Any, name: str = "") -> Iterator[str]:
    """Each option that differs, or is gone."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted(was):
            path = f"{name}.{key}" if name else key
            if key in now:
                yield from _differences(was[key], now[key], path)
            else:
                yield f"{path} was {was[key]!r}, is no option now"
    elif was != now:
        yield f"{name} was {was!r}, is now {now!r}"


def _lock(folder: Path, locked: ExitStack) -> None:
    """Keep other processes out of the folder until `locked` is closed; the system does when this one is killed."""
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(f"{folder} is being written by another process: choose another name") from None
    locked.callback(lock.release)


def _read_checkpoint(folder: Path) -> Earlier:
    """What is damaged is told now, and not when all is computed."""
    path = folder / "checkpoint.pt"
    checkpoint, written_by = saved.load(path, "the checkpoint of a run")
    if written_by != saved.this_version():
        print(f"{path} was written by {written_by}, this is {saved.this_version()}", file=sys.stderr)
    recording.read_run(folder)
    return Earlier(checkpoint=checkpoint)


def _stored_config(folder: Path, experiment: str) -> dict[str, Any]:
    """config.json, or {} where there is no run yet; anything else in the folder is not ours to delete."""
    if not folder.exists() or {path.name for path in folder.iterdir()} <= {".tmp-config.json", _LOCK}:
        return {}
    try:
        stored = json.loads((folder / "config.json").read_text())
        ours = stored["experiment"] == experiment
    except (OSError, ValueError, TypeError, KeyError):
        ours = False
    if not ours:
        raise FileExistsError(f"{folder} holds no run of {experiment}; choose another name")
    return stored
