"""What the experiments show: pure functions from arrays or tensors to a matplotlib Figure or coloured points.

No pyplot: nothing here needs a display or leaves a figure open.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.art3d import Line3DCollection

from datasets.reconstruction import Reconstruction

# Okabe and Ito's palette: told apart with any kind of colour vision, and in grey.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#5F6670"

# Corner pairs of one frustum of `frusta`: the apex to the image corners, then around the image.
FRUSTUM_EDGES = ((0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1))


def array(values: Any) -> np.ndarray:
    """A tensor on any device, with or without a graph, or anything array-like, as a float64 array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=float)


def frusta(world_to_camera: Any, points: Any, K: Any = None) -> np.ndarray:
    """Apex and image corners of each camera in the world, (V,5,3), a tenth as deep as the points are far.

    The image is taken to end at twice the principal point; without `K` it is 4:3 with 62 degrees across.
    """
    cameras, points = array(world_to_camera).reshape(-1, 4, 4), array(points)
    R, t = cameras[:, :3, :3], cameras[:, :3, 3]
    centres = -np.einsum("vji,vj->vi", R, t)
    points = points[np.isfinite(points).all(1)]
    scene = np.median(points if len(points) else centres, axis=0)
    depth = 0.1 * float(np.median(np.linalg.norm(centres - scene, axis=-1)))
    if K is None:
        half = np.broadcast_to([0.6, 0.45], (len(cameras), 2))
    else:
        K = np.broadcast_to(array(K), (len(cameras), 3, 3))
        half = np.stack([K[:, 0, 2] / K[:, 0, 0], K[:, 1, 2] / K[:, 1, 1]], axis=-1)
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    corners = np.concatenate([half[:, None] * signs, np.ones((len(cameras), 4, 1))], axis=-1) * depth
    corners = np.einsum("vji,vkj->vki", R, corners) + centres[:, None]
    return np.concatenate([centres[:, None], corners], axis=1)


