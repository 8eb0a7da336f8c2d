"""Pictures out of files."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["read_picture"]


def read_picture(path: Any) -> np.ndarray:
    """A picture (H,W,3) uint8, RGB; a grey one thrice. Raises ValueError where it cannot be read."""
    import cv2

    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(f"{path}: a picture wanted, found {'something else' if path.exists() else 'nothing'}")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
