"""How often searches succeed, by the odds that they draw by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from experiments.drawing.shapes import COLORS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES = dict(zip(("sampling", "weights", "classify", "ratio", "uniform", "labels"), (*COLORS, "black"), strict=True))
"""Colours of the odds."""


def over(
    along: Literal["share", "budget"], panels: Mapping[str, list[dict[str, Any]]], success: tuple[float, float]
) -> Figure:
    """Success of all odds, one panel for each title: sharp ones drawn through, as they came dotted, others dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 + 3.2 * len(panels), 4.6), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, rows) in zip(grid, panels.items(), strict=True):
        odds = dict.fromkeys(row["odds"] for row in rows)
        for name in odds:
            mine = [row for row in rows if row["odds"] == name]
            sharp, color = name.endswith("_sharp"), LINES[name.removesuffix("_sharp")]
            axes.plot(
                [row[along] for row in mine], [row["success"] for row in mine], color=color,
                linestyle="-" if sharp else ":" if f"{name}_sharp" in odds else "--", linewidth=2.0 if sharp else 1.3,
                marker="o", markersize=3.5 if sharp else 2.0, label=name.replace("_", ", "),
            )  # fmt: skip
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#E3E6EA", linewidth=0.8)
        axes.set(title=title, ylim=(-0.02, 1.02))
        if along == "share":
            axes.set(xlabel="share of wrong matches")
        else:
            axes.set_xscale("log", base=2)
            ticks = sorted({row["budget"] for row in rows})
            axes.set_xticks(ticks, map(str, ticks))
            axes.set(xlabel="hypotheses")
    grid[0].set_ylabel(f"success ({success[0]:g}°, {success[1]:.0%})")
    labels = grid[0].get_legend_handles_labels()
    figure.legend(
        *labels, loc="outside lower center", ncols=5 if len(panels) > 1 else 4, frameon=False,
        title="dotted: odds as they are; through: sharpened; dashed: no odds, and right matches alone",
    )  # fmt: skip
    return figure
