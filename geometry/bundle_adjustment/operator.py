"""The bundle's observations by kernels: `geometry.compiled.bundle_adjustment.observations` around tensors and threads,
or `cuda`.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geometry.bundle_adjustment import cuda, sums
from geometry.bundle_adjustment.indices import Layout
from geometry.bundle_adjustment.products import symmetric
from geometry.compiled.constants import FISHEYE, ROBUST
from geometry.compiled.launch import arrays, compiles_for, in_parallel
from geometry.robust import Kernel, RobustKernel

__all__ = ["Blocks", "linearize", "point_costs", "supported"]

_PIXELS = ("f", "fx", "fy", "cx", "cy")
# What kernels call the free intrinsics, of the lenses that they know.
_CODES = {
    model: {name: i for i, name in enumerate((*_PIXELS, *names))}
    for model, names in {"radtan": ("k1", "k2", "p1", "p2", "k3"), "fisheye": ("k1", "k2", "k3", "k4")}.items()
}


class Blocks(NamedTuple):
    """What observations add to the normal equations, view by view: cost (), gradients (V,p) and (N,3), U, W, V."""

    cost: Tensor
    views: Tensor
    points: Tensor
    U: Tensor
    W: Tensor
    V: Tensor


def supported(points2d: Tensor, names: tuple[str, ...], model: str, kernel: Kernel | None) -> bool:
    """Whether kernels know lens, free intrinsics and robust kernel, and can be had where the tensors lie."""
    known = kernel is None or isinstance(kernel, RobustKernel)
    return model in _CODES and known and set(names) <= _CODES[model].keys() and compiles_for(points2d)


def _inputs(
    scene: tuple[Tensor, ...], intrinsics_index: Tensor, points2d: Tensor, weights: Tensor, layout: Layout,
    kernel: Kernel | None, model: str,
) -> tuple[Any, ...]:  # fmt: skip
    """Arguments that the kernels begin with: scene, seen, robust, in tensors."""
    poses, points, K, distortion = scene
    A = K[:, :2, :2].flatten(1)
    lens = torch.nn.functional.pad(distortion, (0, 12 - distortion.shape[1]))
    intrinsics = torch.cat([A, K[:, :2, 2], lens], 1)[intrinsics_index]
    cameras = torch.cat([poses[:, :3, :3].flatten(1), poses[:, :3, 3], intrinsics], 1)
    # to know whether all coefficients are zero a device would be waited for
    bent = distortion.shape[1] > 0 and (sums.on_device(distortion) or bool(distortion.any()))
    seen = layout.view, layout.point, torch.cat([points2d, weights], 1)
    assert kernel is None or isinstance(kernel, RobustKernel)
    name = "none" if kernel is None else kernel.name
    scale, alpha = (1.0, 1.0) if kernel is None else (float(kernel.scale), float(kernel.alpha))
    return (
        (cameras, points.contiguous(), FISHEYE if model == "fisheye" else int(bent)),
        seen,
        (ROBUST[name], scale * scale, alpha),
    )


@lru_cache(maxsize=64)
def _codes(model: str, names: tuple[str, ...], device: torch.device) -> Tensor:
    """What kernels call the free intrinsics; kept, because a device would be waited for at every copy."""
    return torch.tensor([_CODES[model][name] for name in names], dtype=torch.int64, device=device)


def point_costs(
    scene: tuple[Tensor, ...], intrinsics_index: Tensor, points2d: Tensor, weights: Tensor, layout: Layout,
    kernel: Kernel | None, model: str,
) -> Tensor:  # fmt: skip
    """Costs (N,) of the points' observations. scene: world_to_camera, points3d, K, distortion."""
    inputs = _inputs(scene, intrinsics_index, points2d, weights, layout, kernel, model)
    if sums.on_device(points2d):
        return cuda.point_costs(inputs, layout)
    from geometry.compiled.bundle_adjustment.observations import observe

    inputs = arrays(inputs)
    costs = torch.zeros(len(scene[1]), dtype=torch.float64)

    def work(begin: int, end: int, slot: int) -> None:
        i, j = int(layout.begin[begin]), int(layout.begin[end])
        observe(*inputs, i, j, costs.numpy())

    in_parallel(layout.parts, work)
    return costs


def linearize(
    scene: tuple[Tensor, ...], intrinsics_index: Tensor, points2d: Tensor, weights: Tensor, layout: Layout,
    kernel: Kernel | None, model: str, *, names: tuple[str, ...], exact: bool,
) -> Blocks:  # fmt: skip
    """Normal equations, as `geometry.bundle_adjustment.problem` makes them in tensor operations."""
    inputs = _inputs(scene, intrinsics_index, points2d, weights, layout, kernel, model)
    codes = _codes(model, names, points2d.device)
    if sums.on_device(points2d):
        cost, views, points, U, W, V = cuda.linearize(inputs, codes, exact, layout)
    else:
        cost, views, points, U, W, V = _linearize(arrays(inputs), (codes.numpy(), exact), layout)
    return Blocks(cost, views, points, symmetric(U), W, symmetric(V))


def _linearize(inputs: tuple[Any, ...], wanted: tuple[Any, bool], layout: Layout) -> tuple[Tensor, ...]:
    """The same of `Blocks` on the CPU, of U and V the lower triangles."""
    from geometry.compiled.bundle_adjustment import observations

    V, N, M, p = len(layout.rows), len(layout.held), len(layout.view), 6 + len(wanted[0])
    threads = len(layout.parts) - 1
    U, views = torch.zeros(threads, V, p, p, dtype=torch.float64), torch.zeros(threads, V, p, dtype=torch.float64)
    W, blocks = torch.empty(M, p, 3, dtype=torch.float64), torch.zeros(N, 3, 3, dtype=torch.float64)
    points = torch.zeros(N, 3, dtype=torch.float64)

    def work(begin: int, end: int, slot: int) -> float:
        i, j = int(layout.begin[begin]), int(layout.begin[end])
        out = (U[slot].numpy(), views[slot].numpy(), W.numpy(), blocks.numpy(), points.numpy())
        return observations.linearize(*inputs, wanted, i, j, out)

    cost = sum(in_parallel(layout.parts, work))
    return torch.tensor(cost, dtype=torch.float64), views.sum(0), points, U.sum(0), W, blocks
