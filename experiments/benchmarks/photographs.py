"""Is the focal length of ordinary photographs where its standard deviation says?

Made collections of photographs (`datasets.made.photographs`): lenses with k1 from -0.3 to 0.1, half of them with k2,
half of the pictures cut on one side, focal lengths from 0.75 to 1.5 widths, EXIF's whole millimetres of the picture
before it was cut. Each is reconstructed as `experiments.structure_from_motion` does, from nothing but tracks with noise
and wrong matches, or from rendered pictures, and the focal length is compared with the truth in its own deviations:

- chosen: the lens that the data ask for, f at least;
- f, cx, cy: what was once the default, a lens that does not bend, and whether the residuals' pattern says so.

Writes results/benchmark_photographs/table.md and table.json.

Presets:

- default: Reconstructs twelve collections of tracks and two of rendered pictures.
- smoke: Reconstructs one collection of tracks.
"""

import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from tqdm import tqdm

from datasets.made.photographs import Photographs, take_photographs
from experiments.benchmarks.measuring import choose, save
from experiments.records.text import table
from experiments.structure.lens import Sought
from experiments.structure.refinement import Refined, refine
from experiments.structure.scenes import EXIF_OFF, Scene, SceneOptions, read_images, start_tracks
from experiments.structure.tracks import Flat

_FILM = math.hypot(36, 24)
_EXIF, _EQUIVALENT = 0x8769, 0xA405


@dataclass(frozen=True)
class Config:
    collections: int = 12
    """Sets how many collections are tracks."""
    pictures: int = 2
    """Sets how many are rendered, and go through files."""
    points: int = 1500
    """Sets the number of points of the tracks, before they are looked for in the pictures."""
    seed: int = 0
    """Seeds the first collection."""
    out: Path = Path("results")
    """Names the folder of all results; the table goes to OUT/benchmark_photographs."""


PRESETS = {"default": Config(), "smoke": Config(collections=1, pictures=0, points=1500)}


class Collection(NamedTuple):
    """Photographs, and the focal length in whole millimetres that EXIF has, of a picture that was then cut."""

    photographs: Photographs
    millimetres: int
    words: str


def make(seed: int, views: int = 8, width: int = 960) -> Collection:
    """A collection of the seed's own."""
    g = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=g).item()

    k1 = uniform(-0.3, 0.1)
    # wider, such a lens would not show its corners
    share = uniform(0.75 + max(-k1, 0), 1.5)
    k2 = uniform(-0.1, 0.1) if uniform(0, 1) < 0.5 else 0.0
    cut = (uniform(-0.08, 0.08), uniform(-0.08, 0.08)) if uniform(0, 1) < 0.5 else (0.0, 0.0)
    size = (width, round(width / 1.5))
    upright = 0.3 if uniform(0, 1) < 0.4 else 0.0
    photographs = take_photographs(
        g, views=views, image_size=size, focal_share=share, k1=k1, k2=k2, crop=cut, upright=upright
    )
    # what was cut off on one side lay farther from the principal point than what is left on the other
    before = math.hypot(*(side * (1 + 2 * abs(off)) for side, off in zip(size, cut, strict=True)))
    words = f"k1 {k1:.3f}, k2 {k2:.3f}, cut {100 * cut[0]:.1f} %, {100 * cut[1]:.1f} %"
    return Collection(photographs, round(share * width * _FILM / before), words)


def from_tracks(collection: Collection, points: int, seed: int) -> tuple[Scene, SceneOptions]:
    """A reconstruction from tracks with 0.3 to 0.6 px of noise, a tenth of them wrong."""
    g = torch.Generator().manual_seed(seed)
    photographs = collection.photographs
    noise = 0.3 + 0.3 * torch.rand((), generator=g).item()
    tracks = photographs.tracks(points, g, noise_px=noise, wrong=0.1)
    options = SceneOptions(inlier_px=2.0, robust_px=0.5)
    f = collection.millimetres * math.hypot(*photographs.image_size) / _FILM
    sought = Sought(photographs.image_size, {"f": (f, EXIF_OFF * f)}, None, f"{f:.0f} px by EXIF")
    flat = Flat(*tracks[:3], len(photographs.world_to_camera))
    return start_tracks(flat, None, sought, options, seed)[0], options


