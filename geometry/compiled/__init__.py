"""PnP, RANSAC, the bundle and programs compiled by numba: eight problems in the lanes of SIMD vectors, or one a CUDA
thread; programs on the CPU alone.

target -> vectors -> pose.lens -> pose.equations -> pose.descent, pose.tile -> pose.solve, pose.adjoint, pose.form,
pose.p3p -> pose.start; pose.equations -> bundle_adjustment.reprojection -> bundle_adjustment.observations;
bundle_adjustment.products; pose.p3p, pose.form -> consensus.samples -> consensus.rounds; vectors ->
program.elimination -> program.multipliers -> program.solve. Operators elsewhere in
`geometry` call them, and import them when they first do: numba takes half a second that only solving should cost. It
keeps the machine code next to the sources; `python -m geometry.compiled` makes it ahead of the first call. `launch`
shares work among threads.

Kernels import each other, `vectors` and `target` by their place in the package, because more packages are made of the
same files: `cuda`, whose target is a thread of a device; `warp`, where 32 threads share a problem's points; and
`simulated`, whose vectors are plain Python, for tests. `threads` is what a thread of a device does with them,
and `bundle_adjustment.threads` what it does for a part of a bundle.
"""
