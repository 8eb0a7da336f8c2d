"""A frame as a matplotlib figure: PNG, PDF or SVG on any machine.

Open3D renders only where there is a screen with OpenGL, or a Vulkan driver, and ends the process where there is
neither. Points and lines in perspective are a few lines of numpy, and are the same picture everywhere. pyplot is left
out: it would look for a display.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.drawing.figures import BLUE, GREY, ORANGE
from experiments.records.recording import Recording
from experiments.viewers.scene import Scene, caption, scene

__all__ = ["View", "evolution", "picture", "view"]

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, LINE = "#1B1F24", "#E3E6EA"
DISTANCE = 3.5  # of the viewer, in radii of what is framed
MANY = 5_000  # points that a PDF or SVG holds as pixels: one by one they make it slow


def picture(recording: Recording, index: int = -1, framed: Scene | None = None) -> Figure:
    """Frame number `index`, seen from above at an angle; 8 by 6 inches.

    framed: the scene that fills the picture, so that many frames are seen from one place; left out, the frame's own.

    Raises ValueError where there is no such frame, or it has neither points nor cameras.
    """
    from matplotlib.figure import Figure

    try:
        seen = scene(recording, index)
    except IndexError:
        raise ValueError(f"{recording.title} has no frame {index}: {len(recording.frames)} are recorded") from None
    if seen.is_empty:
        raise ValueError(f"{recording.title} has neither points nor cameras to draw")
    figure = Figure(figsize=(8, 6))
    axes = figure.add_axes((0, 0, 1, 0.89))
    axes.set_axis_off()
    figure.text(0.025, 0.965, recording.title, color=INK, fontsize=13, weight="bold", va="center", parse_math=False)
    figure.text(0.025, 0.92, caption(recording, index), color=GREY, fontsize=10, va="center")
    framed = framed or seen
    _draw(axes, seen, view(framed, recording.up), framed)
    return figure


def evolution(recording: Recording, count: int = 5) -> Figure:
    """`count` of the frames side by side, from the first to the last: points and edges, seen from one direction."""
    from matplotlib.figure import Figure

    last = len(recording.frames) - 1
    indices = [round(i * last / (count - 1)) for i in range(count)]
    empty = np.zeros((0, 2, 3))
    panels = [
        scene(recording, i)._replace(cameras=empty, cameras_gt=empty, residuals=empty, truth=empty[:, 0])
        for i in indices
    ]
    direction = view(panels[-1], recording.up)
    figure = Figure(figsize=(3.0 * count, 3.0))
    for i, (index, seen) in enumerate(zip(indices, panels, strict=True)):
        axes = figure.add_axes((i / count, 0, 1 / count, 0.88))
        axes.set_axis_off()
        axes.set_title(f"iteration {recording.frames[index].step}", fontsize=11, color=INK)
        _draw(axes, seen, direction.around(_framed(seen)), seen, legend=False)
    return figure


class View(NamedTuple):
    """Where the scene is seen from: what is framed lies within `radius` of `middle` (3,).

    R (3,3): its rows point right, up and towards the viewer. floor (3,3): its rows span the level plane, and point up.
    low, high (3,): the box that is framed, in the floor's axes.
    """

    R: np.ndarray
    floor: np.ndarray
    low: np.ndarray
    high: np.ndarray
    middle: np.ndarray
    radius: float

    def around(self, framed: np.ndarray) -> View:
        """From the same direction, at other points (N,3)."""
        low, high = (framed @ self.floor.T).min(0), (framed @ self.floor.T).max(0)
        middle = (low + high) / 2 @ self.floor
        radius = float(np.linalg.norm(framed - middle, axis=1).max()) or 1.0
        return View(self.R, self.floor, low, high, middle, radius)

    def __call__(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where points (…,3) are in the picture (…,2), nan behind the viewer, and how near they are (…,)."""
        turned = (points - self.middle) @ self.R.T
        near, distance = turned[..., 2], DISTANCE * self.radius
        scale = np.where(near < 0.8 * distance, distance / np.abs(distance - near), np.nan)
        return turned[..., :2] * scale[..., None], near


def view(seen: Scene, up: np.ndarray, elevation: float = 25.0, azimuth: float = 30.0) -> View:
    """From `azimuth` degrees off the broadside of what there is, and `elevation` degrees above it."""
    framed = _framed(seen)
    level = framed - framed.mean(0)
    level -= np.outer(level @ up, up)
    candidates = np.concatenate([np.linalg.svd(level, full_matrices=False)[2], np.eye(3)])
    along = next(d for d in candidates if abs(d @ up) < 0.6)  # the first, but where all is in one place
    along = along - (along @ up) * up
    along /= np.linalg.norm(along) * np.sign(along[np.abs(along).argmax()])
    across = np.cross(up, along)
    e, a = np.radians([elevation, azimuth])
    towards = np.cos(e) * (np.sin(a) * along - np.cos(a) * across) + np.sin(e) * up
    right = np.cross(up, towards) / np.cos(e)
    floor = np.stack([along, across, up])
    R = np.stack([right, np.cross(towards, right), towards])
    return View(R, floor, up, up, up, 1.0).around(framed)


