"""What a rolling shutter costs a bundle: errors of poses with its readout time, against a global shutter, and ignored.

Made scenes of six views that turn by about half a radian and move by 1.5 units a second, nine units from a cloud of
points; ten points are held. The same noise on pixels of a global shutter, and of a rolling one of 30 ms, which is
solved with known velocities, with known velocities and half the readout time, with unknown velocities, and ignored.

Writes results/benchmark_rolling_bundle/table.md and table.json.

Presets:

- default: Adjusts 40 scenes of each size.
- smoke: Adjusts two small scenes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from datasets.made.rolling import RollingScene, made_rolling
from experiments.benchmarks.measuring import choose, save
from experiments.records.text import table
from experiments.running.config import at_least
from geometry import bundle, se3

VIEWS = 6
HELD = 10


@dataclass(frozen=True)
class Config:
    points: tuple[int, ...] = (30, 60, 150)
    """Lists the numbers of points of a scene."""
    scenes: int = 40
    """Sets the number of scenes of each size."""
    readout: float = 0.03
    """Sets the seconds a picture takes."""
    noise: float = 0.5
    """Sets the standard deviation of the pixels' noise."""
    seed: int = 0
    """Seeds the first scene."""
    out: Path = Path("results")
    """Names the folder of all results; the table goes to OUT/benchmark_rolling_bundle."""

    def __post_init__(self) -> None:
        at_least(self, 1, "scenes")
        at_least(self, HELD + 1, "points")


def errors(scene: RollingScene, seed: int, **options: Any) -> Tensor:
    """Mean squares (2,) of the turns and of the distances that poses are off; NaN where nothing was found."""
    generator = torch.Generator().manual_seed(seed)
    poses = se3.retract(scene.world_to_camera, 0.01 * torch.randn(VIEWS, 6, generator=generator, dtype=torch.float64))
    points = scene.points3d + 0.03 * torch.randn(len(scene.points3d), 3, generator=generator, dtype=torch.float64)
    points[:HELD] = scene.points3d[:HELD]
    start = scene._replace(world_to_camera=poses, points3d=points)._asdict()
    held = torch.arange(len(points)) < HELD
    found = bundle(**{"free": ("poses", "points"), **start, **options}, fixed_points=held)
    x = found.x.world_to_camera
    turn = se3.rotation_angle(x[:, :3, :3] @ scene.world_to_camera[:, :3, :3].mT).square().mean()
    apart = (se3.centre(x) - se3.centre(scene.world_to_camera)).square().sum(-1).mean()
    return torch.where(found.converged, torch.stack([turn, apart]), torch.nan)


def compared(config: Config, points: int) -> list[dict[str, Any]]:
    """A row a way to solve."""
    squares: dict[str, list[Tensor]] = {}
    for i in tqdm(range(config.scenes), f"{points} points"):
        seed = config.seed + i
        still, rolling = (
            made_rolling(VIEWS, points, torch.Generator().manual_seed(seed), readout=r, noise=config.noise)
            for r in (0.0, config.readout)
        )
        ignored = {"times": None, "velocity": None}
        runs: dict[str, tuple[RollingScene, dict[str, Any]]] = {
            "global shutter": (still, ignored),
            "velocities known": (rolling, {}),
            "readout sought": (rolling, {"times": 0.5 * rolling.times, "free": ("poses", "points", "readout")}),
            "velocities sought": (rolling, {"velocity": None, "free": ("poses", "points", "velocities")}),
            "ignored": (rolling, ignored),
        }
        for name, (scene, options) in runs.items():
            squares.setdefault(name, []).append(errors(scene, seed, **options))
    rows = []
    reference = torch.stack(squares["global shutter"]).nanmean(0).sqrt()
    for name, some in squares.items():
        found = torch.stack(some)
        turn, apart = found.nanmean(0).sqrt().tolist()
        ratio = (found.nanmean(0).sqrt() / reference).tolist()
        failed = int(found.isnan().any(1).sum())
        rows.append({"points": points, "way": name, "turn": turn, "apart": apart, "ratio": ratio, "failed": failed})
    return rows


def main(config: Config) -> dict[str, Any]:
    """Measure, print and save."""
    rows = [row for points in config.points for row in compared(config, points)]
    lines = [
        [str(row["points"]), row["way"], f"{1e3 * row['turn']:.3f}", f"{row['ratio'][0]:.2f}",
         f"{1e3 * row['apart']:.2f}", f"{row['ratio'][1]:.2f}", str(row["failed"])]
        for row in rows
    ]  # fmt: skip
    head = ["points", "shutter", "turn, mrad", "times global", "centre, 1e-3 units", "times global", "not converged"]
    said = f"{VIEWS} views, {config.scenes} scenes a row, readout {config.readout} s, noise {config.noise} px."
    text = f"{said}\n\n{table(head, lines)}"
    print(text)
    save(config.out / "benchmark_rolling_bundle", text, {"rows": rows}, {})
    return {"rows": rows}


PRESETS = {"default": Config(), "smoke": Config(points=(30,), scenes=2)}


if __name__ == "__main__":
    main(choose(PRESETS, "python -m experiments.benchmarks.rolling_bundle", __doc__))
