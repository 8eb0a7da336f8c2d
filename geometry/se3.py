"""Rotations and rigid motions.

Conventions: `R` (…,3,3) and `t` (…,3) act on column vectors; a pose `world_to_camera` (…,4,4) maps
p_camera = R p_world + t; `rotvec` (…,3) is the angle in radians times the axis; a step (…,6) is (omega, v),
rotation first, and acts as R <- exp(omega) R, t <- t + v.

Every function is differentiable to second order everywhere it is defined, in float32 and float64: near the
removable singularities a Taylor series takes over, and each branch of a `where` is fed a safe argument so that
no NaN enters through the branch that was not taken.
"""

from functools import lru_cache
from itertools import permutations, product

import torch
from torch import Tensor

__all__ = [
    "about",
    "centre",
    "exp",
    "from_rotvec_t",
    "hat",
    "inverse",
    "left_jacobian",
    "log",
    "make",
    "quat_wxyz_from_rotation",
    "retract",
    "step_from",
    "rotation_angle",
    "rotation_from_quat_wxyz",
    "rotation_to_axis",
    "rotvec_t",
    "transform",
    "cube_rotations",
]

# Below this squared angle the series are used. At 0.04 the first omitted term of the longest is 1e-18.
_SMALL = 0.04


def _rodrigues_coefficients(angle2: Tensor) -> tuple[Tensor, Tensor]:
    """sin(a)/a and (1 - cos(a))/a^2 as smooth functions of the squared angle a^2."""
    small = angle2 < _SMALL
    safe = torch.where(small, torch.ones_like(angle2), angle2)
    angle = safe.sqrt()
    s = torch.where(small, angle2, torch.zeros_like(angle2))
    # Horner forms of the Taylor series in a^2; seven terms reach float64 precision, derivatives included.
    sinc = 1 - s / 6 * (1 - s / 20 * (1 - s / 42 * (1 - s / 72 * (1 - s / 110 * (1 - s / 156)))))
    cosc = (1 - s / 12 * (1 - s / 30 * (1 - s / 56 * (1 - s / 90 * (1 - s / 132 * (1 - s / 182)))))) / 2
    half = angle / 2  # 0.5 * angle would get a float64 tangent of a float32 scalar under jvp
    # 2 sin^2(a/2) keeps the digits that 1 - cos(a) would cancel
    return (
        torch.where(small, sinc, angle.sin() / angle),
        torch.where(small, cosc, 2 * half.sin().square() / safe),
    )


