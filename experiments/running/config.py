"""A driver's typed config and its command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, TypeVar

import tyro

from datasets.locate import AbsentDataError
from experiments.records.files import EXIT_SKIPPED


@dataclass(frozen=True)
class RunConfig:
    """What every experiment can be told; its own Config inherits from this."""

    preset: tyro.conf.Suppress[str] = ""
    """Which preset this started from; part of the run folder's name."""
    seed: int = 0
    """Seed of python, numpy and torch."""
    dtype: Literal["float32", "float64"] = "float64"
    """Floating-point type of the computation."""
    device: str = "cpu"
    """Where to compute, as torch names it: cpu, cuda, cuda:1."""
    threads: int = 1
    """CPU threads of torch: most steps here are too small to gain from a second one."""
    out: Path = Path("results")
    """Folder of all results; the run goes to OUT/<experiment>/NAME."""
    name: str = ""
    """Run folder; left empty, <preset>-seed<seed>."""
    overwrite: bool = False
    """Replace an earlier run in that folder that had other options; one of the same options is repeated anyway."""
    resume: bool = False
    """Continue the run in that folder from its last checkpoint."""
    log_every: int = 10
    """Iterations between checkpoints and figures."""

    def __post_init__(self) -> None:
        if self.log_every < 1:
            raise ValueError(f"log_every must be at least 1, not {self.log_every}")
        if not 0 <= self.seed < 2**32:  # numpy takes no other
            raise ValueError(f"seed must be in 0 ... 2^32 - 1, not {self.seed}")
        if self.name != Path(self.name).name or self.name == "..":
            raise ValueError(f"name must be a plain folder name, not {self.name!r}")

    def folder(self, experiment: str) -> Path:
        """Where a run of that experiment goes."""
        return self.out / experiment / (self.name or f"{self.preset}-seed{self.seed}")


C = TypeVar("C", bound=RunConfig)


def cli(description: str | None, presets: Mapping[str, C]) -> C:
    """The config that `sys.argv` asks for: a preset's name, then `--field value` for what should differ."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return tyro.extras.overridable_config_cli(
        {name: (f"The {name} preset, with these changes.", preset) for name, preset in presets.items()},
        prog=f"python -m {module.name}" if module else None,
        description=description,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def skip(message: str) -> NoReturn:
    """End the driver because its data are absent; `message` says in one sentence how to get them."""
    print(message, file=sys.stderr)
    raise SystemExit(EXIT_SKIPPED)


@contextmanager
def told_in_a_sentence() -> Iterator[None]:
    """What is wrong with what a driver was asked for ends it with one sentence: exit code 1, as of a mistyped path.

    Shared data that are not on this machine have exit code 3.
    """
    try:
        yield
    except AbsentDataError as absent:
        skip(str(absent))
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
