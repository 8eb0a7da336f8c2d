"""A driver's typed config and its command line."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, TypeVar

import tyro

from datasets.locate import AbsentDataError
from experiments.records.files import EXIT_SKIPPED
from experiments.running.catalogue import presets_told, without_presets
from experiments.running.mistyped import mistyped
from experiments.running.options import Acts, idle, laid_flat, shown, written


@dataclass(frozen=True)
class RunConfig:
    """What every experiment can be told."""

    acts: ClassVar[tuple[Acts, ...]] = ()
    """Lists the options that do something in some configs alone."""
    names_data: ClassVar[tuple[str, ...]] = ()
    """Options that name the data, such as a folder of images: what they are told is part of the run folder's name."""

    preset: tyro.conf.Suppress[str] = ""
    """Says which preset this started from; part of the run folder's name."""
    command: tyro.conf.Suppress[tuple[str, ...]] = field(default=(), compare=False)
    """Keeps the words that were typed to begin the run, for whoever continues or repeats it."""
    seed: int = 0
    """Seeds the random generators of python, numpy and torch."""
    dtype: Literal["float32", "float64"] = "float64"
    """Sets the floating-point type of the computation."""
    device: str = "cpu"
    """Says where to compute, as torch names it: cpu, cuda, cuda:1."""
    threads: int = 1
    """Sets how many CPU threads torch has: most steps here are too small to gain from a second one."""
    out: Path = Path("results")
    """Names the folder of all results; the run goes to OUT/<experiment>/NAME."""
    name: str = ""
    """Names the run's folder; left empty, it is <preset>-seed<seed>, with data of yours <preset>-<data>-seed<seed>."""
    overwrite: bool = False
    """Replaces an earlier run in that folder that had other options; one of the same options is repeated anyway."""
    resume: bool = False
    """Continues the run in that folder from its last checkpoint."""
    log_every: int = 10
    """Sets how many iterations lie between checkpoints, and between figures."""

    def __post_init__(self) -> None:
        at_least(self, 1, "log_every", *(("iterations",) if hasattr(self, "iterations") else ()))
        if not 0 <= self.seed < 2**32:  # numpy takes no other
            raise ValueError(f"seed must be in 0 ... 2^32 - 1, not {self.seed}")
        if self.name != Path(self.name).name or self.name == "..":
            raise ValueError(f"name must be a plain folder name, not {self.name!r}")

    def folder(self, experiment: str) -> Path:
        """Where a run of that experiment goes."""
        return self.out / experiment / (self.name or f"{self.preset}-seed{self.seed}")


def at_least(config: Any, least: int, *names: str) -> None:
    """Raise ValueError naming the first of a config's numbers, or tuples of them, that has one below `least`."""
    for name in names:
        value = getattr(config, name)
        if min(value if isinstance(value, tuple) else (value,), default=least) < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


C = TypeVar("C", bound=RunConfig)
T = TypeVar("T")


def cli(description: str | None, presets: Mapping[str, T], program: str = "", default: str = "") -> T:
    """The config that `sys.argv` asks for: a preset's name, then `--field value` for what should differ.

    description: the driver's docstring, whose list of presets says what each is. program: what help calls the driver;
    left empty, as it was called. default: the preset where none is named. A mistyped name ends the driver with a
    sentence and exit code 1, an option that does nothing in that config as well; a value that is none with exit code 2.
    """
    module = getattr(sys.modules["__main__"], "__spec__", None)
    program = program or (f"python -m {module.name}" if module else Path(sys.argv[0]).stem)
    arguments, told = sys.argv[1:], presets_told(description)
    if default and (not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"))):
        arguments = [default, *arguments]
    if wrong := mistyped(program.rpartition("experiments.")[2], arguments, presets):
        raise SystemExit(wrong)
    helping = bool({"-h", "--help"} & {*arguments})
    views = {name: shown(preset, helping) for name, preset in presets.items()}
    view = tyro.extras.overridable_config_cli(
        {name: ("\n\n".join(filter(None, (told.get(name, ""), more))), seen) for name, (seen, more) in views.items()},
        args=arguments,
        prog=program,
        description=without_presets(description),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    preset = presets[arguments[0]]
    try:
        config = laid_flat(view, preset)
    except ValueError as error:  # a number that is out of range, which the config itself looks at
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    typed = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    spelled = written(preset)
    for name, where in idle(config).items():
        if (option := spelled[name].option) in typed:
            raise SystemExit(f"{option} does nothing here: it acts {where}")
    if not isinstance(config, RunConfig):
        return config
    return _named_by_data(replace(config, command=(*program.split(), *arguments)), preset)


def _named_by_data(config: Any, preset: Any) -> Any:
    """The same with a name that says the data, where they are others than the preset's."""
    if config.name:
        return config
    parts = [
        _in_a_name(value)
        for read in map(attrgetter, config.names_data)
        if (values := read(config)) != read(preset)
        for value in (values if isinstance(values, tuple) else (values,))
        if value is not None
    ]
    data = "-".join(parts)[:100].rstrip("-")  # a file system takes no longer ones
    return replace(config, name=f"{config.preset}-{data}-seed{config.seed}") if data else config


def _in_a_name(path: object) -> str:
    """What is left of a path in a folder's name: its last two parts without the suffix, in plain characters."""
    given = Path(str(path))
    *_, folder, last = ["", "", *(part for part in given.parts if part not in ("..", given.anchor))]
    parts = [part for part in (folder, Path(last or Path.cwd().name).stem) if part]
    return re.sub(r"[^\w.-]+", "_", "-".join(parts))


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
