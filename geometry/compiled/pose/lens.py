"""Lenses in closed form, with first and second derivatives: `geometry.camera`, eight points at a time.

A camera is laid out as `equations` says, the coefficients of a fisheye in the places of the first four. A lens takes a
direction to an image. The directions next to one are told by two coordinates: for "radtan" x and y over the depth; a
fisheye sees to the sides and behind, where there is no depth to divide by, and has the angle from the axis and the turn
about it, which `Direction` measures along two unit vectors.
"""

from typing import Any, NamedTuple

import numpy as np

from ..vectors import LANES, fabs, jit, load, resolution, splat, sqrt, where_less

L = LANES
# 2 atan(t) = 2 t + t^3 P(t^2) for |t| <= tan(pi / 8), P of least relative error: 1e-17
_ATAN = (
    -0.6666666666666666, 0.3999999999999104, -0.2857142856933305, 0.2222222203050995, -0.18181809156135137,
    0.15384366379034733, -0.13329022857894607, 0.11716297505320171, -0.10170897799837841, 0.07846326817100444,
    -0.03835371493921622,
)  # fmt: skip
# below this, the squared sine of an angle counts as this: on the axis itself every direction leads away from it
_ON_AXIS = 1e-37


@jit
def radial(camera: Any, r2: Any) -> Any:
    """g(r2) = numerator over denominator, its first and second derivative, one over the denominator, its derivative."""
    k1, k2, k3 = load(camera, 6 * L), load(camera, 7 * L), load(camera, 10 * L)
    k4, k5, k6 = load(camera, 11 * L), load(camera, 12 * L), load(camera, 13 * L)
    d = 1.0 / (1.0 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    d1, d2 = k4 + r2 * (2.0 * k5 + 3.0 * r2 * k6), 2.0 * k5 + 6.0 * r2 * k6
    g = (1.0 + r2 * (k1 + r2 * (k2 + r2 * k3))) * d
    g1 = (k1 + r2 * (2.0 * k2 + 3.0 * r2 * k3) - g * d1) * d
    return g, g1, (2.0 * k2 + 6.0 * r2 * k3 - 2.0 * g1 * d1 - g * d2) * d, d, d1


@jit
def distort(camera: Any, x: Any, y: Any) -> Any:
    """Distorted coordinates and their derivatives by x and y: u, v, u_x, u_y, v_x, v_y (`geometry.camera.distort`)."""
    p1, p2 = load(camera, 8 * L), load(camera, 9 * L)
    s1, s2, s3, s4 = load(camera, 14 * L), load(camera, 15 * L), load(camera, 16 * L), load(camera, 17 * L)
    r2 = x * x + y * y
    g, g1, _, _, _ = radial(camera, r2)
    u = x * g + 2.0 * p1 * x * y + p2 * (r2 + 2.0 * x * x) + r2 * (s1 + r2 * s2)
    v = y * g + p1 * (r2 + 2.0 * y * y) + 2.0 * p2 * x * y + r2 * (s3 + r2 * s4)
    mixed = 2.0 * (x * y * g1 + p1 * x + p2 * y)
    prism_u, prism_v = 2.0 * s1 + 4.0 * r2 * s2, 2.0 * s3 + 4.0 * r2 * s4
    u_x = g + 2.0 * x * x * g1 + 2.0 * p1 * y + 6.0 * p2 * x + prism_u * x
    v_y = g + 2.0 * y * y * g1 + 6.0 * p1 * y + 2.0 * p2 * x + prism_v * y
    return u, v, u_x, mixed + prism_u * y, mixed + prism_v * x, v_y


@jit
def distort_bend(camera: Any, x: Any, y: Any, bu: Any, bv: Any) -> Any:
    """Second derivatives xx, xy, yy of bu u + bv v."""
    p1, p2 = load(camera, 8 * L), load(camera, 9 * L)
    s1, s2, s3, s4 = load(camera, 14 * L), load(camera, 15 * L), load(camera, 16 * L), load(camera, 17 * L)
    r2 = x * x + y * y
    _, g1, g2, _, _ = radial(camera, r2)
    along = 2.0 * ((bu * x + bv * y) * g1 + bu * (s1 + 2.0 * r2 * s2) + bv * (s3 + 2.0 * r2 * s4))
    twice = 4.0 * ((bu * x + bv * y) * g2 + 2.0 * (bu * s2 + bv * s4))
    xx = along + twice * x * x + 4.0 * bu * x * g1 + 6.0 * bu * p2 + 2.0 * bv * p1
    yy = along + twice * y * y + 4.0 * bv * y * g1 + 2.0 * bu * p2 + 6.0 * bv * p1
    return xx, twice * x * y + 2.0 * g1 * (bu * y + bv * x) + 2.0 * (bu * p1 + bv * p2), yy


class Direction(NamedTuple):
    """Of a point in the camera frame: the unit vector (a, b) away from the axis, sine and cosine of the angle to it.

    Along the angle lies (cosine a, cosine b, -sine), along the turn (-b, a, 0), outwards (sine a, sine b, cosine).
    """

    a: Any
    b: Any
    sine: Any
    cosine: Any


class Curve(NamedTuple):
    """An angle, d = angle (1 + k1 angle^2 + ...), the first and second derivative of d by the angle."""

    angle: Any
    d: Any
    d1: Any
    d2: Any


@jit
def direction(x: Any, y: Any, z: Any) -> Any:
    """The `Direction` of a point, and one over its distance."""
    inverse = 1.0 / sqrt(x * x + y * y + z * z)
    x, y = x * inverse, y * inverse
    s2 = x * x + y * y
    sine = sqrt(where_less(_ON_AXIS, s2, s2, _ON_AXIS))
    a, b = where_less(_ON_AXIS, s2, x / sine, 1.0), where_less(_ON_AXIS, s2, y / sine, 0.0)
    return Direction(a, b, sine, z * inverse), inverse


@jit
def angle_of(sine: Any, cosine: Any) -> Any:
    """The angle from 0 to pi, in arithmetic alone: from the next multiple of a right angle, by the half's tangent."""
    size = fabs(cosine)
    x = where_less(size, sine, -cosine, where_less(cosine, 0.0, -sine, sine))
    base = where_less(size, sine, 0.5 * np.pi, where_less(cosine, 0.0, np.pi, splat(0.0, sine)))
    t = x / (1.0 + where_less(size, sine, sine, size))
    t2 = t * t
    c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10 = _ATAN
    high = c6 + t2 * (c7 + t2 * (c8 + t2 * (c9 + t2 * c10)))
    low = c0 + t2 * (c1 + t2 * (c2 + t2 * (c3 + t2 * (c4 + t2 * (c5 + t2 * high)))))
    return base + (2.0 * t + t * t2 * low)


@jit
def curve(camera: Any, angle: Any) -> Any:
    """The `Curve` of a fisheye at an angle."""
    k1, k2, k3, k4 = load(camera, 6 * L), load(camera, 7 * L), load(camera, 8 * L), load(camera, 9 * L)
    t = angle * angle
    d = angle + angle * t * (k1 + t * (k2 + t * (k3 + t * k4)))
    d1 = 1.0 + t * (3.0 * k1 + t * (5.0 * k2 + t * (7.0 * k3 + t * (9.0 * k4))))
    d2 = angle * (6.0 * k1 + t * (20.0 * k2 + t * (42.0 * k3 + t * (72.0 * k4))))
    return Curve(angle, d, d1, d2)


@jit
def image(at: Any, arc: Any) -> Any:
    """Where a fisheye images a `Direction`, and the derivatives by its coordinates: u, v, u_x, u_y, v_x, v_y.

    arc: the `Curve` there.
    """
    turn = arc.d / at.sine
    return arc.d * at.a, arc.d * at.b, arc.d1 * at.a, -turn * at.b, arc.d1 * at.b, turn * at.a


@jit
def bend_of(camera: Any, at: Any, arc: Any, c: Any, d: Any) -> Any:
    """Second derivatives of c u + d v by the coordinates of a `Direction`; arc: its `Curve`.

    What is left of the second derivatives by the point, times its squared distance, is minus the first derivatives
    times the vector outwards, and the transposed of that: an image does not change with the distance.
    """
    k1, k2 = load(camera, 6 * L), load(camera, 7 * L)
    radial, across = at.a * c + at.b * d, at.a * d - at.b * c
    e = (arc.d1 * at.sine * at.cosine - arc.d) / (at.sine * at.sine)
    # near the axis that cancels, and a series in the tangent does not
    u = at.sine / at.cosine
    u2 = u * u
    series = 2.0 * u * (1.0 + u2) * (k1 - 1.0 / 3.0 + 2.0 * u2 * (k2 - k1 + 0.2))
    e = where_less(at.sine, resolution(camera) ** (1.0 / 6.0) * at.cosine, series, e)
    return radial * arc.d2, across * (e * at.cosine + arc.d1 * at.sine), radial * e