def colored_points(
    points: Any, colors: Any = None, cameras: Any = None, K: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Points (N,3) and their colors (N,3) uint8, blue by default; behind them `cameras` as dotted frusta."""
    points = array(points)
    if colors is None:
        colors = np.full((len(points), 3), _rgb(BLUE), np.uint8)
    colors = np.asarray(colors.detach().cpu() if hasattr(colors, "detach") else colors)
    if colors.dtype != np.uint8 or colors.shape != points.shape:
        raise ValueError(f"colors must be {points.shape} uint8, not {colors.shape} {colors.dtype}")
    if cameras is None:
        return points, colors
    ends = frusta(cameras, points, K)[:, FRUSTUM_EDGES]
    along = np.linspace(0, 1, 16)[:, None]
    dots = (ends[:, :, None, 0] * (1 - along) + ends[:, :, None, 1] * along).reshape(-1, 3)
    orange = np.full((len(dots), 3), _rgb(ORANGE), np.uint8)
    return np.concatenate([points, dots]), np.concatenate([colors, orange])


def loss_curve(losses: Any, threshold: float | None = None) -> Figure:
    """Loss over iterations on a log axis; `threshold` is the loss below which the run counts as converged."""
    losses = array(losses)
    figure, axes = _axes(6.4, 3.6)
    shown = np.where(np.isfinite(losses) & (losses > 0), losses, np.nan)  # all that a log axis can show
    axes.plot(shown, color=BLUE, linewidth=1.8)
    axes.set_yscale("log")
    if threshold is not None:
        axes.axhline(threshold, color=ORANGE, linewidth=1.4, linestyle="--")
        axes.annotate(
            f"converged below {threshold:.3g}", (0, threshold), xycoords=("axes fraction", "data"),
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


def trajectories(values: Any, names: Sequence[str], truth: Any = None) -> Figure:
    """Each column of `values` (T,k) over iterations on an axis of its own, dashed where it should end."""
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
    """Colours (N,3) uint8 of values (N,), from their 1st percentile (dark blue) to their 99th (yellow)."""
    values = array(values)
    low, high = np.nanpercentile(values, [1, 99])
    scale = Normalize(low, high, clip=True)
    return colormaps["viridis"](scale(values), bytes=True)[:, :3]


def point_clouds(clouds: Sequence[Any], titles: Sequence[str], values: Sequence[Any]) -> Figure:
    """Clouds (N,3) side by side, z up, equal axes, each point in the colour of its value (N,).

    A panel shows the middle 98 % along each axis: one stray point must not shrink all others to a dot.
    """
    count = len(clouds)
    figure = Figure(figsize=(3.0 * count, 3.2), layout="constrained")
    scale = Normalize(*np.nanpercentile(np.concatenate([array(v) for v in values]), [1, 99]))
    for i, (cloud, title, value) in enumerate(zip(clouds, titles, values, strict=True)):
        points, value = array(cloud), array(value)
        axes: Any = figure.add_subplot(1, count, i + 1, projection="3d")
        low, high = np.nanpercentile(points, [1, 99], axis=0)
        middle, half = (low + high) / 2, 0.55 * float((high - low).max()) or 1.0
        seen = (np.abs(points - middle) <= half).all(1)
        points, value = points[seen], value[seen]
        axes.scatter(*points.T, c=value, cmap="viridis", norm=scale, s=60 / len(points) ** 0.4, linewidths=0)
        axes.set(**{f"{axis}lim": (m - half, m + half) for axis, m in zip("xyz", middle, strict=True)})
        axes.set_box_aspect((1, 1, 1), zoom=1.25)
        axes.set_title(title, fontsize=10)
        axes.view_init(elev=18, azim=-70)
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            axis.set_ticklabels([])
            axis.pane.set_facecolor("white")
            axis._axinfo["grid"].update(color="#E3E6EA", linewidth=0.7)
    return figure


def scene_figure(model: Reconstruction) -> Figure:
    """Cloud with cameras, and the cloud close by; up is across the plane that fits the cameras best. 98 % of points."""
    corners, X = frusta(model.world_to_camera, model.points3d, model.K[model.intrinsics_index]), array(model.points3d)
    low, high = np.percentile(X, [1, 99], axis=0)
    kept = (X.clip(low, high) == X).all(1)
    _, _, axes3 = np.linalg.svd(corners[:, 0] - corners[:, 0].mean(0))
    up = np.sign(-array(model.world_to_camera)[:, 1, :3].mean(0) @ axes3[2]) * axes3[2]
    turn = np.stack([axes3[0], np.cross(up, axes3[0]), up])
    corners, cloud = corners @ turn.T, X[kept] @ turn.T
    colors = np.full((len(cloud), 3), 0.3) if model.colors is None else array(model.colors)[kept] / 255
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    for i, shown in enumerate((np.concatenate([cloud, corners.reshape(-1, 3)]), cloud)):
        axes: Any = figure.add_subplot(1, 2, i + 1, projection="3d", computed_zorder=False)
        axes.scatter(*cloud.T, c=colors, s=(1.0, 4.0)[i], linewidths=0)
        if i == 0:
            lines = corners[:, FRUSTUM_EDGES].reshape(-1, 2, 3)
            axes.add_collection3d(Line3DCollection(lines, colors=ORANGE, linewidths=0.8))
        middle, half = (shown.max(0) + shown.min(0)) / 2, np.ptp(shown, axis=0).max() / 2
        axes.set(**{f"{name}lim": (m - half, m + half) for name, m in zip("xyz", middle, strict=True)})
        axes.set_box_aspect((1, 1, 1), zoom=1.4)
        axes.view_init(elev=(35, 8)[i], azim=-60)
        axes.set_title((f"{len(X)} points, {len(corners)} cameras", "the points")[i], fontsize=10)
        axes.set_axis_off()
    return figure


def _rgb(color: str) -> list[int]:
    return [round(255 * channel) for channel in to_rgb(color)]


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
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
