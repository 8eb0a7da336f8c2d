"""PnP and the bundle on the CPU, compiled by numba: eight problems, or observations, in the lanes of SIMD vectors.

simd -> equations -> descent, tile -> solve, adjoint, start: the last three are what `geometry.pose.operator` calls;
equations -> reprojection -> bundle, for `geometry.bundle_adjustment.operator`; schur, for
`geometry.bundle_adjustment.products`; p3p, descent -> ransac, for `geometry.pose.ransac`. Numba keeps the machine code
next to the sources; `python -m geometry.compiled` makes it ahead of the first call.
"""
