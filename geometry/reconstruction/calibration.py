"""Camera calibration through PnP: intrinsics and distortion are the outer unknowns, every view's pose an inner one.

One camera sees a known target in V views. For each trial of the intrinsics the poses are found by PnP
(`geometry.reconstruction.calibration_problem`), several starts are tried and both minima of the views compared
(`geometry.reconstruction.calibration_search`). The minimum is that of the joint calibration of Zhang 2000, TPAMI
22(11), eq. 14, and the start needs the size of the image only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from geometry.alignment import Frame
from geometry.camera import Model
from geometry.checks import boolean, check_tensors, leading, one_of, shaped, whole, width_and_height
from geometry.lenses import LENSES, check_distortion
from geometry.optim import NestedState, Solution, chain_of_blocks, margin
from geometry.pose.data import precision, prepare
from geometry.reconstruction.calibration_problem import CalibrationProblem, free_intrinsics
from geometry.reconstruction.calibration_search import solve
from geometry.robust import Kernel, check_kernel

__all__ = ["CalibrationSolution", "calibrate"]


@dataclass(frozen=True)
class CalibrationSolution(Solution):
    """A `Solution` of batch 1 with x = (K (1,3,3), distortion (1,k), world_to_camera (1,V,4,4)).

    left_out (V,) bool: views that determine no pose (of fewer than four corners, or of corners on a line) and were not
    used; their poses are NaN. undetermined (4+k,) bool: which of fx, fy, cx, cy and the coefficients the data do not
    tell; where there are any the status is SINGULAR.

    >>> found = calibrate(project(board, views, K), board, (640, 480), distortion=0)
    >>> found.covariance().shape  # of fx, fy, cx, cy
    torch.Size([4, 4])
    """

    left_out: Tensor
    undetermined: Tensor
    problem: CalibrationProblem
    state: NestedState

    def covariance(self, sigma: float | None = None) -> Tensor:
        """Covariance (4+k,4+k) of fx, fy, cx, cy and the coefficients (`CalibrationProblem.covariance`)."""
        found = self.problem.covariance(self.state.theta, self.state.inner, sigma=sigma)
        return found.to(self.x[0].dtype)


def _determining(points3d: Tensor, mask: Tensor) -> Tensor:
    """Which views (V,) determine a pose: four corners or more, mask (V,N), that do not lie on a line, (V,N,3)."""
    seen = mask[..., None]
    points = Frame.amid(points3d, mask).points(torch.where(seen, points3d, 0.0))
    points = torch.where(seen, points, 0.0)
    values = torch.linalg.eigvalsh(points.mT @ points)
    apart = values[:, 1] > margin(points.dtype, 3, chain_of_blocks(mask.shape[1])) * values[:, 2]
    return (mask.sum(1) >= 4) & apart


@torch.no_grad()
def calibrate(
    points2d: Tensor,
    points3d: Tensor,
    image_size: tuple[int, int],
    *,
    distortion: int = 5,
    model: Model = "radtan",
    mask: Tensor | None = None,
    kernel: Kernel | None = None,
    max_steps: int = 100,
) -> CalibrationSolution:
    """Calibrate one camera from V views of a known target.

    points2d (V,N,2) px, points3d (N,3) or (V,N,3), image_size (width, height) px, distortion: how many coefficients
    of `model` to estimate, mask (V,N) or (N,) bool, False where a corner is not seen, kernel: a robust kernel, for
    wrong ones. Returns a `CalibrationSolution` of batch 1 with x = (K (1,3,3), distortion (1,k),
    world_to_camera (1,V,4,4)), solved in float64; standard deviations come from its `covariance`.

    status: CONVERGED at a minimum where the gradient vanishes; STALLED after max_steps of a search; SINGULAR where the
    data do not determine the intrinsics (one plane, boards that are parallel to the image, copies of a view), which
    `undetermined` tells; TOO_FEW where no view has four corners. Views that determine no pose are `left_out`. No
    gradient: `geometry.bundle`, begun at what is found, has it.
    Raises ValueError as `geometry.pnp` does, and where there is no view.

    Starts from the focal lengths, each four times the one before, that suit the views best, with the principal point
    held in the middle of the image until the rest is found, where there are coefficients, and, where it is then found
    elsewhere, from several principal points; after some trials, and before the end, both minima of every view are
    looked at. A robust kernel comes by graduated non-convexity, first so wide that it is none (Yang, Antonante,
    Tzoumas and Carlone 2020, RA-L 5(2)).

    >>> found = calibrate(project(board, views, K), board, (640, 480), distortion=0)
    >>> found.x[0][0, 0, 0].round(decimals=3)
    tensor(800.)
    """
    check_tensors(points2d=points2d, points3d=points3d)
    one_of("model", model, LENSES)
    check_kernel(kernel)
    whole("max_steps", max_steps, 1)
    whole("distortion", distortion, 0)
    check_distortion(points2d.new_zeros(distortion), model)
    width_and_height(image_size)
    shaped(points2d=(points2d, "V,N,2"))
    if mask is not None:
        boolean("mask", mask)
        mask = leading("mask", mask, len(points2d), points2d.shape[1:2])
    like = points2d.new_zeros(distortion, dtype=precision(points2d))
    eye = torch.eye(3, dtype=like.dtype, device=like.device)
    data = prepare(points2d, points3d, eye, like, None, mask, model=model)
    if len(points2d) == 0:
        raise ValueError(f"points2d must hold at least one view, got shape {tuple(points2d.shape)}")
    data = data.prepared().to(torch.float64)
    kept = _determining(data.points3d, data.mask)
    frame = Frame.amid(data.points3d[kept].flatten(0, 1)[None], data.mask[kept].flatten()[None])
    points = (data.points3d[kept] - frame.origin) / frame.unit
    problem = CalibrationProblem(data.points2d[kept], points, data.mask[kept], free_intrinsics, model, kernel)
    state, status, undetermined = solve(problem, image_size, distortion, max_steps)
    dtype, poses = precision(points2d), data.points3d.new_full((len(kept), 4, 4), torch.nan)
    poses[kept] = frame.from_frame(state.inner)[0]
    K, coefficients = free_intrinsics(state.theta[0])
    x = K[None].to(dtype), coefficients[None].to(dtype), poses[None].to(dtype)
    steps = torch.full_like(state.cost, state.steps, dtype=torch.int32)
    return CalibrationSolution(x, state.cost.to(dtype), status, steps, ~kept, undetermined, problem, state)
