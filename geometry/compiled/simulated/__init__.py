"""The kernels of `geometry.compiled` as plain Python, from the same sources: what a thread of a device does, checked.

Slow, and for tests: without a device they show that a kernel of one lane finds what that of eight finds, reads and
writes within its arrays, and reads nothing that was not written. As in `geometry.compiled.cuda`, Python looks for what
is missing here in the folder above.
"""

from pathlib import Path

if __name__ != "geometry.compiled.simulated":
    raise ImportError(f"{__name__} does not lie in itself, where looking in the folder above would find it without end")

__path__.append(str(Path(__file__).parents[1]))
