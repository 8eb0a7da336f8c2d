"""PnP on the CPU, compiled by numba: eight problems at a time in the lanes of SIMD vectors.

simd -> equations -> descent, tile -> solve, adjoint, start: the last three are what `geometry.pnp_op` calls. Numba
keeps the machine code next to the sources; `python -m geometry.compiled` makes it ahead of the first call.
"""
