"""The focal length that a photograph's EXIF tells, in pixels.

Cameras state one in millimetres, which says nothing without the size of the sensor. In this order: the equivalent for
35 mm film, whose frame is 36 x 24 mm; the sensor's pixels per length; the sensor's size, by the camera's name, out of
lensfun's table. EXIF 2.32 (CIPA DC-008), 4.6.5; the equivalent keeps the angle of the diagonal (CIPA DCG-001).
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets.files import require_file

__all__ = ["FocalLength", "read_focal_length", "usual_focal_length"]

_FILM = math.hypot(36, 24)
_MILLIMETRES = {2: 25.4, 3: 10.0, 4: 1.0}  # of EXIF's units of length: an inch, if nothing is said
_MAKE, _MODEL, _EXIF = 0x010F, 0x0110, 0x8769
_LENGTH, _EQUIVALENT, _WIDTH, _HEIGHT, _DENSITY, _UNIT = 0x920A, 0xA405, 0xA002, 0xA003, 0xA20E, 0xA210


class FocalLength(NamedTuple):
    """In pixels of the picture, and in words where it is from. It is good to some percent: equivalents are whole
    millimetres, zooms are read off a dial, a lens that is focused near is longer, and pictures are cut."""

    px: float
    source: str


def read_focal_length(path: str | Path) -> FocalLength | None:
    """What an image says of its focal length, None if that is nothing or not enough.

    Where EXIF states another shape of picture than there is, a part was cut out, and it is taken for unscaled; one of
    the same shape was scaled. Raises FileNotFoundError, and ValueError naming a file that is no image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(require_file(path)) as image:
            size, exif = image.size, image.getexif()
            make, model = (str(exif.get(tag, "")).strip("\0 ") for tag in (_MAKE, _MODEL))
            tags = exif.get_ifd(_EXIF)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: an image wanted, found something that Pillow cannot read") from error
    taken = _taken(size, tags)
    diagonal = math.hypot(*size if _same_shape(size, taken) else taken)
    length, equivalent = (_number(tags.get(tag)) for tag in (_LENGTH, _EQUIVALENT))
    if equivalent:
        return FocalLength(equivalent * diagonal / _FILM, f"{equivalent:g} mm for 35 mm film")
    if not length:
        return None
    density, unit = _number(tags.get(_DENSITY)), _MILLIMETRES.get(tags.get(_UNIT, 2))
    if density and unit:
        per_mm = density / unit * diagonal / math.hypot(*taken)
        return FocalLength(length * per_mm, f"{length:g} mm, {density / unit:.4g} pixels per mm of the sensor")
    if crop := _crop_factor(make, model):
        px = length * crop * diagonal / _FILM
        return FocalLength(px, f"{length:g} mm, {model} has a sensor {crop:.3g} times smaller than film")
    return None


def usual_focal_length(paths: Sequence[Path]) -> tuple[FocalLength | None, dict[str, str]]:
    """The focal length that most photographs have, None if they tell none, and those with another: name and reason.

    One is another from 1 % of difference on: a zoom was turned. What tells none is taken for one like the others.
    """
    told = {path: found for path in paths if (found := read_focal_length(path)) is not None}
    if not told:
        return None, {}
    (usual, _), *_ = Counter(told.values()).most_common(1)
    other = {path: found for path, found in told.items() if abs(math.log(found.px / usual.px)) > 0.01}
    reason = f"focal length {{:.0f}} px by EXIF, most have {usual.px:.0f}"
    return usual, {path.name: reason.format(found.px) for path, found in other.items()}


def _taken(size: tuple[int, int], tags: Any) -> tuple[int, int]:
    """Width and height in px of the picture as EXIF says it was taken, or else as it is."""
    width, height = (_number(tags.get(tag)) for tag in (_WIDTH, _HEIGHT))
    return (round(width), round(height)) if width and height else size


def _same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes have the same ratio of their sides, to a percent, the picture upright or not."""
    return abs(min(one) / max(one) - min(other) / max(other)) < 0.01


def _number(value: Any) -> float | None:
    """A tag's value, None unless it is a positive number: 0 and 1/0 mean that it is not known."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if 0 < number < math.inf else None


def _crop_factor(make: str, model: str) -> float | None:
    """How many times smaller than film's the diagonal of a camera's sensor is; None for a camera that is not known."""
    import lensfunpy

    found = lensfunpy.Database().find_cameras(make, model) if model else []
    return found[0].crop_factor if found else None
