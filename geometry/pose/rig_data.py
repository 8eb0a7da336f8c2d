"""What PnP of a rig is given: every point with a sensor and a camera of its own; and bearings, which are such a rig."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from geometry import se3
from geometry.alignment import Frame
from geometry.camera import Model, Rays, rays_of
from geometry.checks import check_tensors, check_tensors_or_none, indices, leading, plainly, values
from geometry.lenses import check_distortion
from geometry.pose.data import PnPData, check_like, prepare, taken, without_masked

__all__ = ["Data", "Rig", "RigData", "RigFrame", "bearing_data", "check_rig", "scaled_pose"]


class RigFrame(NamedTuple):
    """A frame of the world and one of the rig: its origin amid the centres of the sensors (B,3), in the world's unit.

    A pose of the rig is (B,4,4), the last entry the scale of the rig (`geometry.pose.problem`).
    """

    world: Frame
    middle: Tensor

    def to_frame(self, pose: Tensor) -> Tensor:
        """world_to_rig (B,4,4) of points and sensors that are given in these frames."""
        R, t, scale = pose[:, :3, :3], pose[:, :3, 3], pose[:, 3, 3]
        t = t + (R @ self.world.origin[..., None])[..., 0] - scale[:, None] * self.middle
        return scaled_pose(R, t / self.world.unit[:, None], scale)

    def from_frame(self, pose: Tensor) -> Tensor:
        """The inverse of `to_frame`."""
        R, t, scale = pose[:, :3, :3], pose[:, :3, 3], pose[:, 3, 3]
        t = self.world.unit[:, None] * t + scale[:, None] * self.middle
        return scaled_pose(R, t - (R @ self.world.origin[..., None])[..., 0], scale)


class RigData(NamedTuple):
    """The tensors of `pnp_problem` of a rig, in its order, each of full size.

    points2d (B,N,2), points3d (B,N,3), K (B,N,3,3), distortion (B,N,k), weights (B,N,2), mask (B,N), sensor_from_rig
    (B,N,4,4).
    """

    points2d: Tensor
    points3d: Tensor
    K: Tensor
    distortion: Tensor
    weights: Tensor
    mask: Tensor
    sensors: Tensor

    def to(self, dtype: torch.dtype) -> "RigData":
        """The same in another precision."""
        return RigData(*(d if d.dtype == torch.bool else d.to(dtype) for d in self))

    def prepared(self, init: Tensor | None = None) -> "RigData":
        """Zeros for what is masked, once it is certain that all numbers are what they should be; see `PnPData`.

        init is checked where it is given: here its last entry is the scale.
        """
        points2d, points3d, weights, mask = without_masked(self.points2d, self.points3d, self.weights, self.mask)
        data = self._replace(points2d=points2d, points3d=points3d, weights=weights, mask=mask)
        values(
            " where mask is True", points2d=(points2d, "finite"), points3d=(points3d, "finite"), K=(self.K, "camera"),
            distortion=(self.distortion, "finite"), weights=(weights, "finite"),
            sensor_from_rig=(self.sensors, "pose"),
        )  # fmt: skip
        return data

    def centred(self, mask: Tensor | None = None, scaled: bool = False) -> tuple["RigData", RigFrame]:
        """`PnPData.centred`, and the centres of the sensors about their middle, which no digit is lost to either.

        Sensors in one place, but for rounding, are put into the origin: of these no scale can be told.
        """
        mask = self.mask if mask is None else mask
        world = Frame.amid(self.points3d, mask, scaled)
        centre, seen = se3.centre(self.sensors), mask[..., None]
        fixed = torch.where(seen, centre.detach(), 0.0)
        middle = fixed.sum(1) / seen.sum(1).clamp_min(1)
        apart = torch.where(seen, centre.detach() - middle[:, None], 0.0).abs().amax((1, 2))
        one = apart <= 1e4 * torch.finfo(centre.dtype).eps * middle.abs().amax(1)
        origin = torch.where(one[:, None, None], centre.detach(), middle[:, None])
        R = self.sensors[..., :3, :3]
        t = -(R @ (centre - origin)[..., None])[..., 0] / world.unit[:, None, None]
        data = self._replace(points3d=world.points(self.points3d), mask=mask, sensors=se3.make(R, t))
        return data, RigFrame(world, middle)

    def at(self, index: Tensor) -> "RigData":
        """Some of the points, those of index (B,M)."""
        return RigData(*(taken(d, index) for d in self))

    def information(self) -> Tensor:
        """About the inverse square (B,N) of each ray's deviation: of pixels, by the focal length."""
        return self.weights.square().mean(-1) * torch.linalg.det(self.K[..., :2, :2]).abs()

    def rays(self, model: Model, max_steps: int = 16) -> Rays:
        """Directions of the pixels in the frame of the rig, and which may be trusted."""
        rays, valid = rays_of(self.points2d[:, :, None], self.K, self.distortion, model, max_steps)
        return Rays((rays @ self.sensors[..., :3, :3])[:, :, 0], valid[:, :, 0])

    def as_bearings(self, model: Model, max_steps: int) -> "RigData":
        """The same of model "ray": angles to the rays of the pixels, in pixels, which no point lies behind."""
        rays, valid = rays_of(self.points2d[:, :, None], self.K, self.distortion, model, max_steps)
        rays, valid = torch.where(valid[..., None], rays, 1.0)[:, :, 0], valid[:, :, 0]
        sensors = se3.make(se3.rotation_to_axis(rays), torch.zeros_like(rays)) @ self.sensors
        focal = torch.linalg.det(self.K[..., :2, :2]).abs().sqrt()
        K = torch.diag_embed(torch.stack([focal, focal, torch.ones_like(focal)], -1))
        return RigData(
            torch.zeros_like(self.points2d), self.points3d, K, self.distortion[..., :0], self.weights,
            self.mask & valid, sensors,
        )  # fmt: skip


