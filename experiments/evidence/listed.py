"""What is stated of the experiments: which runs, over how many seeds, and what of them.

A claim is a preset of a driver; its measures are read from the summary of every run. Runs that take below a minute on
one core have 20 seeds, the others 5, and so has `camera_calibration real`, which draws no random number; sudoku, which
ends a little off with some seeds, has 10.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from experiments.running.launch import Asked

__all__ = ["CLAIMS", "ELSEWHERE", "Claim", "Measure"]

Summary = Mapping[str, Any]


class Measure(NamedTuple):
    """Something that a run found.

    of(summary) is a number, `most` at the most; True or False where the share of runs is stated; None where this run
    says nothing of it.
    """

    name: str
    of: Callable[[Summary], float | bool | None]
    most: float = math.inf


class Claim(NamedTuple):
    """A preset of a driver, with options, and what is stated of it in one of the tables."""

    table: str
    driver: str
    preset: str
    measures: tuple[Measure, ...]
    options: tuple[str, ...] = ()
    seeds: int = 20

    @property
    def name(self) -> str:
        return " ".join([self.driver, self.preset, *self.options])

    def asked(self, seed: int) -> Asked:
        """The run of one seed; its folder is named by preset, options and seed."""
        name = "-".join([self.preset, *(option.strip("-") for option in self.options), f"seed{seed}"])
        return Asked(f"experiments.{self.driver}", self.preset, seed, self.options, name)


def error(key: str, name: str, scale: float = 1.0) -> Measure:
    """One of the summary's errors."""
    return Measure(name, lambda summary: scale * float(summary["errors"][key]))


def percent(key: str, name: str) -> Measure:
    """One of the summary's errors that is a share of a whole."""
    return error(key, f"{name}, %", 100)._replace(most=100.0)


def found(key: str, part: str, name: str) -> Measure:
    """The value or the deviation of something that was found and has no truth."""
    return Measure(name, lambda summary: float(summary["found"][key][part]))


def errors_below(name: str, limit: float, *keys: str) -> Measure:
    """Whether the least of some errors is below a limit."""
    return Measure(name, lambda summary: min(float(summary["errors"][key]) for key in keys) < limit)


GOAL = Measure("reach the goal", lambda summary: bool(summary["converged"]))
ITERATIONS = Measure("iterations until then", lambda summary: summary["iterations"] if summary["converged"] else None)
GANTRY = (
    error("rotation_deg", "rotations off the gantry's, median, degrees"),
    error("largest_rotation_deg", "largest of these, degrees"),
    error("centre_share", "centres off the gantry's, median, % of the ring", 100),
    error("largest_centre_share", "largest of these, %", 100),
)
WITH_FORMULA = ("--gradient", "published")

