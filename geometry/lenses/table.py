"""The lenses by their names, and what is checked of one that a caller names."""

from torch import Tensor

from geometry.checks import one_of
from geometry.lenses.division import DIVISION
from geometry.lenses.double_sphere import DOUBLE_SPHERE
from geometry.lenses.eucm import EUCM
from geometry.lenses.fisheye import FISHEYE
from geometry.lenses.fov import FOV
from geometry.lenses.lens import Lens
from geometry.lenses.radtan import RADTAN

__all__ = ["LENSES", "check_distortion"]

LENSES: dict[str, Lens] = {
    "radtan": RADTAN,
    "fisheye": FISHEYE,
    "eucm": EUCM,
    "double_sphere": DOUBLE_SPHERE,
    "division": DIVISION,
    "fov": FOV,
}
"""Each `Model`."""


def check_distortion(distortion: Tensor, model: str) -> None:
    """Raise ValueError unless `model` is one of `LENSES` and takes this many coefficients."""
    one_of("model", model, LENSES)
    counts = LENSES[model].counts
    if distortion.shape[-1] not in counts:
        wanted = f"one of {counts} coefficients for model={model!r}"
        raise ValueError(f"distortion must have {wanted}, got shape {tuple(distortion.shape)}")
