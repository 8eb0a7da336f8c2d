"""The kernels of `geometry.compiled` for CUDA, from the same sources: a problem a thread, one lane.

Python looks for what is missing here in the folder above: `geometry.compiled.cuda.pose.solve` is the file
`geometry/compiled/pose/solve.py` once more, and its relative imports find the `target` that lies here. Needs numba-cuda
(`pip install 'learnable-geometry[cuda]'`).
"""

from pathlib import Path

if __name__ != "geometry.compiled.cuda":
    raise ImportError(f"{__name__} does not lie in itself, where looking in the folder above would find it without end")

__path__.append(str(Path(__file__).parents[1]))
