"""Numbers that decide in tensors and compiled: what is decided alike has to be said once."""

import math

__all__ = [
    "CANDIDATES",
    "DAMPING",
    "DISTINCT",
    "DOMINATED",
    "FISHEYE",
    "HEAVIEST",
    "LEAST_DAMPING",
    "LEAST_SHRINK",
    "MIX",
    "MOST_DAMPING",
    "OF_TRIPLES",
    "RANKED",
    "ROBUST",
    "SAME_COST",
    "SAME_STEP",
    "SHORT_STEP",
    "STRIDE",
    "TRIPLES",
    "WIDER",
    "WORTH",
]

DAMPING = 1e-4
"""Damping of the first step, in parts of the diagonal of the Gauss-Newton matrix (Marquardt 1963)."""
LEAST_DAMPING, MOST_DAMPING = 1e-14, 1e12
"""Damping never falls below the one; a problem whose steps are refused up to the other has ended."""
LEAST_SHRINK = 0.1
"""What an accepted step leaves of the damping at the least, where the model predicted it well (Nielsen 1999: 1/3)."""
SAME_COST = 1.001
"""Part of the cost that Newton's last steps may end up with: they must not run to a saddle or to another basin."""
SAME_STEP = 0.7
"""Power of eps, in parts of x, below which a step does not matter: quadratic convergence does the rest."""
SHORT_STEP = 0.5
"""The same of a step that leads to no other basin: it may raise the cost, as it does where that is but rounding."""
STRIDE, MIX = 0x9E3779B97F4A7C15, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""Of the random numbers of samples: words of 64 bits, what SplitMix64 counts by and multiplies with."""
WIDER = (5.0, 3.0, 2.0)
"""Times the threshold: those that RANSAC's models descend through before the threshold itself."""
WORTH = 0.999
"""Part of the lowest score below which a model is worth that descent: what is no better has been there before."""
ROBUST = {"none": 0, "huber": 1, "cauchy": 2, "geman_mcclure": 3, "barron": 4}
"""What kernels call the robust kernels of `geometry.robust`."""
FISHEYE = -1
"""What kernels have for a fisheye in place of the number of distortion coefficients."""
CANDIDATES = 8
"""Starts of a problem of PnP that are looked at further: whole vectors of them."""
DISTINCT = 1 + 2 * math.cos(0.1)
"""Trace of R_a^T R_b above which two starts of PnP are one: 0.1 rad."""
DOMINATED = 3.0
"""Points' worth of weight, (sum w^2)^2 / sum w^4, below which few points decide where PnP starts."""
HEAVIEST = 6
"""Points that its triples are drawn from then, and otherwise from all."""
TRIPLES = 24
"""Samples of three points: whole vectors of them."""
OF_TRIPLES = 4
"""Starts that may come from triples, in place of the highest of the eight minima of the algebraic error: of a form that
few points decide there are more than eight, and other ones."""
RANKED = 20
"""Points, spread over those of the first refinement, that tell which of their poses are the best: with all of them,
ranking takes longer than what it leads to saves."""
