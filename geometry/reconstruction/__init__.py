"""Unknowns that are learned through PnP: the poses sit at their argmin while these move.

calibration  intrinsics and distortion from views of known points
structure    points, with no pose given
"""

from geometry.reconstruction.calibration import CalibrationSolution, calibrate
from geometry.reconstruction.calibration_problem import CalibrationProblem, free_intrinsics, start_intrinsics
from geometry.reconstruction.structure import StructureProblem, find_structure, mirror, triangulate

__all__ = [
    "CalibrationProblem",
    "CalibrationSolution",
    "StructureProblem",
    "calibrate",
    "find_structure",
    "free_intrinsics",
    "mirror",
    "start_intrinsics",
    "triangulate",
]
