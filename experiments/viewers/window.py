"""A run, or a file of points, in a window of Open3D; the only module that imports it.

This is Open3D's older viewer: it needs OpenGL and no more, where the newer one also wants Vulkan.
"""

import ctypes
import os
import re
import subprocess
import sys
import time
from typing import Any

import numpy as np

from experiments.drawing.figures import BLUE, ORANGE, rgb
from experiments.records.recording import Recording
from experiments.viewers.picture import INK, View, view
from experiments.viewers.scene import caption, scene
from experiments.viewers.source import CannotViewError, Source

__all__ = ["has_screen", "show"]

SIZE = (1200, 800)
SECONDS_A_FRAME = 0.1  # while playing
KEYS = {"space": 32, "right": 262, "left": 263, "home": 268, "end": 269}  # as GLFW numbers them
PALE = "#EBB08C"  # orange, half transparent on white: this viewer blends nothing
FARTHEST = 10.0  # what is so many times farther from the middle than what is framed only costs precision of depth


def has_screen() -> bool:
    return sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def show(source: Source, watch: bool) -> None:
    """Show until the window is closed. Raises CannotViewError where `source` cannot be read, or no window opens."""
    recording = source.read()
    _require_opengl()
    window = _Window(source, recording, watch)
    window.open()
    steps = "left, right, home, end: step; space: play; " if watch or len(recording.frames) > 1 else ""
    print(f"{recording.title}: {steps}q: close", flush=True)
    window.run()


