"""What the comparison of gradients says: tables, sentences made of the numbers, and figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean, median
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.gradients.measures import Quality
from experiments.gradients.methods import STOCHASTIC, Method
from experiments.gradients.scenes import REGIMES, Regime

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Outcome", "Trace", "curves", "report", "summary"]

COLORS: dict[Method, str] = {
    "exact": "#0072B2", "gauss_newton": "#56B4E9", "unrolled": "#3B4CC0", "last_step": "#9ecae1",
    "published": "#D55E00", "unweighted": "#E69F00", "dsac": "#CC79A7", "epro_pnp": "#882255",
    "linear_covariance": "#009E73", "reprojection": "#999999", "likelihood": "#000000",
}  # fmt: skip
DASHES: dict[Method, Any] = {"gauss_newton": "--", "last_step": ":", "unrolled": (0, (6, 3)), "unweighted": "--"}
TIE = 1.1
"""Ratio of final errors below which two methods are said to be level."""


class Trace(NamedTuple):
    """One method in one regime: the rate it chose, what a step costs, and [run][test][rotation, translation, distance].

    rotation in degrees; translation and rms displacement of the points in half sides of the object: medians over views.
    """

    rate: float
    milliseconds: float
    errors: list[list[list[float]]]


class Outcome(NamedTuple):
    """One regime: the steps after which was tested, the oracle's errors (run, 3), and the traces."""

    regime: Regime
    tested: list[int]
    oracle: list[list[float]]
    traces: dict[Method, Trace]

    @classmethod
    def loaded(cls, saved: Mapping[str, Any]) -> Outcome:
        traces = {method: Trace(**trace) for method, trace in saved["traces"].items()}
        return cls(saved["regime"], saved["tested"], saved["oracle"], traces)

    def plain(self) -> dict[str, Any]:
        return self._asdict() | {"traces": {method: trace._asdict() for method, trace in self.traces.items()}}

    def excess(self, method: Method) -> list[list[float]]:
        """[run][test]: displacement over the oracle's."""
        runs = zip(self.traces[method].errors, self.oracle, strict=True)
        return [[test[2] / best[2] for test in run] for run, best in runs]

    def final(self, method: Method) -> float:
        """Median over the runs of that, at the end."""
        return median(run[-1] for run in self.excess(method))

    def arrivals(self, method: Method, goal: float) -> list[float]:
        """Steps until rotation and translation are within `goal` times the oracle's; infinite for never."""
        found = []
        for run, best in zip(self.traces[method].errors, self.oracle, strict=True):
            there = (test[0] <= goal * best[0] and test[1] <= goal * best[1] for test in run)
            found.append(next((float(s) for s, ok in zip(self.tested, there, strict=True) if ok), math.inf))
        return found

    def worse(self, method: Method) -> int:
        """Runs that end no better than they began, or as no number."""
        return sum(not run[-1][2] < run[0][2] for run in self.traces[method].errors)


def title(method: str) -> str:
    return method.replace("_", " ")


def ranged(values: Iterable[float], digits: int = 3) -> str:
    """Median (least to largest)."""
    numbers = sorted(values)
    shown = [f"{v:.{digits}g}" for v in (median(numbers), numbers[0], numbers[-1])]
    shown = [some.replace("inf", "lost") for some in shown]
    return shown[0] if shown[1] == shown[2] else f"{shown[0]} ({shown[1]} to {shown[2]})"


def reached(outcome: Outcome, method: Method, goal: float) -> tuple[list[float], int]:
    """Steps of the runs that got there, and how many runs there are."""
    arrivals = outcome.arrivals(method, goal)
    return [a for a in arrivals if math.isfinite(a)], len(arrivals)


