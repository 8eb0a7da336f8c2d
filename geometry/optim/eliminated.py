"""How the CPU runs strictly convex programs: `geometry.compiled.program`, eight of them at a time.

Their matrices stay in the cache, where tensors of the whole batch go through memory in every iteration, and x is
eliminated once. What is found is judged as everything else is; what is no minimum is left to the iterations of
`geometry.optim.interior_point`, which ask neither for few constraints nor for a definite Q.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from geometry.checks import intercepted
from geometry.compiled.launch import in_parallel
from geometry.optim.equations import Coefficients, Terms, Units

__all__ = ["DEFINITE", "Minimum", "fits", "minimum", "saddle_point"]

DEFINITE = torch.finfo(torch.float64).eps ** 0.5
"""The part of its diagonal by which Q is definite wherever x is eliminated, in the kernel as well."""

_LANES = 8
# Unknowns, and rows: the matrices of eight problems take 64 (n + m + q)^2 bytes of the cache.
_LARGEST = 256
# Multiplications a thread: below, a thread costs more than it brings (about 100 microseconds of work).
_WORTH_A_THREAD = 10**6


@cache
def _kernel() -> Callable[..., None]:
    """The kernel, imported when it is called for the first time, as numba takes half a second."""
    from geometry.compiled.program.solve import solve

    kernel: Callable[..., None] = solve
    return kernel


def fits(program: Coefficients, *others: Tensor) -> bool:
    """Whether to try: float64 that nothing looks on at, and not so many rows that they are much the larger system."""
    (M, n), B = program.C.shape[1:], len(program.p)
    small = 1 <= n <= _LARGEST and min(_LARGEST, 2 * n + 32) >= M
    return small and B > 0 and program.p.dtype == torch.float64 and not intercepted((*program[:4], *others))


class Minimum(NamedTuple):
    """x, w and the active rows in the units of the program, interior-point steps (B,), and what meets there, with
    `pull` as of `certainly_unique`. NaN where Q is not definite."""

    x: Tensor
    w: Tensor
    active: Tensor
    steps: Tensor
    terms: Terms
    pull: Tensor


def minimum(program: Coefficients, units: Units, max_steps: int, polish: int) -> Minimum:
    """Where the iterations of the multipliers lead to; nothing says yet that it is a minimum."""
    (B, n), M = units.p.shape, units.d.shape[1]
    x, w, active, *terms = (units.p.new_empty(B, k) for k in (n, M, M, n, n, n, n, M, M, M, n))
    steps, _ = _run(program, units, (units.p, units.d), (max_steps, polish, 4), (x, w, active), terms)
    return Minimum(x, w, active, steps.int(), Terms(*terms[:7]), terms[7])


def saddle_point(
    program: Coefficients, units: Units, active: Tensor, rx: Tensor, rw: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """u, v of kappa Q u + C^T v = rx, C u = rw on the active rows, v = 0 on the others; and whether it is so (B,)."""
    u, v = rx.new_empty(rx.shape), rw.new_empty(rw.shape)
    _, change = _run(program, units, (-rx, rw), (0, 0, 6), (u, v, active.contiguous()), [u] * 8)
    return u, v, change < DEFINITE


def _run(
    program: Coefficients, units: Units, right: tuple[Tensor, Tensor], limits: tuple[int, int, int],
    out: tuple[Tensor, ...], terms: list[Tensor],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The kernel's report, on as many threads as are worth it."""
    (B, n), M, eps = right[0].shape, right[1].shape[1], torch.finfo(right[0].dtype).eps
    proximal = units.proximity[0].clamp_max(eps**0.25)[:, 0]
    scales = (
        units.Dx.expand(B, n),
        units.Dc.expand(B, M),
        units.kappa[:, 0].expand(B),
        proximal.expand(B),
    )
    data = tuple(t.detach().contiguous().numpy() for t in (program.Q, program.C, *right, *scales))
    report = right[0].new_empty(2, B, 1)
    arrays = tuple(tuple(t.detach().numpy() for t in tensors) for tensors in (out, terms, report))
    run, groups = _kernel(), -(-B // _LANES)
    parts = min(torch.get_num_threads(), groups, 1 + B * (n + M) ** 3 // _WORTH_A_THREAD)

    def work(begin: int, end: int, _: int) -> None:
        run(data, program.m, limits, (begin, end), *arrays)

    in_parallel([min(B, groups * i // parts * _LANES) for i in range(parts + 1)], work)
    return report[0, :, 0], report[1, :, 0]
