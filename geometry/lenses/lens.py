"""What a lens is: functions of points in the camera frame and of its coefficients, before K."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

__all__ = ["Lens", "Model", "Rays"]

Model = Literal["radtan", "fisheye", "eucm", "double_sphere", "division", "fov"]


class Rays(NamedTuple):
    """Result of `unproject`: unit directions (…,N,3) in the camera frame, and whether each is to be trusted."""

    directions: Tensor
    valid: Tensor


class Lens(NamedTuple):
    """A camera model of focal length one, images being told from the axis.

    p (…,N,3): points in the camera frame; c (…,k): coefficients. Where k = 0 and the lens is then a `pinhole`, none of
    its functions is called.
    """

    names: tuple[str, ...]
    """Of the coefficients, in their order."""
    counts: tuple[int, ...]
    """How many of them may be given."""
    image: Callable[[Tensor, Tensor], Tensor]
    """p, c -> (…,N,2); finite everywhere, and so are its derivatives, what the lens cannot see included."""
    slopes: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """p, c -> image (…,2,N) and its derivatives (…,2,3,N) by p."""
    bend: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
    """p, c, covector (…,N,2) -> the second derivatives xx, xy, xz, yy, yz, zz (…,N) of <covector, image> by p."""
    sees: Callable[[Tensor, Tensor], Tensor]
    """p, c -> whether each point has an image, and no other ray beside it the same one; bool (…,N)."""
    rays: Callable[[Tensor, Tensor, int, float], Rays]
    """Image (…,N,2), c, most steps, tolerance -> its inverse (`geometry.camera.unproject`)."""
    powers: tuple[int, ...]
    """By which power of the focal length a coefficient grows that bends the same pixels by as much."""
    start: tuple[float, ...]
    """What a calibration knows beforehand: the focal length, in parts of the longer side, then the coefficients."""
    pinhole: bool = True
    """Whether without coefficients it is none but a pinhole."""
