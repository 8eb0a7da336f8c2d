"""Poses of a known object in frames with matches: what they do not determine is named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import pose_estimation
from geometry import project, se3


@pytest.mark.slow
def test_frames_that_determine_no_pose_are_named(tmp_path: Path) -> None:
    """Of five frames one has all its matches on a line, and one has none that is right."""
    g = torch.Generator().manual_seed(200)
    K = torch.tensor([[620.0, 0, 319.5], [0, 620, 239.5], [0, 0, 1]], dtype=torch.float64)
    box = torch.tensor([30.0, 20, 12], dtype=torch.float64)
    frames = {}
    for i in range(5):
        points3d = (torch.rand(40, 1 if i == 3 else 3, generator=g).double() - 0.5) * box
        step = torch.randn(6, generator=g).double() * torch.tensor([0.5, 0.5, 0.5, 3, 3, 3])
        pose = se3.from_rotvec_t(step + torch.tensor([0, 0, 0, 0, 0, 80]))
        points2d = project(points3d, pose, K) + 0.5 * torch.randn(40, 2, generator=g).double()
        if i == 4:
            points2d = torch.rand(40, 2, generator=g).double() * torch.tensor([640, 480])
        frames[f"f{i:03d}"] = torch.cat([points2d, points3d, torch.full((40, 1), 0.5)], 1).numpy()
    np.savez(tmp_path / "matches.npz", **frames)  # type: ignore[arg-type]
    config = replace(pose_estimation.PRESETS["real"], matches=tmp_path / "matches.npz", out=tmp_path)
    summary = pose_estimation.main(config)
    assert not summary["converged"]
    *poses, focal = summary["undetermined"]
    assert focal == "The data do not determine focal length."  # beside a pose that is free to move
    assert [sentence.partition(":")[0] for sentence in poses] == ["Frame 3", "Frame 4"]
    np.savez(tmp_path / "matches.npz", **{name: frames[name] for name in list(frames)[:3]})  # type: ignore[arg-type]
    summary = pose_estimation.main(replace(config, name="good"))
    assert summary["converged"]
    focal = summary["found"]["focal length"]
    assert abs(focal["value"] - 620) < 4 * focal["deviation"]
