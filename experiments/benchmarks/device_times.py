"""Times on a device, beside the CPU and the device's tensor operations, for `experiments.benchmarks.device`.

A call is timed until the device is done, all variants in turns, and the best turn counts. Problems are those of
`experiments.benchmarks.pnp`, 4,096 of them repeated where a batch is larger. Bytes and operations are counted by
formula, not measured: an upper bound of what caches leave of the traffic.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from datasets.locate import AbsentDataError, find
from datasets.reconstructions.model import Reconstruction
from experiments.benchmarks.bundle_solvers import Limits, read_scene, synthetic_scene
from experiments.benchmarks.bundle_solvers import ours as our_bundle
from experiments.benchmarks.measuring import take_turns
from experiments.benchmarks.places import Place
from experiments.benchmarks.pnp_solvers import DIFFERENTIABLE, MODES, Batch, Solver, make_problems, timed_call
from experiments.benchmarks.sections import Measures, NotHereError, Row
from geometry import bundle, pnp, pnp_ransac
from geometry.pose import back_end, layer

__all__ = [
    "BUNDLES",
    "POSES",
    "SEARCHES",
    "batch_of",
    "bundles",
    "compile_bundle",
    "compile_poses",
    "compile_search",
    "poses",
    "searches",
    "solver_of",
    "timed",
]

BUNDLES = ("to 0.1 %", "to the end", "to the optimum, with gradient", "CPU, likewise")
SEARCHES = ("device", "CPU", "times the CPU")
POSES = ("device", "share of bandwidth", "share of peak", "CPU", "times the CPU", "tensors on the device")
CPU_POINTS, TENSOR_POINTS = 5_000_000, 5_000_000
"""B x N above which the CPU, and tensor operations, are not measured."""
# a second: bytes, operations in float64 and in float32, as the makers state them, without tensor cores
PEAKS = {"H200": (4.8e12, 34e12, 67e12), "A100-SXM4-80GB": (2.04e12, 9.7e12, 19.5e12)}
# operations of a point in one evaluation, in one with the exact Hessian, in the derivative by the data, and of a step
_EVALUATED, _CURVED, _DERIVED, _STEP = 160, 240, 150, 300


def solver_of(dtype: torch.dtype, tensors: bool = False) -> Solver:
    """`pnp` from a start, in one precision outside and in, or what it is where there are no kernels."""

    def solve(batch: Batch, init: Tensor) -> Tensor:
        with patch.object(layer, "compiles_for", lambda _: False) if tensors else nullcontext():
            return pnp(
                batch.points2d, batch.points3d, batch.K, weights=batch.weights, init=init, solve_dtype=dtype
            ).x  # fmt: skip

    return Solver(solve, lambda batch: batch.init, gradients=DIFFERENTIABLE, dtype=dtype)


def batch_of(B: int, N: int, dtype: torch.dtype, device: torch.device) -> Batch:
    made = make_problems(min(B, 4096), N, 1.0, 0).to(dtype).to(device)
    return Batch(*(t.repeat(-(-B // 4096), *[1] * (t.ndim - 1))[:B] for t in vars(made).values()))


@cache
def peaks(device: torch.device) -> tuple[float, float, float]:
    """Bytes and operations (float64, float32) a second: stated for known cards, else those of a copy and a product."""
    if device.type == "cuda":
        for name, found in PEAKS.items():
            if name in torch.cuda.get_device_name(device):
                return found
    n = 4096 if device.type == "cuda" else 512

    def done(run: Callable[[], object]) -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()

    x = torch.ones(n, n, dtype=torch.float64, device=device)
    y, to = x.float(), torch.empty_like(x)
    calls = {"copy": lambda: to.copy_(x), "double": lambda: x @ x, "single": lambda: y @ y}
    times = take_turns({name: partial(done, call) for name, call in calls.items()}, 0.3)
    best = {name: min(t) for name, t in times.items()}
    return 2 * x.nbytes / best["copy"], 2 * n**3 / best["double"], 2 * n**3 / best["single"]


def counted(B: int, N: int, steps: float, size: int, backward: bool) -> tuple[float, float]:
    """Bytes and operations of a call: seven numbers a point are read, laid out, and read again in every evaluation."""
    passes, numbers = steps + 3, 7 * N * size
    moved, done = numbers * (2 + passes), N * (_EVALUATED * (steps + 1) + 2 * _CURVED) + _STEP * passes
    if backward:
        moved, done = moved + 7 * numbers, done + N * (_CURVED + _DERIVED)
    return B * moved, B * done


def rate(count: int, seconds: float) -> str:
    return f"{count / seconds:.3g} /s ({1e3 * seconds:.3g} ms)"


def timed(place: Place, calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The best turn of each; those that are named "CPU" run there."""
    there = {n: f if n.startswith("CPU") else partial(place.run, f) for n, f in calls.items()}
    return {name: min(turns) for name, turns in take_turns(there, seconds).items()}


