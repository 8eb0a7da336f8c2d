"""BPnP: the Perspective-n-Point problem as a layer.

The pose minimises half the sum of rho(|w_i (project(X_i) - x_i)|^2) over the visible points: the reprojection error
itself, not a depth-scaled substitute, so that the implicit gradient belongs to the minimum that is returned.
After "End-to-End Learnable Geometric Vision by Backpropagating PnP Optimization", CVPR 2020, arXiv 1909.06043.
"""

from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn

from geometry import se3
from geometry.camera import Model
from geometry.optim import Gradient, Solution, Status, argmin, minimize
from geometry.pose import operator
from geometry.pose.data import precision, prepare
from geometry.pose.problem import pnp_problem
from geometry.pose.start import find_pose
from geometry.robust import Kernel, RobustKernel

__all__ = ["BPnP", "PoseSolution", "pnp", "pnp_problem"]


@dataclass(frozen=True)
class PoseSolution(Solution):
    """`Solution` of `pnp`, with the runner-up of a global search; both are None where `init` was given.

    second (B,4,4): another local minimum, as of a planar object seen from afar; a copy of x where none was found.
    ratio (B,): cost of x over cost of second; near 1 the two cannot be told apart; 0 where there is no second.
    """

    second: Tensor | None = None
    ratio: Tensor | None = None


def pnp(
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor,
    *,
    distortion: Tensor | None = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    init: Tensor | None = None,
    model: Model = "radtan",
    kernel: Kernel | None = None,
    gradient: Gradient = "exact",
    max_steps: int = 50,
    solve_dtype: torch.dtype = torch.float64,
    throw: bool = False,
) -> PoseSolution:
    """Camera pose from 2D-3D correspondences, differentiable in every input by the implicit function theorem.

    points2d (B,N,2) px; points3d (B|1,N,3) or (N,3); K (B|1,3,3) or (3,3); distortion (B|1,k) or (k,) of `model`
    (`geometry.camera`); weights (B|1,N) or (B|1,N,2) multiply the residual (1/sigma; zero means absent);
    mask (B|1,N) bool, False means absent, in value and in gradient; kernel: a robust kernel over the weighted pixel
    error of a point. Returns PoseSolution with x = world_to_camera (B,4,4), at the dtype (float32 for 16-bit inputs,
    which may be mixed with float32) and on the device of points2d.
    solve_dtype: the precision inside; float32 cannot tell depth from rotation once the object is a few pixels wide.

    init (B|1,4,4): a pose to start from; the local minimum next to it is returned. With init=None the global
    minimum is sought: the object-space error, a quadratic form in R, is minimised on SO(3) from the 24
    rotations of a cube, its distinct minima with the points in front of the camera are refined on the
    reprojection error, and the best is kept (`geometry.pose.start`), with the second best beside it
    (`PoseSolution`). At least 4 points, planar or not; 3 with init.

    gradient: "exact", "gauss_newton" or "unrolled" (`geometry.argmin`). status per sample: CONVERGED;
    STALLED after max_steps; SINGULAR (collinear points); INFEASIBLE (a point behind the camera at `init`); TOO_FEW
    points left by the mask. A sample that did not converge has gradient zero and leaves the others untouched.
    Raises ValueError naming the argument for wrong shapes, dtypes, devices, too few points or non-finite values;
    with throw=True, SolverError where a sample failed.

    On the CPU a compiled kernel does the work (`geometry.compiled`), on as many threads as torch has; it can be
    vmapped, differentiated twice, and stands in torch.compile'd code. Elsewhere, and for what the kernel does not know
    (model="fisheye", kernels of your own, gradient="unrolled"), the batched tensor operations of
    `geometry.pose.problem` do: the same poses and gradients, once differentiable, and on a CPU two hundred times
    slower.
    """
    if gradient not in ("exact", "gauss_newton", "unrolled"):
        raise ValueError(f'gradient must be "exact", "gauss_newton" or "unrolled", got {gradient!r}')
    tensors = prepare(points2d, points3d, K, distortion, weights, mask, init, model)
    if any(d.dtype != solve_dtype for d in tensors[:5]):
        tensors = (*(d.to(solve_dtype) for d in tensors[:5]), tensors[5])
    if init is not None:
        init = init.detach().to(solve_dtype)
    second = ratio = None
    if points2d.device.type == "cpu" and model == "radtan" and gradient != "unrolled" and _is_known(kernel):
        name, scale, alpha = ("none", 1.0, 1.0) if kernel is None else (kernel.name, kernel.scale, kernel.alpha)
        options = (name, scale, alpha, max_steps)
        fewest = 3
        if init is None:
            with torch.no_grad():
                init, second, ratio = operator.search(*tensors, *options)
            fewest = 4
        pose, cost, status, steps = operator.solve(*tensors, init, *options, fewest, gradient == "exact")
    else:
        pose, cost, status, steps, second, ratio = _pnp_in_tensors(tensors, init, model, kernel, gradient, max_steps)
    if second is not None and ratio is not None:
        second = torch.where((ratio > 0)[:, None, None], second, pose.detach())
    dtype = precision(points2d)
    if dtype != solve_dtype:
        pose, cost = pose.to(dtype), cost.to(dtype)
        second, ratio = (None, None) if second is None or ratio is None else (second.to(dtype), ratio.to(dtype))
    solution = PoseSolution(pose, cost, status, steps, second, ratio)
    if throw:
        solution.raise_if_failed()
    return solution


