"""results/index.html: every run with its picture, its figures beside the paper's, and links to all it left.

Where an experiment was run with several seeds, results/seeds.html compares them (`experiments.viewers.seeds`).

    python -m experiments.viewers.index results

rebuilds it from the run folders, and from the summary.json that run_all.py wrote for what has no folder; no experiment
is run. Links are relative: the folder can be moved, or put on a web server, as it is.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timezone
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup, escape

from datasets.files import replacing
from experiments.records.files import UNSAID
from experiments.records.text import number, said, spread
from experiments.viewers.seeds import write_seeds

WEB = Path(__file__).parent / "web"
WIDE = 3.0
"""Width over height from which a picture takes the room of two cards."""


@dataclass(frozen=True)
class Link:
    name: str
    href: str


@dataclass(frozen=True)
class Picture:
    name: str
    href: str
    width: int
    height: int

    @property
    def is_wide(self) -> bool:
        return self.width > WIDE * self.height


@dataclass(frozen=True)
class Figure:
    """A figure of a run, or of several: what it is, as it is read, as it sorts, and the paper's or a peer's."""

    name: str
    text: str
    value: float
    reference: str


@dataclass(frozen=True)
class Entry:
    """A run as the page lists it.

    state: converged, not converged, unfinished, damaged; failed, skipped or not run where run_all.py says so. label:
    the preset, or the folder's name where that is another. message: the run's note, or what went wrong. resume: the
    command that continues it. goal: what was to be reached; undetermined: sentences on what the data do not
    determine; empty where it has no summary, as are the figures (iterations, seconds, loss, errors).
    """

    experiment: str
    label: str
    seed: int | None
    state: str
    message: str = ""
    goal: str = ""
    undetermined: tuple[str, ...] = ()
    resume: str = ""
    device: str = "cpu"
    measured: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    reference: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    page: str = ""
    picture: Picture | None = None
    files: tuple[Link, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.experiment} {self.label}" + ("" if self.seed is None else f", seed {self.seed}")

    @property
    def summed_up(self) -> str:
        """The last line of the message, which is the one that counts in a traceback."""
        return self.message.strip().rpartition("\n")[2]

    @property
    def anchor(self) -> str:
        return re.sub(r"[^\w-]", "-", f"{self.experiment}-{self.label}-{self.seed}")

    @property
    def figures(self) -> list[Figure]:
        """The errors, then what else has a reference."""
        return figures([self])


@dataclass(frozen=True)
class Card:
    """The runs of one experiment and preset, one a seed."""

    entries: Sequence[Entry]

    @cached_property
    def shown(self) -> Entry:
        """The run whose picture and files stand for all: the first that converged, if one did."""
        return min(self.entries, key=lambda e: (e.picture is None, e.state != "converged"))

    @property
    def state(self) -> str:
        """Where the seeds end differently, the worst of it."""
        return max((entry.state for entry in self.entries), key=STATES.index)

    @property
    def badge(self) -> str:
        good = sum(entry.state == "converged" for entry in self.entries)
        return said(self.state) if len(self.entries) == 1 else f"{good} of {len(self.entries)} reached their goal"

    @property
    def figures(self) -> list[Figure]:
        """Two that tell most: those with a reference, then the first errors."""
        return sorted(figures(self.entries), key=lambda figure: not figure.reference)[:2]

    @property
    def goals(self) -> list[str]:
        """What the runs were to reach; one, unless their options differ."""
        return list(dict.fromkeys(entry.goal for entry in self.entries if entry.goal))

    @property
    def messages(self) -> list[str]:
        """What to read beside the figures: the last line of each message once, and whose it is."""
        seeds: dict[str, list[str]] = {}
        for entry in self.entries:
            seeds.setdefault(entry.summed_up, []).append(str(entry.seed))
        shared = len(seeds) == 1
        return [text if shared else f"Seed {', '.join(who)}: {text}" for text, who in seeds.items() if text]


# From good to bad.
STATES = ("converged", "skipped", "not run", "unfinished", "not converged", "damaged", "failed")


def figures(entries: Iterable[Entry]) -> list[Figure]:
    """The errors and whatever has a reference: over several runs median and range."""
    done = [entry for entry in entries if entry.measured]
    reference = done[0].reference if done else {}
    values = [{**entry.errors, **entry.measured} for entry in done]
    names = [name for entry in done for name in entry.errors] + list(reference)
    found = []
    for name in dict.fromkeys(names):
        numbers = [value[name] for value in values if name in value]
        found.append(Figure(name, spread(numbers), numbers[0] if numbers else math.nan, reference.get(name, "")))
    return found


def write_index(results: Path) -> Path:
    """Write index.html into the folder of all results and return its path.

    Raises FileNotFoundError where there is no such folder. A damaged run is listed as such.
    """
    if not results.is_dir():
        raise FileNotFoundError(f"{results} is no folder: name the one that holds the results, or run run_all.py first")
    told, trouble = _told(results / "summary.json")
    runs = told.get("runs", [])
    entries: dict[Path, Entry | None] = {folder: _read(folder) for folder in _run_folders(results)}
    for run in runs:
        folder = results / run["experiment"] / f"{run['preset']}-seed{run['seed']}"
        entries[folder] = _merged(run, entries.get(folder), _is_newer(folder, results), told.get("command", ()))
    # run_all.py's order is the one to read in; what it did not run comes after
    order = list(dict.fromkeys((run["experiment"], run["preset"]) for run in runs))
    rank = {key: place for place, key in enumerate(order)}
    listed = sorted(
        (entry for entry in entries.values() if entry),
        key=lambda e: (rank.get((e.experiment, e.label), len(rank)), e.experiment, e.label, e.seed or 0),
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(WEB), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "typeset": _typeset,
        "words": _words,
        "said": said,
        "measure": _measure,
        "sortable": _sortable,
    }
    text = environment.get_template("index.html").render(
        swept=write_seeds(results, listed, environment),
        cards=[Card(list(group)) for _, group in groupby(listed, key=lambda e: (e.experiment, e.label))],
        entries=listed,
        states=[(state, count) for state in STATES if (count := Counter(e.state for e in listed)[state])],
        trouble=trouble,
        date=_date(told.get("date"), results),
        machine=_machine(told.get("machine"), listed),
        number=number,
    )
    path = results / "index.html"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")  # JSON may say half a character
    return path


# ---- the folders ----


def _run_folders(results: Path) -> list[Path]:
    """What looks like a run, finished or not."""
    marks = ("config.json", "summary.json")
    return sorted({path.parent for mark in marks for path in results.glob(f"*/*/{mark}")})


def _read(folder: Path) -> Entry:
    """The run in that folder."""
    named = re.fullmatch(r"(.+)-seed([0-9]{1,10})", folder.name)
    label, seed = (named[1], int(named[2])) if named else (folder.name, None)
    entry = Entry(folder.parent.name, label, seed, "damaged", folder=folder)
    try:
        files, page = _files(folder)
        entry = replace(entry, files=files, page=page)
        config = _json(folder / "config.json") if (folder / "config.json").exists() else {}
        if not named and isinstance(config.get("seed"), int):
            entry = replace(entry, seed=config["seed"])
        entry = replace(entry, device=str(config.get("device", "cpu")))
        if not (folder / "summary.json").exists():
            message = "It is still running, or was interrupted."
            return replace(entry, state="unfinished", message=message, resume=_resume(folder, config))
        summary = UNSAID | _json(folder / "summary.json")
        return replace(
            entry,
            state="converged" if summary["converged"] else "not converged",
            message=_public(str(summary["note"])),
            goal=_public(str(summary["goal"])),
            undetermined=tuple(_public(str(sentence)) for sentence in summary["undetermined"]),
            measured={name: float(summary[name]) for name in ("iterations", "seconds", "loss")},
            errors={str(name): float(value) for name, value in summary["errors"].items()},
            reference={str(name): _public(str(value)) for name, value in summary["reference"].items()},
            picture=_picture(folder, summary.get("figures", [])),
        )
    except Exception as error:  # it may be damaged in any way, and is listed in all of them
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        return replace(entry, message=f"Its files cannot be read ({_public(reason)}): run the experiment again.")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds no object")
    return value


def _files(folder: Path) -> tuple[tuple[Link, ...], str]:
    """All that one may want to open, not what only programs read, and the address of its own page."""
    root = folder.parents[1]
    links = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = inside.parts[0] == "recording" or path.name.startswith((".", "events.out.", "checkpoint.pt"))
        if path.is_file() and not hidden and inside.as_posix() != "index.html":
            links.append(Link(_shown(inside.as_posix()), _href(path, root)))
    page = folder / "index.html"
    return tuple(links), _href(page, root) if page.is_file() else ""


def _picture(folder: Path, names: Sequence[str]) -> Picture | None:
    """The first of `names`, or of the pictures there are; the loss only where there is no other."""
    there = {path.name: path for path in sorted(folder.glob("*.png"))}
    candidates = [name for name in names if name in there] or list(there)
    for name in sorted(candidates, key=lambda name: name == "loss.png"):
        with there[name].open("rb") as file:
            head = file.read(24)
        if len(head) == 24 and head.startswith(b"\x89PNG"):
            sides = [int.from_bytes(head[start : start + 4], "big") for start in (16, 20)]
            return Picture(_shown(name.removesuffix(".png")), _href(there[name], folder.parents[1]), *sides)
    return None


def _resume(folder: Path, config: Mapping[str, Any]) -> str:
    """The command that continues it: what was typed to begin it, if that is known."""
    preset, seed, typed = config.get("preset"), config.get("seed"), config.get("command")
    if not isinstance(preset, str) or not isinstance(seed, int):
        return ""
    name = [] if folder.name == f"{preset}-seed{seed}" else ["--name", folder.name]
    driver = ["python", "-m", f"experiments.{folder.parent.name}", preset, "--seed", str(seed), "--out", "results"]
    return _again(typed or (*driver, *name))


def _again(words: Sequence[object]) -> str:
    """The command that continues what a command of these words began. Paths here are told as from here."""
    here = str(Path.cwd()) + os.sep
    told = [_public(str(word).removeprefix(here)) for word in words]
    return shlex.join([*(word for word in told if word not in ("--resume", "--overwrite")), "--resume"])


def _href(path: Path, root: Path) -> str:
    return quote(os.fsencode(path.relative_to(root)))


def _shown(name: str) -> str:
    return os.fsencode(name).decode("utf-8", errors="replace")


# ---- what run_all.py says ----


def _told(path: Path) -> tuple[dict[str, Any], str]:
    """What run_all.py wrote, where it did, and what is wrong with it."""
    if not path.exists():
        return {}, ""
    try:
        told = _json(path)
        for run in told["runs"]:
            if not {"experiment", "preset", "seed", "status", "message"} <= run.keys() or run["status"] not in STATES:
                raise ValueError(f"{path.name} has a run that is none")
            if not all(isinstance(run[key], str) for key in ("experiment", "preset", "message")):
                raise ValueError(f"{path.name} has a run without a name")
    except Exception as error:  # as of a run
        return {}, f"What run_all.py wrote cannot be read ({_public(str(error))}): run it again."
    return told, ""


def _merged(
    run: Mapping[str, Any], entry: Entry | None, is_newer: bool, command: Sequence[object] = ()
) -> Entry | None:
    """What is to be said of a run that run_all.py, begun by that command, tells of and that has, or has not, a folder.

    The folder knows better, unless the run failed and left nothing newer. One that has been deleted is gone.
    """
    state = run["status"]
    if entry and (state != "failed" or (entry.measured and is_newer)):
        return entry
    if state in ("converged", "not converged"):
        return None
    message = _public(run["message"]) or "run_all.py ended before it."
    if entry:
        said = replace(entry, goal="", undetermined=(), measured={}, errors={}, reference={}, page="", picture=None)
        return replace(said, state=state, message=message)
    resume = _again(command or ("python", "run_all.py")) if state == "not run" else ""
    return Entry(run["experiment"], run["preset"], run["seed"], state, message, resume=resume)


def _is_newer(folder: Path, results: Path) -> bool:
    """Whether the run ended after run_all.py did."""
    ended = folder / "summary.json"
    return ended.is_file() and ended.stat().st_mtime_ns > (results / "summary.json").stat().st_mtime_ns


def _date(said: Any, results: Path) -> date | None:
    """Of run_all.py, or of the last run."""
    try:
        return date.fromisoformat(said)
    except (TypeError, ValueError):
        ended = [path.stat().st_mtime for path in results.glob("*/*/summary.json")]
        return datetime.fromtimestamp(max(ended), timezone.utc).date() if ended else None


def _machine(said: Any, entries: Iterable[Entry]) -> str:
    """What the runs were computed on, as far as it is known."""
    if not isinstance(said, dict):
        return ""
    torch = f"torch {said['torch']}" if said.get("torch") else ""
    gpu = said.get("gpu") if any(entry.device != "cpu" for entry in entries) else ""
    return ", ".join(str(part) for part in (torch, said.get("cpu"), gpu) if part)


# ---- text ----


def _public(text: str) -> str:
    """Without the folders of this machine: the page may be published, and a traceback names them."""
    return re.sub(r'(?<=")/[^"\n]*/|(?<![\w.:/])/(?:[^\s/"]+/)+', "…/", text.replace(str(Path.home()) + "/", "/"))


def _typeset(text: str) -> Markup:
    """1e-10 as 10 to the power of -10, a minus as long as a plus."""

    def power(match: re.Match[str]) -> str:
        factor = "" if match[1] == "1" else f"{match[1]}&#8239;×&#8239;"
        return f"{factor}10<sup>{int(match[2])}</sup>".replace("-", "−")

    return Markup(re.sub(r"(?<![\w.])(-?\d+(?:\.\d+)?)e([+-]?\d{1,4})\b", power, str(escape(text))))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _measure(name: str) -> str:
    """A figure's name ends in its unit."""
    return re.sub(r" (deg|px)$", r" (\1)", _words(name))


def _sortable(value: float) -> str:
    """As JavaScript's Number() reads it."""
    return str(value).replace("inf", "Infinity").replace("nan", "NaN")


def main(arguments: Sequence[str] | None = None) -> None:
    """Rebuild the index of a folder of results."""
    parser = argparse.ArgumentParser(prog="python -m experiments.viewers.index", description=main.__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"), help="names it; default: results")
    try:
        print(write_index(parser.parse_args(arguments).results))
    except FileNotFoundError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
