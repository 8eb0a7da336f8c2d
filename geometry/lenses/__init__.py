"""Lenses, a file each: from points in the camera frame to images of focal length one, and back.

    radtan         OpenCV's: Brown's radial and tangential terms, a rational factor, a thin prism
    fisheye        Kannala and Brandt: a polynomial of the angle
    fov            Devernay and Faugeras: the angle of a stretched ray
    eucm, double_sphere, division    of closed form both ways (`quotients` is what these share)

    bearings       cameras without a lens: panoramas, covariances of directions

A `Lens` is functions: image, derivatives, what it sees, rays. `LENSES` is the table of them all: a new one is one file
and one line there. K is applied by `geometry.camera`, which is what users call.
"""

from geometry.lenses.bearings import bearing_whitening, equirectangular_pixels, equirectangular_rays
from geometry.lenses.fisheye import FISHEYE_LIMIT_COS
from geometry.lenses.lens import Lens, Model, Rays
from geometry.lenses.radtan import distort
from geometry.lenses.table import LENSES, check_distortion

__all__ = [
    "FISHEYE_LIMIT_COS",
    "LENSES",
    "Lens",
    "Model",
    "Rays",
    "bearing_whitening",
    "check_distortion",
    "distort",
    "equirectangular_pixels",
    "equirectangular_rays",
]
