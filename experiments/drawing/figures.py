"""What the experiments show: pure functions from arrays or tensors to a matplotlib Figure or coloured points.

No pyplot: nothing here needs a display or leaves a figure open. matplotlib is imported by the functions that draw, so
that an experiment starts without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any kind of colour vision, and in grey.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#5F6670"

# matplotlib's viridis at even distances: while an experiment goes on, nothing has to import the whole of it.
VIRIDIS = (
    "#440154", "#481E70", "#443982", "#3A528B", "#30678D", "#287B8E", "#20908C", "#20A485", "#35B778", "#5EC961",
    "#90D643", "#C7E01F", "#FDE724",
)  # fmt: skip

# Corner pairs of one frustum of `frusta`: the apex to the image corners, then around the image.
FRUSTUM_EDGES = ((0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1))


def array(values: Any) -> np.ndarray:
    """A tensor on any device, with or without a graph, or anything array-like, as a float64 array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=float)


def centres(world_to_camera: np.ndarray) -> np.ndarray:
    """Where cameras (V,4,4) are, (V,3)."""
    return -np.einsum("vji,vj->vi", world_to_camera[:, :3, :3], world_to_camera[:, :3, 3])


def frusta(world_to_camera: Any, points: Any, K: Any = None) -> np.ndarray:
    """Apex and image corners of each camera in the world, (V,5,3), a tenth as deep as the points are far.

    The image is taken to end at twice the principal point; without `K` it is 4:3 with 62 degrees across.
    """
    cameras, points = array(world_to_camera).reshape(-1, 4, 4), array(points)
    apexes = centres(cameras)
    points = points[np.isfinite(points).all(1)]
    scene = np.median(points if len(points) else apexes, axis=0)
    depth = 0.1 * float(np.median(np.linalg.norm(apexes - scene, axis=-1)))
    if K is None:
        half = np.broadcast_to([0.6, 0.45], (len(cameras), 2))
    else:
        K = np.broadcast_to(array(K), (len(cameras), 3, 3))
        half = np.stack([K[:, 0, 2] / K[:, 0, 0], K[:, 1, 2] / K[:, 1, 1]], axis=-1)
        half = np.where((half > 0).all(1, keepdims=True), half, [0.6, 0.45])  # a K of centred coordinates tells no size
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    corners = np.concatenate([half[:, None] * signs, np.ones((len(cameras), 4, 1))], axis=-1) * depth
    corners = np.einsum("vji,vkj->vki", cameras[:, :3, :3], corners) + apexes[:, None]
    return np.concatenate([apexes[:, None], corners], axis=1)


