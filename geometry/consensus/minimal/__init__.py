"""Minimal solvers: the models that pass exactly through a smallest sample, all real ones, for
`geometry.consensus.search`.

    p3p          up to 4 poses of 3 rays and points         homography   of 4 pairs of points
    five_point   up to 10 essential matrices of 5 pairs     line         through 2 points of a plane
    generalised_p3p   up to 8 poses of a rig of 3 rays from several places

Leading dimensions are the batch. What does not exist (fewer real roots, a degenerate sample) is NaN, and only that.
"""

from geometry.consensus.minimal.essential import (
    angles_to_meet,
    before_both,
    essential_problem,
    essential_ray_problem,
    five_point,
    pose_of_essential,
)
from geometry.consensus.minimal.generalised_p3p import generalised_p3p
from geometry.consensus.minimal.homography import homography, homography_problem, normalised, oriented, transfer
from geometry.consensus.minimal.line import line, line_problem
from geometry.consensus.minimal.p3p import p3p

__all__ = [
    "angles_to_meet",
    "before_both",
    "essential_problem",
    "essential_ray_problem",
    "five_point",
    "generalised_p3p",
    "homography",
    "homography_problem",
    "line",
    "line_problem",
    "normalised",
    "oriented",
    "p3p",
    "pose_of_essential",
    "transfer",
]
