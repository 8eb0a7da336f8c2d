"""Many views at once: cameras, points and intrinsics at the minimum of their reprojection errors.

layer      bundle, what a user calls                    problem    residuals, normal equations, priors
layout     which unknowns there are, and their order    indices    which observation meets which unknowns
equations  normal equations in blocks                   reduced    the reduced camera matrix
schur      its solution, dense or by                    conjugate_gradients, coarse
gauge      which of the similar solutions is meant      solver     the descent
rigs, shutter  cameras that share a pose, or move       chain      derivatives pulled back to what is sought
prior      what is known beforehand                     points     which settle by themselves
uncertainty  covariances at the optimum
operator, products  what the compiled kernels do, and the same in tensor operations
"""

from geometry.bundle_adjustment.gauge import GaugeChoice
from geometry.bundle_adjustment.layer import BundleSolution, bundle
from geometry.bundle_adjustment.problem import Bundle, Prior
from geometry.bundle_adjustment.uncertainty import BundleCovariance

__all__ = ["Bundle", "BundleCovariance", "BundleSolution", "GaugeChoice", "Prior", "bundle"]