Data = PnPData | RigData
"""What PnP is solved from: the same methods."""


def scaled_pose(R: Tensor, t: Tensor, scale: Tensor) -> Tensor:
    """The pose (…,4,4) of a rig: R (…,3,3), t (…,3), and in place of the last 1 the scale (…)."""
    last = nn.functional.pad(scale[..., None, None], (3, 0))
    return torch.cat([torch.cat([R, t[..., None]], -1), last], -2)


class Rig(NamedTuple):
    """Sensors, and which of them sees which point: K (B|1,S|1,3,3), distortion (B|1,S|1,k), sensor_from_rig
    (B|1,S,4,4), seen_by (B,N) int64."""

    K: Tensor
    distortion: Tensor
    sensor_from_rig: Tensor
    seen_by: Tensor

    def by_point(self, data: PnPData) -> RigData:
        """What is given of the points, and the sensor and the camera of each."""
        B, N = self.seen_by.shape
        points2d, points3d, _, _, weights, mask = data
        K, distortion, sensors = (_of_points(d, self.seen_by) for d in self[:3])
        weights, mask = weights.expand(B, N, 2), mask.expand(B, N)
        return RigData(points2d, points3d.expand(B, N, 3), K, distortion, weights, mask, sensors)


def _of_points(values: Tensor, index: Tensor) -> Tensor:
    """Of values (B|1,S|1,…) of sensors those of every point, index (B,N): (B,N,…)."""
    B, N = index.shape
    if values.shape[1] == 1:
        return values.expand(B, N, *values.shape[2:])
    return taken(values.expand(B, *values.shape[1:]), index)


def _of_sensors(name: str, value: Tensor, one: str, B: int, S: int) -> Tensor:
    """(B|1,S|1,…) of what is given so, or without a batch, or for one sensor; ValueError for another shape."""
    size = tuple(int(n) if n.isdigit() else value.shape[-1] for n in one.split(","))
    leading = tuple(value.shape[: value.ndim - len(size)])
    fits = value.ndim >= len(size) and tuple(value.shape[value.ndim - len(size) :]) == size
    if not fits or leading not in ((), (S,), (1,), (B, S), (B, 1), (1, S), (1, 1)):
        wanted = f"({one}), ({S}|1,{one}) or ({B}|1,{S}|1,{one})"
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(value.shape)}")
    return value[(None,) * (2 - len(leading))]


