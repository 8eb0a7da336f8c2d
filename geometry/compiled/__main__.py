"""Compile all kernels now, so that no first call has to: `python -m geometry.compiled`; two minutes of one core."""

import importlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

KERNELS = (
    "pose.start",
    "pose.solve",
    "pose.adjoint",
    "bundle_adjustment.observations",
    "bundle_adjustment.products",
    "consensus.rounds",
    "program.solve",
)


def compile_kernel(name: str) -> None:
    """Importing a kernel compiles it, or finds its code."""
    importlib.import_module(f"geometry.compiled.{name}")


def main() -> None:
    folder = Path(__file__).parent
    newest = max(source.stat().st_mtime for source in folder.rglob("*.py"))
    for cache in folder.rglob("__pycache__/*.nb[ci]"):
        # numba looks at a kernel's own file alone, not at those that it imports
        if cache.stat().st_mtime < newest:
            cache.unlink()
    with ProcessPoolExecutor() as pool:
        list(pool.map(compile_kernel, KERNELS))


if __name__ == "__main__":
    main()
