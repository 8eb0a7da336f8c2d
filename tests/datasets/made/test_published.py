import numpy as np
import pytest
import torch
from scipy.io import savemat

from datasets.made.published import DUCK_UNIT, read_points, read_poses


@pytest.mark.parametrize(("name", "count"), [("cube", 8), ("duck", 1002), ("driller", 1000), ("cat", 32)])
def test_sizes(real_data, name, count):
    points3d = read_points(name, real_data("bpnp_demo"))
    assert points3d.shape == (count, 3)
    assert points3d.dtype == torch.float64


def test_values(real_data):
    folder = real_data("bpnp_demo")
    cube = read_points("cube", folder)
    assert cube.abs().eq(1).all()
    assert len(cube.unique(dim=0)) == 8
    assert cube[0].tolist() == [1, -1, -1]
    duck = DUCK_UNIT * read_points("duck", folder)
    assert duck[0].tolist() == pytest.approx([0.06726, -0.05634, 0.16511], abs=1e-5)
    poses = read_poses(folder)
    assert poses.shape == (50, 6)
    assert poses.dtype == torch.float64
    assert poses[0].tolist() == pytest.approx(
        [-1.9495775, 1.979986, 0.12221912, 0.065936, -0.037431, 4.680168], abs=1e-6
    )
    assert poses[:, 5].min() > 3  # every cube corner lies before the camera
    assert poses[:, :3].norm(dim=-1).max() < torch.pi


def test_the_default_folder_is_the_data_set(real_data):
    folder = real_data("bpnp_demo")
    assert read_points("cube").equal(read_points("cube", folder))
    assert len(read_poses()) == 50


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="one of cube, duck, driller, cat wanted, found 'dog'"):
        read_points("dog", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"cube\.mat: a file wanted"):
        read_points("cube", tmp_path)
    (tmp_path / "cube.mat").write_bytes(b"not MATLAB at all" * 20)
    with pytest.raises(ValueError, match=r"cube\.mat: a MATLAB file wanted"):
        read_points("cube", tmp_path)
    savemat(tmp_path / "cube.mat", {"points": np.zeros((8, 3))})
    with pytest.raises(ValueError, match=r"cube\.mat: an array 'pts3d' wanted, found \['points'\]"):
        read_points("cube", tmp_path)
    savemat(tmp_path / "cube.mat", {"pts3d": np.zeros((3, 8))})
    with pytest.raises(ValueError, match=r"'pts3d': numbers of shape \(N, 3\) wanted, found float64 of shape \(3, 8\)"):
        read_points("cube", tmp_path)
    savemat(tmp_path / "poses.mat", {"poses": np.array([[0, 0, 0, 0, 0, np.inf]])})
    with pytest.raises(ValueError, match=r"'poses', row 0: finite numbers wanted"):
        read_poses(tmp_path)


@pytest.mark.parametrize("size", [0, 50, 130, 200, 300])
def test_a_truncated_file(tmp_path, size):
    savemat(tmp_path / "whole.mat", {"poses": np.random.default_rng(0).normal(size=(50, 6))}, do_compression=True)
    (tmp_path / "poses.mat").write_bytes((tmp_path / "whole.mat").read_bytes()[:size])
    with pytest.raises(ValueError, match=r"poses\.mat: "):
        read_poses(tmp_path)
