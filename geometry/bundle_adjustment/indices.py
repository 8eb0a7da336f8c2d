"""Which observation belongs to which view and point, sorted once for all products of a bundle."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from geometry.bundle_adjustment import sums
from geometry.bundle_adjustment.sums import Groups, add_up, grouped
from geometry.compiled.launch import in_parallel

__all__ = ["Layout"]


# Observations a thread: below, a thread costs more than it brings.
_WORTH_A_THREAD = 2048
# Observations of a view that a thread of a device adds up: about as many as a point has.
_RUN = 8


@dataclass(frozen=True)
class Layout:
    """Which observation meets which unknowns. Observations are sorted by point; a view's unknowns are p columns.

    view (M,), point (M,): int64. rows (V,p): where the columns of each view lie among the D camera unknowns; D itself
    says nowhere (a fixed one). Views that share intrinsics share rows. blocks: (n,b) index sets that partition the
    camera unknowns, for the preconditioner. held (N,) bool: points that do not move.
    """

    view: Tensor
    point: Tensor
    rows: Tensor
    size: int
    blocks: tuple[Tensor, ...]
    held: Tensor

    @cached_property
    def begin(self) -> Tensor:
        """(N+1,): where each point's observations begin."""
        counts = torch.bincount(self.point, minlength=len(self.held))
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    @cached_property
    def apart(self) -> "Layout":
        """The same observations, each as of a view of its own."""
        each = torch.arange(len(self.view), device=self.view.device)
        return replace(self, view=each, rows=self.rows[self.view])

    @property
    def index(self) -> tuple[Tensor, Tensor, Tensor]:
        """What kernels of a device call index."""
        return self.view, self.point, self.begin

    @cached_property
    def by_view(self) -> Groups:
        """Observations by view."""
        return grouped(self.view, len(self.rows), _RUN)

    @cached_property
    def one_by_one(self) -> Groups:
        """Observations by view, a run each."""
        return grouped(self.view, len(self.rows), 1)

    @cached_property
    def by_row(self) -> Groups:
        """What adds to each camera unknown: numbers of `rows`, a run each."""
        return grouped(self.rows.flatten(), self.size, 1)

    @cached_property
    def by_row_and_observation(self) -> Groups:
        """What adds to each row of S: of M times p numbers. There are no more than about two runs a row, and memory."""
        rows = self.rows[self.view].flatten()
        return grouped(rows, self.size, max(64, -(-len(rows) // max(1, self.size))))

    @cached_property
    def parts(self) -> list[int]:
        """Bounds of as many parts of the points as threads are worth it, of like numbers of observations."""
        M, N = len(self.point), len(self.held)
        threads = max(1, min(torch.get_num_threads(), M // _WORTH_A_THREAD))
        inner = torch.searchsorted(self.begin, torch.arange(1, threads) * (M // threads))
        return [0, *inner.clamp_max(N).tolist(), N]

    @cached_property
    def runs(self) -> tuple[Tensor, Tensor]:
        """starts (V,r): the rows where runs of a view's columns begin, which lie side by side; bounds (r+1,): where
        the runs begin among the columns. Those that lie side by side in all views are one."""
        p = self.rows.shape[1]
        apart = self.rows[:, 1:] != self.rows[:, :-1] + 1
        # a fixed one is nowhere with all that belongs to it
        apart &= (self.rows[:, 1:] < self.size) | (self.rows[:, :-1] < self.size)
        begin = [0, *(1 + apart.any(0).nonzero().flatten()).tolist()]
        return self.rows[:, begin].contiguous(), torch.tensor([*begin, p])

    @cached_property
    def most(self) -> int:
        """Observations of a point at the most."""
        return int(self.begin.diff().max()) if len(self.view) else 0

    @cached_property
    def diagonal_blocks(self) -> tuple[Tensor, Tensor]:
        """Which entries of the views' blocks (V,p,p) are not fixed, and their places in a dense (D,D)."""
        rows = self.rows
        inside = (rows < self.size)[:, :, None] & (rows < self.size)[:, None, :]
        return inside, (rows[:, :, None] * self.size + rows[:, None, :])[inside]

    def in_parts(self, kernel: Callable[..., None], *inputs: Tensor, out: Tensor) -> Tensor:
        """A kernel of `geometry.compiled.bundle_adjustment.products` over the parts, each adding to an `out` of its
        own; their sum.
        """
        outs = [out, *(torch.zeros_like(out) for _ in self.parts[2:])]
        arrays = [t.contiguous().numpy() for t in inputs]
        index = self.view.numpy(), self.begin.numpy()
        in_parallel(self.parts, lambda first, last, i: kernel(*arrays, index, first, last, outs[i].numpy()))
        return out if len(outs) == 1 else torch.stack(outs).sum(0)

    def to_views(self, cameras: Tensor) -> Tensor:
        """The unknowns (D,…) of each view: (V,p,…), zero where fixed."""
        return torch.cat([cameras, cameras.new_zeros(1, *cameras.shape[1:])])[self.rows]

    def from_views(self, values: Tensor) -> Tensor:
        """Add up (V,p,…) into (D,…)."""
        if sums.on_device(values):
            return add_up(values.flatten(0, 1)[self.by_row.order], self.by_row)
        total = values.new_zeros(self.size + 1, *values.shape[2:])
        return total.index_add_(0, self.rows.flatten(), values.flatten(0, 1))[:-1]

    def per_point(self, values: Tensor) -> Tensor:
        """Add up (M,…) into (N,…)."""
        return values.new_zeros(len(self.held), *values.shape[1:]).index_add_(0, self.point, values)

    def per_view(self, values: Tensor) -> Tensor:
        """Add up (M,…) into (V,…)."""
        if sums.on_device(values):
            return add_up(values[self.one_by_one.order], self.one_by_one)
        return values.new_zeros(len(self.rows), *values.shape[1:]).index_add_(0, self.view, values)