def hat(v: Tensor) -> Tensor:
    """Cross-product matrix: hat(v) @ w = v x w. (…,3) -> (…,3,3)."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def exp(rotvec: Tensor) -> Tensor:
    """Rotation matrix of a rotation vector (Rodrigues' formula). (…,3) -> (…,3,3)."""
    a, b = _rodrigues_coefficients(rotvec.square().sum(-1))
    w = hat(rotvec)
    eye = torch.eye(3, dtype=rotvec.dtype, device=rotvec.device)
    return eye + a[..., None, None] * w + b[..., None, None] * (w @ w)


def left_jacobian(rotvec: Tensor) -> Tensor:
    """J with exp(rotvec + d) = exp(J d + ...) exp(rotvec), to first order in d. (…,3) -> (…,3,3)."""
    angle2 = rotvec.square().sum(-1)
    a, b = _rodrigues_coefficients(angle2)
    small = angle2 < _SMALL
    s = torch.where(small, angle2, torch.zeros_like(angle2))
    series = (1 - s / 20 * (1 - s / 42 * (1 - s / 72 * (1 - s / 110 * (1 - s / 156 * (1 - s / 210)))))) / 6
    c = torch.where(small, series, (1 - a) / torch.where(small, torch.ones_like(angle2), angle2))
    w = hat(rotvec)
    eye = torch.eye(3, dtype=rotvec.dtype, device=rotvec.device)
    return eye + b[..., None, None] * w + c[..., None, None] * (w @ w)


def quat_wxyz_from_rotation(R: Tensor) -> Tensor:
    """Unit quaternion (w, x, y, z) with w >= 0 of a rotation matrix. (…,3,3) -> (…,4).

    Of Shepperd's four formulas (1978) the one with the largest pivot is used, so that the square root is
    taken of a number >= 1 and the derivative is finite at every angle, pi included.
    """
    m00, m11, m22 = R[..., 0, 0], R[..., 1, 1], R[..., 2, 2]
    pivots = torch.stack([1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22], -1)
    x, y, z = R[..., 2, 1] - R[..., 1, 2], R[..., 0, 2] - R[..., 2, 0], R[..., 1, 0] - R[..., 0, 1]
    xy, xz, yz = R[..., 0, 1] + R[..., 1, 0], R[..., 0, 2] + R[..., 2, 0], R[..., 1, 2] + R[..., 2, 1]
    # Row i is 4 q_i q: the i-th formula before its normalisation.
    rows = torch.stack(
        [
            torch.stack([pivots[..., 0], x, y, z], -1),
            torch.stack([x, pivots[..., 1], xy, xz], -1),
            torch.stack([y, xy, pivots[..., 2], yz], -1),
            torch.stack([z, xz, yz, pivots[..., 3]], -1),
        ],
        -2,
    )
    best = pivots.argmax(-1)[..., None]
    row = rows.gather(-2, best[..., None].expand(*best.shape, 4)).squeeze(-2)
    q = row / (2 * pivots.gather(-1, best).sqrt())
    return torch.where(q[..., :1] < 0, -q, q)


def rotation_from_quat_wxyz(quat_wxyz: Tensor) -> Tensor:
    """Rotation matrix of a quaternion (w, x, y, z) of any non-zero length. (…,4) -> (…,3,3)."""
    w, v = quat_wxyz[..., :1, None], quat_wxyz[..., 1:]
    scale = 2 / quat_wxyz.square().sum(-1)[..., None, None]
    h = hat(v)
    eye = torch.eye(3, dtype=v.dtype, device=v.device)
    return eye + scale * (w * h + h @ h)


def log(R: Tensor) -> Tensor:
    """Rotation vector of a rotation matrix, angle in [0, pi]. (…,3,3) -> (…,3).

    At pi the axis is defined up to sign and one of the two is returned; values and gradients stay finite.
    """
    q = quat_wxyz_from_rotation(R)
    w, v = q[..., 0], q[..., 1:]
    n2 = v.square().sum(-1)
    small = n2 < 0.25 * _SMALL
    n = torch.where(small, torch.ones_like(n2), n2).sqrt()
    # angle / |v| = 2 atan(|v|/w) / |v|: the series of atan(x)/x in x^2 while w is near one
    w_safe = torch.where(small, w, torch.ones_like(w))
    x = torch.where(small, n2, torch.zeros_like(n2)) / w_safe.square()
    series = torch.zeros_like(x)
    for k in range(13, -1, -1):
        series = (1.0 if k % 2 == 0 else -1.0) / (2 * k + 1) + x * series
    factor = torch.where(small, 2 * series / w_safe, 2 * torch.atan2(n, w) / n)
    return factor[..., None] * v


def rotation_angle(R: Tensor) -> Tensor:
    """Angle of a rotation in radians, in [0, pi], accurate at both ends. (…,3,3) -> (…)."""
    q = quat_wxyz_from_rotation(R)
    return 2 * torch.atan2(q[..., 1:].norm(dim=-1), q[..., 0])


def make(R: Tensor, t: Tensor) -> Tensor:
    """Pose (…,4,4) of R (…,3,3) and t (…,3)."""
    top = torch.cat([R, t[..., None]], -1)
    bottom = torch.tensor([0, 0, 0, 1], dtype=R.dtype, device=R.device).expand(*top.shape[:-2], 1, 4)
    return torch.cat([top, bottom], -2)


def transform(pose: Tensor, points3d: Tensor) -> Tensor:
    """R p + t for every point. pose (…,4,4), points3d (…,N,3) -> (…,N,3)."""
    R, t = pose.mT[..., :3].tensor_split((3,), -2)  # transposed, and half the operations of two slices
    return points3d @ R + t


def inverse(pose: Tensor) -> Tensor:
    """Inverse rigid motion. (…,4,4) -> (…,4,4)."""
    Rt = pose[..., :3, :3].mT
    return make(Rt, -(Rt @ pose[..., :3, 3:]).squeeze(-1))


def centre(pose: Tensor) -> Tensor:
    """Camera centre -R^T t in the world. (…,4,4) -> (…,3)."""
    return -(pose[..., :3, :3].mT @ pose[..., :3, 3:]).squeeze(-1)


def about(pose: Tensor, place: Tensor) -> Tensor:
    """The pose for points that are given relative to a place of the world (…,3): R X + t = R (X - place) + t'.

    About a far origin a rotation moves the points as a translation does, and all digits are lost in between.
    """
    R = pose[..., :3, :3]
    return make(R, pose[..., :3, 3] + (R @ place[..., None]).squeeze(-1))


def step_from(pose: Tensor, place: Tensor) -> Tensor:
    """What steps (omega, v) of `about(pose, place)` are as steps of the pose: v + (R place) x omega. (…,6,6)."""
    shift = hat((pose[..., :3, :3] @ place[..., None]).squeeze(-1))
    eye = torch.eye(3, dtype=pose.dtype, device=pose.device).expand_as(shift)
    return torch.cat([torch.cat([eye, torch.zeros_like(eye)], -1), torch.cat([shift, eye], -1)], -2)


def retract(pose: Tensor, step: Tensor) -> Tensor:
    """Move a pose by a step (omega, v): R <- exp(omega) R, t <- t + v. (…,4,4), (…,6) -> (…,4,4).

    Raises ValueError for what is no pose, and for a step of another length, as of a `Problem` with another dof: v alone
    would be broadcast.
    """
    if pose.shape[-2:] != (4, 4):
        raise ValueError(f"pose must have shape (…,4,4), got {tuple(pose.shape)}")
    if step.shape[-1] != 6:
        raise ValueError(f"step must have shape (…,6), got {tuple(step.shape)}")
    return make(exp(step[..., :3]) @ pose[..., :3, :3], pose[..., :3, 3] + step[..., 3:])


def from_rotvec_t(rotvec_t: Tensor) -> Tensor:
    """Pose of a six-vector [rotvec, t]. (…,6) -> (…,4,4)."""
    return make(exp(rotvec_t[..., :3]), rotvec_t[..., 3:])


def rotation_to_axis(direction: Tensor) -> Tensor:
    """A rotation (…,3,3) that takes a direction (…,3), of any length but zero, to the axis z: (0, 0, 1).

    Its first two rows span the plane in which the direction can move: the tangent plane of the sphere. Where z >= 0
    it is the least rotation; elsewhere that of (x, -y, -z), after the half turn about x which makes this of it.
    """
    unit = direction / direction.norm(dim=-1, keepdim=True)
    flip = torch.where(unit[..., 2:] < 0, unit.new_tensor([1.0, -1.0, -1.0]), 1.0)
    x, y, z = (flip * unit).unbind(-1)
    a = 1 / (1 + z)
    rows = [1 - a * x * x, -a * x * y, -x, -a * x * y, 1 - a * y * y, -y, x, y, z]
    return torch.stack(rows, -1).unflatten(-1, (3, 3)) * flip[..., None, :]


def rotvec_t(pose: Tensor) -> Tensor:
    """Six-vector [rotvec, t] of a pose, the parametrisation of the published BPnP code. (…,4,4) -> (…,6)."""
    return torch.cat([log(pose[..., :3, :3]), pose[..., :3, 3]], -1)


@lru_cache(maxsize=8)
def cube_rotations(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The 24 rotations that map a cube onto itself: no rotation is farther than 63 degrees from them. (24,3,3)."""
    matrices = [
        torch.eye(3, dtype=torch.float64)[list(order)] * torch.tensor(signs, dtype=torch.float64)
        for order in permutations(range(3))
        for signs in product((1, -1), repeat=3)
    ]
    return torch.stack([R for R in matrices if torch.linalg.det(R) > 0]).to(dtype=dtype, device=device)
