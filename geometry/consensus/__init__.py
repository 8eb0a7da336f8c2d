"""Hypotheses from samples, choices among them, and gradients through both.

samples    samples of observations, every problem's from a stream of its own
search     ransac, for any Problem and minimal solver
selection  draws and choices as losses (DSAC, NG-RANSAC, ESAC, nabla-RANSAC)
minimal    P3P, homography, five points, line
"""

from geometry.consensus.search import RansacSolution, ransac
from geometry.consensus.selection import (
    RelaxedSets,
    draw_sets,
    expected_loss,
    relaxed_sets,
    score_function_loss,
    set_log_probability,
    soft_inliers,
)

__all__ = [
    "RansacSolution",
    "RelaxedSets",
    "draw_sets",
    "expected_loss",
    "ransac",
    "relaxed_sets",
    "score_function_loss",
    "set_log_probability",
    "soft_inliers",
]
