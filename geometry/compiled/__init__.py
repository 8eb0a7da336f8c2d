"""PnP and the bundle on the CPU, compiled by numba: eight problems, or observations, in the lanes of SIMD vectors.

simd -> equations -> descent, tile -> solve, adjoint, start: the last three are what `geometry.pnp_op` calls;
equations -> reprojection -> bundle, for `geometry.bundle_op`; schur, for `geometry.schur_op`; p3p, descent -> ransac,
for `geometry.pnp_ransac`. Numba keeps the machine code next to the sources; `python -m geometry.compiled` makes it
ahead of the first call.
"""
