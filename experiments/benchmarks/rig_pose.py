"""Poses of rigs: is CONVERGED a promise, does PoseLib find less, and how long does it take?

Made rigs of 2 to 6 cameras (`datasets.made.rig_views`) that see 4 to 64 points with 0.1 to 5 px of noise. Of `rig_pnp`
without a start are counted, by judges that share no code with it (`experiments.benchmarks.judges`):

- moving, no minimum: not stationary, or of negative curvature;
- beaten: a descent from the truth, or from what PoseLib's `estimate_generalized_absolute_pose` finds, ends lower;
- PoseLib beaten: the descent from PoseLib's pose ends above ours, by a part in a million.

`rig_pnp_ransac` with 30 and 60 % of the pixels anywhere: poses within 0.5 degrees and 0.03 (cameras are 0.5 from the
middle of the rig) of both, and of the right points alone; MSAC scores 2 % above the lower of the two.

Times are a thread's microseconds of processor a problem of 64 points in a batch of 512, with the gradient, the least of
some turns: `pnp`, a rig of one camera, and of three. Writes results/benchmark_rig_pose/table.md and table.json.

Presets:

- smoke: Measures tiny problems, to see that everything works.
- default: Seeks the poses of 3,000 rigs, and of 400 among wrong matches.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datasets.made.rig_views import Mounting, RigViews, rig_views
from experiments.benchmarks.judges import descend, image_of, moved, shape_at
from experiments.benchmarks.measuring import choose, save
from experiments.records.text import table
from geometry import pnp, rig_pnp, rig_pnp_ransac, se3

__all__ = ["of_poselib"]

DOUBLE: dict[str, Any] = {"dtype": torch.float64}
POINTS, NOISE, BASELINES = (4, 5, 6, 8, 12, 30, 64), (0.1, 1.0, 5.0), (0.02, 0.5, 5.0)


@dataclass(frozen=True)
class Config:
    poses: int = 3000
    """Sets the number of rigs whose pose is sought."""
    ransacs: int = 400
    """Sets the number of rigs among wrong matches."""
    batch: int = 50
    """Sets the number of problems of a call."""
    turns: int = 9
    """Sets how often each is measured."""
    seed: int = 0
    """Seeds all problems."""
    out: Path = Path("results")
    """Names the folder of all results; the table goes to OUT/benchmark_rig_pose."""


class Sights(NamedTuple):
    """What the judges see: points2d (B,N,2), points3d (B,N,3), and of every point its camera K (B,N,3,3) and its sensor
    (B,N,4,4)."""

    points2d: Tensor
    points3d: Tensor
    K: Tensor
    sensors: Tensor

    @classmethod
    def of(cls, seen: RigViews) -> "Sights":
        rows = torch.arange(len(seen.points2d))[:, None]
        K, sensors = seen.K[rows, seen.sensor_index], seen.sensor_from_rig[rows, seen.sensor_index]
        return cls(seen.points2d, seen.points3d, K, sensors)


def errors(pose: Tensor, x: Tensor, X: Tensor, K: Tensor, T: Tensor) -> Tensor:
    """Pixel errors (…,N,2) at a pose (…,4,4); infinite behind a camera."""
    p = X @ pose[..., :3, :3].mT + pose[..., None, :3, 3]
    p = (T[..., :3, :3] @ p[..., None])[..., 0] + T[..., :3, 3]
    return image_of(p[..., None, :], K, K.new_empty(0), False)[..., 0, :] - x


def cost(step: Tensor, pose: Tensor, x: Tensor, X: Tensor, K: Tensor, T: Tensor) -> Tensor:
    """Cost of a step (6,) from a pose."""
    centre = X.mean(0)
    size = (X - centre).square().sum(-1).mean().sqrt()
    return 0.5 * errors(moved(pose, step, centre, size), x, X, K, T).square().sum()


def of_poselib(seen: RigViews, **options: float) -> Tensor:
    """PoseLib's poses (B,4,4) of rigs, by RANSAC with such options and a refinement; NaN where it finds none."""
    import poselib

    poses = []
    for x, X, K, sensors, index in zip(*(a.numpy() for a in seen[:5]), strict=True):
        members = [index == s for s in range(len(K))]
        cameras = [poselib.Camera("PINHOLE", [k[0, 0], k[1, 1], k[0, 2], k[1, 2]], 640, 480) for k in K]
        mounted = []
        for T in sensors:
            mounted.append(poselib.CameraPose())
            mounted[-1].R, mounted[-1].t = T[:3, :3], T[:3, 3]
        points = [x[m] for m in members], [X[m] for m in members]
        found, _ = poselib.estimate_generalized_absolute_pose(*points, mounted, cameras, options, {})
        poses.append(found.Rt)
    Rt = torch.from_numpy(np.array(poses))
    return se3.make(Rt[..., :3], Rt[..., 3])


def pick(g: torch.Generator, values: tuple[Any, ...]) -> Any:
    return values[int(torch.randint(len(values), (1,), generator=g))]


