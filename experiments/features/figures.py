"""What there is to see of refined keypoints: patches, and how far observations are off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from experiments.drawing.figures import BLUE, GREY, ORANGE, array
from experiments.features.patches import SIDE, Aligned, others_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["error_curves", "patch_sheet"]

_COLORS = (GREY, "#8A6BB8", ORANGE, BLUE, "#3B8F5A")


def error_curves(residual_px: Mapping[str, Tensor]) -> Figure:
    """For each name the share of observations that are off by less than so many px."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for (name, values), color in zip(residual_px.items(), _COLORS, strict=False):
        off = np.sort(array(values))
        axes.plot(off, np.arange(1, len(off) + 1) / len(off), color=color, label=name, linewidth=1.8)
    axes.set(xscale="log", xlim=(0.005, 2), ylim=(0, 1), xlabel="off by less than (px, under the true cameras)")
    axes.set_ylabel("share of observations")
    axes.grid(color="#E3E6EA", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def patch_sheet(aligned: Aligned, point: Tensor, offset: Tensor, weights: Tensor, columns: int = 10) -> Figure:
    """Observations, evenly spread from the least to the most weight: patch, mean of the track's others, and, ten times
    as long as it is, how the network moves it (M,2)."""
    from matplotlib.figure import Figure

    chosen = weights.argsort()[:: max(1, len(weights) // columns)][:columns].tolist()
    other = others_mean(aligned.patches.flatten(1), point).view(-1, SIDE, SIDE)
    figure = Figure(figsize=(1.2 * len(chosen), 3.0), layout="constrained")
    grid = figure.subplots(2, len(chosen), squeeze=False)
    middle = (SIDE - 1) / 2
    for column, i in enumerate(chosen):
        for axes, patch in zip(grid[:, column], (aligned.patches[i], other[i]), strict=True):
            axes.imshow(array(patch), cmap="gray", vmin=-2.5, vmax=2.5)
            axes.set(xticks=[], yticks=[])
        arrow = dict(angles="xy", scale_units="xy", scale=0.1, color=ORANGE, width=0.02)
        grid[0, column].quiver(middle, middle, *array(offset[i]), **arrow)
        grid[0, column].set_title(f"weight {weights[i]:.1f}", fontsize=8)
    grid[0, 0].set_ylabel("patch", fontsize=8)
    grid[1, 0].set_ylabel("others", fontsize=8)
    return figure
