"""What Rerun reads of a recording; skipped where rerun-sdk is not installed."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import view
from tests.experiments.viewers.recordings import keypoints, sphere, written


@pytest.fixture
def rerun() -> Any:
    """The package, or the test is skipped."""
    return pytest.importorskip("rerun", reason="rerun-sdk is not installed")


def columns(rerun: Any, path: Path) -> dict[str, Any]:
    """Every component of the file by "entity:component": its (iteration, value) rows, iteration None where static."""
    found: dict[str, Any] = {}
    for chunk in rerun.experimental.RrdReader(path).stream().to_chunks():
        batch = chunk.to_record_batch()
        wanted = [name for name in batch.schema.names if name == "iteration" or ":" in name]
        data = batch.select(wanted).to_pydict()
        times = data.get("iteration", [None] * batch.num_rows)
        for name, values in data.items():
            found.setdefault(f"{chunk.entity_path}:{name}", []).extend(zip(times, values, strict=True))
    return found


@pytest.mark.slow
def test_rerun_gets_stages_points_cameras_and_curves(rerun: Any, tmp_path: Path) -> None:
    recording = sphere(count=30, frames=5, views=3)
    run = written(recording, tmp_path / "toy" / "run")
    assert view.main([str(run), "--save", str(tmp_path / "run.rrd")]) == 0
    found = columns(rerun, tmp_path / "run.rrd")
    centre = recording.centre(0)
    points = dict(found["/world/points:Points3D:positions"])
    assert list(points) == list(range(5))  # a timeline of iterations
    assert len(points[0]) == 15  # those that are known
    np.testing.assert_allclose(points[4], recording.frames[4].points3d - centre, atol=1e-6)
    np.testing.assert_allclose(
        found["/world/truth:Points3D:positions"][0][1], recording.stages[0].points3d_gt - centre, atol=1e-6
    )
    for v in range(3):
        for frame in recording.frames:
            (place,) = dict(found[f"/world/cameras/{v}:Transform3D:translation"])[frame.step]
            wanted = np.linalg.inv(frame.world_to_camera[v])
            np.testing.assert_allclose(place, wanted[:3, 3] - centre, atol=1e-5)
            (turn,) = dict(found[f"/world/cameras/{v}:Transform3D:mat3x3"])[frame.step]
            np.testing.assert_allclose(np.reshape(turn, (3, 3)).T, wanted[:3, :3], atol=1e-6)  # column by column
            (K,) = dict(found[f"/world/cameras/{v}:Pinhole:image_from_camera"])[frame.step]
            np.testing.assert_allclose(np.reshape(K, (3, 3)).T, frame.K, rtol=1e-6)
    curve = dict(found["/curves/loss:Scalars:scalars"])
    np.testing.assert_allclose([curve[step] for step in range(5)], recording.metrics["loss"][:, None])


@pytest.mark.slow
def test_stages_follow_each_other_and_image_points_move(rerun: Any, tmp_path: Path) -> None:
    first = keypoints(frames=3)
    stages = (replace(first.stages[0], name="one"), replace(first.stages[0], name="two"))
    later = tuple(replace(frame, step=3 + frame.step, stage=1) for frame in first.frames)
    run = written(
        replace(first, stages=stages, frames=first.frames + later, metrics={"step": np.arange(6.0)}), tmp_path
    )
    assert view.main([str(run), "--save", str(tmp_path / "run.rrd")]) == 0
    found = columns(rerun, tmp_path / "run.rrd")
    assert list(dict(found["/stages/one/image/points:Points2D:positions"])) == [0, 1, 2]
    assert list(dict(found["/stages/two/image/points:Points2D:positions"])) == [3, 4, 5]
    assert dict(found["/stages/one:Clear:is_recursive"]) == {3: [True]}  # the one is gone when the other begins
    np.testing.assert_allclose(
        dict(found["/stages/two/image/points:Points2D:positions"])[5], first.frames[2].points2d, rtol=1e-6
    )


def test_who_has_no_rerun_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(written(sphere(frames=2), tmp_path / "toy" / "run"))
    monkeypatch.setitem(sys.modules, "rerun", None)
    for options in (["--rerun"], ["--save", str(tmp_path / "run.rrd")]):
        assert view.main([run, *options]) == 2
        assert capsys.readouterr().err == "rerun-sdk is not installed: pip install rerun-sdk\n"
    assert view.main([run, "--rerun", "--watch"]) == 2
    assert "leave out --watch" in capsys.readouterr().err


def test_the_viewer_is_opened_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(view, "show_in_rerun", shown.append)
    run = written(sphere(frames=2), tmp_path / "toy" / "run")
    assert view.main([str(run), "--rerun"]) == 0
    assert [recording.title for recording in shown] == ["toy / run"]