def from_pictures(collection: Collection, seed: int) -> tuple[Scene, SceneOptions]:
    """A reconstruction from files of pictures."""
    exif = Image.Exif()
    exif.get_ifd(_EXIF)[_EQUIVALENT] = collection.millimetres
    options = SceneOptions()
    with tempfile.TemporaryDirectory() as folder:
        for v in range(len(collection.photographs.world_to_camera)):
            picture = Image.fromarray(collection.photographs.picture(v, seed))
            picture.save(Path(folder) / f"{v}.jpg", quality=95, exif=exif.tobytes())
        return read_images(Path(folder), options, seed), options


def measure(collection: Collection, scene: Scene, options: SceneOptions) -> dict[str, Any]:
    """What is found of the lens, and of one that does not bend."""
    assert scene.points_start is not None
    assert scene.poses_start is not None
    sought = scene.sought
    assert sought is not None
    start = scene.points_start, scene.poses_start, options.robust_px
    scene = replace(scene, K_gt=collection.photographs.K.expand_as(scene.K))
    found = refine(scene, *start)
    stiff = sought._replace(free=("f", "cx", "cy"))
    once = refine(replace(scene, sought=stiff, distortion=0 * scene.distortion), *start)
    return {
        "collection": collection.words,
        "views": len(scene.K),
        "observations": int(scene.visible.sum()),
        "f": collection.photographs.K[0, 0].item(),
        "exif_f": sought.known["f"][0],
        "chosen": told(found),
        "once": told(once),
    }


def told(found: Refined) -> dict[str, Any]:
    """The focal length's error in its deviations, and the pattern in the residuals."""
    off, deviation = found.errors["f_off_px"], found.errors["f_deviation_px"]
    return {
        "free": list(found.solution.task.problem.names),
        "off": off / deviation,
        "deviation_px": deviation,
        "pattern": found.errors["pattern_deviations"],
        "converged": bool(found.solution.converged.all()),
    }


def main(config: Config) -> dict[str, Any]:
    torch.set_num_threads(1)
    rows = []
    for k in tqdm(range(config.collections + config.pictures), desc="collections"):
        seed = config.seed + k
        if k < config.collections:
            collection = make(seed)
            rows.append({"from": "tracks", **measure(collection, *from_tracks(collection, config.points, seed))})
        else:
            collection = make(seed, width=720)
            rows.append({"from": "pictures", **measure(collection, *from_pictures(collection, seed))})
        text = page(rows)
        save(config.out / "benchmark_photographs", text, {"seed": config.seed, "rows": rows}, {})
    print(text)
    return {"rows": rows}


def page(rows: list[dict[str, Any]]) -> str:
    """The table of all collections, and how many are within three deviations."""
    header = ["from", "lens", "views, observations", "f", "EXIF", "free", "f off, in deviations", "f ±", "pattern",
              "f, cx, cy: off", "its pattern"]  # fmt: skip
    lines = []
    for row in rows:
        chosen, once = row["chosen"], row["once"]
        lines.append([
            row["from"], row["collection"], f"{row['views']}, {row['observations']}", f"{row['f']:.0f}",
            f"{row['exif_f']:.0f}", " ".join(chosen["free"]), f"{chosen['off']:.2f}", f"{chosen['deviation_px']:.2f}",
            f"{chosen['pattern']:.1f}", f"{once['off']:.1f}", f"{once['pattern']:.1f}",
        ])  # fmt: skip
    within = {name: sum(abs(row[name]["off"]) < 3 for row in rows) for name in ("chosen", "once")}
    others = [row["once"] for row in rows if not abs(row["once"]["off"]) < 3]
    none = sum(not one["converged"] for one in others)
    seen = sum(one["pattern"] > 3 for one in others)
    words = [
        f"f is within three of its deviations in {within['chosen']} of {len(rows)} collections;",
        f"in {within['once']} with a lens that does not bend. Of the other {len(others)}, {none} have no",
        f"minimum (nan), and {seen} a pattern of more than 3 deviations in the residuals.",
    ]
    return f"{table(header, lines)}\n{' '.join(words)}\n"


if __name__ == "__main__":
    main(choose(PRESETS, "python -m experiments.benchmarks.photographs", __doc__))
