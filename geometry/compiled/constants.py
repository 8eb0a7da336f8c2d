"""Numbers that decide in every descent, in tensors and compiled: what is decided alike has to be said once."""

__all__ = [
    "DAMPING",
    "LEAST_DAMPING",
    "LEAST_SHRINK",
    "MOST_DAMPING",
    "ROBUST",
    "SAME_COST",
    "SAME_STEP",
    "SHORT_STEP",
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
WIDER = (5.0, 3.0, 2.0)
"""Times the threshold: those that RANSAC's models descend through before the threshold itself."""
WORTH = 0.999
"""Part of the lowest score below which a model is worth that descent: what is no better has been there before."""
ROBUST = {"none": 0, "huber": 1, "cauchy": 2, "geman_mcclure": 3, "barron": 4}
"""What kernels call the robust kernels of `geometry.robust`."""
