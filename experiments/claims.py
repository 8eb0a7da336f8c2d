"""What README and pages state of the experiments, checked on fresh seeds: an hour on two cores.

Every preset of `experiments.evidence.listed` is run over its seeds. Exit code 1 says that an interval was left,
or that a run has failed. Take seeds that nobody has used:

    python -m experiments.claims default --first-seed 1000
    python -m experiments.claims state --only sudoku

Presets:

- default: Runs what something is stated of, and compares it with the intervals that `experiments.evidence.intervals`
  makes of the reference.
- state: Makes the reference, results/reference/claims.json and claims.md, and the blocks of README and pages from it.
- tables: Makes the blocks of README and pages from the reference that there is.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from experiments.benchmarks.measuring import choose
from experiments.evidence.blocks import rewrite
from experiments.evidence.listed import CLAIMS, Claim
from experiments.evidence.tables import Found, Reference, compared, stated
from experiments.records.files import write_text
from experiments.running.launch import launched

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Config:
    task: Literal["check", "state", "tables"] = "check"
    """Chooses to compare fresh seeds with the reference, to make the reference, or to make the blocks of the pages from
    it."""
    first_seed: int = 300
    """Sets the first of as many seeds as each claim is over; `state` takes others than `check`."""
    only: tuple[str, ...] = ()
    """Lists claims by how their command begins; left empty, all are run. `state` keeps what it has of the others."""
    jobs: int = 2
    """Sets how many runs go side by side, a process and a thread each."""
    resume: bool = False
    """Keeps the runs that are finished."""
    out: Path = Path("results/claims")
    """Names the folder of the runs; that of a check gets its claims.json and claims.md as well."""
    reference: Path = ROOT / "results" / "reference"
    """Names the folder with claims.json and claims.md of the reference."""


PRESETS = {
    "default": Config(),
    "state": Config(task="state", first_seed=200),
    "tables": Config(task="tables"),
}


def chosen(config: Config, claims: tuple[Claim, ...]) -> list[Claim]:
    """The claims that are asked for."""
    for name in config.only:
        if not any(claim.name.startswith(name) for claim in claims):
            raise SystemExit(f"only: beginnings of {', '.join(claim.name for claim in claims)} wanted, got {name!r}")
    return [claim for claim in claims if not config.only or claim.name.startswith(config.only)]


def run(config: Config, claims: list[Claim]) -> tuple[dict[str, Found], list[str]]:
    """What the runs found, by claim, and what went wrong. A claim whose data are absent is left out."""
    runs = [(claim, claim.asked(config.first_seed + i)) for claim in claims for i in range(claim.seeds)]
    out = config.out.resolve()
    found: dict[str, Found] = {}
    wrong = []
    asked = [each for _, each in runs]
    for (claim, each), ended in zip(runs, launched(asked, out, config.resume, config.jobs), strict=True):
        if ended.status == "failed":
            wrong.append(f"{each.title}: {ended.message}")
        if ended.summary is not None:
            found.setdefault(claim.name, Found()).add(each.seed, claim, ended.summary)
            # a finished run needs none, and those of networks take a gigabyte
            (each.folder(out) / "checkpoint.pt").unlink(missing_ok=True)
    return found, wrong


def check(config: Config, claims: tuple[Claim, ...]) -> list[str]:
    """Run fresh seeds, write OUT/claims.json and claims.md, and return what is not as it is stated."""
    reference = Reference.read(config.reference / "claims.json")
    some = [claim for claim in chosen(config, claims) if claim.name in reference.claims]
    found, wrong = run(config, some)
    report = compared(some, reference, found, today())
    config.out.mkdir(parents=True, exist_ok=True)
    Reference({}, {}).updated(found, today()).write(config.out / "claims.json")
    write_text(config.out / "claims.md", report.text)
    print(f"\n{report.text}\n{config.out / 'claims.md'}")
    return wrong + report.left


def state(config: Config, claims: tuple[Claim, ...]) -> list[str]:
    """Run the seeds of the reference and write it, unless a run has failed; return what has."""
    found, wrong = run(config, chosen(config, claims))
    if not wrong:
        reference = Reference.read(config.reference / "claims.json").updated(found, today())
        reference.write(config.reference / "claims.json")
        write_text(config.reference / "claims.md", stated(claims, reference))
    return wrong


def today() -> str:
    return f"{datetime.now(timezone.utc):%Y-%m-%d}"


def main(config: Config, claims: tuple[Claim, ...] = CLAIMS) -> int:
    """Do what is asked for, and return the exit code."""
    wrong = {"check": check, "state": state, "tables": lambda *_: []}[config.task](config, claims)
    for each in wrong:
        print(each, file=sys.stderr)
    if not wrong and config.task != "check":
        rewrite(ROOT, config.reference)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(choose(PRESETS, "python -m experiments.claims", __doc__)))