def verdict(outcome: Outcome, goal: float) -> str:
    """Who ends lowest, who is level with that, and where the exact gradient stands."""
    final = {method: outcome.final(method) for method in outcome.traces}
    order = sorted(final, key=final.__getitem__)
    best = order[0]
    level = [f"{title(m)} ({final[m]:.2f})" for m in order[1:] if final[m] <= TIE * final[best]]
    told = [f"**{title(best)}** ends lowest, at {final[best]:.2f} of the oracle's error"]
    told.append(f"level with it, within {TIE - 1:.0%}: {', '.join(level)}." if level else "nobody is level with it.")
    lines = ["; ".join(told)]
    if "exact" in final and final["exact"] > TIE * final[best]:
        pairs = zip(outcome.excess("exact"), outcome.excess(best), strict=True)
        behind = sum(ours[-1] > theirs[-1] for ours, theirs in pairs)
        lines.append(
            f"exact loses here: {final['exact']:.2f}, behind {title(best)} on {behind} of {len(outcome.oracle)} seeds."
        )
    seconds = {}
    for method, trace in outcome.traces.items():
        steps, count = reached(outcome, method, goal)
        if len(steps) == count:
            seconds[method] = median(steps) * trace.milliseconds / 1e3
    if seconds:
        first = min(seconds, key=seconds.__getitem__)
        lines.append(f"Least time, of those whose runs all reach the goal: {title(first)}, {seconds[first]:.2g} s.")
    else:
        lines.append("Nobody brings all runs to the goal.")
    never = [title(m) for m in outcome.traces if not reached(outcome, m, goal)[0]]
    if never:
        lines.append(f"Never at the goal: {', '.join(never)}.")
    return " ".join(lines)


