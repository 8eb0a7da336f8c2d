"""The kernels of `geometry.compiled.warp` as plain Python: a team of threads of Python for each problem.

The same sources once more; what is missing here is looked for in the folders of `simulated` and above.
"""

from pathlib import Path

if __name__ != "geometry.compiled.simulated_warp":
    raise ImportError(f"{__name__} does not lie in itself, where looking in the folder above would find it without end")

__path__.extend([str(Path(__file__).parents[1] / "simulated"), str(Path(__file__).parents[1])])
