"""PnP as a `Problem` in batched tensor operations: the reference of the compiled kernels, and what runs elsewhere.

Of one camera, or of a rig: there every observation has a sensor of its own, which sees R_s (R X + t) + s t_s, where
[R_s | t_s] leads from the frame of the rig to that of the sensor. All derivatives are taken by the point R X + t in the
frame of the rig, into which those of the sensor are turned by R_s; for one camera the two are the same.
"""

from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from geometry import se3
from geometry.camera import Model, in_front, project_camera_frame, projection_curvature, projection_jacobian
from geometry.checks import one_of
from geometry.lenses import LENSES
from geometry.optim import Linearization, Problem
from geometry.robust import Kernel, kernel_derivatives

__all__ = ["PoseModel", "pnp_problem"]

PoseModel = Model | Literal["ray"]
"""A lens of `geometry.camera`, or bearings in place of pixels."""

_NO_DIRECTION = 1e-9  # cosine, above -1, of an angle that a bearing cannot be off: all directions are as far


class _View(NamedTuple):
    """Points as the sensors see them, coordinates first so that each of them is contiguous.

    rotated (B,3,N): R X; p (B,3,N) in the frame of its sensor. Of a rig: turn (B,3,3,N), the rotation of every sensor,
    and base (B,3,N), R_s^T t_s. Masked points sit at (1, 1, 1), out of harm, if not always in sight.
    """

    rotated: Tensor
    p: Tensor
    turn: Tensor | None = None
    base: Tensor | None = None

    def apart(self, values: Tensor) -> Tensor:
        """Values of points (B,N,k) as a camera takes them: of a rig (B,N,1,k), as each has a camera of its own."""
        return values if self.turn is None else values[:, :, None]

    def joined(self, values: Tensor) -> Tensor:
        """The inverse of `apart`."""
        return values if self.turn is None else values[:, :, 0]

    def first(self, D: Tensor) -> Tensor:
        """Derivatives (B,k,3,N) by the point R X + t, of those by p that a camera gives (B,N,k,3)."""
        D = self.joined(D).movedim(-3, -1)
        return D if self.turn is None else _product(D, self.turn)

    def second(self, C: Tensor) -> Tensor:
        """The same of second derivatives: (B,N,3,3) -> (B,3,3,N)."""
        C = self.joined(C).movedim(-3, -1)
        if self.turn is None:
            return C
        return _product(self.turn.transpose(1, 2), _product(C, self.turn))

    def by_step(self, D: Tensor, scale: bool) -> Tensor:
        """Derivatives by the step (B,k,6|7,N) of what has the derivatives D (B,k,3,N) by the point R X + t.

        d p / d step = [-hat(R X) | I | R_s^T t_s], so that a row d becomes (R X) x d | d | d . R_s^T t_s.
        """
        q, d = torch.cat([self.rotated, self.rotated[:, :2]], 1)[:, None], torch.cat([D, D[:, :, :2]], 2)
        turn = torch.addcmul(q[:, :, 1:4] * d[:, :, 2:5], q[:, :, 2:5], d[:, :, 1:4], value=-1)
        if not scale:
            return torch.cat([turn, D], 2)
        assert self.base is not None
        return torch.cat([turn, D, (D * self.base[:, None]).sum(2, keepdim=True)], 2)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Products of matrices (B,k,3,N) and (B,3,m,N), one a point."""
    product = a[:, :, 0, None] * b[:, None, 0]
    for i in (1, 2):
        product = torch.addcmul(product, a[:, :, i, None], b[:, None, i])
    return product


def _view(pose: Tensor, points3d: Tensor, mask: Tensor, sensors: Tensor | None) -> _View:
    rotated = pose[..., :3, :3] @ points3d.mT
    p, turn, base = rotated + pose[..., :3, 3:], None, None
    if sensors is not None:
        mounted = sensors[..., :3, :].movedim(-3, -1)
        turn, shift = mounted[:, :, :3], mounted[:, :, 3]
        p = _product(turn, p[:, :, None])[:, :, 0] + pose[..., 3, 3, None, None] * shift
        base = _product(turn.transpose(1, 2), shift[:, :, None])[:, :, 0]
    return _View(rotated, torch.where(mask[..., None, :], p, 1.0), turn, base)


def _sees(p: Tensor, distortion: Tensor, model: PoseModel) -> Tensor:
    """Whether the camera sees points (…,N,3); a bearing may be off by any angle but that of the opposite direction."""
    p = p.detach().contiguous()  # the norm of what is not takes ten times as long
    if model != "ray":
        return in_front(p, distortion, model=model)
    length = torch.linalg.vector_norm(p, dim=-1)
    return (length > 0) & (p[..., 2] > (_NO_DIRECTION - 1) * length)


def turned(R: Tensor, omega: Tensor) -> Tensor:
    """The rotation of the quaternion (1, omega / 2) times R: exp(omega) R to second order. (…,3,3), (…,3) -> (…,3,3).

    It needs no trigonometry and no series, and a rotation stays one to rounding.
    """
    half = 0.5 * omega
    scale = 2 / (1 + half.square().sum(-1))
    half = half[..., None]
    moved = torch.linalg.cross(half, R, dim=-2)
    return torch.addcmul(R, scale[..., None, None], moved + torch.linalg.cross(half, moved, dim=-2))


def _retract(pose: Tensor, step: Tensor) -> Tensor:
    """`se3.retract` to second order, by `turned`; a seventh number moves the scale."""
    R, t = turned(pose[..., :3, :3], step[..., :3]), pose[..., :3, 3:] + step[..., 3:6, None]
    last = pose[..., 3:, :]
    if step.shape[-1] > 6:
        last = last + nn.functional.pad(step[..., None, 6:], (3, 0))
    return torch.cat([torch.cat([R, t], -1), last], -2)


@lru_cache(maxsize=64)
def pnp_problem(model: PoseModel = "radtan", kernel: Kernel | None = None, scale: bool = False) -> Problem:
    """PnP as a `Problem` over world_to_camera (4,4) with data
    (points2d (N,2), points3d (N,3), K (3,3), distortion (k,), weights (N,2), mask (N,)).

    Of a rig the unknown is world_to_rig, and every point has a camera of its own: K (N,3,3), distortion (N,k), and one
    more datum, sensor_from_rig (N,4,4). scale: a seventh unknown, the last entry of the pose in place of its 1, which
    the translations of sensor_from_rig are multiplied by. model="ray": a rig whose sensors look along the bearings
    that were measured; points2d are zero, and a residual is the angle to the bearing, in the direction of its tangent
    plane (`geometry.se3.rotation_to_axis`).

    The batched closed-form derivatives are tested against automatic differentiation of `residual`. Raises ValueError
    for a model that there is not, and a kernel that is no function.

    >>> every = torch.ones(1, 12, dtype=torch.bool)
    >>> data = points2d, points3d[None], K[None], torch.zeros(1, 0), torch.ones(1, 12, 2), every
    >>> minimize(pnp_problem(kernel=huber(2.0)), pose, *data).converged
    tensor([True, True, True])
    """
    one_of("model", model, (*LENSES, "ray"))
    # the fisheye without coefficients is the angle
    lens: Model = "fisheye" if model == "ray" else model
    dof = 7 if scale else 6

    def residual(
        pose: Tensor, points2d: Tensor, points3d: Tensor, K: Tensor, distortion: Tensor, weights: Tensor, mask: Tensor,
        *mounted: Tensor,
    ) -> Tensor:  # fmt: skip
        sensors = mounted[0] if mounted else None
        p = se3.transform(pose, points3d)
        if sensors is not None:
            p = (sensors[:, :3, :3] @ p[..., None])[..., 0] + pose[3, 3] * sensors[:, :3, 3]
        p = torch.where(mask[..., None], p, 1.0)
        if sensors is None:
            pixels = project_camera_frame(p, K, distortion, model=lens)
        else:
            pixels = project_camera_frame(p[:, None], K, distortion, model=lens)[:, 0]
        seen = _sees(p if sensors is None else p[:, None], distortion, model).reshape(mask.shape)
        r = torch.where(seen[..., None], weights * (pixels - points2d), torch.inf)
        return torch.where(mask[..., None], r, 0.0)

    def rows(
        pose: Tensor, points2d: Tensor, points3d: Tensor, K: Tensor, distortion: Tensor, weights: Tensor, mask: Tensor,
        *mounted: Tensor,
    ) -> tuple[_View, Tensor, Tensor, Tensor]:  # fmt: skip
        """The view, the points as a camera takes them, which are seen (B,N), or masked, and (B,2,dof+1,N): the
        derivatives of the residual by a step, and behind them the residual."""
        view = _view(pose, points3d, mask, mounted[0] if mounted else None)
        p = view.apart(view.p.mT)
        seen = _sees(p, distortion, model).reshape(mask.shape) >= mask
        pixels, D = projection_jacobian(p, K, distortion, lens)
        weights = torch.where(mask[..., None], weights, 0.0).mT
        J = torch.cat([view.by_step(view.first(D), scale), (view.joined(pixels) - points2d).mT[:, :, None]], 2)
        return view, p, seen, J * weights[:, :, None]

    def jacobian(pose: Tensor, *data: Tensor) -> tuple[Tensor, Tensor]:
        _, _, seen, J = rows(pose, *data)
        J = J.movedim(-1, 1)  # (B,N,2,dof+1)
        return torch.where(seen[..., None], J[..., dof], torch.inf), J[..., :dof]

    def linearize(pose: Tensor, *data: Tensor, exact: bool = False) -> Linearization:
        view, p, seen, J = rows(pose, *data)
        u, v = left, right = J.unbind(1)
        rho, slope, bend = torch.addcmul(u[:, dof] * u[:, dof], v[:, dof], v[:, dof]), None, None
        if kernel is not None:
            rho, slope, bend = kernel_derivatives(kernel, rho)
            left, right = slope[:, None] * u, slope[:, None] * v
        products = torch.baddbmm(left @ u.mT, right, v.mT)
        cost = torch.where(seen.all(-1), 0.5 * rho.sum(-1), torch.inf)
        found = Linearization(cost, products[:, :dof, dof], products[:, :dof, :dof])
        if not exact:
            return found
        # gradient (B,3,N) of each point's cost with respect to R X + t, and the part of its Hessian (B,3,3,N) that is
        # not in J^T J
        a = torch.addcmul(u[:, 3:6] * u[:, dof:], v[:, 3:6], v[:, dof:])
        _, _, K, distortion, weights, mask, *_ = data
        covector = torch.where(mask[..., None], weights, 0.0).mT * J[:, :, dof]
        if slope is not None:
            covector = slope[:, None] * covector
        C = view.second(projection_curvature(p, K, distortion, lens, view.apart(covector.mT)))
        if slope is not None and bend is not None:
            C, a = C + (2 * bend[:, None] * a)[:, :, None] * a[:, None], slope[:, None] * a
        eye = torch.eye(3, dtype=a.dtype, device=a.device)
        along = view.by_step(eye[..., None].expand_as(C), scale)
        H = found.gauss_newton + (along @ view.by_step(C, scale).mT).sum(1)
        # second order of exp: omega x (omega x q) = omega (omega . q) - q |omega|^2
        aq = a @ view.rotated.mT
        trace = aq.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        rotation = 0.5 * (aq + aq.mT) - trace * eye
        return found._replace(hessian=H + nn.functional.pad(rotation, (0, dof - 3, 0, dof - 3)))

    return Problem(
        residual, dof=dof, retract=_retract, kernel=kernel, linearize=linearize, alike=(3,),
        terms=lambda points2d, *_: 2 * points2d.shape[-2], broadcasts=True, jacobian=jacobian,
    )  # fmt: skip