def _framed(seen: Scene) -> np.ndarray:
    """What has to be in the picture (N,3): all but stray points."""
    return np.concatenate([_inner(seen.points), _inner(seen.truth), *seen.cameras, *seen.cameras_gt])


def _inner(points: np.ndarray) -> np.ndarray:
    """Those in the box of the middle 90 %, widened by an eighth on each side: all, unless there are outliers."""
    if len(points) == 0:
        return points
    low, high = np.percentile(points, [5, 95], axis=0)
    margin = (high - low) / 8
    inside = ((points >= low - margin) & (points <= high + margin)).all(1)
    return points[inside] if len(points) >= 40 and inside.any() else points


def _draw(axes: Axes, seen: Scene, view: View, framed: Scene, legend: bool = True) -> None:
    from matplotlib.collections import LineCollection

    squares, width = _squares(view)
    axes.add_collection(LineCollection(list(view(squares)[0]), colors=LINE, linewidths=0.7, zorder=0))
    places, near = view(seen.points)
    middle = float(np.median(near)) if len(near) else 0.0
    for segments, color, linewidth, alpha in (
        (seen.residuals, ORANGE, 0.6, 0.35),
        (seen.edges, INK, 1.0, 1.0),
        (seen.cameras_gt, ORANGE, 0.9, 0.8),
        (seen.cameras, BLUE, 0.9, 1.0),
    ):
        ends, nearness = view(segments)
        front = nearness.mean(-1) > middle
        for side, zorder in ((~front, 1), (front, 4)):  # behind the cloud, and before it
            drawn = LineCollection(list(ends[side]), colors=color, linewidths=linewidth, alpha=alpha, zorder=zorder)
            axes.add_collection(drawn)
    order = np.argsort(near)
    size = 110 / max(len(places), len(seen.truth), 1) ** 0.45
    dots: dict[str, Any] = {"s": size, "linewidths": 0, "rasterized": len(places) > MANY}
    (u, v), (u_gt, v_gt) = places[order].T, view(seen.truth)[0].T
    axes.scatter(u_gt, v_gt, c=ORANGE, alpha=0.5, zorder=2, **dots)
    axes.scatter(u, v, c=seen.colors[order] / 255, zorder=3, **dots)

    box = axes.get_window_extent()
    middle2d, half = _fit(view(_framed(framed))[0], box.width / box.height)
    axes.set(xlim=middle2d[0] + half[0] * np.array([-1, 1]), ylim=middle2d[1] + half[1] * np.array([-1, 1]))
    if not legend:
        return
    style: dict[str, Any] = {"fontsize": 9, "transform": axes.transAxes, "va": "bottom", "zorder": 5}
    style["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2}
    unit = "scene unit" if width == 1 else "scene units"
    axes.text(0.975, 0.03, f"one square = {width:g} {unit}", color=GREY, ha="right", **style)
    if len(seen.truth) or len(seen.cameras_gt):
        axes.text(0.025, 0.03, "orange: the truth, where it differs", color=ORANGE, ha="left", **style)
    if len(seen.cameras):
        axes.text(0.025, 0.07, "blue: the cameras found", color=BLUE, ha="left", **style)


def _squares(view: View) -> tuple[np.ndarray, float]:
    """Lines (S,2,3) of a grid below everything, and its width: 1, 2 or 5 times a power of ten, at most ten across."""
    size = float((view.high - view.low)[:2].max()) or 1.0
    power = 10.0 ** np.floor(np.log10(size / 10))
    width = next(step * power for step in (1, 2, 5, 10) if step * power * 10 >= size * (1 - 1e-9))
    first, last = np.floor(view.low[:2] / width) - 1, np.ceil(view.high[:2] / width) + 1
    lines = []
    for axis in (0, 1):
        for place in np.arange(first[axis], last[axis] + 1):
            ends = np.full((2, 3), view.low[2])
            ends[:, axis], ends[:, 1 - axis] = place * width, (first[1 - axis] * width, last[1 - axis] * width)
            lines.append(ends)
    return np.array(lines) @ view.floor, width


def _fit(places: np.ndarray, aspect: float) -> tuple[np.ndarray, np.ndarray]:
    """Middle (2,) and half size (2,) of the box of that aspect (width over height) around places (N,2)."""
    places = places[np.isfinite(places).all(1)]
    low, high = places.min(0), places.max(0)
    half = 0.55 * (high - low)
    height = float(max(half[1], half[0] / aspect)) or 1.0
    return (low + high) / 2, np.array([height * aspect, height])