def check_rig(
    points2d: Tensor,
    K: Tensor,
    distortion: Tensor | None,
    sensor_from_rig: Tensor,
    sensor_index: Tensor,
    model: Model,
) -> Rig:
    """The sensors of `rig_pnp`, after ValueErrors about types, shapes, dtypes, devices and the range of the index.

    points2d (B,N,2): checked before.
    """
    check_tensors(K=K, sensor_from_rig=sensor_from_rig)
    check_tensors_or_none(distortion=distortion)
    B, N, _ = points2d.shape
    if sensor_from_rig.ndim not in (3, 4):
        raise ValueError(
            f"sensor_from_rig must have shape (S,4,4) or ({B}|1,S,4,4), got {tuple(sensor_from_rig.shape)}"
        )
    S = sensor_from_rig.shape[-3]
    distortion = K.new_zeros(0) if distortion is None else distortion
    check_distortion(distortion, model)
    for name, value in (("K", K), ("distortion", distortion), ("sensor_from_rig", sensor_from_rig)):
        check_like(name, value, points2d)
    indices("sensor_index", sensor_index)
    sensor_index = leading("sensor_index", sensor_index, B, (N,))

    def look(index: Tensor) -> None:
        if index.numel() and (int(index.min()) < 0 or int(index.max()) >= S):
            found = f"{int(index.min())} … {int(index.max())}"
            raise ValueError(f"sensor_index must lie in 0 … {S - 1}, the sensors of sensor_from_rig, got {found}")

    plainly(look, sensor_index)
    return Rig(
        _of_sensors("K", K, "3,3", B, S),
        _of_sensors("distortion", distortion, "k", B, S),
        _of_sensors("sensor_from_rig", sensor_from_rig, "4,4", B, S),
        sensor_index.long().expand(B, N),
    )


def bearing_data(
    bearings: Tensor,
    points3d: Tensor,
    weights: Tensor | None,
    mask: Tensor | None,
    init: Tensor | None,
) -> RigData:
    """The arguments of `pnp` with model="ray": bearings (B,N,3) of `observed`, weights also as whitenings (B|1,N,2,2).

    Every bearing is a sensor of its own that looks along it: what it measures is zero.
    """
    B, N, _ = bearings.shape
    check_tensors_or_none(weights=weights)
    whitening = None
    if weights is not None and weights.ndim > 2 and weights.shape[-2:] == (2, 2):
        check_like("weights", weights, bearings)
        whitening = leading("weights", weights, B, (N, 2, 2))
    eye = torch.eye(3, dtype=bearings.dtype, device=bearings.device)
    data = prepare(
        torch.zeros_like(bearings[..., :2]), points3d, eye, None, None if whitening is not None else weights, mask,
        init=init,
    )  # fmt: skip
    K = eye.expand(B, N, 3, 3)
    if whitening is not None:
        K = nn.functional.pad(whitening.expand(B, N, 2, 2), (0, 1, 0, 1)) + torch.diag(eye[2])
    if whitening is not None:
        data = data._replace(mask=data.mask & (whitening != 0).any(-1).any(-1))
    seen = data.mask.expand(B, N)[..., None]
    # what is masked may be anything, and what has no length no direction
    bearings = torch.where(seen, bearings, eye[2])
    values(" where mask is True", points2d=(bearings, "finite"), weights=(whitening, "finite"), init=(init, "pose"))

    def look(length: Tensor) -> None:
        if not (length > 0).all():
            raise ValueError("points2d must hold bearings of a length above zero where mask is True, got one of zero")

    plainly(look, bearings.norm(dim=-1))
    sensors = se3.make(se3.rotation_to_axis(bearings), torch.zeros_like(bearings))
    points2d, points3d, _, nothing, weights, mask = data
    return RigData(
        points2d, points3d.expand(B, N, 3), K, nothing.expand(B, N, 0), weights.expand(B, N, 2), mask.expand(B, N),
        sensors,
    )  # fmt: skip
