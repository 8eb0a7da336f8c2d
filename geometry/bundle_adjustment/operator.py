"""The bundle's observations on the CPU: `geometry.compiled.bundle_adjustment.observations` around tensors and
threads.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from geometry.bundle_adjustment.indices import Layout
from geometry.bundle_adjustment.products import symmetric
from geometry.compiled.constants import ROBUST
from geometry.compiled.launch import in_parallel
from geometry.robust import Kernel, RobustKernel

__all__ = ["Blocks", "linearize", "point_costs", "supported"]

_CODES = {name: i for i, name in enumerate(("f", "fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2", "k3"))}


class Blocks(NamedTuple):
    """What observations add to the normal equations, view by view: cost (), gradients (V,p) and (N,3), U, W, V."""

    cost: Tensor
    views: Tensor
    points: Tensor
    U: Tensor
    W: Tensor
    V: Tensor


def supported(points2d: Tensor, names: tuple[str, ...], model: str, kernel: Kernel | None) -> bool:
    """Whether the kernels know the lens, the free intrinsics and the robust kernel, and the tensors lie on the CPU."""
    known = kernel is None or isinstance(kernel, RobustKernel)
    return points2d.device.type == "cpu" and model == "radtan" and known and set(names) <= _CODES.keys()


def _inputs(
    scene: tuple[Tensor, ...], intrinsics_index: Tensor, points2d: Tensor, weights: Tensor, layout: Layout,
    kernel: Kernel | None,
) -> tuple:  # fmt: skip
    """Arguments that both kernels begin with: scene, seen, robust."""
    poses, points, K, distortion = scene
    A = K[:, :2, :2].flatten(1)
    lens = torch.nn.functional.pad(distortion, (0, 12 - distortion.shape[1]))
    intrinsics = torch.cat([A, K[:, :2, 2], lens], 1)[intrinsics_index]
    cameras = torch.cat([poses[:, :3, :3].flatten(1), poses[:, :3, 3], intrinsics], 1)
    arrays = (cameras.numpy(), points.contiguous().numpy(), bool(distortion.any()))
    seen = (layout.view.numpy(), layout.point.numpy(), torch.cat([points2d, weights], 1).numpy())
    assert kernel is None or isinstance(kernel, RobustKernel)
    name = "none" if kernel is None else kernel.name
    scale, alpha = (1.0, 1.0) if kernel is None else (float(kernel.scale), float(kernel.alpha))
    return arrays, seen, (ROBUST[name], scale * scale, alpha)


def point_costs(
    scene: tuple[Tensor, ...], intrinsics_index: Tensor, points2d: Tensor, weights: Tensor, layout: Layout,
    kernel: Kernel | None,
) -> Tensor:  # fmt: skip
    """Costs (N,) of the points' observations. scene: world_to_camera, points3d, K, distortion."""
    from geometry.compiled.bundle_adjustment.observations import observe

    inputs = _inputs(scene, intrinsics_index, points2d, weights, layout, kernel)
    costs = torch.zeros(len(scene[1]), dtype=torch.float64)

    def work(begin: int, end: int, slot: int) -> None:
        i, j = int(layout.begin[begin]), int(layout.begin[end])
        observe(*inputs, i, j, costs.numpy())

    in_parallel(layout.parts, work)
    return costs


def linearize(
    scene: tuple[Tensor, ...], intrinsics_index: Tensor, points2d: Tensor, weights: Tensor, layout: Layout,
    kernel: Kernel | None, *, names: tuple[str, ...], exact: bool,
) -> Blocks:  # fmt: skip
    """Normal equations, as `geometry.bundle_adjustment.problem` makes them in tensor operations."""
    from geometry.compiled.bundle_adjustment import observations

    inputs = _inputs(scene, intrinsics_index, points2d, weights, layout, kernel)
    V, N, M, p = len(scene[0]), len(scene[1]), len(points2d), 6 + len(names)
    codes = torch.tensor([_CODES[name] for name in names], dtype=torch.int64).numpy()
    threads = len(layout.parts) - 1
    U, views = torch.zeros(threads, V, p, p, dtype=torch.float64), torch.zeros(threads, V, p, dtype=torch.float64)
    W, blocks = torch.empty(M, p, 3, dtype=torch.float64), torch.zeros(N, 3, 3, dtype=torch.float64)
    points = torch.zeros(N, 3, dtype=torch.float64)

    def work(begin: int, end: int, slot: int) -> float:
        i, j = int(layout.begin[begin]), int(layout.begin[end])
        out = (U[slot].numpy(), views[slot].numpy(), W.numpy(), blocks.numpy(), points.numpy())
        return observations.linearize(*inputs, (codes, exact), i, j, out)

    cost = sum(in_parallel(layout.parts, work))
    return Blocks(
        torch.tensor(cost, dtype=torch.float64), views.sum(0), points, symmetric(U.sum(0)), W, symmetric(blocks)
    )
