"""What there is to view: a run's folder or a file, and whether there is something new in it."""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.records.recording import FOLDER, Recording, read_file, read_run

__all__ = ["CannotViewError", "Source"]


class CannotViewError(Exception):
    """Says in one sentence what stands in the way, and what to do."""


@dataclass(frozen=True)
class Source:
    """path: of a run's folder, or of anything that `read_file` reads. step: the last iteration to show; None is all."""

    path: Path
    step: int | None = None

    def read(self) -> Recording:
        """Raises CannotViewError."""
        try:
            recording = self._read()
        except ValueError as error:  # what a reader says of a file it cannot trust
            raise CannotViewError(str(error)) from None
        except OSError as error:
            raise CannotViewError(f"{self.path} cannot be read: {error.strerror or error}") from None
        if self.step is None:
            return recording
        frames = tuple(frame for frame in recording.frames if frame.step <= self.step)
        if recording.frames and not frames:
            raise CannotViewError(
                f"{self.path} begins at iteration {recording.frames[0].step}: --step {self.step} is before"
            )
        steps = recording.metrics.get("step")
        rows = slice(None) if steps is None else steps <= self.step
        return replace(recording, frames=frames, metrics={k: v[rows] for k, v in recording.metrics.items()})

    def _read(self) -> Recording:
        path = self.path
        if path.is_file() or any((path / f"cameras.{suffix}").is_file() for suffix in ("bin", "txt")):
            return read_file(path)
        if not self.has_begun:
            if runs := _runs(path):
                raise CannotViewError(f"{path} is a folder of runs: choose one, {_listed(runs)}")
            nearby = next(filter(None, map(_runs, (path.parent, path.parent.parent, Path("results")))), [])
            instead = f"there are {_listed(nearby)}" if nearby else "an experiment leaves one in results/EXPERIMENT/RUN"
            raise CannotViewError(f"{path} {'holds no run' if path.exists() else 'does not exist'}: {instead}")
        return read_run(path)

    @property
    def has_begun(self) -> bool:
        return (self.path / "config.json").exists()

    def version(self) -> str:
        """A short text that changes whenever the run's folder has something new."""
        digest = hashlib.sha1(usedforsecurity=False)
        for folder in (self.path, self.path / FOLDER):
            for entry in sorted(os.scandir(folder), key=lambda e: e.name) if folder.is_dir() else ():
                if entry.name.endswith((".npz", ".csv", ".json")) and not entry.name.startswith("."):
                    try:
                        found = entry.stat()
                    except FileNotFoundError:  # replaced at this moment, or a frame of an earlier run
                        continue
                    digest.update(f"{entry.name} {found.st_mtime_ns} {found.st_size}\n".encode())
        return digest.hexdigest()[:16]


def _runs(folder: Path) -> list[Path]:
    """The runs in that folder and in its folders, latest first."""
    found = [*folder.glob("*/config.json"), *folder.glob("*/*/config.json")]
    return [path.parent for path in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)]


def _listed(runs: list[Path], most: int = 6) -> str:
    more = [f"{len(runs) - most} more"] if len(runs) > most else []
    return ", ".join([*map(str, runs[:most]), *more])