def _is_known(kernel: Kernel | None) -> TypeGuard[RobustKernel | None]:
    """Whether the compiled solver knows this robust kernel."""
    return kernel is None or isinstance(kernel, RobustKernel)


def _pnp_in_tensors(
    tensors: tuple[Tensor, ...],
    init: Tensor | None,
    model: Model,
    kernel: Kernel | None,
    gradient: Gradient,
    max_steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """What `operator` does, by `minimize` and `argmin` on `pnp_problem`."""
    B, N, _ = tensors[0].shape
    points2d, points3d, K, distortion, weights, mask = (d.expand(B, *d.shape[1:]) for d in tensors)
    visible = mask.expand(B, N)
    # A masked entry may hold anything, NaN included: it is replaced before it meets a derivative.
    points2d, points3d, weights = (
        torch.where(visible[..., None], d, 0) for d in (points2d, points3d, weights.expand(B, N, 2))
    )
    named = {"points2d": points2d, "points3d": points3d, "K": K, "distortion": distortion, "weights": weights}
    for name, value in named.items() if init is None else (*named.items(), ("init", init)):
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} must be finite where mask is True, got NaN or infinity")
    # weight zero means absent, also where the point lies behind the camera
    visible = visible & (weights != 0).any(-1)
    # Turn about the middle of the object: about a far origin, rotation and translation can hardly be told apart.
    count = visible.sum(-1, keepdim=True)
    centre = (points3d.detach() * visible[..., None]).sum(1) / count.clamp_min(1)
    data = (points2d, points3d - centre[:, None], K, distortion, weights, visible)
    problem = pnp_problem(model, kernel)

    def moved(pose: Tensor, sign: float) -> Tensor:
        """The pose about the centre instead of the origin (1), or back (-1)."""
        R = pose[:, :3, :3]
        return se3.make(R, pose[:, :3, 3] + sign * (R @ centre[..., None]).squeeze(-1))

    second = ratio = None
    with torch.no_grad():
        if init is None:
            a, b = (minimize(problem, start, *data, max_steps=max_steps) for start in find_pose(problem, *data, model))
            start, second, ratio = operator.better(a.x, a.cost, a.status, b.x, b.cost, b.status)
            second = moved(second, -1)
        else:
            # a rotation that was rounded to float32, or came from a file, is made one again
            R = se3.rotation_from_quat_wxyz(se3.quat_wxyz_from_rotation(init[..., :3, :3]))
            start = moved(se3.make(R, init[..., :3, 3]).expand(B, 4, 4), 1)
    found = argmin(problem, start, *data, gradient=gradient, max_steps=max_steps)
    # A sample with too few points may look converged to the solver; it is not, and its gradient is dropped.
    enough = count.squeeze(-1) >= (4 if init is None else 3)
    pose = moved(found.x, -1)
    pose = torch.where(enough[:, None, None], pose, pose.detach())
    status = torch.where(enough, found.status, torch.full_like(found.status, Status.TOO_FEW))
    return pose, found.cost, status, found.steps, second, ratio


class BPnP(nn.Module):
    """`pnp` as a module: points2d (B,N,2) in, world_to_camera (B,4,4) out.

    points3d (N,3) or (B,N,3), K and the keywords of `pnp` are given once, or per call as keywords, which win.
    vector=True returns the six-vector [rotvec, t] (B,6) of the published code instead. Tensors given here are
    buffers (they move with .to()); pass nn.Parameter objects per call, or register them on the parent, to learn them.
    """

    points3d: Tensor | None
    K: Tensor | None

    def __init__(
        self,
        points3d: Tensor | None = None,
        K: Tensor | None = None,
        *,
        vector: bool = False,
        model: Model = "radtan",
        kernel: Kernel | None = None,
        gradient: Gradient = "exact",
        max_steps: int = 50,
    ) -> None:
        super().__init__()
        self.register_buffer("points3d", points3d, persistent=False)
        self.register_buffer("K", K, persistent=False)
        self.vector, self.model, self.kernel = vector, model, kernel
        self.gradient, self.max_steps = gradient, max_steps

    def forward(
        self,
        points2d: Tensor,
        points3d: Tensor | None = None,
        K: Tensor | None = None,
        *,
        distortion: Tensor | None = None,
        weights: Tensor | None = None,
        mask: Tensor | None = None,
        init: Tensor | None = None,
    ) -> Tensor:
        """The pose (B,4,4), or [rotvec, t] (B,6) with vector=True; arguments, and what is raised, as in `pnp`."""
        points3d = self.points3d if points3d is None else points3d
        K = self.K if K is None else K
        if points3d is None or K is None:
            raise ValueError(f"{'points3d' if points3d is None else 'K'} must be given to BPnP or to its call")
        pose = pnp(
            points2d,
            points3d,
            K,
            distortion=distortion,
            weights=weights,
            mask=mask,
            init=init,
            model=self.model,
            kernel=self.kernel,
            gradient=self.gradient,
            max_steps=self.max_steps,
        ).x
        return se3.rotvec_t(pose) if self.vector else pose