def time_poses(place: Place, B: int, N: int, mode: str, dtype: torch.dtype) -> Row:
    one = solver_of(dtype)
    numbers = 7 * B * N * dtype.itemsize
    if not place.stand_in and 6 * numbers > torch.cuda.mem_get_info(place.device)[0]:
        raise NotHereError("no memory")
    batch = batch_of(B, N, dtype, place.device)
    calls = {"device": timed_call(one, batch, mode)}
    if B * N <= CPU_POINTS:
        calls["CPU"] = timed_call(one, batch_of(B, N, dtype, torch.device("cpu")), mode)
    if B * N <= TENSOR_POINTS and N == 64 and B in (2, 256, 65536):
        calls["tensors"] = timed_call(solver_of(dtype, tensors=True), batch, mode)
    best = timed(place, calls, 0.0 if place.stand_in else 0.3)
    with torch.no_grad():
        found = place.run(lambda: pnp(batch.points2d, batch.points3d, batch.K, init=batch.init, solve_dtype=dtype))
    backward = mode == MODES[1]
    moved, done = counted(B, N, float(found.steps.double().mean()), dtype.itemsize, backward)
    bandwidth, double, single = peaks(place.device)
    top = double if dtype == torch.float64 else single
    seconds, cells = best["device"], []
    cells += [rate(B, seconds), f"{moved / seconds / bandwidth:.1%}", f"{done / seconds / top:.1%}"]
    cells += [rate(B, best["CPU"]), f"{best['CPU'] / seconds:.2g}"] if "CPU" in best else ["–", "–"]
    cells += [rate(B, best["tensors"])] if "tensors" in best else ["–"]
    key = f"{str(dtype)[6:]}, {mode}, N = {N}, B = {B}"
    return Row(cells, {key: seconds} | ({f"CPU, {key}": best["CPU"]} if "CPU" in best else {}))


def poses(place: Place, options: Mapping[str, Any], dtype: torch.dtype) -> Measures:
    """Batches of 64 points first, and among them what the bars ask for."""
    grid = [(B, 64) for B in (65536, 256, 64, 4096, 32, 1, 10**6)]
    grid += [(B, N) for N in (8, 512) for B in (256, 65536, 64, 4096, 32, 1, 10**6)]
    for B, N in [(2, 64), (2, 8)] if place.stand_in else grid:
        for mode in reversed(MODES):
            yield f"N = {N}, B = {B}, {mode}", partial(time_poses, place, B, N, mode, dtype)


def compile_poses(place: Place, dtype: torch.dtype) -> Row:
    """Seconds of first calls, in which kernels are compiled."""
    cells, batch, one = [], batch_of(2, 8, dtype, place.device), solver_of(dtype)
    for mode in MODES:
        begin = time.perf_counter()
        place.run(timed_call(one, batch, mode))
        cells.append(f"{mode} {time.perf_counter() - begin:.1f} s")
    return Row([", ".join(cells), f"{back_end(batch.points2d)} PnP"])


# ---- without a start ----