def regime_table(outcome: Outcome, goal: float) -> list[str]:
    lines = [
        "| method | rate | at the goal | worse than at the start | steps to it | seconds to it | rotation, ° | "
        "translation | displacement over the oracle's |",
        "|---" * 9 + "|",
    ]
    for method, trace in outcome.traces.items():
        steps, count = reached(outcome, method, goal)
        ends = [run[-1] for run in trace.errors]
        cells = [
            title(method), f"{trace.rate:g}", f"{len(steps)} of {count}", f"{outcome.worse(method)} of {count}",
            ranged(steps) if steps else "–",
            f"{median(steps) * trace.milliseconds / 1e3:.2g}" if steps else "–", ranged(e[0] for e in ends),
            ranged(e[1] for e in ends), ranged(run[-1] for run in outcome.excess(method)),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def overall_table(outcomes: Sequence[Outcome], goal: float) -> list[str]:
    """Methods over all regimes, best first."""
    rows = []
    for method in outcomes[0].traces:
        ends = [outcome.final(method) for outcome in outcomes]
        mean = geometric_mean(ends) if all(map(math.isfinite, ends)) else math.inf
        got = [reached(outcome, method, goal) for outcome in outcomes]
        there, runs = sum(len(steps) for steps, _ in got), sum(count for _, count in got)
        worse = sum(outcome.worse(method) for outcome in outcomes)
        cost = median(outcome.traces[method].milliseconds for outcome in outcomes)
        last = max(range(len(ends)), key=ends.__getitem__)
        rows.append((mean, method, f"{1 - there / runs:.0%}", f"{worse / runs:.0%}", cost, ends[last], last))
    lines = [
        "| method | error over the oracle's, geometric mean of regimes | worst regime | "
        "runs that never reach the goal | runs that end no better than they began | ms a step |",
        "|---" * 6 + "|",
    ]
    for mean, method, fail, worse_share, cost, highest, last in sorted(rows):
        row = f"| {title(method)} | {mean:.2f} | {highest:.2f}, {title(outcomes[last].regime)} "
        lines.append(row.replace("inf", "lost") + f"| {fail} | {worse_share} | {cost:.2g} |")
    return lines


def quality_table(quality: Mapping[float, Mapping[Method, Quality]]) -> list[str]:
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
            errors = quality[noise][method].errors
            cells.append(f"{median(errors):.1e} / {max(errors):.1e}")
        for noise in noises:
            shares = quality[noise][method].right_way
            cells.append(f"{median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


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
    # its words were written after looking at the reference run (`full`)
    return (
        Path(__file__)
        .with_name("page.md")
        .read_text()
        .format(
            settings=", ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items()),
            goal=goal,
            overall="\n".join(overall_table(outcomes, goal)),
            quality="\n".join(quality_table(quality)),
            regimes="\n".join(lines[1:]),
        )
    )


def curves(outcomes: Sequence[Outcome], goal: float) -> Figure:
    """Displacement over the oracle's, a panel for each regime: median over the runs, and their range for some."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    columns = min(4, len(outcomes))
    rows = -(-len(outcomes) // columns)
    figure = Figure(figsize=(1 + 3.3 * columns, 0.9 + 2.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, outcome in zip(grid, outcomes, strict=False):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#E3E6EA", linewidth=0.8)
        highest = 1.0
        for method in outcome.traces:
            runs = [[v if math.isfinite(v) else math.nan for v in run] for run in outcome.excess(method)]
            middle = [median(v) if not any(map(math.isnan, v)) else math.nan for v in zip(*runs, strict=True)]
            highest = max(highest, middle[0])
            style = {"color": COLORS[method], "linestyle": DASHES.get(method, "-")}
            axes.plot(outcome.tested, middle, linewidth=2.4 if method == "exact" else 1.4, **style)
            if method in ("exact", "linear_covariance"):
                low, high = ([f(v) for v in zip(*runs, strict=True)] for f in (min, max))
                axes.fill_between(outcome.tested, low, high, color=COLORS[method], alpha=0.12, linewidth=0)
        axes.axhline(1, color="#5F6670", linewidth=0.8, linestyle=":")
        axes.set(yscale="log", title=title(outcome.regime), xlabel="step", ylim=(0.9, 2 * highest))
        axes.yaxis.set_major_locator(FixedLocator([1, 2, 3, 5, 10, 20, 50, 100]))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    for axes in grid[len(outcomes) :]:
        axes.set_visible(False)
    grid[0].set_ylabel("error / oracle's")
    shown = list(outcomes[0].traces)
    handles = [
        grid[0].plot([], [], color=COLORS[m], linestyle=DASHES.get(m, "-"), label=title(m), linewidth=2)[0]
        for m in shown
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
    return figure


def summary(outcomes: Sequence[Outcome], quality: Mapping[float, Mapping[Method, Quality]], goal: float) -> Figure:
    """Left the shares of keypoint gradients that point the right way, right the final errors of all regimes."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    methods = list(outcomes[0].traces)
    figure = Figure(figsize=(5.4 + 1.15 * len(outcomes), 1.7 + 0.42 * len(methods)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2.6, 0.6 + 1.1 * len(outcomes)))
    rows = range(len(methods))
    marks = ("o", "s", "D", "^", "v")
    for i, (noise, some) in enumerate(quality.items()):
        for row, method in enumerate(methods):
            shares = [100 * share for share in some[method].right_way]
            y = row + 0.2 * (i - (len(quality) - 1) / 2)
            left.plot([min(shares), max(shares)], [y, y], color=COLORS[method], linewidth=1.2)
            label = f"{noise:g} px" if row == 0 else None
            fill = COLORS[method] if i % 2 == 0 else "white"
            left.plot(median(shares), y, marks[i % 5], color=COLORS[method], markerfacecolor=fill, markersize=5)
            if label:
                left.plot([], [], marks[i % 5], color="#5F6670", markerfacecolor="#5F6670" if i % 2 == 0 else "white",
                          label=label)  # fmt: skip
    left.axvline(50, color="#5F6670", linewidth=0.8, linestyle=":")
    left.set(xlim=(45, 102), ylim=(len(methods) - 0.5, -0.5), xlabel="% of keypoints")
    left.set_yticks(rows, [title(method) for method in methods])
    left.set_title("gradients pointing the right way", fontsize=9)
    left.legend(frameon=False, fontsize=8, loc="center right", title="noise", title_fontsize=8)
    left.spines[["top", "right"]].set_visible(False)
    left.grid(axis="x", color="#E3E6EA", linewidth=0.8)

    values = [[outcome.final(method) for outcome in outcomes] for method in methods]
    top = 8.0
    right.imshow([[min(v, top) for v in row] for row in values], cmap="RdYlGn_r", norm=LogNorm(1, top), aspect="auto")
    for row, method in enumerate(methods):
        for column, outcome in enumerate(outcomes):
            value = values[row][column]
            steps, count = reached(outcome, method, goal)
            text = f"{value:.2f}" if value < 100 else (f"{value:.0f}" if math.isfinite(value) else "lost")
            dark = not 1.2 < value < 6
            right.text(column, row - 0.12, text, ha="center", va="center", fontsize=9, color="w" if dark else "k")
            right.text(column, row + 0.27, f"{len(steps)}/{count}", ha="center", va="center", fontsize=6.5,
                       color="w" if dark else "#333333")  # fmt: skip
    right.set_xticks(range(len(outcomes)), [outcome.regime.replace("_", "\n") for outcome in outcomes], fontsize=9)
    right.set_yticks(rows, [""] * len(methods))
    right.tick_params(length=0)
    right.spines[:].set_visible(False)
    right.set_title("final error / oracle's, runs at the goal", fontsize=9)
    return figure
