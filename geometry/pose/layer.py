"""BPnP: the Perspective-n-Point problem as a layer.

The pose minimises half the sum of rho(|w_i (project(X_i) - x_i)|^2) over the visible points: the reprojection error
itself, not a depth-scaled substitute, so that the implicit gradient belongs to the minimum that is returned.
After "End-to-End Learnable Geometric Vision by Backpropagating PnP Optimization", CVPR 2020, arXiv 1909.06043.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from geometry import se3
from geometry.camera import Model
from geometry.checks import check_tensors, check_tensors_or_none, one_of
from geometry.compiled.launch import compiles_for
from geometry.optim import Gradient, Solution, State, Status
from geometry.pose import compiled, tensors
from geometry.pose.certificate import certified
from geometry.pose.data import Options, PnPData, check_options, observed, precision, prepare
from geometry.pose.problem import PoseModel
from geometry.pose.rig_data import Data, bearing_data
from geometry.robust import Kernel, RobustKernel

__all__ = ["BPnP", "PoseSolution", "back_end", "data_of", "pnp", "solved"]


@dataclass(frozen=True)
class PoseSolution(Solution):
    """`Solution` of `pnp`, with the runner-up of a global search, and with a proof where one was asked for.

    second (B,4,4): another local minimum, as of a planar object seen from afar; a copy of x where none was found.
    ratio (B,): cost of x over cost of second; near 1 the two cannot be told apart; 0 where there is no second. Both are
    None where `init` was given.
    certified (B,) bool: with `certify`, whether x is proved to be the global minimum; else None.

    >>> solution = pnp(points2d, points3d, K)
    >>> solution.converged, bool((solution.ratio < 1).all())
    (tensor([True, True, True]), True)
    """

    second: State | None = None
    ratio: Tensor | None = None
    certified: Tensor | None = None


def pnp(
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor | None,
    *,
    distortion: Tensor | None = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    init: Tensor | None = None,
    model: PoseModel = "radtan",
    kernel: Kernel | None = None,
    gradient: Gradient = "exact",
    max_steps: int = 50,
    solve_dtype: torch.dtype = torch.float64,
    certify: bool = False,
    throw: bool = False,
) -> PoseSolution:
    """Camera pose from 2D-3D correspondences, differentiable in every input by the implicit function theorem.

    points2d (B,N,2) px; points3d (B,N,3); K (B,3,3); distortion (B,k) of `model` (`geometry.camera`); weights (B,N) or
    (B,N,2) multiply the residual (1/sigma; zero means absent); mask (B,N) bool, False means absent, in value and in
    gradient. What problems share is given once, without B or with 1 in its place (docs/conventions.md). kernel: a
    robust kernel over the weighted pixel error of a point. Returns PoseSolution with x = world_to_camera (B,4,4), at
    the dtype (float32 for 16-bit inputs, which may be mixed with float32) and on the device of points2d.
    solve_dtype: the precision inside; float32 cannot tell depth from rotation once the object is a few pixels wide.

    init (B,4,4): a pose to start from; the local minimum next to it is returned. With init=None the global
    minimum is sought: the object-space error, a quadratic form in R, is minimised on SO(3) from the 24
    rotations of a cube, its distinct minima with the points in front of the camera are refined on the
    reprojection error, and the best is kept (`geometry.pose.start`), with the second best beside it
    (`PoseSolution`). At least 4 points, planar or not; 3 with init.

    gradient: "exact", "gauss_newton" or "unrolled" (`geometry.argmin`). status per sample: CONVERGED;
    STALLED after max_steps; SINGULAR (collinear points); INFEASIBLE (a point behind the camera at `init`); TOO_FEW
    points left by the mask. A sample that did not converge has gradient zero and leaves the others untouched.

    certify: seek a proof that x is the global minimum among the poses with all points ahead (docs/certificate.md), in
    tensor operations, half a millisecond to two a sample. Where `certified` is True no pose has a lower cost, but for
    rounding (1e-9 of it); False says that there is no proof: the data are too few or too noisy, another minimum
    is as low, or x is a local minimum next to init. For cameras without distortion and costs without a robust kernel,
    with solve_dtype=torch.float64.

    model="ray": points2d are bearings (B,N,3) in the frame of the camera, of any length but zero and in any direction,
    K and distortion are None: what any central camera measures (`geometry.unproject`). The residual is the angle to
    the bearing in radians, along its tangent plane, of which the first two rows of `geometry.se3.rotation_to_axis` are
    the axes; weights are 1/sigma in 1/radian, (B|1,N,2) along these axes, or whitenings (B|1,N,2,2). No point lies
    behind. Rigs of several cameras: `rig_pnp`.

    Compiled, a sample has the same bits in every batch of four or more, and in all of 256 points or more.
    Raises ValueError naming the argument for wrong types, shapes, dtypes, devices, too few points, values that are not
    finite, a K with another third row than (0, 0, 1), an init that is no rotation (to 1e-3) and translation; with
    throw=True, SolverError where a sample failed.

    On the CPU a compiled kernel does the work (`geometry.compiled`), on as many threads as torch has; on a CUDA device
    too, where numba-cuda is installed, a problem a thread. It can be vmapped, differentiated twice, and stands in
    torch.compile'd code. Elsewhere, and for what the kernel does not know (other lenses than "radtan" and "fisheye",
    bearings, kernels of your own, gradient="unrolled"), the tensor operations of `geometry.pose.tensors` do: the same
    algorithm, the same poses and derivatives, and slower. `geometry.pose.back_end` says which. On a device the kernel
    waits for nothing, so it cannot raise for values: a problem that is not finite, or whose K or init is none, ends
    INFEASIBLE with the identity.

    >>> points2d = points2d.requires_grad_()
    >>> solution = pnp(points2d, points3d, K)
    >>> solution.x[:, :3, 3].norm(dim=-1).sum().backward()  # distances
    >>> solution.converged, points2d.grad.shape
    (tensor([True, True, True]), torch.Size([3, 12, 2]))
    """
    check_options(model, kernel, gradient, max_steps, bearings=True)
    one_of("solve_dtype", solve_dtype, (torch.float32, torch.float64))
    options = Options(model, kernel, gradient, max_steps)
    data = data_of(points2d, points3d, K, distortion, weights, mask, init=init, model=model)
    if certify:
        _check_certifiable(data, options, solve_dtype)
    module = _back_end(data.points2d, options)
    solution = solved(module, data.to(solve_dtype), init, options, precision(points2d), certify)
    if throw:
        solution.raise_if_failed()
    return solution


def data_of(
    points2d: Tensor,
    points3d: Tensor,
    K: Tensor | None,
    distortion: Tensor | None,
    weights: Tensor | None,
    mask: Tensor | None,
    *,
    init: Tensor | None = None,
    candidates: Tensor | None = None,
    model: PoseModel,
) -> Data:
    """The arguments of `pnp`, after ValueErrors about types, shapes, dtypes and devices; candidates: as many."""
    points2d = observed(
        points2d, points3d, weights, mask, (K, 2), (distortion, 1), (init, 2), (candidates, 1),
        width=3 if model == "ray" else 2,
    )  # fmt: skip
    if model == "ray":
        if not (K is None and distortion is None):
            raise ValueError('K and distortion must be None with model="ray", as bearings have no camera, got a tensor')
        return bearing_data(points2d, points3d, weights, mask, init)
    if K is None:
        raise ValueError('K must be a tensor, got None, which is for model="ray"')
    return prepare(points2d, points3d, K, distortion, weights, mask, init=init, model=model)


def _check_certifiable(data: Data, options: Options, solve_dtype: torch.dtype) -> None:
    """Raise ValueError where `certify` knows no bound of the cost."""
    for wrong, given in (
        (options.kernel is not None, f"kernel={options.kernel}"),
        (options.model != "radtan", f'model="{options.model}"'),
        (isinstance(data, PnPData) and data.distortion.shape[-1] > 0, "distortion"),
        (solve_dtype != torch.float64, f"solve_dtype={solve_dtype}"),
    ):
        if wrong:
            raise ValueError(
                "certify must be False but for cameras without distortion, costs without a robust kernel and "
                f"solve_dtype=torch.float64, got True with {given}"
            )


def solved(
    module: ModuleType, data: Any, init: Tensor | None, options: Options, dtype: torch.dtype, certify: bool = False
) -> PoseSolution:
    """The global minimum, or that next to init (B|1,4,4), by a back end in the precision of the data, as this dtype.

    certify: with a proof, where there is one.
    """
    data = module.prepared(data, init)
    solve_dtype = data.points2d.dtype
    second = ratio = None
    fewest = 3
    if init is not None:
        init = (init if init.ndim > 2 else init[None]).detach().to(solve_dtype)
    else:
        init, second, ratio = module.search(data, options)
        fewest = 4
    pose, cost, status, steps = module.solve(data, init, options, fewest)
    if second is not None and ratio is not None:
        second = torch.where((ratio > 0)[:, None, None], second, pose.detach())
    proved = None
    if certify:
        proved = (status == int(Status.CONVERGED)) & certified(data, pose, second, ratio)
    if dtype != solve_dtype:
        pose, cost = pose.to(dtype), cost.to(dtype)
        second, ratio = (None, None) if second is None or ratio is None else (second.to(dtype), ratio.to(dtype))
    return PoseSolution(pose, cost, status, steps, second, ratio, proved)


def back_end(
    points2d: Tensor, *, model: PoseModel = "radtan", kernel: Kernel | None = None, gradient: Gradient = "exact"
) -> Literal["compiled", "tensors"]:
    """What solves when `pnp` is called with such points and options: a compiled kernel, or tensor operations.

    Raises ValueError for options that there are not.
    """
    check_tensors(points2d=points2d)
    check_options(model, kernel, gradient, bearings=True)
    return "compiled" if _back_end(points2d, Options(model, kernel, gradient)) is compiled else "tensors"


def _back_end(points2d: Tensor, options: Options) -> ModuleType:
    """The module that does the work: `geometry.pose.compiled` where it can, `geometry.pose.tensors` elsewhere."""
    known = options.model in compiled.MODELS and (options.kernel is None or isinstance(options.kernel, RobustKernel))
    return compiled if known and options.gradient != "unrolled" and compiles_for(points2d) else tensors


def _matrix(name: str, vector: Tensor) -> Tensor:
    """The pose (…,4,4) of a six-vector (…,6), after a ValueError for what is none."""
    check_tensors(**{name: vector})
    if vector.shape[-1:] != (6,):
        raise ValueError(
            f"{name} must have shape (B|1,6) or (6,) with vector=True (`geometry.se3.rotvec_t` of a pose), "
            f"got {tuple(vector.shape)}"
        )
    return se3.from_rotvec_t(vector)


class BPnP(nn.Module):
    """`pnp` as a module: points2d (B,N,2) in, world_to_camera (B,4,4) out.

    points3d (N,3) or (B,N,3), K and the keywords of `pnp` are given once, or per call as keywords, which win.
    vector=True: poses are six-vectors [rotvec, t] (B,6), those of the published code, in `init` as well; and
    `geometry.se3.from_rotvec_t` makes matrices of them, for `project` and all else. Tensors given here are buffers
    (they move with .to()); pass nn.Parameter objects per call, or register them on the parent, to learn them.

    >>> layer = BPnP(points3d, K, kernel=huber(3.0))
    >>> layer(points2d).shape
    torch.Size([3, 4, 4])
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
        check_tensors_or_none(points3d=points3d, K=K)
        check_options(model, kernel, gradient, max_steps)
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
        """The pose (B,4,4), or [rotvec, t] (B,6) with vector=True; arguments, and what is raised, as in `pnp`.

        init is of the same kind as the pose: with vector=True (B|1,6) or (6,), such as the last output.
        """
        points3d = self.points3d if points3d is None else points3d
        K = self.K if K is None else K
        if points3d is None or K is None:
            name = "points3d" if points3d is None else "K"
            raise ValueError(f"{name} must be given to BPnP or to its call, got None in both")
        if self.vector and init is not None:
            init = _matrix("init", init)
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