def outliers(B: int, N: int) -> Batch:
    """Half of the pixels wrong."""
    made = make_problems(B, N, 1.0, 0)
    wrong = torch.rand(B, N, generator=torch.Generator().manual_seed(1)) < 0.5
    anywhere = torch.rand(B, N, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 640
    return replace(made, points2d=torch.where(wrong[..., None], anywhere, made.points2d))


def time_search(place: Place, what: str, B: int, N: int) -> Row:
    made = outliers(B, N) if what == "pnp_ransac" else batch_of(B, N, torch.float64, torch.device("cpu"))
    solve = pnp_ransac if what == "pnp_ransac" else pnp

    def call(batch: Batch) -> Callable[[], object]:
        return torch.no_grad()(lambda: solve(batch.points2d, batch.points3d, batch.K))

    best = timed(place, {"device": call(made.to(place.device)), "CPU": call(made)}, 0.5)
    return Row([rate(B, best["device"]), rate(B, best["CPU"]), f"{best['CPU'] / best['device']:.2g}"])


def searches(place: Place, options: Mapping[str, Any]) -> Measures:
    sizes = [("pnp_ransac", 1, 500), ("pnp_ransac", 64, 500), *(("pnp, no start", B, 64) for B in (256, 4096, 65536))]
    for what, B, N in [("pnp_ransac", 1, 20), ("pnp, no start", 2, 8)] if place.stand_in else sizes:
        yield f"{what}, N = {N}, B = {B}", partial(time_search, place, what, B, N)


def compile_search(place: Place) -> Row:
    for what, N in (("pnp, no start", 8), ("pnp_ransac", 20)):
        time_search(place, what, 1, N)
    return Row(["all kernels"])


# ---- bundles ----


def placed(scene: Reconstruction, device: torch.device) -> Reconstruction:
    tensors: dict[str, Any] = {
        name: value.to(device) for name, value in vars(scene).items() if isinstance(value, Tensor)
    }
    return replace(scene, **tensors)


def time_bundle(place: Place, made: Callable[[], Reconstruction], key: str) -> Row:
    """Seconds to 0.1 % of the lowest cost that this run finds, and to its end."""
    run = our_bundle()["ours"].prepare(placed(made(), place.device), Limits(50, 20.0, torch.get_num_threads()))
    trace = place.run(run)
    seconds, steps = trace.reaches(1.001 * float(trace.cost.min()))
    end = f"{trace.total:.3g} s, cost {trace.cost.min():.6g}"
    return Row([f"{seconds:.3g} s, {steps} steps", end, "–", "–"], {f"{key}, to 0.1 %": seconds})


def time_gradient(place: Place, made: Callable[[], Reconstruction], key: str) -> Row:
    """Seconds of a call to the optimum, with the gradient of the pixels; once, and on the device alone, if large."""
    scene = made()
    there = placed(scene, place.device)
    if key == "large":
        begin = time.perf_counter()
        place.run(lambda: solved_bundle(there))
        best = {"device": time.perf_counter() - begin}
    else:
        best = timed(place, {"device": lambda: solved_bundle(there), "CPU": lambda: solved_bundle(scene)}, 1.0)
    cells = [f"{1e3 * best[name]:.4g} ms" if name in best else "–" for name in ("device", "CPU")]
    return Row(["–", "–", *cells], {f"{key}, with gradient": best["device"]})


def solved_bundle(scene: Reconstruction) -> Tensor:
    pixels = scene.points2d.detach().requires_grad_()
    found = bundle(
        pixels, scene.camera_index, scene.point_index, scene.world_to_camera, scene.points3d, scene.K, scene.distortion,
        intrinsics_index=scene.intrinsics_index, free=("poses", "points", "f", "k1", "k2"), gauge="free",
    )  # fmt: skip
    return torch.autograd.grad(found.x.points3d.square().sum(), pixels)[0]


def bundles(place: Place, options: Mapping[str, Any]) -> Measures:
    g = torch.Generator().manual_seed(0)
    scenes: dict[str, Callable[[], Reconstruction]] = {}
    if place.stand_in:
        scenes["5 cameras, made"] = lambda: synthetic_scene(5, 100, 4, g)[0]
    else:
        try:
            file = find("bal") / "problem-49-7776-pre.txt"
            scenes["Ladybug-49"] = lambda: read_scene(file)
        except AbsentDataError:
            scenes["made, as large as Ladybug-49"] = lambda: synthetic_scene(49, 7776, 4.1, g)[0]
        scenes["made, 1,000 cameras, 1.5 million observations"] = lambda: synthetic_scene(1000, 300_000, 5, g)[0]
    for key, (name, made) in zip(("small", "large"), scenes.items(), strict=False):
        scene = cache(made)  # made within the first measure: its time is that measure's
        yield name, partial(time_bundle, place, scene, key)
        yield f"{name}, with gradient", partial(time_gradient, place, scene, key)


def compile_bundle(place: Place) -> Row:
    small = synthetic_scene(5, 100, 4, torch.Generator().manual_seed(0))[0]
    solved_bundle(small)
    place.run(lambda: solved_bundle(placed(small, place.device)))
    return Row(["all kernels"])
