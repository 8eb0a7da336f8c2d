"""The bundle of rigs beside COLMAP's: the same cost, and how long it takes.

Made rigs of several cameras, whose views overlap or do not, from the same start 0.01 radians and units off: poses of
the frames, mountings of all cameras but the first, and points are sought. COLMAP states its problem to Ceres, with
analytic derivatives and its choice of linear solver, and runs until nothing changes any more.

Writes results/benchmark_rig_bundle/table.md and table.json.

Presets:

- default: Adjusts rigs of two to six cameras.
- smoke: Adjusts a small rig of two.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from datasets.made.rigs import RigScene, made_rig
from experiments.benchmarks.measuring import choose, save
from experiments.records.text import table
from experiments.running.config import at_least
from geometry import BundleSolution, bundle


@dataclass(frozen=True)
class Config:
    cameras: tuple[int, ...] = (2, 3, 4, 5, 6)
    """Lists the sizes of the rigs."""
    frames: int = 50
    """Sets the number of frames of each."""
    points: int = 1000
    """Sets the number of points around."""
    seed: int = 0
    """Seeds all that is made."""
    out: Path = Path("results")
    """Names the folder of all results; the table goes to OUT/benchmark_rig_bundle."""

    def __post_init__(self) -> None:
        at_least(self, 2, "frames", "points", "cameras")


def ours(scene: RigScene) -> BundleSolution:
    """Solved to the end."""
    return bundle(**scene._asdict(), free=("poses", "points", "sensors"))


def reconstruction(scene: RigScene) -> Any:
    """The scene as COLMAP's, less what is seen once, camera s + 1 for sensor s: the first, which has no pose of its own
    there, is at the identity."""
    import pycolmap

    found, rig = pycolmap.Reconstruction(), pycolmap.Rig(rig_id=1)
    for s, (K, k) in enumerate(zip(scene.K.tolist(), scene.distortion.tolist(), strict=True)):
        parameters = [K[0][0], K[1][1], K[0][2], K[1][2], *k, 0.0, 0.0]
        camera = pycolmap.Camera(model="OPENCV", width=640, height=480, params=parameters, camera_id=s + 1)
        found.add_camera(camera)
        if s == 0:
            rig.add_ref_sensor(camera.sensor_id)
        else:
            rig.add_sensor(camera.sensor_id, pycolmap.Rigid3d(scene.sensor_from_rig[s, :3].numpy()))
    found.add_rig(rig)
    rows = [(scene.camera_index == v).nonzero().flatten() for v in range(len(scene.rig_index))]
    views = list(enumerate(zip(scene.rig_index.tolist(), scene.sensor_index.tolist(), strict=True)))
    images = [
        pycolmap.Image(name=str(v), keypoints=scene.points2d[rows[v]].numpy(), camera_id=s + 1, image_id=v + 1)
        for v, (_, s) in views
    ]
    for f, pose in enumerate(scene.world_to_camera[:, :3].numpy()):
        frame = pycolmap.Frame(frame_id=f + 1, rig_id=1, rig_from_world=pycolmap.Rigid3d(pose))
        for v, (own, _) in views:
            if own == f:
                frame.add_data_id(images[v].data_id)
        found.add_frame(frame)
        found.register_frame(f + 1)
    tracks = [pycolmap.Track() for _ in scene.points3d]
    for v, (f, _) in views:
        images[v].frame_id = f + 1
        found.add_image(images[v])
        for i, n in enumerate(scene.point_index[rows[v]].tolist()):
            tracks[n].add_element(v + 1, i)
    for X, track in zip(scene.points3d.numpy(), tracks, strict=True):
        if len(track.elements) > 1:
            found.add_point3D(X, track)
    return found


def colmap_cost(scene: RigScene, threads: int = 1) -> tuple[float, float]:
    """Half the sum of squared errors that COLMAP's bundle ends at, and seconds of its solver."""
    import pyceres
    import pycolmap

    found, config = reconstruction(scene), pycolmap.BundleAdjustmentConfig()
    for v in range(len(scene.rig_index)):
        config.add_image(v + 1)
        config.set_constant_cam_intrinsics(int(scene.sensor_index[v]) + 1)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    options = pycolmap.BundleAdjustmentOptions(print_summary=False)
    adjuster = pycolmap.create_default_ceres_bundle_adjuster(options, config, found)
    pyceres.logging.minloglevel = pyceres.logging.FATAL.value
    settings = pyceres.SolverOptions()
    settings.linear_solver_type = pyceres.LinearSolverType.DENSE_SCHUR
    settings.max_num_iterations, settings.num_threads = 200, threads
    settings.function_tolerance = settings.gradient_tolerance = settings.parameter_tolerance = 1e-14
    settings.logging_type = pyceres.LoggingType.SILENT
    summary, begun = pyceres.SolverSummary(), time.perf_counter()
    pyceres.solve(settings, adjuster.problem, summary)
    return summary.final_cost, time.perf_counter() - begun


def compared(config: Config, cameras: int, overlap: bool) -> dict[str, Any]:
    """One rig solved by both."""
    generator = torch.Generator().manual_seed(config.seed + cameras)
    apart = 0.3 if overlap else 1.3
    scene = made_rig(config.frames, cameras, config.points, generator, apart=apart).moved(generator, 0.01)
    begun = time.perf_counter()
    found = ours(scene)
    seconds = time.perf_counter() - begun
    theirs, their_seconds = colmap_cost(scene)
    return {
        "cameras": cameras, "views overlap": overlap, "observations": len(scene.points2d), "status": found.message,
        "cost": found.cost.item(), "COLMAP": theirs, "apart": found.cost.item() / theirs - 1, "seconds": seconds,
        "COLMAP, seconds": their_seconds,
    }  # fmt: skip


def main(config: Config) -> dict[str, Any]:
    """Measure, print and save."""
    torch.set_num_threads(1)
    kinds = [(c, overlap) for c in config.cameras for overlap in (True, False)]
    rows = [compared(config, *kind) for kind in tqdm(kinds, "rigs")]
    lines = [
        [str(row["cameras"]), "yes" if row["views overlap"] else "no", f"{row['observations']:,}",
         f"{row['cost']:.6f}", f"{row['COLMAP']:.6f}", f"{row['apart']:.1e}", f"{row['seconds']:.2f}",
         f"{row['COLMAP, seconds']:.2f}"]
        for row in rows
    ]  # fmt: skip
    head = ["cameras", "overlap", "observations", "cost", "COLMAP", "apart", "s", "COLMAP, s"]
    text = f"Rigs of {config.frames} frames, one thread, seed {config.seed}.\n\n{table(head, lines)}"
    print(text)
    save(config.out / "benchmark_rig_bundle", text, {"rows": rows}, {})
    return {"rows": rows}


PRESETS = {"default": Config(), "smoke": Config(cameras=(2,), frames=5, points=150)}


if __name__ == "__main__":
    main(choose(PRESETS, "python -m experiments.benchmarks.rig_bundle", __doc__))
