"""What `geometry.pnp` must be able to do on a device besides being right, for `experiments.benchmarks.device`.

Wrong input ends INFEASIBLE for its own problem alone; nothing waits for the device; a call with its gradient can be
captured in a CUDA graph, compiled by torch, run in several streams and on a second card.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.benchmarks.device_checks import views, without
from experiments.benchmarks.places import Place, StandIn
from experiments.benchmarks.sections import Measures, NotHereError, Row
from geometry import Status, pnp

__all__ = ["behaviour"]

Given = dict[str, Any]  # tensors, as options of `pnp`
SAME = 1e-10


def given(B: int, place: Place, device: torch.device | None = None) -> Given:
    """Problems that all have their solution."""
    made = views(B + 2, 12, "radtan")
    kept = {name: t if name == "distortion" else t[:B] for name, t in made.items()}
    return {name: t.to(device or place.device) for name, t in kept.items()}


def with_gradient(inputs: Given) -> tuple[Tensor, Tensor]:
    """Poses, and the gradient of the pixels."""
    pixels = inputs["points2d"].detach().requires_grad_()
    rest: Given = without(inputs, "points2d")
    x = pnp(pixels, **rest).x
    return x, torch.autograd.grad(x.square().sum(), pixels)[0]


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> Row:
    apart = max(float((f.cpu() - e.cpu()).abs().max() / e.abs().max()) for f, e in zip(found, expected, strict=True))
    right = apart <= SAME
    return Row([f"{apart:.1e} apart", "ok" if right else f"**over {SAME:.0e}**"], {"failures": 0.0 if right else 1.0})


def wrong(place: Place, name: str, index: tuple[int, ...], value: float) -> Row:
    """One number of one problem's argument is not as it should be."""
    right = given(4, place)
    right["distortion"] = right["distortion"].expand(4, -1).clone()
    damaged = {**right, name: right[name].clone()}
    damaged[name][(1, *index)] = value
    expected, found = place.run(lambda: pnp(**right)), place.run(lambda: pnp(**damaged))
    others = torch.tensor([0, 2, 3], device=place.device)
    kept = all(torch.equal(f[others], e[others]) for f, e in ((found.x, expected.x), (found.status, expected.status)))
    status = Status(int(found.status[1]))
    good = kept and status == Status.INFEASIBLE and bool(torch.isfinite(found.x).all())
    said = f"{status.name}, the others {'untouched' if kept else 'touched'}"
    return Row([said, "ok" if good else "**wrong**"], {"failures": 0.0 if good else 1.0})


def waits(place: Place) -> Row:
    """Nothing in a call with its gradient waits for the device: torch raises, or the stand-in counts, where it does."""
    inputs = given(64 if not place.stand_in else 3, place)
    place.run(lambda: with_gradient(inputs))
    if place.stand_in:
        with StandIn() as counted:
            with_gradient(inputs)
        good = counted.waits == 0
        return Row([f"{counted.launches} launches, {counted.waits} waits", "ok" if good else "**wrong**"])
    torch.cuda.set_sync_debug_mode("error")
    try:
        with_gradient(inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Row(["nothing waits", "ok"])


def needs_cuda(place: Place, cards: int = 1) -> None:
    if place.stand_in or torch.cuda.device_count() < cards:
        raise NotHereError("a CUDA device wanted" if cards == 1 else "one card alone")


def captured(place: Place) -> Row:
    """A CUDA graph of the call with its gradient, replayed with other pixels."""
    needs_cuda(place)
    inputs = given(64, place)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # what is compiled and set aside must be there before
        for _ in range(3):
            with_gradient(inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        found = with_gradient(inputs)
    inputs["points2d"].add_(0.3)
    graph.replay()
    torch.cuda.synchronize()
    return same(found, with_gradient(inputs))


def compiled(place: Place) -> Row:
    """torch.compile of the call, in one graph."""
    needs_cuda(place)
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise NotHereError("no triton") from error
    inputs = given(64, place)
    rest: Given = without(inputs, "points2d")
    f = torch.compile(lambda p: 2 * pnp(2 * p, **rest).x, fullgraph=True)
    pixels = (0.5 * inputs["points2d"]).requires_grad_()
    (g,) = torch.autograd.grad(f(pixels).square().sum(), pixels)
    x, gradient = with_gradient(inputs)
    return same((f(pixels).detach(), g), (2 * x.detach(), 8 * gradient))


def streams(place: Place) -> Row:
    """Two streams at once, with different problems."""
    needs_cuda(place)
    some = [given(B, place) for B in (200, 300)]
    expected = [with_gradient(inputs) for inputs in some]
    torch.cuda.synchronize()
    beside = [torch.cuda.Stream() for _ in some]
    found = []
    for stream, inputs in zip(beside, some, strict=True):
        with torch.cuda.stream(stream):
            found.append(with_gradient(inputs))
    torch.cuda.synchronize()
    return same(tuple(t for pair in found for t in pair), tuple(t for pair in expected for t in pair))


def second_card(place: Place) -> Row:
    """Tensors of another card than the current one."""
    needs_cuda(place, 2)
    expected = with_gradient(given(64, place))
    return same(with_gradient(given(64, place, torch.device("cuda", 1))), expected)


def behaviour(place: Place, options: Mapping[str, Any]) -> Measures:
    """See the module."""
    for name in ("points2d", "points3d", "K", "distortion", "weights", "init"):
        index = (0,) if name == "distortion" else (3, 0) if name.startswith(("points", "w")) else (0, 0)
        yield f"NaN in {name}", partial(wrong, place, name, index, torch.nan)
    yield "K without its third row", partial(wrong, place, "K", (2, 2), 0.0)
    yield "init that is no rotation", partial(wrong, place, "init", (0, 0), 2.0)
    more: dict[str, Callable[[Place], Row]] = {
        "a call with its gradient": waits, "CUDA graph, with backward": captured, "two streams": streams,
        "a second card": second_card, "torch.compile": compiled,
    }  # fmt: skip
    for name, measure in more.items():
        yield name, partial(measure, place)
