"""What tells a person whether to trust a calibration: residuals, and which parts of the image the marks cover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.drawing.figures import BLUE, ORANGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ACROSS = 8
"""Cells across the image that are counted."""


def residuals_and_coverage(
    names: Sequence[str], sizes: Sequence[tuple[int, int]], pixels: Sequence[np.ndarray], errors: Sequence[np.ndarray]
) -> Figure:
    """A row for each camera: an arrow a mark (n,2), from pixels along its enlarged error (n,2); and marks a cell."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.7 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 2, squeeze=False)
    rows = zip(axes, names, sizes, pixels, errors, strict=True)
    for (left, right), name, (width, height), at, error in rows:
        length = np.linalg.norm(error, axis=1)
        typical = float(np.sqrt(np.mean(length**2))) if len(length) else 1.0
        factor = 0.03 * width / max(typical, 1e-12)
        far = length > 3 * typical
        for which, color in ((~far, BLUE), (far, ORANGE)):
            left.quiver(
                *at[which].T, *error[which].T, color=color, angles="xy", scale_units="xy", scale=1 / factor, width=2e-3
            )
        left.set_title(f"{name}: residuals, {factor:.0f} times, rms {typical:.3f} px", fontsize=10)
        down = max(1, round(_ACROSS * height / width))
        counts = np.histogram2d(at[:, 1], at[:, 0], (down, _ACROSS), ((-0.5, height - 0.5), (-0.5, width - 0.5)))[0]
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        image = right.imshow(counts, extent=extent, cmap="Greys", vmin=0)
        for (i, j), count in np.ndenumerate(counts):
            if count == 0:
                place = (j + 0.5) * width / _ACROSS - 0.5, (i + 0.5) * height / down - 0.5
                right.annotate("none", place, color=ORANGE, fontsize=8, ha="center", va="center")
        figure.colorbar(image, ax=right, label="marks", shrink=0.8)
        empty = int((counts == 0).sum())
        right.set_title(f"{name}: coverage, {empty} of {counts.size} cells without marks", fontsize=10)
        for each in (left, right):
            each.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect="equal")
    return figure
