"""Differentiable geometric optimisation: layers whose output is the minimum of a least-squares problem.

    optim         Problem, Solution, minimize: batched Levenberg-Marquardt with a status for each problem
    implicit      argmin: the same, differentiable in the data; covariance
    pnp           pnp, BPnP: camera pose from 2D-3D points, differentiable in every input
    nested        outer unknowns optimised while inner ones (poses) sit at their argmin
    calibration   intrinsics and distortion through PnP         structure   3D points through PnP, no pose given
    bundle        many views at once
    ransac        hypotheses from minimal samples               minimal     P3P, homography, five points, line
    pnp_ransac    a pose among wrong matches                    robust      kernels
    selection     gradients through draws and choices           probabilistic, pose_sampling  poses as distributions
    quadratic     a QP layer                                    constrained   linear equations, same verbs
    se3, camera   rotations and poses; lenses                   registration  similarity alignment

Needs torch alone. Conventions (OpenCV axes and pixels, world_to_camera, rotation first) stand in `se3` and `camera`.
"""
