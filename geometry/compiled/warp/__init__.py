"""The kernels of `geometry.compiled.cuda` for few problems of many points, which 32 threads share.

The same sources once more; what is missing here is looked for in the folders of `cuda` and above.
"""

from pathlib import Path

__path__.extend([str(Path(__file__).parents[1] / "cuda"), str(Path(__file__).parents[1])])
