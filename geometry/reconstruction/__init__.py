"""Unknowns that are learned through PnP: the poses sit at their argmin while these move.

calibration  intrinsics and distortion from views of known points, of one camera or of several mounted together
structure    points, with no pose given
models       which unknowns the data ask for, and whether what was found fits
"""

from geometry.reconstruction.calibration import CalibrationSolution, calibrate
from geometry.reconstruction.calibration_problem import CalibrationProblem, free_intrinsics, start_intrinsics
from geometry.reconstruction.growing import Incremental, Refine, check_tracks, grow
from geometry.reconstruction.joint_calibration import JointCalibration, calibrate_rig
from geometry.reconstruction.models import (
    Estimate,
    ModelChoice,
    ModelTrial,
    ResidualPattern,
    choose_model,
    residual_pattern,
)
from geometry.reconstruction.points import Points, as_table
from geometry.reconstruction.structure import StructureProblem, mirror, triangulate
from geometry.reconstruction.structure_search import Guess, StructureSolution, find_structure

__all__ = [
    "CalibrationProblem",
    "CalibrationSolution",
    "Estimate",
    "JointCalibration",
    "ModelChoice",
    "ModelTrial",
    "ResidualPattern",
    "Guess",
    "Incremental",
    "Points",
    "Refine",
    "StructureProblem",
    "StructureSolution",
    "as_table",
    "check_tracks",
    "grow",
    "calibrate",
    "calibrate_rig",
    "choose_model",
    "find_structure",
    "free_intrinsics",
    "mirror",
    "residual_pattern",
    "start_intrinsics",
    "triangulate",
]