def _require_opengl() -> None:
    """Raise CannotViewError where Open3D cannot open a window: without OpenGL it may end the process it runs in."""
    if os.environ.get("DISPLAY"):
        os.environ["XDG_SESSION_TYPE"] = "x11"  # its OpenGL cannot be had from Wayland, but from X beside it
    command = [sys.executable, "-c", "from experiments.viewers.window import _try; _try()"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = re.sub(r"\x1b\[[\d;]*m|\[Open3D \w+\] ", "", done.stderr + done.stdout).strip()
        why = f" ({said.splitlines()[-1]})" if said else ""
        raise CannotViewError(f"Open3D could not open a window here{why}: use --serve or --save")


def _try() -> None:
    """Exit with 0 if a window opens. To a display that does not answer Open3D says nothing, and draws for nobody."""
    if sys.platform == "linux" and not (
        _connects("libX11.so.6", "XOpenDisplay") or _connects("libwayland-client.so.0", "wl_display_connect")
    ):
        sys.exit("the display does not answer")
    import open3d as o3d

    sys.exit(not o3d.visualization.Visualizer().create_window("", 64, 64, visible=False))


def _connects(library: str, function: str) -> bool:
    try:
        connect = ctypes.CDLL(library)[function]
    except OSError:
        return False
    connect.restype = ctypes.c_void_p
    return connect(None) is not None


class _Window:
    def __init__(self, source: Source, recording: Recording, watch: bool) -> None:
        import open3d as o3d

        self._o3d: Any = o3d
        o3d.utility.set_verbosity_level(o3d.utility.VerbosityLevel.Error)
        self._source, self._recording, self._watch = source, recording, watch
        self._version = source.version() if watch else ""
        self._index, self._playing = len(recording.frames) - 1, False
        self._view: View | None = None
        self._shapes: list[Any] = []
        self._fineness = 1.0

    def open(self) -> None:
        self._window = self._o3d.visualization.VisualizerWithKeyCallback()
        if not self._window.create_window(self._title(), *SIZE):
            raise CannotViewError("Open3D could not open a window here: use --serve or --save")
        self._fineness = self._size()[0] / SIZE[0]
        for name, key in KEYS.items():
            self._window.register_key_callback(key, lambda _, name=name: self._press(name))
        self._draw()

    def run(self) -> None:
        drawn = asked = time.monotonic()
        while self._window.poll_events():
            self._window.update_renderer()
            now = time.monotonic()
            if self._playing and now - drawn > SECONDS_A_FRAME:
                self._playing, drawn = self._index + 1 < len(self._recording.frames), now
                self._go(self._index + 1)
            if self._watch and now - asked > 1:
                self._reload()
                asked = now
            time.sleep(0.01)
        self._window.destroy_window()

    def _press(self, name: str) -> bool:
        last = len(self._recording.frames) - 1
        if name == "space":
            self._playing = not self._playing
            if self._playing and self._index == last:
                self._go(0)
        else:
            self._playing = False
            self._go({"left": self._index - 1, "right": self._index + 1, "home": 0, "end": last}[name])
        return False

    def _reload(self) -> None:
        """Follow the run, unless the user looks at an earlier frame. What starts over at this moment is read later."""
        if (version := self._source.version()) == self._version:
            return
        try:
            recording = self._source.read()
        except CannotViewError:
            return
        if not recording.frames:
            return
        follows = self._index == len(self._recording.frames) - 1
        self._version, self._recording = version, recording
        self._index = -1 if follows else self._index
        self._go(len(recording.frames) - 1 if follows else self._index)

    def _go(self, index: int) -> None:
        index = min(max(index, 0), len(self._recording.frames) - 1)
        if index != self._index:
            self._index = index
            self._draw()

    def _title(self) -> str:
        return f"{self._recording.title}: {caption(self._recording, self._index)}"

    def _draw(self) -> None:
        seen = scene(self._recording, self._index)
        first = self._view is None
        if self._view is None:
            self._view = view(seen, self._recording.up)
        middle, reach = self._view.middle, FARTHEST * self._view.radius
        o3d = self._o3d
        vectors, pairs = o3d.utility.Vector3dVector, o3d.utility.Vector2iVector
        shapes: list[Any] = []
        for points, colors in (
            (seen.truth, np.broadcast_to(rgb(PALE), seen.truth.shape)),
            (seen.points, seen.colors),
        ):
            inside = np.linalg.norm(points - middle, axis=1) <= reach
            cloud = o3d.geometry.PointCloud(vectors(points[inside] - middle))  # what is drawn is float32
            cloud.colors = vectors(colors[inside] / 255)
            shapes.append(cloud)
        for segments, color in (
            (seen.residuals, PALE), (seen.edges, INK), (seen.cameras_gt, ORANGE), (seen.cameras, BLUE),
        ):  # fmt: skip
            ends = segments[(np.linalg.norm(segments - middle, axis=2) <= reach).all(1)].reshape(-1, 3)
            lines = o3d.geometry.LineSet(vectors(ends - middle), pairs(np.arange(len(ends)).reshape(-1, 2)))
            lines.paint_uniform_color(rgb(color) / 255)
            shapes.append(lines)
        for shape in self._shapes:
            self._window.remove_geometry(shape, reset_bounding_box=False)
        self._shapes = [shape for shape in shapes if not shape.is_empty()]
        for shape in self._shapes:
            self._window.add_geometry(shape, reset_bounding_box=first)
        count = max(len(seen.points), len(seen.truth), 1)
        self._window.get_render_option().point_size = float(np.clip(40 / count**0.3, 2, 10))
        if first:
            self._look()
        else:  # of a window that is open this sets the title; the size must be given, and the place comes with it
            self._window.create_window(self._title(), *self._size())

    def _size(self) -> tuple[int, int]:
        """As the user has made it, in pixels of the screen: Open3D counts those of a finer one (Retina) apart."""
        drawn = self._window.get_view_control().convert_to_pinhole_camera_parameters().intrinsic
        return round(drawn.width / self._fineness), round(drawn.height / self._fineness)

    def _look(self) -> None:
        """From where the picture is seen, too; Open3D counts the zoom in sizes of all that is there."""
        assert self._view is not None
        control = self._window.get_view_control()
        control.set_lookat(np.zeros(3))
        control.set_front(self._view.R[2])
        control.set_up(self._view.floor[2])
        bounds = [(shape.get_min_bound(), shape.get_max_bound()) for shape in self._shapes]
        extent = np.max([high for _, high in bounds], axis=0) - np.min([low for low, _ in bounds], axis=0)
        control.set_zoom(1.05 * self._view.radius / (extent.max() or 1.0))
