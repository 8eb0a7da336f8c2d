"""What the toys found over seeds, as Markdown: means with Student's 95 % interval of them, and differences by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.records.text import mean_interval, table

__all__ = ["averaged", "expert_tables", "line_table", "match_tables"]

Errors = Mapping[str, float]
"""Of a run's summary."""
Row = Mapping[str, Any]
"""Of a run of robust_pose: odds, budget, success, and for made matches the share of wrong ones."""


def _shares(values: Sequence[float]) -> str:
    return mean_interval([100 * value for value in values], ".1f")


def _points(values: Sequence[float]) -> str:
    return mean_interval([100 * value for value in values], "+.1f")


# ---- line_fitting ----


def line_table(runs: Mapping[str, Sequence[Errors]]) -> str:
    """runs: of each title the errors of its runs, not all of which need to have every method."""
    names = {"dsac": "DSAC", "ng_dsac": "NG-DSAC", "direct": "direct regression"}
    rows = []
    for title, several in runs.items():
        for method, name in names.items():
            mine = [errors for errors in several if f"{method}_correct" in errors]
            if mine:
                shares = [_shares([e[f"{method}_{key}"] for e in mine]) for key in ("correct", "correct_sum")]
                median = mean_interval([e[f"{method}_median_px"] for e in mine], ".1f")
                rows.append([title, name, *shares, median, str(len(mine))])
    header = ["training", "method", "both ends within 5 px, %", "their sum within 5 px, %", "median, px", "seeds"]
    return table(header, rows)


# ---- expert_selection ----


def expert_tables(runs: Mapping[str, Sequence[Errors]]) -> str:
    """runs: of each title, which is a heading, the errors of its seeds."""
    who = {
        "begun": "learned apart; hard choice",
        "separate": "learned apart, as many steps as ESAC; hard choice",
        "separate_mixture": "the same networks; drawn from the mixture",
        "separate_even": "the same networks; both experts asked alike",
        "separate_told": "the same networks; told the kind",
        "esac": "ESAC, end to end; drawn from the mixture",
        "esac_even": "the same networks; both experts asked alike",
        "esac_hard": "the same networks; hard choice",
        "esac_told": "the same networks; told the kind",
    }
    against = {
        "separate": "ESAC less hard choice, as many steps",
        "begun": "ESAC less hard choice, where it began",
    }
    parts = []
    for title, several in runs.items():
        rows = [
            [name, *(_shares([e[f"{key}_{what}"] for e in several]) for what in ("right_expert", "correct"))]
            for key, name in who.items()
        ] + [
            [name, *(_points([e[f"esac_{what}"] - e[f"{key}_{what}"] for e in several]) for what in _JUDGED)]
            for key, name in against.items()
        ]
        parts.append(f"## {title}\n\n{table([f'{len(several)} seeds', 'right expert, %', 'right model, %'], rows)}")
    return "\n".join(parts)


_JUDGED = ("right_expert", "correct")


# ---- robust_pose ----

_ODDS = {
    "sampling_sharp": "learned from RANSAC's error alone",
    "weights_sharp": "learned through PnP's weights",
    "classify_sharp": "learned from labels",
    "ratio_sharp": "ratio of descriptor distances",
    "uniform": "all alike",
    "labels": "right matches alone",
}


def match_tables(made: Sequence[Sequence[Row]], real: Sequence[Sequence[Row]]) -> str:
    """Rows of every seed, of made matches and of real ones, of which there may be none."""
    budgets = sorted({row["budget"] for row in made[0]})
    shares = sorted({row["share"] for row in made[0]})
    fewest = {f"{s:.0%} wrong": {"budget": budgets[0], "share": s} for s in shares if s >= 0.5}
    hardest = {str(budget): {"budget": budget, "share": shares[-1]} for budget in budgets}
    parts = [
        f"## Right poses with {budgets[0]} hypotheses, %\n\n{_success(made, fewest)}",
        f"Learned from RANSAC's error alone, less another, seed by seed, in points:\n\n{_gains(made, fewest)}",
        f"## Right poses where {shares[-1]:.0%} are wrong, by hypotheses, %\n\n{_success(made, hardest)}",
    ]
    if any(real):
        tried = {str(budget): {"budget": budget} for budget in sorted({row["budget"] for row in real[0]})}
        parts.append(
            "## Real matches of a box in a video: agreement with a long search, by hypotheses, %\n\n"
            + _success(real, tried)
        )
    return "\n".join(parts)


def averaged(seeds: Sequence[Sequence[Row]]) -> list[dict[str, Any]]:
    """One row for the same odds, budget and share of wrong matches: the mean success over seeds."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for row in (row for rows in seeds for row in rows):
        found.setdefault((row["odds"], row["budget"], row.get("share")), []).append(row["success"])
    return [
        {"odds": odds, "budget": budget, "share": share, "success": sum(success) / len(success)}
        for (odds, budget, share), success in found.items()
    ]


def _success(seeds: Sequence[Sequence[Row]], columns: Mapping[str, Row]) -> str:
    known = {row["odds"] for row in seeds[0]}  # nobody knows which real matches are right
    rows = [
        [name, *(_shares(_found(seeds, odds, at)) for at in columns.values())]
        for odds, name in _ODDS.items()
        if odds in known
    ]
    return table([f"drawn by ({len(seeds)} seeds)", *columns], rows)


def _gains(seeds: Sequence[Sequence[Row]], columns: Mapping[str, Row]) -> str:
    rows = []
    for other in ("ratio_sharp", "weights_sharp", "classify_sharp"):
        cells = []
        for at in columns.values():
            pairs = zip(_found(seeds, "sampling_sharp", at), _found(seeds, other, at), strict=True)
            cells.append(_points([one - less for one, less in pairs]))
        rows.append([_ODDS[other], *cells])
    return table(["less", *columns], rows)


def _found(seeds: Sequence[Sequence[Row]], odds: str, at: Row) -> list[float]:
    """Success of each seed in the row of these odds and this place."""
    return [
        next(row["success"] for row in rows if row["odds"] == odds and all(row[key] == at[key] for key in at))
        for rows in seeds
    ]
