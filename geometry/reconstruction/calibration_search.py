"""Where a calibration starts, and how it finds the lowest of its minima and ends on it.

A plane that is seen from afar has two poses of nearly the same image, the one the other reversed in depth (Schweighofer
and Pinz 2006, TPAMI 28(12)). Which of them is the lower one changes with the intrinsics, so that a view that is left in
the one at hand makes a minimum of its own. Descents begin from several focal lengths at once; after some of their
trials both minima of every view are looked at, at what they cost and at what they would if the intrinsics followed.

A long lens trades its principal point for the turns of the boards and its focal length for the bend of its lens, so
that descents over all of these from afar end in minima of their own, or not at all. The principal point is therefore
held in the middle of the image until the rest is found, and a lens is said to bend by so much at so many pixels from
it, which its focal length does not change. Where it lies far from the middle, the turns and the bend that were found
are those of the wrong one, often mirrored: descents then begin anew from several principal points.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from geometry.compiled.constants import SAME_COST, SAME_STEP
from geometry.lenses import LENSES
from geometry.optim import NestedState, Status, map_state, nested_start, nested_step, share, solve_spd
from geometry.reconstruction.calibration_problem import CalibrationProblem, Minima, start_intrinsics
from geometry.robust import widened

__all__ = ["solve"]

_FOCAL = tuple(0.25 * 4.0**i for i in range(5))
"""Focal lengths to start from, in parts of the longer side: 136 degrees across down to one."""
_TELLING = 10
"""Views that they are compared by."""
_TOGETHER, _TRIALS = 3, 15
"""How many of them are descended from together, and for how many trials at the most before the best goes on alone."""
_GRADUAL = (30.0, 8.0, 2.0)
"""Times the scale of a robust kernel, one after the other, before the kernel itself."""
_HOPELESS = 10.0
"""Times the lowest cost among them: one that is left behind."""
_CAUTION = 1e-2
"""Damping of the step by which it is foreseen what other minima of the views would lead to."""
_WORTH, _ATTEMPTS = 1.01, 3
"""A place of no more than so many times the cost is worth a descent; how many of them are."""
_FAR, _PLACES = 0.03, ((0.0, 0.0), (-0.25, -0.25), (-0.25, 0.25), (0.25, -0.25), (0.25, 0.25))
"""Where the principal point is far from the middle, in parts of the longer side; and places of it to begin from then,
in parts of the image."""
_NEAR = 1e-7
"""Predicted relative decrease at which Newton takes over."""
_ROUGH = 1e-3
"""And that which will do on the way."""
_LOOKS = (2, 6)
"""Trials after which the global minima of all views are looked at."""
_POLISH = 4
"""Newton steps at the end, at the most."""


def _likely_starts(problem: CalibrationProblem, start: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """theta (S,P) and poses (S,V,4,4) of the few focal lengths that suit the views best, best first.

    Five focal lengths are tried, each four times the one before, by the cost of PnP in a few views, all else as in
    `start` (P,). Fewer come back where others are hopeless beside the best. size: of the image in px.
    """
    theta = start.repeat(len(_FOCAL), 1)
    theta[:, :2] = size * start.new_tensor(_FOCAL)[:, None]
    V = len(problem.mask)
    few = torch.linspace(0, V - 1, min(V, _TELLING), device=start.device).round().long()
    points3d = problem.points3d[few] if problem.points3d.ndim == 3 else problem.points3d
    some = replace(problem, points2d=problem.points2d[few], points3d=points3d, mask=problem.mask[few])
    found = some.minima(theta, None)
    # without a pose a view is explained no better than by its middle
    seen = some.mask[..., None]
    middle = torch.where(seen, some.points2d, 0).sum(1, keepdim=True) / seen.sum(1, keepdim=True)
    nothing = 0.5 * torch.where(seen, some.points2d - middle, 0).square().sum((1, 2))
    cost, best = torch.minimum(found.cost, nothing).sum(1).topk(_TOGETHER, largest=False)
    best = best[cost <= _HOPELESS * cost[0]]
    return theta[best], found.poses[best] if len(few) == V else problem.minima(theta[best], None).poses


def _search(problem: CalibrationProblem, start: Tensor, size: int, max_steps: int, floor: float) -> NestedState:
    """The lowest minimum that descents from likely starts lead to, which are one descent after a while.

    start (P,): the principal point is held where it is there until the rest is found; where it then goes far, so that
    the rest was found for a wrong one, descents begin from several, with as many steps of their own: the first may have
    spent theirs on a focal length that runs away. size: of the image in px.
    """
    orders, middle = start.new_tensor(LENSES[problem.model].powers[: len(start) - 4]), start[2:4]

    def plain(x: Tensor) -> Tensor:
        """theta (…,P) of x, whose coefficients say what a lens of a focal length of `size` would need."""
        return torch.cat([x[..., :4], x[..., 4:] * (x[..., :1] / size) ** orders], -1)

    def at_size(theta: Tensor) -> Tensor:
        """x (…,P) of theta (…,P)."""
        return torch.cat([theta[..., :4], theta[..., 4:] / (theta[..., :1] / size) ** orders], -1)

    def freed(x: Tensor) -> Tensor:
        """x (…,P) with the principal point in its place, of x (…,P-2) without."""
        return torch.cat([x[..., :2], middle.expand(*x.shape[:-1], 2), x[..., 2:]], -1)

    x, inner = _likely_starts(problem, start, size)
    likely = x[0, 0]
    if len(orders) == 0:  # nothing bends that could make up for a principal point
        unbent, (x, inner, steps) = problem, _together(problem, x, inner, max_steps, floor)
    else:
        unbent = replace(problem, unpack=lambda x: problem.unpack(plain(x)))
        held = replace(problem, unpack=lambda x: problem.unpack(plain(freed(x))))
        x = at_size(x)
        x, inner, steps = _together(held, torch.cat([x[:, :2], x[:, 4:]], 1), inner, max_steps, floor)
        x = freed(x)
    best = _settled(unbent, x, inner, steps, max_steps, floor)
    if ((best.theta[:, 2:4] - middle).abs() > _FAR * size).any():
        several = start.repeat(len(_PLACES), 1)
        f = best.theta[:, :2].mean()
        several[:, :2] = torch.where(f < 4 * likely, f, likely)  # it may have run away
        several[:, 2:4] += 2 * middle * start.new_tensor(_PLACES)
        x, inner, steps = _together(unbent, at_size(several), None, max_steps, floor)
        another = _settled(unbent, x, inner, steps, max_steps, floor)
        best = another if (another.cost < best.cost).all() else best
    return best._replace(theta=plain(best.theta))


def _together(
    problem: CalibrationProblem, x: Tensor, inner: Tensor | None, max_steps: int, floor: float
) -> tuple[Tensor, Tensor, int]:
    """The best of the descents from x (S,P) after some trials: x (1,P) and poses, and how many trials were made."""
    steps = 0
    kernels = [problem.kernel]
    if problem.kernel is not None:
        kernels = [*(widened(problem.kernel, factor) for factor in _GRADUAL), problem.kernel]
    for kernel in kernels:
        wide = replace(problem, kernel=kernel)
        state = nested_start(wide, x, inner)
        while not state.done[state.cost.argmin()] and steps + state.steps < max_steps and state.steps < _TRIALS:
            state = nested_step(wide, state, tolerance=_ROUGH, floor=floor)
            state = _chosen(state, state.cost <= _HOPELESS * state.cost.amin())
            if state.steps in _LOOKS:
                state = _looked(wide, state)
        state = _chosen(state, state.cost.argmin()[None])
        x, inner, steps = state.theta, state.inner, steps + state.steps
    return state.theta, state.inner, steps


def _settled(
    problem: CalibrationProblem, x: Tensor, inner: Tensor, steps: int, max_steps: int, floor: float
) -> NestedState:
    """The minimum that a descent from x (1,P) ends in, or a lower one with other minima of the views."""
    best = _descended(problem, nested_start(problem, x, inner)._replace(steps=steps), max_steps, floor)
    starts = _others(problem, best)
    while starts and best.steps < max_steps:
        found = _descended(problem, starts.pop(0)._replace(steps=best.steps), max_steps, floor)
        if (found.cost < (1 - 1e-9) * best.cost).item():
            best, starts = found, _others(problem, found)
        else:
            best = best._replace(steps=found.steps)
    return best


def _descended(
    problem: CalibrationProblem, state: NestedState, max_steps: int, floor: float, tolerance: float = _NEAR
) -> NestedState:
    """To the end; by exact steps where Gauss-Newton's go to and fro, as where the residuals bend a weak direction."""
    last = state.steps + _TRIALS
    while not state.done.all() and state.steps < max_steps:
        each = problem if state.steps < last else replace(problem, exact=True)
        state = nested_step(each, state, tolerance=tolerance, floor=floor)
    return state


