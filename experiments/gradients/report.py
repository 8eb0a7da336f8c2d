"""What the comparison of gradients says: tables, and sentences made of the numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from experiments.gradients.figures import title
from experiments.gradients.measures import Quality
from experiments.gradients.methods import STOCHASTIC, Method
from experiments.gradients.outcomes import Interval, Outcome, across, chosen
from experiments.gradients.scenes import REGIMES

__all__ = ["advice_table", "brackets", "everywhere", "report", "verdict"]


def ranged(values: Iterable[float], digits: int = 3) -> str:
    """Median (least to largest)."""
    numbers = sorted(values)
    shown = [f"{v:.{digits}g}" for v in (median(numbers), numbers[0], numbers[-1])]
    shown = [some.replace("inf", "lost") for some in shown]
    return shown[0] if shown[1] == shown[2] else f"{shown[0]} ({shown[1]} to {shown[2]})"


def told(ratio: Interval) -> str:
    """Geometric mean (low to high)."""
    if not math.isfinite(ratio.middle):
        return "lost"
    if not math.isfinite(ratio.high):  # of one seed
        return f"{ratio.middle:.3g}"
    return f"{ratio.middle:.3g} ({ratio.low:.3g} to {ratio.high:.3g})"


def listed(outcome: Outcome, methods: Iterable[Method]) -> str:
    return ", ".join(f"{title(m)} {outcome.final(m).middle:.3g}" for m in methods)


def advice_table(outcomes: Sequence[Outcome]) -> list[str]:
    """A regime a row: who is lowest, who level with it, and which of these takes the least time a step."""
    lines = ["| you have | lowest | error over the oracle's | level with it | cheapest of these |", "|---" * 5 + "|"]
    for outcome in outcomes:
        (best, *others), cheapest = outcome.level, outcome.cheapest()
        lines.append(
            f"| {REGIMES[outcome.regime].situation} | `{best}` | {told(outcome.final(best))} "
            f"| {', '.join(f'`{method}`' for method in others) or '–'} "
            f"| `{cheapest}`, {outcome.traces[cheapest].milliseconds:.2g} ms a step |"
        )
    return lines


def everywhere(outcomes: Sequence[Outcome]) -> str:
    """Who is lowest in the mean of the regimes of the small network, of those that have all, and who is level."""
    outcomes = small(outcomes)
    methods = [method for method in outcomes[0].traces if all(method in outcome.traces for outcome in outcomes)]
    best = min(methods, key=lambda method: across(outcomes, method).middle)
    ratios = {method: across(outcomes, method, best) for method in methods if method != best}
    level = [f"`{method}` ({told(ratio)} times its error)" for method, ratio in ratios.items() if ratio.level]
    lowest = f"In the mean of the regimes `{best}` is lowest, at {told(across(outcomes, best))} of the oracle's error"
    return f"{lowest}; level with it: {', '.join(level)}." if level else f"{lowest}, and nobody is level with it."


def small(outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    """The regimes of the small network, in which more methods took part."""
    return [outcome for outcome in outcomes if not REGIMES[outcome.regime].large] or outcomes


def verdict(outcome: Outcome, goal: float) -> str:
    """Who ends lowest, who is level with that, and where the exact gradient stands."""
    best, *others = outcome.level
    lines = [f"**{title(best)}** ends lowest, at {told(outcome.final(best))} of the oracle's error;"]
    lines.append(f"level with it: {listed(outcome, others)}." if others else "nobody is level with it.")
    if "exact" in outcome.traces and "exact" not in outcome.level:
        ratio = told(outcome.against("exact", best))
        lines.append(f"exact loses here: {ratio} times the error of {title(best)}, seed by seed.")
    seconds = {}
    for method, trace in outcome.traces.items():
        steps, count = outcome.reached(method, goal)
        if len(steps) == count:
            seconds[method] = median(steps) * trace.milliseconds / 1e3
    if seconds:
        first = min(seconds, key=seconds.__getitem__)
        lines.append(f"Least time, of those whose runs all reach the goal: {title(first)}, {seconds[first]:.2g} s.")
    else:
        lines.append("Nobody brings all runs to the goal.")
    never = [title(m) for m in outcome.traces if not outcome.reached(m, goal)[0]]
    if never:
        lines.append(f"Never at the goal: {', '.join(never)}.")
    return " ".join(lines)


def regime_table(outcome: Outcome, goal: float) -> list[str]:
    lines = [
        "| method | rate (tried) | at the goal | worse than at the start | steps to it | seconds to it | rotation, ° | "
        "translation | displacement over the oracle's | over the lowest's |",
        "|---" * 10 + "|",
    ]
    best = outcome.order[0]
    for method, trace in outcome.traces.items():
        steps, count = outcome.reached(method, goal)
        ends = [run[-1] for run in trace.errors]
        tried = f"{chosen(trace.tried):.2g} ({min(trace.tried):.2g} to {max(trace.tried):.2g})"
        cells = [
            title(method), tried if trace.bracketed else f"{tried}, at the edge",
            f"{len(steps)} of {count}", f"{outcome.worse(method)} of {count}", ranged(steps) if steps else "–",
            f"{median(steps) * trace.milliseconds / 1e3:.2g}" if steps else "–", ranged(e[0] for e in ends),
            ranged(e[1] for e in ends), told(outcome.final(method)),
            "–" if method == best else told(outcome.against(method, best)),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def overall_table(outcomes: Sequence[Outcome], goal: float) -> list[str]:
    """The methods that took part in all regimes of the small network, best first, over these."""
    outcomes = small(outcomes)
    rows = []
    for method in outcomes[0].traces:
        if not all(method in outcome.traces for outcome in outcomes):
            continue
        got = [outcome.reached(method, goal) for outcome in outcomes]
        there, runs = sum(len(steps) for steps, _ in got), sum(count for _, count in got)
        worse = sum(outcome.worse(method) for outcome in outcomes)
        worst = max(outcomes, key=lambda outcome: outcome.final(method).middle)
        highest = f"{worst.final(method).middle:.3g}".replace("inf", "lost")
        mean = across(outcomes, method)
        cells = [
            title(method), told(mean), f"{highest}, {title(worst.regime)}",
            f"{sum(method in outcome.level for outcome in outcomes)} of {len(outcomes)}", f"{1 - there / runs:.0%}",
            f"{worse / runs:.0%}", f"{median(outcome.traces[method].milliseconds for outcome in outcomes):.2g}",
        ]  # fmt: skip
        rows.append((mean.middle, "| " + " | ".join(cells) + " |"))
    return [
        "| method | error over the oracle's, mean of regimes | worst regime | level with the lowest in | "
        "runs that never reach the goal | runs that end no better than they began | ms a step |",
        "|---" * 7 + "|",
        *(row for _, row in sorted(rows)),
    ]


def quality_table(quality: Mapping[float, Mapping[Method, Quality]]) -> list[str]:
    if not quality:
        return []
    noises = list(quality)
    lines = [
        "| method | "
        + " | ".join(f"error at {noise:g} px" for noise in noises)
        + " | "
        + " | ".join(f"right way at {noise:g} px" for noise in noises)
        + " |",
        "|---" * (1 + 2 * len(noises)) + "|",
    ]
    for method in next(iter(quality.values())):
        cells = [title(method) + (" (one draw)" if method in STOCHASTIC else "")]
        for noise in noises:
            cells.append(f"{quality[noise][method].error:.1e} / {quality[noise][method].largest:.1e}")
        for noise in noises:
            shares = quality[noise][method].right_way
            cells.append(f"{median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


PAIRS: tuple[tuple[Method, Method, str], ...] = (
    ("gauss_newton", "exact", "the approximate gradient over the exact one"),
    ("unrolled", "exact", "unrolled steps over the exact gradient"),
    ("published", "unweighted", "the published formula over the exact gradient, neither with weights"),
    ("unweighted", "exact", "the exact gradient without weights over that with them"),
    ("reprojection", "likelihood", "labels of the keypoints without weights over those with them"),
    ("epro_pnp_full", "epro_pnp", "EPro-PnP with both of its additions over the Monte-Carlo loss alone"),
    ("nabla_ransac", "dsac", "the gradient through the draw over that through the choice"),
    ("exact", "likelihood", "the exact gradient over the likelihood of the keypoints"),
    ("linear_covariance", "likelihood", "the linear covariance over the likelihood of the keypoints"),
    ("epro_pnp", "likelihood", "the Monte-Carlo loss over the likelihood of the keypoints"),
)
"""What is compared seed by seed, and how it is called."""


def pairs_table(outcomes: Sequence[Outcome]) -> list[str]:
    """Ratios of two methods in the mean of the regimes that have both, and the regimes in which one is ahead."""
    lines = ["| | error over error | lower in | higher in |", "|---" * 4 + "|"]
    for method, other, name in PAIRS:
        both = [outcome for outcome in outcomes if method in outcome.traces and other in outcome.traces]
        if not both:
            continue
        ratios = {title(outcome.regime): outcome.against(method, other) for outcome in both}
        lower, higher = ([r for r, v in ratios.items() if test(v)] for test in (_below, _above))
        cells = [name, told(across(both, method, other)), ", ".join(lower) or "–", ", ".join(higher) or "–"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _below(ratio: Interval) -> bool:
    return ratio.high < 1


def _above(ratio: Interval) -> bool:
    return ratio.low > 1


def brackets(outcomes: Sequence[Outcome]) -> str:
    """Whether all rates lie inside of those tried."""
    traces = [(title(m), title(o.regime), trace) for o in outcomes for m, trace in o.traces.items()]
    edges = [(method, regime, trace) for method, regime, trace in traces if not trace.bracketed]
    if not edges:
        return f"All {len(traces)} rates chosen lie between two that ended higher."
    inside = f"{len(traces) - len(edges)} of {len(traces)} rates chosen lie between two that ended higher"
    named = [
        f"{method} in {regime}" + (" (the smaller the rate, the better)" if chosen(t.tried) == min(t.tried) else "")
        for method, regime, t in edges
    ]
    return f"{inside}; not so: {', '.join(named)}."


def report(
    outcomes: Sequence[Outcome], quality: Mapping[float, Mapping[Method, Quality]], goal: float, settings: Mapping
) -> str:
    """The page, in Markdown: page.md with its tables, and a section a regime."""
    lines: list[str] = []
    for outcome in outcomes:
        lines += ["", f"## {title(outcome.regime).capitalize()}", "", f"{REGIMES[outcome.regime].text}.", ""]
        turn, shift, away = (median(best[i] for best in outcome.oracle) for i in range(3))
        first = next(iter(outcome.traces.values())).errors
        begun = median(run[0][2] for run in first)
        lines += [
            f"Oracle: {turn:.3g}°, {shift:.3g}, displacement {away:.3g}; the start: {begun / away:.3g} times that. "
            + verdict(outcome, goal), "", *regime_table(outcome, goal),
        ]  # fmt: skip
    made: dict[str, Any] = {
        "settings": ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items()),
        "goal": goal,
        "steps": settings.get("steps"),
        "brackets": brackets(outcomes),
        "everywhere": everywhere(outcomes),
        "advice": "\n".join(advice_table(outcomes)),
        "overall": "\n".join(overall_table(outcomes, goal)),
        "pairs": "\n".join(pairs_table(outcomes)),
        "quality": "\n".join(quality_table(quality)),
        "regimes": "\n".join(lines[1:]),
    }
    return Path(__file__).with_name("page.md").read_text().format(**made)
