"""What a camera is calibrated from: a target, views of it, and which lens to fit; and what a calibration is told."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal

import tyro

from datasets.images.targets import Target, charuco, chessboard, circles, tags
from experiments.running.config import RunConfig
from experiments.running.options import Acts
from geometry.camera import Model
from geometry.lenses import LENSES

__all__ = ["SHARED_BOARDS", "Board", "CalibrationConfig"]


@dataclass(frozen=True)
class Board:
    """A target, where views of it come from, and which lens to fit."""

    source: tuple[str, ...] = ()
    """Names a folder of images, a corner file (.yml, .npz) or with `points` a file of measured pixels, here or in the
    shared data. Several folders are cameras that are mounted together: images of the same number were taken at once."""
    kind: Literal["chessboard", "charuco", "tags", "circles", "asymmetric_circles"] = "chessboard"
    """Says what the printed target is."""
    corners: tuple[int, int] = (9, 6)
    """Gives the numbers of inner corners, tags or circles along the target's rows and columns."""
    square: float = 1.0
    """Gives the side of a square or a tag, or the distance of circles in a row, in the unit wanted for the poses."""
    marker: float = 0.75
    """Gives the side of the markers of a ChArUco board, or the gap between tags, in parts of `square`."""
    dictionary: str = ""
    """Names the markers as OpenCV does; left empty, they are 4X4_50 of ChArUco boards, APRILTAG_36h11 of tags."""
    points: str = ""
    """Names a file of a target's points, name X Y Z; the source then has lines of image, name and u v."""
    distortion: int | None = None
    """Sets how many distortion coefficients there are; left out, 5, or the fewer that the lens model has: 4 of a
    fisheye."""
    model: Model = "radtan"
    """Chooses the lens model: OpenCV's radial-tangential or fisheye, or another that `geometry` has."""
    free: tuple[str, ...] = ()
    """Lists the intrinsics to seek, by name: f, or fx and fy; cx, cy; skew; k1, ... Left empty, they are all but skew.
    What is not sought stays: square pixels, the principal point in the middle of the image, coefficients of zero."""
    robust_px: float = 0.0
    """Sets the scale of a Cauchy kernel, for wrong marks; 0 means least squares."""
    image_size: tuple[int, int] | None = None
    """Gives the width and height of the images, for files that do not say."""

    def target(self) -> Target:
        """The target that images are searched for."""
        size, square = self.corners, self.square
        if self.kind == "charuco":
            return charuco(size, square, self.marker * square, self.dictionary or "4X4_50")
        if self.kind == "tags":
            return tags(size, square, self.marker, self.dictionary or "APRILTAG_36h11")
        return chessboard(size, square) if self.kind == "chessboard" else circles(size, square, "asym" in self.kind)

    @property
    def name(self) -> str:
        """Sources and number of coefficients."""
        paths = [Path(source) for source in self.source]
        names = [(path.parent.name or path.stem) if path.suffix else path.name for path in paths]
        return f"{'-'.join(names)}-{self.coefficients}"

    @property
    def coefficients(self) -> int:
        """How many distortion coefficients there are."""
        most = len(LENSES[self.model].names)
        return min(5, most) if self.distortion is None else self.distortion


SHARED_BOARDS = (
    Board(("opencv_chess_left",), square=0.025, distortion=2),
    Board(("opencv_chess_left",), square=0.025),
    Board(("opencv_corners/out_camera_data.yml",), square=50.0, distortion=2),
    Board(("opencv_corners/out_camera_data.yml",), square=50.0),
    Board(("sony_chess/corners_6x4_opencv.npz",), corners=(6, 4), square=30.0, distortion=2, image_size=(640, 480)),
    Board(("sony_chess/corners_6x4_opencv.npz",), corners=(6, 4), square=30.0, image_size=(640, 480)),
    Board(("fisheye_chess",), corners=(6, 4), square=30.0, distortion=4, model="fisheye"),
)
"""Those of the shared data."""


@dataclass(frozen=True)
class CalibrationConfig(RunConfig):
    acts: ClassVar[tuple[Acts, ...]] = (
        Acts("where there are boards", ("opencv",), lambda config: config.boarded),
        Acts(
            "with a --board.source",
            tuple(f"board.{field.name}" for field in fields(Board) if field.name != "source"),
            lambda config: bool(config.board.source),
            told=True,
        ),
    )
    names_data: ClassVar[tuple[str, ...]] = ("board.source",)

    iterations: int = 100
    """Limits the number of steps; for each camera, where there are several."""
    board: Board = Board()
    """Describes a target of yours; with its source left empty, the preset's are used."""
    boards: tyro.conf.Suppress[tuple[Board, ...]] = ()
    """Lists what the preset calibrates from; nothing means the published cube."""
    opencv: bool = True
    """Says whether to calibrate the same marks with OpenCV, for comparison."""

    @property
    def boarded(self) -> bool:
        """Whether it calibrates from boards, and not from the published cube."""
        return bool(self.boards or self.board.source)