def poses(mounting: Mounting, config: Config, number: int, g: torch.Generator) -> dict[str, int]:
    """Counts of so many problems."""
    total: dict[str, int] = {}
    for _ in range(-(-number // config.batch)):
        S, N, noise = int(torch.randint(2, 7, (1,), generator=g)), pick(g, POINTS), pick(g, NOISE)
        baseline = 3.0 if mounting == "inward" else pick(g, BASELINES)
        seen = rig_views(config.batch, N, S, noise, g, mounting=mounting, baseline=baseline)
        found, sights = rig_pnp(**seen.given), Sights.of(seen)
        shape = shape_at(cost, 6, (found.x, *sights))
        theirs = of_poselib(seen, max_reproj_error=1e3, min_iterations=200, max_iterations=400)
        theirs = torch.where(torch.isfinite(theirs).all(-1).all(-1)[:, None, None], theirs, torch.eye(4, **DOUBLE))
        (_, near), (_, other) = (
            descend(cost, start.clone(), sights)  # type: ignore[arg-type]
            for start in (seen.world_to_rig_gt, theirs)
        )
        ok, rounding = found.converged, 1e-12 * N
        verdict = {
            "problems": torch.ones_like(ok),
            "CONVERGED": ok,
            "moving": ok & (shape.decrease > 1e-9 * shape.cost + rounding),
            "no minimum": ok & (shape.curvature < -1e-9) & (shape.cost > rounding),
            "beaten from the truth": near.cost < (1 - 1e-6) * shape.cost - rounding,
            "beaten from PoseLib": other.cost < (1 - 1e-6) * shape.cost - rounding,
            "PoseLib beaten": shape.cost < (1 - 1e-6) * other.cost - rounding,
        }
        for name, which in verdict.items():
            total[name] = total.get(name, 0) + int(which.sum())
    return total


def right(x: Tensor, truth: Tensor) -> float:
    angle = torch.rad2deg(se3.rotation_angle(x[:, :3, :3] @ truth[:, :3, :3].mT))
    return ((angle < 0.5) & ((se3.centre(x) - se3.centre(truth)).norm(dim=-1) < 0.03)).double().mean().item()


def ransacs(S: int, share: float, config: Config, g: torch.Generator) -> dict[str, Any]:
    """Success of both, and scores, of rigs of S cameras that see 20 points each."""
    B, N = config.ransacs // 4, 20 * S
    seen = rig_views(B, N, S, 1.0, g)
    wrong = torch.rand(B, N, generator=g, **DOUBLE).argsort(1).argsort(1) < round(share * N)
    anywhere = torch.rand(B, N, 2, generator=g, **DOUBLE) * torch.tensor([640.0, 480.0], **DOUBLE)
    seen = seen._replace(points2d=torch.where(wrong[..., None], anywhere, seen.points2d))
    parts = [RigViews(*(a[i : i + config.batch] for a in seen)) for i in range(0, B, config.batch)]
    ours = torch.cat([rig_pnp_ransac(**part.given, generator=g).x for part in parts])
    theirs = of_poselib(seen, max_reproj_error=4.0)
    alone = rig_pnp(**seen.given, mask=~wrong, init=seen.world_to_rig_gt).x
    sights = Sights.of(seen)
    score = [errors(x, *sights).square().sum(-1).nan_to_num(torch.inf).clamp_max(16).sum(-1) for x in (ours, theirs)]
    lowest = torch.minimum(*score)
    return {
        "cameras": S,
        "wrong": f"{100 * share:.0f} %",
        "ours": right(ours, seen.world_to_rig_gt),
        "PoseLib": right(theirs, seen.world_to_rig_gt),
        "right points alone": right(alone, seen.world_to_rig_gt),
        "ours 2 % above": int((score[0] > 1.02 * lowest).sum()),
        "PoseLib 2 % above": int((score[1] > 1.02 * lowest).sum()),
    }


def times(config: Config, g: torch.Generator) -> dict[str, float]:
    """Microseconds a problem."""
    B, N = 512, 64

    def call(S: int, with_pnp: bool = False) -> Any:
        seen = rig_views(B, N, S, 1.0, g)
        leaf = seen.points2d.clone().requires_grad_()
        if with_pnp:
            return lambda: pnp(leaf, seen.points3d, seen.K[:, 0]).x.sum().backward()
        return lambda: rig_pnp(**(seen.given | {"points2d": leaf})).x.sum().backward()

    calls = {"pnp": call(1, True), "a rig of one camera": call(1), "a rig of three": call(3)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    least = dict.fromkeys(calls, math.inf)
    try:
        for _ in range(config.turns + 1):  # the first compiles
            for name, run in calls.items():
                start = time.process_time()
                run()
                least[name] = min(least[name], 1e6 / B * (time.process_time() - start))
        return least
    finally:
        torch.set_num_threads(threads)


def main(config: Config) -> dict[str, Any]:
    """Measure, print and save."""
    g = torch.Generator().manual_seed(config.seed)
    kinds = get_args(Mounting)
    judged = {kind: poses(kind, config, config.poses // len(kinds), g) for kind in tqdm(kinds)}
    among = [ransacs(S, share, config, g) for S in (2, 5) for share in (0.3, 0.6)]
    spent = times(config, g)
    head = list(next(iter(judged.values())))
    text = table(["cameras look", *head], [[kind, *(str(row[n]) for n in head)] for kind, row in judged.items()])
    head = list(among[0])
    rows = [[f"{100 * v:.1f} %" if isinstance(v, float) else str(v) for v in row.values()] for row in among]
    text += "\n\n" + table(head, rows)
    text += "\n\n" + table(["us a problem", *spent], [["", *(f"{t:.0f}" for t in spent.values())]])
    print(text)
    results = {"config": vars(config), "poses": judged, "ransac": among, "times": spent}
    save(config.out / "benchmark_rig_pose", text, results, {})
    return results


PRESETS = {"smoke": Config(poses=60, ransacs=40, batch=10, turns=1), "default": Config()}


if __name__ == "__main__":
    main(choose(PRESETS, "python -m experiments.benchmarks.rig_pose", __doc__))
