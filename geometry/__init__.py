"""Differentiable geometric optimisation: layers whose output is the minimum of a least-squares problem.

    optim              Problem, minimize, argmin, covariance: any least-squares problem; programs and constraints
    pose               pnp, BPnP: camera pose from 2D-3D points; rig_pnp; both among wrong matches; losses of poses
    bundle_adjustment  bundle: many views at once
    reconstruction     calibrate, calibrate_rig, find_structure: intrinsics and structure learned through PnP
    consensus          ransac, minimal solvers, gradients through draws and choices
    tasks, interop     worked problems, a file each; conversions to and from other libraries, a file each
    compiled           the kernels of PnP, RANSAC and the bundle
    se3, camera        rotations and poses; projection and its inverse
    lenses             a file a lens
    robust, alignment  kernels; similarity alignment
    checks             of arguments

`from geometry import pnp` and the like: what a user calls is loaded when it is asked for, and importing `geometry`
takes no time. Needs torch and numba alone. Conventions (OpenCV axes and pixels, world_to_camera, rotation first) stand
in `se3` and `camera`.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geometry.alignment import Similarity, align_similarity
    from geometry.bundle_adjustment import Bundle, BundleSolution, GaugeChoice, Prior, bundle
    from geometry.camera import bearing_whitening, equirectangular_pixels, equirectangular_rays, project, unproject
    from geometry.consensus import (
        RansacSolution,
        draw_sets,
        expected_loss,
        ransac,
        relaxed_sets,
        score_function_loss,
        set_log_probability,
        soft_inliers,
    )
    from geometry.optim import (
        Constrained,
        ConstrainedSolution,
        Problem,
        QuadraticProgram,
        Solution,
        SolverError,
        Status,
        argmin,
        attach_gradient,
        covariance,
        minimize,
        quadratic_program,
    )
    from geometry.pose import (
        BPnP,
        PoseSet,
        PoseSolution,
        adaptive_huber_scale,
        conformal_level,
        derivative_regularisation_loss,
        keypoint_likelihood_loss,
        linear_covariance_loss,
        monte_carlo_pose_loss,
        pnp,
        pnp_problem,
        pnp_ransac,
        pose_covariance,
        pose_set,
        rig_pnp,
        rig_pnp_ransac,
        sample_poses,
    )
    from geometry.reconstruction import (
        CalibrationSolution,
        JointCalibration,
        calibrate,
        calibrate_rig,
        find_structure,
        triangulate,
    )
    from geometry.robust import barron, cauchy, geman_mcclure, huber

__all__ = [
    "BPnP",
    "Bundle",
    "BundleSolution",
    "CalibrationSolution",
    "Constrained",
    "ConstrainedSolution",
    "GaugeChoice",
    "JointCalibration",
    "PoseSet",
    "PoseSolution",
    "Prior",
    "Problem",
    "QuadraticProgram",
    "RansacSolution",
    "Similarity",
    "Solution",
    "SolverError",
    "Status",
    "adaptive_huber_scale",
    "align_similarity",
    "argmin",
    "attach_gradient",
    "barron",
    "bearing_whitening",
    "bundle",
    "calibrate",
    "calibrate_rig",
    "cauchy",
    "conformal_level",
    "covariance",
    "derivative_regularisation_loss",
    "draw_sets",
    "equirectangular_pixels",
    "equirectangular_rays",
    "expected_loss",
    "find_structure",
    "geman_mcclure",
    "huber",
    "keypoint_likelihood_loss",
    "linear_covariance_loss",
    "minimize",
    "monte_carlo_pose_loss",
    "pnp",
    "pnp_problem",
    "pnp_ransac",
    "pose_covariance",
    "pose_set",
    "project",
    "quadratic_program",
    "ransac",
    "relaxed_sets",
    "rig_pnp",
    "rig_pnp_ransac",
    "sample_poses",
    "score_function_loss",
    "set_log_probability",
    "soft_inliers",
    "triangulate",
    "unproject",
]

# Where a name is looked for, each place importing the ones before it at the most.
_PLACES = ("robust", "camera", "alignment", "optim", "consensus", "pose", "bundle_adjustment", "reconstruction")


def __getattr__(name: str) -> Any:
    """A public name, loaded when it is first asked for (PEP 562)."""
    if name == "__version__":
        try:
            return version("learnable-geometry")
        except PackageNotFoundError:  # a checkout that was not installed
            return "unknown"
    if name in __all__:
        for place in _PLACES:
            module = import_module(f"geometry.{place}")
            if name in module.__all__:
                globals()[name] = getattr(module, name)
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
