"""What the toys of sample consensus show: learning curves of several methods, and images with what was fitted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.drawing.figures import BLUE, GREY, ORANGE, array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = (BLUE, ORANGE, "#009E73", "#CC79A7", GREY)  # Okabe and Ito's


@dataclass(frozen=True)
class Shown:
    """One panel of `panels`: an image (3,S,S) and what lies on it, in units of its side, x right, y down.

    points (N,2) and how much each agrees (N,); outlines (k,M,2) of hypotheses and how likely each is to be taken (k,);
    estimate (M,2) and truth (M,2); whether the estimate counts as correct.
    """

    image: Any
    estimate: Any
    truth: Any
    correct: bool
    title: str = ""
    points: Any = None
    agreement: Any = None
    hypotheses: Any = None
    likely: Any = None


def outline(shape: Any, is_circle: bool) -> np.ndarray:
    """Points (M,2) along a circle (c_x, c_y, r), or along a line (n_x, n_y, d) across the image and beyond it."""
    a, b, c = array(shape)
    if is_circle:
        angle = np.linspace(0, 2 * np.pi, 73)
        return np.stack([a + c * np.cos(angle), b + c * np.sin(angle)], -1)
    foot = np.array([0.5, 0.5]) + (c - (a + b) / 2) * np.array([a, b])
    return foot + np.array([[-1.0], [1.0]]) * np.array([-b, a])


def panels(rows: Mapping[str, Sequence[Shown]]) -> Figure:
    """One row of images for each name, all with the same number: what each method makes of the same images."""
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    across = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.9 * across, 2.05 * len(rows) + 0.4), layout="constrained")
    grid = figure.subplots(len(rows), across, squeeze=False)
    for (name, row), line in zip(rows.items(), grid, strict=True):
        for shown, axes in zip(row, line, strict=True):
            axes.imshow(array(shown.image).transpose(1, 2, 0), extent=(0, 1, 1, 0), interpolation="nearest", alpha=0.75)
            if shown.hypotheses is not None:
                opacity = 0.9 * np.sqrt(array(shown.likely) / array(shown.likely).max())
                axes.add_collection(LineCollection(list(array(shown.hypotheses)), colors="white", alpha=list(opacity)))
            axes.plot(*array(shown.truth).T, color="black", linewidth=2.2)
            axes.plot(*array(shown.truth).T, color="#F0E442", linewidth=1.2, label="truth")
            axes.plot(*array(shown.estimate).T, color=BLUE, linewidth=1.6, linestyle="--", label="estimate")
            if shown.points is not None:
                near = array(shown.agreement) > 0.5
                points = array(shown.points)
                axes.plot(*points[~near].T, "o", color="black", markersize=2.2, label="predicted points")
                axes.plot(*points[near].T, "o", color=ORANGE, markersize=4, markeredgecolor="black", label="that agree")
            axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])
            axes.set_title(shown.title, fontsize=8, pad=3)
            for side in axes.spines.values():
                side.set(color="#009E73" if shown.correct else "#CC3311", linewidth=2.5)
        line[0].set_ylabel(name)
    labels: dict[str, Any] = {}
    for axes in grid.ravel():
        labels |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def by_method(
    metrics: Mapping[str, Any], methods: Iterable[str], titles: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """What `curves` draws: for each title the columns METHOD_key of metrics.csv, titles (title -> key)."""
    return {title: {method: metrics[f"{method}_{key}"] for method in methods} for title, key in titles.items()}


def curves(columns: Mapping[str, Mapping[str, Any]], window: int) -> Figure:
    """For each title of `columns`, an axis with one curve per name: means over the last `window` iterations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(columns), 3.6), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns.items(), strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#E3E6EA", linewidth=0.8)
        for (name, values), color in zip(lines.items(), COLORS, strict=False):
            total = np.cumsum(np.concatenate([[0.0], array(values)]))
            last = np.arange(1, len(total))
            first = np.maximum(last - window, 0)
            mean = (total[last] - total[first]) / (last - first)
            axes.plot(last - 1, mean, color=color, linewidth=1.6, label=f"{name}: {mean[-1]:.3g}")
        axes.set(xlabel="iteration", title=title)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8)
    return figure