CLAIMS = (
    Claim("default", "pose_estimation", "default", (GOAL, ITERATIONS)),
    Claim("default", "camera_calibration", "default", (GOAL, ITERATIONS)),
    Claim(
        "default", "structure_from_motion", "default",
        (
            GOAL, ITERATIONS,
            errors_below("rms error below 1e-5 of the object's size", 1e-5, "rms_share"),
            Measure("all points within 1 % of it", lambda summary: summary["errors"]["within_1_percent"] == 1),
        ),
    ),
    Claim(
        "real", "pose_estimation", "real",
        (
            GOAL,
            found("focal length", "value", "focal length, px"),
            found("focal length", "deviation", "its standard deviation, px"),
            percent("inlier_share", "inliers"),
            percent("lowest_inlier_share", "inliers in the worst frame"),
            error("median_px", "median error of inliers, px"),
        ),
    ),
    Claim(
        "real", "camera_calibration", "real",
        (
            GOAL,
            *(
                error(f"{folder} rms_px", f"{what}: rms, px")
                for folder, what in (
                    ("opencv_chess_left-5", "OpenCV's chessboards, 5 coefficients"),
                    ("opencv_corners-5", "OpenCV's stored corners, 5 coefficients"),
                    ("sony_chess-5", "stored corners of a Sony, 5 coefficients"),
                    ("fisheye_chess-4", "a fisheye's chessboards, 4 coefficients"),
                )
            ),
            errors_below("rms nowhere 1e-6 px above that of `cv2.calibrateCamera`", 1e-6, "rms_above_opencv_px"),
        ),
        seeds=5,
    ),
    Claim(
        "real", "structure_from_motion", "real",
        (GOAL, *GANTRY, error("reprojection_rms_px", "rms of the reprojection, px")),
    ),
    Claim(
        "real", "structure_from_motion", "self_calibrated",
        (
            GOAL,
            error("f_off_px", "focal length off the given one, px"),
            error("f_deviation_px", "its stated standard deviation, px"),
            *GANTRY,
        ),
        seeds=5,
    ),
    Claim("published", "pose_estimation", "paper", (GOAL, ITERATIONS)),
    Claim("published", "pose_estimation", "paper", (GOAL, ITERATIONS), WITH_FORMULA),
    Claim(
        "published", "pose_estimation", "unregularised",
        (
            GOAL, ITERATIONS,
            error("rotation_deg", "rotation error, degrees"),
            error("keypoint_rms_px", "keypoints off by (rms), px"),
        ),
    ),
    Claim("published", "camera_calibration", "paper", (GOAL, ITERATIONS)),
    Claim("published", "camera_calibration", "paper", (GOAL, ITERATIONS), WITH_FORMULA),
    Claim(
        "published", "structure_from_motion", "paper",
        (
            GOAL, ITERATIONS,
            errors_below("the right shape is learned, to 10 % rms", 0.1, "learned_rms_share"),
            errors_below("its mirror image is, to 10 % rms", 0.1, "learned_rms_share_of_mirror"),
            errors_below("the right shape at the end, to 0.1 % rms", 1e-3, "rms_share"),
        ),
        ("--finish",),
    ),
    Claim(
        "trained", "sudoku", "default",
        (
            GOAL,
            percent("optnet_unseen_right", "unseen boards right by the quadratic program"),
            percent("network_unseen_right", "by a convolutional network"),
        ),
        seeds=10,
    ),
)  # fmt: skip

ELSEWHERE = {
    "gradient_error.md": ("gradient_error", "50 problems of seed 0"),
    "gradient_comparison.md": ("gradient_comparison full", "as many seeds as it says"),
    "benchmark_from_nothing.md": ("benchmarks.from_nothing default --seed 200", "20 scenes a row"),
    "routes.md": ("structure_routes default", "a scene each, 16 random starts; the last scene: preset `real`"),
    "robust_pose.md": ("toy_study default", "5 seeds, 200 problems of each share and seed"),
    "expert_selection.md": ("toy_study default", "5 seeds, 1,000 images of each"),
    "line_fitting.md": ("toy_study default", "5 seeds, and one of 50,000 steps; 1,000 images of each"),
    "benchmark_certificate.md": ("benchmarks.certificate default --seed 1", "1,000 problems a row, 10,000 of any kind"),
    "benchmark_pose_sets.md": ("benchmarks.pose_sets default", "2,000 views a row, and as many for the levels"),
    "rolling_shutter.md": ("tasks.rolling_shutter study --seed 200", "1,000 draws a line"),
    "benchmark_pnp.md": ("benchmarks.pnp full", "10,000 problems without a start; times: one seed, in turns"),
    "benchmark_ransac.md": ("benchmarks.ransac bar", "1,000 problems of seed 0"),
    "benchmark_ransac_flat.md": ("benchmarks.ransac flat --seed 1001", "2,000 problems, and 100, 200, 2,300"),
    "benchmark_rig_pose.md": ("benchmarks.rig_pose default", "1,000 problems a kind"),
    "benchmark_targets.md": ("benchmarks.targets default --seed 3033 --calibrations 2", "50 pictures a target"),
    "benchmark_bundle.md": ("benchmarks.bundle default", "one file; medians of 5 runs"),
    "benchmark_rig_bundle.md": ("benchmarks.rig_bundle default", "ten scenes of seed 0"),
    "benchmark_rolling_bundle.md": ("benchmarks.rolling_bundle default", "40 scenes a row"),
    "benchmark_qp.md": ("benchmarks.qp default", "128 programs a size"),
}
"""Files of results/reference that other commands write and that do not name them: the command, and over what."""