def _chosen(state: NestedState, which: Tensor) -> NestedState:
    """Some of the trials: `which` is their indices, or a mask (S,)."""
    return NestedState._make((*map_state(lambda part: part[which], tuple(state[:-1])), state.steps))


def _looked(problem: CalibrationProblem, state: NestedState) -> NestedState:
    """The trials with the global minima of the views where they are lower than what was descended to, and besides each
    that promises a lower cost with other ones, as one more trial.
    """
    found = problem.here(state.theta, state.inner).or_lower(problem.minima(state.theta, None))
    swaps = _Swaps.at(problem, state.theta, found)
    second = swaps.best()
    promising = second.any(1)
    state = state._replace(inner=found.poses, cost=found.cost.sum(1))
    if not promising.any():
        return state
    theta, inner = state.theta[promising], torch.where(second[..., None, None], found.others, found.poses)[promising]
    more = nested_start(problem, theta, inner)
    both = map_state(lambda a, b: torch.cat([a, b]), tuple(state[:-1]), tuple(more[:-1]))
    return NestedState._make((*both, state.steps))


class _Swaps(NamedTuple):
    """What the cost of S trials becomes if theta follows some of the V views into their second minima.

    Both minima of each view to second order: costs (S,V,2), gradients (S,V,2,P) and matrices (S,V,2,P,P).
    """

    cost: Tensor
    gradient: Tensor
    matrix: Tensor

    @staticmethod
    def at(problem: CalibrationProblem, theta: Tensor, found: Minima) -> "_Swaps":
        both = problem.of_views(theta.repeat(2, 1), torch.cat([found.poses, found.others]))
        gradient, matrix = (torch.stack(part.chunk(2), 2) for part in both[:2])
        return _Swaps(torch.stack([found.cost, found.other_cost], 2), gradient, matrix)

    def predicted(self, second: Tensor) -> Tensor:
        """Costs (k,S) after a step of theta, of k choices of minima (k,S,V) bool; infinite where there is no second."""
        which = second[..., None]
        cost, gradient, matrix = (
            torch.where(which.view(*second.shape, *[1] * (part.ndim - 3)), part[:, :, 1], part[:, :, 0]).sum(2)
            for part in self
        )
        damped = matrix + torch.diag_embed(_CAUTION * matrix.diagonal(dim1=-2, dim2=-1))
        step, ok = solve_spd(damped.flatten(0, 1), gradient.flatten(0, 1))
        gain = 0.5 * (gradient * step.view_as(gradient)).sum(-1)
        return torch.where(ok.view_as(cost), cost - gain, torch.inf).nan_to_num(torch.inf, torch.inf, torch.inf)

    def best(self) -> Tensor:
        """The choice (S,V) of least predicted cost that swaps of single views, one after the other, lead to."""
        S, V, _ = self.cost.shape
        choice = torch.zeros(S, V, dtype=torch.bool, device=self.cost.device)
        single = torch.eye(V, dtype=torch.bool, device=choice.device)[:, None]
        least = self.predicted(choice[None])[0]
        for _ in range(2 * V):
            cost, view = self.predicted(choice ^ single).min(0)
            lower = cost < (1 - 1e-6) * least
            if not lower.any():
                break
            choice = torch.where(lower[:, None], choice ^ single[view, 0], choice)
            least = torch.where(lower, cost, least)
        return choice


