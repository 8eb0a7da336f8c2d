"""Products with the blocks of `geometry.bundle_adjustment.schur`, and the reduced matrix S: the loops over
observations.

Tensor operations are the reference; on the CPU the kernels of `geometry.compiled.bundle_adjustment.products` do the
same, and `cuda` does on devices where kernels can be had.
"""

import torch
from torch import Tensor

from geometry.bundle_adjustment import cuda, sums
from geometry.bundle_adjustment.indices import Layout
from geometry.compiled.launch import arrays, in_parallel

__all__ = ["couple", "couple_back", "own_blocks", "project_blocks", "reduce", "schur_product", "symmetric"]

# Entries of S that a chunk of pairs of observations may touch at a time.
_CHUNK = 4_000_000
# Numbers that the vectors of `reduce_pairs` may touch behind the last column.
_MARGIN = 32


def symmetric(lower: Tensor) -> Tensor:
    """Symmetric matrices (…,p,p) of their lower triangles, which is all that kernels fill."""
    return lower + lower.tril(-1).mT


def _kernels(W: Tensor, other: Tensor) -> bool:
    """Whether the kernels take these: on the CPU, one right-hand side."""
    return W.device.type == "cpu" and other.shape[-1] == 1


def couple(W: Tensor, points: Tensor, layout: Layout) -> Tensor:
    """W points: (M,p,3), (N,3,R) -> (D,R)."""
    if sums.on_device(W):
        return cuda.couple(W, points, layout)
    if _kernels(W, points):
        from geometry.compiled.bundle_adjustment import products as kernels

        out = W.new_zeros(len(layout.rows), W.shape[1])
        return layout.from_views(layout.in_parts(kernels.couple, W, points[..., 0], out=out))[:, None]
    return layout.from_views(layout.per_view(W @ points[layout.point]))


def couple_back(W: Tensor, cameras: Tensor, layout: Layout) -> Tensor:
    """W^T cameras: (M,p,3), (D,R) -> (N,3,R)."""
    if sums.on_device(W):
        return cuda.couple_back(W, cameras, layout)
    if _kernels(W, cameras):
        from geometry.compiled.bundle_adjustment import products as kernels

        out = W.new_zeros(len(layout.held), 3)
        return layout.in_parts(kernels.couple_back, W, layout.to_views(cameras[:, 0]), out=out)[..., None]
    return layout.per_point(W.mT @ layout.to_views(cameras)[layout.view])


def schur_product(W: Tensor, V_inverse: Tensor, cameras: Tensor, layout: Layout) -> Tensor:
    """W V^-1 W^T cameras: (M,p,3), (N,3,3), (D,R) -> (D,R)."""
    if sums.on_device(W):
        return cuda.schur_product(W, V_inverse, cameras, layout)
    if _kernels(W, cameras):
        from geometry.compiled.bundle_adjustment import products as kernels

        out = W.new_zeros(len(layout.rows), W.shape[1])
        views = layout.to_views(cameras[:, 0])
        return layout.from_views(layout.in_parts(kernels.schur_product, W, V_inverse, views, out=out))[:, None]
    return couple(W, V_inverse @ couple_back(W, cameras, layout), layout)


def project_blocks(W: Tensor, motions: Tensor, layout: Layout) -> Tensor:
    """motions^T W: (M,p,3), (V,p,c) -> (M,c,3)."""
    if sums.on_device(W):
        return cuda.project_blocks(W, motions, layout)
    if W.device.type != "cpu":
        return motions.mT[layout.view] @ W
    from geometry.compiled.bundle_adjustment import products as kernels

    out = W.new_empty(len(W), motions.shape[2], 3)
    inputs = arrays((W, motions.contiguous(), (layout.view, layout.begin)))
    in_parallel(layout.parts, lambda first, last, _: kernels.project_blocks(*inputs, first, last, out.numpy()))
    return out


def own_blocks(W: Tensor, V_inverse: Tensor, layout: Layout) -> Tensor:
    """The diagonal blocks of W V^-1 W^T, view by view: (V,p,p)."""
    if sums.on_device(W):
        return cuda.own_blocks(W, V_inverse, layout)
    if W.device.type == "cpu":
        from geometry.compiled.bundle_adjustment import products as kernels

        out = W.new_zeros(len(layout.rows), W.shape[1], W.shape[1])
        return symmetric(layout.in_parts(kernels.own_blocks, W, V_inverse, out=out))
    return layout.per_view(W @ V_inverse[layout.point] @ W.mT)


def reduce(U: Tensor, W: Tensor, V_inverse: Tensor, layout: Layout) -> Tensor:
    """S = U - W V^-1 W^T, dense (D,D)."""
    if sums.on_device(W):
        return cuda.reduce(U, W, V_inverse, layout)
    return _reduce_in_tensors(U, W, V_inverse, layout) if W.device.type != "cpu" else _reduce(U, W, V_inverse, layout)


def _reduce(U: Tensor, W: Tensor, V_inverse: Tensor, layout: Layout) -> Tensor:
    from geometry.compiled.bundle_adjustment.products import reduce_pairs

    size = layout.size + _MARGIN
    sums = torch.zeros(len(layout.parts) - 1, size, size, dtype=W.dtype)
    inputs = arrays((W.contiguous(), V_inverse.contiguous(), layout.runs, (layout.view, layout.begin)))

    def work(first: int, last: int, slot: int) -> None:
        reduce_pairs(*inputs, first, last, sums[slot].numpy())

    in_parallel(layout.parts, work)
    for other in sums[1:]:
        sums[0] += other
    half = sums[0, : layout.size, : layout.size]
    S = half + half.T
    inside, places = layout.diagonal_blocks
    S.view(-1).index_add_(0, places, U[inside])
    return S


def _reduce_in_tensors(U: Tensor, W: Tensor, V_inverse: Tensor, layout: Layout) -> Tensor:
    size = layout.size + 1  # the last row and column collect what is fixed
    S = U.new_zeros(size * size)

    def subtract(rows: Tensor, columns: Tensor, blocks: Tensor) -> None:
        S.index_add_(0, (rows[:, :, None] * size + columns[:, None, :]).flatten(), blocks.flatten(), alpha=-1)

    subtract(layout.rows, layout.rows, -U)
    WV = W @ V_inverse[layout.point]
    counts = layout.begin.diff()
    pairs = (counts * counts).cumsum(0)
    first = 0
    while first < len(counts):  # chunks of points, so that memory stays linear
        done = pairs[first - 1] if first else 0
        last = max(first + 1, int(torch.searchsorted(pairs, done + _CHUNK // W.shape[1] ** 2, right=True)))
        begin, end = int(layout.begin[first]), int(layout.begin[last])
        partners = counts[layout.point[begin:end]]
        left = torch.arange(begin, end, device=W.device).repeat_interleave(partners)
        offset = torch.arange(len(left), device=W.device) - (partners.cumsum(0) - partners).repeat_interleave(partners)
        right = layout.begin[layout.point[left]] + offset
        subtract(layout.rows[layout.view[left]], layout.rows[layout.view[right]], WV[left] @ W[right].mT)
        first = last
    return S.view(size, size)[:-1, :-1].contiguous()
