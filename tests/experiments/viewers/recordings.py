"""Recordings of which everything is known, for the tests of the viewers."""

import json
from pathlib import Path

import numpy as np

from experiments.records.recording import Frame, Recording, Stage, add_frame, add_stage


def sphere(count: int = 300, frames: int = 20, views: int = 6, seed: int = 0) -> Recording:
    """Random points that settle on a unit sphere, and a ring of cameras that settle around it.

    In frame 0 only half of the points are known. `loss` falls tenfold every five steps; `fx` goes from 500 to 800.
    """
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(count, 3))
    truth /= np.linalg.norm(truth, axis=1, keepdims=True)
    noise = rng.normal(size=(count, 3))
    angles = np.linspace(0, 2 * np.pi, views, endpoint=False)
    cameras = np.stack([_looking_at_origin(4 * np.array([np.cos(a), np.sin(a), 0.3])) for a in angles])
    steps = np.arange(frames)
    moved = []
    for step in steps:
        left = 1 - step / max(frames - 1, 1)
        points = truth + left * noise
        if step == 0:
            points[::2] = np.nan
        wrong = cameras.copy()
        wrong[:, 2, 3] += 2 * left
        K = np.diag([800 - 300 * left, 700, 1])
        K[:2, 2] = 320, 240
        moved.append(Frame(int(step), points3d=points, world_to_camera=wrong, K=K))
    stage = Stage(
        colors=np.rint(127.5 * (truth + 1)).astype(np.uint8),
        views=rng.integers(1, views + 1, count),
        points3d_gt=truth,
        world_to_camera_gt=cameras,
        image_size=np.array([640, 480]),
        targets={"loss": 1e-3, "fx": 800.0},
    )
    left = 1 - steps / max(frames - 1, 1)
    metrics = {"step": steps.astype(float), "loss": 10 ** (-steps / 5), "fx": 800 - 300 * left}
    summary = {
        "experiment": "toy", "preset": "default", "seed": 0, "converged": True, "iterations": frames, "seconds": 1.5,
        "goal": "loss below 1e-3", "undetermined": [], "found": {}, "left_out": {},
        "loss": 1e-4, "errors": {"rms_share": 1e-6}, "reference": {"iterations": "293 to 312"}, "note": "a test",
    }  # fmt: skip
    return Recording("toy / sphere", (stage,), tuple(moved), metrics, summary, is_run=True)


def keypoints(frames: int = 12) -> Recording:
    """A cube that stays, one camera and the image points of its corners that move to where they belong."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)
    edges = np.array([(i, j) for i in range(8) for j in range(i) if np.sum(corners[i] != corners[j]) == 1])
    camera = _looking_at_origin(np.array([3.0, 4.0, 5.0]))
    K = np.array([[300.0, 0, 128], [0, 300, 128], [0, 0, 1]])
    seen = (corners @ camera[:3, :3].T + camera[:3, 3]) @ K.T
    target = seen[:, :2] / seen[:, 2:]
    steps = np.arange(frames)
    moved = []
    for step in steps:
        left = 0.5**step
        wrong = camera.copy()
        wrong[2, 3] += 3 * left
        moved.append(Frame(int(step), world_to_camera=wrong[None], points2d=target * (1 - left)))
    stage = Stage(
        points3d=corners, edges=edges, world_to_camera_gt=camera[None], points2d_gt=target, K=K,
        image_size=np.array([256, 256]), targets={"loss": 1e-3},
    )  # fmt: skip
    return Recording(
        "toy / keypoints", (stage,), tuple(moved), {"step": steps.astype(float), "loss": 0.25**steps}, {}, True
    )


def written(recording: Recording, run: Path) -> Path:
    """The recording as a run would leave it."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps({"experiment": "toy"}))
    for number, stage in enumerate(recording.stages):
        add_stage(run, number, **vars(stage))
    for frame in recording.frames:
        add_frame(run, **vars(frame))
    rows = zip(*recording.metrics.values(), strict=True)
    lines = [",".join(recording.metrics), *(",".join(map(repr, map(float, row))) for row in rows)]
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")
    if recording.summary:
        (run / "summary.json").write_text(json.dumps(recording.summary))
    return run


def _looking_at_origin(centre: np.ndarray) -> np.ndarray:
    z = -centre / np.linalg.norm(centre)
    x = np.cross(z, [0.0, 0.0, 1.0])
    x /= np.linalg.norm(x)
    R = np.stack([x, np.cross(z, x), z])
    return np.block([[R, -(R @ centre)[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])
