"""Perspective-n-point: a camera pose from 2D-3D correspondences, and what is learned through it.

layer     pnp, BPnP                                     data      PnPData: what they are given, checked, masked, centred
compiled  the back end of kernels                       tensors   the back end of tensor operations: one contract
operator  torch operators: gradients, vmap, compile     cpu, cuda how a device runs them: threads and kernels
problem   PnP as a Problem, in tensor operations        start     the global start in tensors
rig       rig_pnp: several cameras, rigidly mounted     rig_data  what they and bearings are: a camera for every point
form      the algebraic error that the start minimises  triples   starts from three points
certificate  a proof that a minimum is the global one   basin   how far a minimum is the best around
rotation_boxes                                          all rotations, and bounds of forms in them
losses    losses that know the true pose                epro_pnp  those that see it as a distribution
sampling  draws from such distributions                 pose_sets  sets with the coverage that is asked for
ransac    pnp_ransac: a pose among wrong matches        ransac_tensors   its search in tensors
rig_ransac                                              rig_pnp_ransac
"""

from geometry.pose.epro_pnp import (
    MonteCarloLoss,
    adaptive_huber_scale,
    derivative_regularisation_loss,
    monte_carlo_pose_loss,
)
from geometry.pose.layer import BPnP, PoseSolution, back_end, pnp
from geometry.pose.losses import (
    PoseLoss,
    keypoint_likelihood_loss,
    linear_covariance,
    linear_covariance_loss,
    pose_covariance,
)
from geometry.pose.pose_sets import PoseSet, conformal_level, pose_set
from geometry.pose.problem import pnp_problem
from geometry.pose.ransac import pnp_ransac
from geometry.pose.rig import rig_pnp
from geometry.pose.rig_ransac import rig_pnp_ransac
from geometry.pose.sampling import PoseProposal, PoseSamples, log_normaliser, sample_poses

__all__ = [
    "BPnP",
    "MonteCarloLoss",
    "PoseLoss",
    "PoseProposal",
    "PoseSamples",
    "PoseSet",
    "PoseSolution",
    "adaptive_huber_scale",
    "back_end",
    "conformal_level",
    "derivative_regularisation_loss",
    "keypoint_likelihood_loss",
    "linear_covariance",
    "linear_covariance_loss",
    "log_normaliser",
    "monte_carlo_pose_loss",
    "pnp",
    "pnp_problem",
    "pnp_ransac",
    "pose_covariance",
    "pose_set",
    "rig_pnp",
    "rig_pnp_ransac",
    "sample_poses",
]