def loss_curve(losses: Any, threshold: float | None = None) -> Figure:
    """Loss over iterations on a log axis; `threshold` is the one that the run is to fall below, if any."""
    from matplotlib.ticker import MaxNLocator

    losses = array(losses)
    figure, axes = _axes(6.4, 3.6)
    shown = np.where(np.isfinite(losses) & (losses > 0), losses, np.nan)  # all that a log axis can show
    axes.plot(shown, color=BLUE, linewidth=1.8)
    axes.set_yscale("log")
    if threshold is not None:
        axes.axhline(threshold, color=ORANGE, linewidth=1.4, linestyle="--")
        axes.annotate(
            f"goal: below {threshold:.3g}", (0, threshold), xycoords=("axes fraction", "data"),
            xytext=(6, 4), textcoords="offset points", color=ORANGE, fontsize=9,
        )  # fmt: skip
    seen = np.flatnonzero(np.isfinite(shown))
    if len(seen):
        last = seen[-1]
        axes.plot(last, shown[last], "o", color=BLUE, markersize=5)
        axes.set_title(f"loss, last {losses[-1]:.3g}")
    axes.set(xlabel="iteration", ylabel="loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def keypoint_tracks(tracks: Any, target: Any, title: str) -> Figure:
    """Paths of N image points over T iterations, `tracks` (T,N,2) px, towards `target` (N,2) px."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize

    tracks, target = array(tracks), array(target)
    figure, axes = _axes(6.4, 5.2)
    steps = np.broadcast_to(np.arange(len(tracks) - 1)[:, None], (len(tracks) - 1, tracks.shape[1]))
    segments = np.stack([tracks[:-1], tracks[1:]], axis=2).reshape(-1, 2, 2)
    paths = LineCollection(
        list(segments), cmap="viridis", norm=Normalize(0, max(len(tracks) - 1, 1)), linewidths=1.3, alpha=0.9
    )
    paths.set_array(steps.ravel())
    axes.add_collection(paths)
    axes.plot(*target.T, "+", color=ORANGE, markersize=13, markeredgewidth=2, label="target")
    axes.plot(*tracks[0].T, "o", color=GREY, markersize=6, markerfacecolor="white", label="start")
    axes.plot(*tracks[-1].T, "o", color=BLUE, markersize=5, label="final")
    axes.set(xlabel="u (px)", ylabel="v (px)", title=title)
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.06)
    axes.invert_yaxis()  # image rows count downwards
    _legend(axes)
    figure.colorbar(paths, ax=axes, label="iteration", shrink=0.8, pad=0.02)
    return figure


def weighted_fit(observed: Any, weights: Any, fitted: Any, title: str, unit: str) -> Figure:
    """Observations (N,2), the paler the less they weigh, each with a line to where a solution puts it (N,2).

    weights (N,); unit "px" means an image, whose rows count downwards.
    """
    observed, weights, fitted = array(observed), array(weights), array(fitted)
    figure, axes = _axes(6.4, 5.2)
    axes.plot(*np.stack([observed, fitted], 1).transpose(2, 1, 0), color=GREY, linewidth=0.8, alpha=0.5)
    shades = (weights / weights.max()).clip(0.06, 1)
    axes.scatter(observed[:, 0], observed[:, 1], s=34, color=ORANGE, alpha=shades)
    axes.plot([], [], "o", color=ORANGE, label="observed, pale where it hardly counts")
    axes.plot(*fitted.T, "+", color=BLUE, markersize=9, label="solution")
    of = f" ({unit})" if unit else ""
    axes.set(xlabel=f"x{of}", ylabel=f"y{of}", title=title)
    axes.set_aspect("equal", adjustable="datalim")
    if unit == "px":
        axes.invert_yaxis()
    _legend(axes)
    return figure


def trajectories(values: Any, names: Sequence[str], truth: Any = None) -> Figure:
    """Each column of `values` (T,k) over iterations on an axis of its own, dashed where it should end."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    values = array(values)
    columns = 1 if len(names) == 1 else 2
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.6 * columns, 0.5 + 2.0 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for axes, name, column in zip(grid, names, values.T, strict=False):
        _tidy(axes)
        axes.plot(column, color=BLUE, linewidth=1.8, label="estimate")
        axes.set_title(f"{name}: {column[-1]:.6g}", fontsize=10, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.ticklabel_format(axis="y", useOffset=False)
    if truth is not None:
        for axes, name, value, column in zip(grid, names, array(truth), values.T, strict=False):
            axes.axhline(value, color=ORANGE, linewidth=1.4, linestyle="--", label="truth")
            axes.set_title(f"{name}: {column[-1]:.6g} (truth {value:.6g})", fontsize=10, loc="left")
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    for axes in grid[max(len(names) - columns, 0) : len(names)]:
        axes.set_xlabel("iteration")
        axes.tick_params(labelbottom=True)
    if truth is not None:
        entries = grid[0].get_legend_handles_labels()
        figure.legend(*entries, loc="outside lower center", ncols=2, frameon=False)
    return figure


def value_colors(values: Any) -> np.ndarray:
    """Colours (N,3) uint8 of values (N,), from their 1st percentile (dark blue) to their 99th (yellow); nan is dark."""
    values = array(values)
    low, high = np.nanpercentile(values, [1, 99])
    share = np.nan_to_num((values - low) / (high - low or 1.0), nan=0.0)
    stops = np.stack([rgb(color) for color in VIRIDIS])
    at = np.linspace(0, 1, len(stops))
    return np.rint(np.stack([np.interp(share, at, channel) for channel in stops.T], -1)).astype(np.uint8)


def rgb(color: str) -> np.ndarray:
    """#RRGGBB as (3,) uint8."""
    return np.frombuffer(bytes.fromhex(color[1:]), np.uint8)


def widest(points: np.ndarray) -> int:
    """The axis along which points (N,3) spread most, but for the 2 % at its ends; colours by it tell most."""
    low, high = np.nanpercentile(points, [1, 99], axis=0)
    return int((high - low).argmax())


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, _tidy(figure.add_subplot())


def _tidy(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E3E6EA", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def _legend(axes: Axes) -> None:
    """Put the legend below the axes, where it covers no point."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=4, frameon=False)
