"""Open3D's window, on a screen that exists in memory alone (Xvfb), and what is said where no window can be."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.commands import PATIENCE
from tests.experiments.viewers.recordings import sphere, written

pytest.importorskip("open3d")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="screens are asked for as Linux has them"),
]

SCRIPT = """
import json, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from experiments.viewers import window
from experiments.viewers.source import Source
from tests.experiments.viewers.recordings import sphere
from tests.experiments.viewers.recordings import written

run = Path(sys.argv[1])
source = Source(run)
shown = window._Window(source, source.read(), True)
shown.open()
said = []

def look():
    for _ in range(3):
        assert shown._window.poll_events()
        shown._window.update_renderer()
    image = np.rint(255 * np.asarray(shown._window.capture_screen_float_buffer(True))).astype(int).reshape(-1, 3)
    near = lambda color: int((np.abs(image - window.rgb(color).astype(int)).max(1) < 3).sum())
    title = shown._window.get_window_name()
    said.append([title, near(window.BLUE), near(window.ORANGE), near(window.PALE), int((image < 250).any(1).sum())])

look()
for key in ("left", "home", "left", "right", "end", "right"):
    shown._press(key)
    look()
written(replace(sphere(), summary={}), run)
shown._reload()                      # follows: the last frame was shown
look()
shown._press("home")
(run / "recording" / "frame-00000019.npz").unlink()
shown._reload()                      # stays: an earlier frame is looked at
look()
shown._press("space")
playing = shown._playing
(run / "recording" / "frame-00000000.npz").write_bytes(b"")
shown._reload()                      # damaged for a moment: keeps what there was
look()
print("SAID", json.dumps([said, playing]))
"""


def xvfb(*options: str) -> Iterator[str]:
    """The name of a new display."""
    found = shutil.which("Xvfb")
    if found is None:
        pytest.skip("there is no Xvfb to open windows on (Debian: apt install xvfb)")
    reading, writing = os.pipe()
    command = [found, "-displayfd", str(writing), "-screen", "0", "1280x960x24", *options]
    with subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL) as server:
        os.close(writing)
        with os.fdopen(reading) as numbers:
            yield f":{numbers.readline().strip()}"
        server.terminate()


@pytest.fixture
def screen() -> Iterator[str]:
    yield from xvfb()


@pytest.fixture
def screen_without_opengl() -> Iterator[str]:
    yield from xvfb("-extension", "GLX")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return written(replace(sphere(), frames=sphere().frames[:3], summary={}), tmp_path / "toy" / "sphere")


def environment(display: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("WAYLAND_DISPLAY", "DISPLAY")}
    return {**kept, "DISPLAY": display}


def test_keys_step_and_a_run_is_followed(run: Path, screen: str) -> None:
    command = [sys.executable, "-c", SCRIPT, str(run)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(screen), check=False)
    assert done.returncode == 0, done.stderr
    said, playing = json.loads(done.stdout.partition("SAID ")[2])
    steps = [int(re.search(r"toy / sphere: iteration (\d+), ", title)[1]) for title, *_ in said]  # type: ignore[index]
    assert steps == [2, 1, 0, 0, 1, 2, 2, 19, 0, 0]
    assert playing
    for step, (_, blue, orange, pale, drawn) in zip(steps, said, strict=True):
        assert blue > 100, step  # the cameras
        assert drawn > 1000, step
        assert (orange > 100) == (pale > 100) == (step < 19), step  # at the end the estimates cover the truth


def test_the_command_opens_a_window_and_ends_with_ctrl_c(run: Path, screen: str) -> None:
    command = [sys.executable, "-m", "experiments.view", str(run)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(screen)
    ) as viewer:
        assert viewer.stdout is not None
        assert viewer.stdout.readline() == "toy / sphere: left, right, home, end: step; space: play; q: close\n"
        viewer.send_signal(signal.SIGINT)
        assert viewer.wait(timeout=PATIENCE) == 0
        assert viewer.stderr is not None
        assert viewer.stderr.read() == ""


def refused(run: Path, display: str) -> str:
    command = [sys.executable, "-m", "experiments.view", str(run)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(display), check=False, timeout=PATIENCE
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    return done.stderr.strip()


def test_a_screen_that_does_not_answer_is_said(run: Path) -> None:
    assert refused(run, ":4242") == (
        "Open3D could not open a window here (the display does not answer): use --serve or --save"
    )


def test_a_screen_without_opengl_is_said(run: Path, screen_without_opengl: str) -> None:
    said = refused(run, screen_without_opengl)
    assert re.fullmatch(r"Open3D could not open a window here( \([^\x1b]+\))?: use --serve or --save", said)
