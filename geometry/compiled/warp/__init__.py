"""The kernels of `geometry.compiled.cuda` for few problems of many points, which 32 threads share.

The same sources once more; what is missing here is looked for in the folders of `cuda` and above.
"""

from pathlib import Path

if __name__ != "geometry.compiled.warp":
    raise ImportError(f"{__name__} does not lie in itself, where looking in the folder above would find it without end")

__path__.extend([str(Path(__file__).parents[1] / "cuda"), str(Path(__file__).parents[1])])
