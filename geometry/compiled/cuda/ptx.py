"""The kernels as PTX for devices that need not be there: `python -m geometry.compiled.cuda.ptx 9.0`.

Prints what `ptxas` says of their registers and of what spills out of them. Needs, beside numba-cuda, the wheels
nvidia-nvvm, nvidia-cuda-nvrtc and nvidia-cuda-nvcc, or a CUDA toolkit that CUDA_HOME names.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from numba import boolean, cuda, float32, float64, int8, int32, int64, types, uint8
from numba.cuda import compiler, dispatcher

from .grid import kernel
from .target import TEAM

__all__ = ["assembled", "compiled", "signatures"]


def signatures() -> Iterator[tuple[str, Any, Any]]:
    """Name, precision and argument types of every kernel; a warp has those of PnP, and one of RANSAC's."""
    tuple_of = types.Tuple
    for t in (float64, float32):
        one, two, three = t[::1], t[:, ::1], t[:, :, ::1]
        data = tuple_of((three, three, three, two, three, uint8[:, ::1], int64))
        robust, rule, limits = tuple_of((int64, float64, float64)), types.UniTuple(float64, 2), types.UniTuple(int64, 2)
        minima = tuple_of((three, one, int8[::1], int32[::1]))
        yield "solve", t, (data, robust, rule, limits, three, two, minima)
        at, gradients = tuple_of((three, int8[::1], three)), tuple_of((three, three, three, two, three))
        yield "adjoint", t, (data, robust, float64, boolean, at, two, gradients)
        yield "search", t, (data, robust, rule, limits, two, minima, minima, one)
        if t == float64:
            found = tuple_of((three, one, uint8[:, ::1], two, uint8[::1], int32[::1]))
            table, sampling = (data, two, float64, two), tuple_of((int64[::1], int64, int64, int64, float64))
            yield "ransac_improve", t, (*table, found, sampling, two, two)
            if TEAM > 1:
                continue
            yield "ransac_survey", t, (*table, found)
            yield "ransac_sample", t, (*table, found, sampling, two)
            yield "ransac_score", t, (*table, three, tuple_of((one, uint8[:, ::1])))
    for name, arguments in _of_the_bundle().items() if TEAM == 1 else ():
        yield f"bundle_{name}", float64, arguments


def _of_the_bundle() -> dict[str, Any]:
    one, two, three = float64[::1], float64[:, ::1], float64[:, :, ::1]
    number, tuple_of = int64[::1], types.Tuple
    index, runs = types.UniTuple(number, 3), types.UniTuple(number, 2)
    seen, robust = tuple_of((number, number, two)), tuple_of((int64, float64, float64))
    scene, wanted = tuple_of((two, two, boolean)), tuple_of((number, boolean))
    observed = scene, seen, robust
    return {
        "observe": (*observed, number, one),
        "linearize_point": (*observed, wanted, number, tuple_of((one, three, three, two))),
        "linearize_view": (*observed, wanted, runs, three),
        "add_up": (two, number, two),
        "couple": (three, three, index, runs, three),
        "couple_back": (three, three, index, three),
        "eliminate": (three, three, three, index, three),
        "project_blocks": (three, three, index, three),
        "own_blocks": (three, three, index, runs, three),
        "reduce_rows": (three, three, int64[:, ::1], index, runs, two),
        "add_blocks": (three, int64[:, ::1], runs, two),
    }


def compiled(name: str, arguments: Any, capability: tuple[int, int]) -> str:
    """PTX of the kernel of that name in THREADS."""
    # device functions that are called ask the current device for its capability
    device = SimpleNamespace(compute_capability=capability)
    for module in (compiler, dispatcher):
        module.get_current_device = lambda *_: device
    kernel.cache_clear()  # what was compiled for another capability is not this one's
    ptx, _ = cuda.compile_ptx(kernel(name).py_func, (int64, types.Tuple(arguments)), cc=capability)
    return ptx


def assembled(ptx: str, capability: tuple[int, int]) -> str:
    """What ptxas says of it in a line: registers, stack, spills."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [_ptxas(), f"-arch=sm_{capability[0]}{capability[1]}", "-v", str(source), "-o", f"{source}.cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", said)
    frame = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said)
    most = [max(int(f[i]) for f in frame) for i in range(3)]
    return f"{registers[1] if registers else '?'} registers, {most[0]} bytes of stack, {most[1] + most[2]} spilled"


def _ptxas() -> str:
    for place in map(Path, sys.path):
        for found in place.glob("nvidia/*/bin/ptxas"):
            return str(found)
    return "ptxas"


def main() -> None:
    major, minor = sys.argv[1].split(".") if len(sys.argv) > 1 else ("9", "0")
    capability = int(major), int(minor)
    for name, precision, arguments in signatures():
        print(f"{name} {precision}: {assembled(compiled(name, arguments, capability), capability)}", flush=True)


if __name__ == "__main__":
    main()
