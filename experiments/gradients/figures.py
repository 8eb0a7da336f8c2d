"""Figures of the comparison of gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from experiments.gradients.measures import Quality
from experiments.gradients.methods import Method
from experiments.gradients.outcomes import Outcome, interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curves", "summary", "title"]

COLORS: dict[Method, str] = {
    "exact": "#0072B2", "gauss_newton": "#56B4E9", "unrolled": "#3B4CC0", "published": "#D55E00",
    "unweighted": "#E69F00", "dsac": "#CC79A7", "nabla_ransac": "#F0A0D0", "epro_pnp": "#882255",
    "epro_pnp_full": "#B0608A", "linear_covariance": "#009E73", "reprojection": "#999999", "likelihood": "#000000",
}  # fmt: skip
DASHES: dict[Method, Any] = {
    "gauss_newton": "--", "unrolled": (0, (6, 3)), "unweighted": "--", "nabla_ransac": "--", "epro_pnp_full": "--",
}  # fmt: skip


def title(method: str) -> str:
    return method.replace("_", " ")


def curves(outcomes: Sequence[Outcome], goal: float) -> Figure:
    """Displacement over the oracle's, a panel for each regime: geometric mean of the runs, and two 95 % intervals."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    columns = min(3, len(outcomes))
    rows = -(-len(outcomes) // columns)
    figure = Figure(figsize=(1 + 3.6 * columns, 1.1 + 2.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, outcome in zip(grid, outcomes, strict=False):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#E3E6EA", linewidth=0.8)
        highest = 1.0
        for method in outcome.traces:
            means = [interval([math.log(v) for v in test]) for test in zip(*outcome.excess(method), strict=True)]
            middle = [m.middle if math.isfinite(m.middle) else math.nan for m in means]
            highest = max(highest, middle[0])
            style = {"color": COLORS[method], "linestyle": DASHES.get(method, "-")}
            axes.plot(outcome.tested, middle, linewidth=2.4 if method == "exact" else 1.4, **style)
            if method in ("exact", "likelihood") and len(outcome.oracle) > 1 and not any(map(math.isnan, middle)):
                low, high = [m.low for m in means], [m.high for m in means]
                axes.fill_between(outcome.tested, low, high, color=COLORS[method], alpha=0.12, linewidth=0)
        axes.axhline(1, color="#5F6670", linewidth=0.8, linestyle=":")
        axes.set(yscale="log", title=title(outcome.regime), xlabel="step", ylim=(0.9, 2 * highest))
        axes.yaxis.set_major_locator(FixedLocator([1, 2, 3, 5, 10, 20, 50, 100]))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    for axes in grid[len(outcomes) :]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel("error / oracle's")
    shown = list(dict.fromkeys(method for outcome in outcomes for method in outcome.traces))
    handles = [
        grid[0].plot([], [], color=COLORS[m], linestyle=DASHES.get(m, "-"), label=title(m), linewidth=2)[0]
        for m in shown
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
    return figure


def summary(outcomes: Sequence[Outcome], quality: Mapping[float, Mapping[Method, Quality]], goal: float) -> Figure:
    """Left the shares of keypoint gradients that point the right way, right the errors at the end in all regimes.

    A frame is around those that are level with the lowest of their regime.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    methods = list(dict.fromkeys(method for outcome in outcomes for method in outcome.traces))
    figure = Figure(figsize=(5.4 + 1.15 * len(outcomes), 1.9 + 0.42 * len(methods)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2.6, 0.6 + 1.1 * len(outcomes)))
    rows = range(len(methods))
    _shares(left, methods, quality)
    left.set(xlim=(45, 102), ylim=(len(methods) - 0.5, -0.5), xlabel="% of keypoints")
    left.set_yticks(rows, [title(method) for method in methods])

    top = 8.0
    finals = [[o.final(m).middle if m in o.traces else math.nan for o in outcomes] for m in methods]
    shown = [[min(value, top) for value in row] for row in finals]
    right.imshow(shown, cmap="RdYlGn_r", norm=LogNorm(1, top), aspect="auto")
    for column, outcome in enumerate(outcomes):
        for row, method in enumerate(methods):
            if method not in outcome.traces:
                right.text(column, row, "–", ha="center", va="center", fontsize=9, color="#5F6670")
                continue
            value = finals[row][column]
            steps, count = outcome.reached(method, goal)
            text = f"{value:.2f}" if value < 100 else (f"{value:.0f}" if math.isfinite(value) else "lost")
            color = "k" if 1.2 < value < 6 else "w"
            right.text(column, row - 0.12, text, ha="center", va="center", fontsize=9, color=color)
            right.text(column, row + 0.27, f"{len(steps)}/{count}", ha="center", va="center", fontsize=6.5, color=color)
            if method in outcome.level:
                frame = Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor="k", linewidth=1.6)
                right.add_patch(frame)
    right.set_xticks(range(len(outcomes)), [outcome.regime.replace("_", "\n") for outcome in outcomes], fontsize=9)
    right.set_yticks(rows, [""] * len(methods))
    right.tick_params(length=0)
    right.spines[:].set_visible(False)
    right.set_title("error at the end / oracle's, runs at the goal; framed: level with the lowest", fontsize=9)
    return figure


def _shares(axes: Axes, methods: Sequence[Method], quality: Mapping[float, Mapping[Method, Quality]]) -> None:
    """How many keypoint gradients point the right way, a mark for each noise."""
    marks = ("o", "s", "D", "^", "v")
    for i, (noise, some) in enumerate(quality.items()):
        for row, method in enumerate(methods):
            shares = [100 * share for share in some[method].right_way]
            y = row + 0.2 * (i - (len(quality) - 1) / 2)
            axes.plot([min(shares), max(shares)], [y, y], color=COLORS[method], linewidth=1.2)
            fill = COLORS[method] if i % 2 == 0 else "white"
            axes.plot(median(shares), y, marks[i % 5], color=COLORS[method], markerfacecolor=fill, markersize=5)
        fill = "#5F6670" if i % 2 == 0 else "white"
        axes.plot([], [], marks[i % 5], color="#5F6670", markerfacecolor=fill, label=f"{noise:g} px")
    axes.axvline(50, color="#5F6670", linewidth=0.8, linestyle=":")
    axes.set_title("gradients pointing the right way", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="lower left", title="noise", title_fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#E3E6EA", linewidth=0.8)
