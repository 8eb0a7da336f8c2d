"""What is on the screen of a page with a view in space."""

import io
from typing import Any

import numpy as np
from PIL import Image

from experiments.drawing.figures import rgb


def settle(tab: Any) -> None:
    """Wait until space is drawn, and no longer drawn again."""
    tab.evaluate("""() => new Promise((done) => {
        let before = -1;
        const look = () => {
            if (viewer.draws === before) return done();
            before = viewer.draws;
            requestAnimationFrame(() => requestAnimationFrame(look));
        };
        requestAnimationFrame(look);
    })""")


def pixels(tab: Any, selector: str = "#space") -> np.ndarray:
    """(H,W,3) of what is on the screen."""
    settle(tab)
    return np.asarray(Image.open(io.BytesIO(tab.locator(selector).screenshot())).convert("RGB")).astype(int)


def differ(a: np.ndarray, b: np.ndarray) -> int:
    """How many pixels are clearly different."""
    return int((np.abs(a - b).max(-1) > 40).sum())


def near(image: np.ndarray, color: str) -> int:
    """How many pixels are about of this colour."""
    return int((np.abs(image - rgb(color)).max(-1) < 30).sum())