def _others(problem: CalibrationProblem, state: NestedState) -> list[NestedState]:
    """Places that promise a lower cost: with the global minima of all views, or with the second one of a view."""
    theta, here = state.theta, problem.here(state.theta, state.inner)
    found = here.or_lower(problem.minima(theta, None))
    if found.cost.sum().item() < (1 - 1e-9) * state.cost.item():
        return [nested_start(problem, theta, found.poses)._replace(steps=state.steps)]
    single = torch.eye(len(problem.mask), dtype=torch.bool, device=theta.device)
    cost, view = _Swaps.at(problem, theta, found).predicted(single[:, None])[:, 0].sort()
    views = view[cost < _WORTH * state.cost][:_ATTEMPTS]
    starts = torch.where(single[views, None, :, None, None], found.others, found.poses)
    return [nested_start(problem, theta, inner)._replace(steps=state.steps) for inner in starts]


def _polished(problem: CalibrationProblem, state: NestedState, size: float) -> tuple[NestedState, Tensor, Tensor]:
    """Newton's steps on the gradient of the reduced cost, which a descent by cost leaves at sqrt(eps).

    Returns the state, and whether it is stationary and a strict minimum (1,). size: of the image in px.
    """
    theta, inner, cost = state.theta, state.inner, state.cost
    eps = torch.finfo(cost.dtype).eps
    hessian, here = problem.reduced(theta, inner, exact=True), problem.reduced(theta, inner)

    def newton(gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The step, what it takes from the cost, and whether it is too small to be seen in the image."""
        step, _ = solve_spd(hessian.matrix, -gradient, 0.0)
        moved = (here.diagonal * step.square()).amax(1).sqrt()
        return step, -0.5 * (gradient * step).sum(1), moved <= eps**SAME_STEP * size

    step, gain, still = newton(here.gradient)
    for _ in range(_POLISH):
        if (still | (gain <= 0)).all():
            break
        moved = problem.retract(theta, step)
        new, poses = problem.evaluate(moved, inner)
        there = problem.reduced(moved, poses)
        if not (new <= SAME_COST * cost + 1e3 * eps).all():
            break
        another, less, small = newton(there.gradient)
        if not (less < gain).all():
            break
        slow = (less > 1e-4 * gain).all() and not small.all()
        theta, inner, cost, here, step, gain, still = moved, poses, new, there, another, less, small
        if slow:  # the Hessian has changed on the way
            hessian = problem.reduced(theta, inner, exact=True)
            step, gain, still = newton(here.gradient)
    curved = share(hessian.matrix, torch.maximum(hessian.diagonal.abs(), here.diagonal))
    strict = (torch.minimum(curved, hessian.poses) > problem.margin(theta)) & problem.determined(theta, here)
    stationary = strict & (still | (gain <= eps * cost))
    return state._replace(theta=theta, inner=inner, cost=cost), stationary, strict


def solve(
    problem: CalibrationProblem, image_size: tuple[int, int], distortion: int, max_steps: int
) -> tuple[NestedState, Tensor, Tensor]:
    """Where the search ends, its `Status` (1,), and which unknowns (P,) the data do not tell."""
    start, size = start_intrinsics(image_size, distortion, problem.model, problem.points2d), max(image_size)
    if len(problem.mask) == 0:
        nothing = start.new_full((1,), torch.inf)
        state = NestedState(start[None], start.new_zeros(1, 0, 4, 4), nothing, nothing, nothing, nothing > 0, 0)
        return state, torch.full_like(nothing, Status.TOO_FEW, dtype=torch.int8), torch.ones_like(start) > 0
    # perfect corners leave nothing but rounding: about 1e-14 of the image
    floor = 0.5 * int(problem.mask.sum()) * (1e-14 * size) ** 2
    state = _search(problem, start, size, max_steps, floor)
    none = torch.zeros_like(state.theta[0], dtype=torch.bool)
    if not (state.done & torch.isfinite(state.cost)).all():
        status = torch.where(torch.isfinite(state.cost), Status.STALLED, Status.INFEASIBLE)
        return state, status.to(torch.int8), none
    state, stationary, strict = _polished(problem, state, size)
    if (strict & ~stationary).all():  # Newton came too early
        begun = nested_start(problem, state.theta, state.inner)._replace(steps=state.steps)
        state = _descended(replace(problem, exact=True), begun, max_steps, floor, tolerance=1e-13)
        state, stationary, strict = _polished(problem, state, size)
    status = torch.where(stationary, Status.CONVERGED, torch.where(strict, Status.STALLED, Status.SINGULAR))
    status = status.to(torch.int8)
    singular = status == Status.SINGULAR
    return state, status, problem.undetermined(state.theta, state.inner) if singular.all() else none
