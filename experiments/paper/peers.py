"""What others make of the same marks."""

from __future__ import annotations

import numpy as np

from datasets.images.views import RigViews
from geometry.camera import Model

__all__ = ["opencv_calibration"]


def opencv_calibration(views: RigViews, distortion: int, model: Model) -> dict | None:
    """OpenCV's joint calibration of the marks that one camera sees; None for what it does not fit the same way.

    cv2.fisheye.calibrate needs a guess and does not take views beyond 90 degrees: it has no say here. Nor is it asked
    for targets that are not plane, of which it wants a guess as well.
    """
    import cv2

    if model != "radtan" or distortion not in (0, 2, 5) or len(views.points2d) > 1 or (views.points3d[:, 2] != 0).any():
        return None
    flags = {0: cv2.CALIB_FIX_K1 | cv2.CALIB_FIX_K2, 2: 0, 5: 0}[distortion]
    if distortion < 5:
        flags |= cv2.CALIB_FIX_K3 | cv2.CALIB_ZERO_TANGENT_DIST
    used = [v for v, mask in enumerate(views.mask[0]) if mask.sum() >= 4]
    board = [views.points3d[views.mask[0, v]].numpy().astype(np.float32) for v in used]
    corners = [views.points2d[0, v, views.mask[0, v]].numpy().astype(np.float32)[:, None] for v in used]
    criteria = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 1000, 1e-15)
    try:
        rms, K, found, *_ = cv2.calibrateCamera(
            board, corners, views.image_sizes[0], None, None, flags=flags, criteria=criteria
        )
    except cv2.error:  # it wants six marks a view
        return None
    return {
        "rms_px": float(rms),
        "intrinsics": [*K.diagonal()[:2].tolist(), *K[:2, 2].tolist()],
        "distortion": found.ravel()[:distortion].tolist(),
    }
