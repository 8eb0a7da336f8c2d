"""Made photographs: their tracks are projections that nothing hides, and their pictures show the same."""

import numpy as np
import pytest
import torch

from datasets.made.photographs import take_photographs
from geometry import project, se3


@pytest.fixture(scope="module")
def photographs():
    g = torch.Generator().manual_seed(4)
    return take_photographs(g, views=4, image_size=(240, 160), focal_share=0.9, k1=-0.2, k2=0.05, crop=(0.05, -0.03))


def seen(photographs, count=400, **options):
    return photographs.tracks(count, torch.Generator().manual_seed(1), **{"noise_px": 0.0} | options)


def test_tracks_without_noise_are_projections(photographs):
    tracks = seen(photographs)
    pixels = project(tracks.points3d, photographs.world_to_camera, photographs.K, photographs.distortion)
    assert torch.equal(pixels[tracks.camera_index, tracks.point_index], tracks.points2d)
    assert (torch.bincount(tracks.point_index) >= 2).all()
    assert len(torch.bincount(tracks.point_index)) == len(tracks.points3d)
    assert ((tracks.points2d > 0) & (tracks.points2d < torch.tensor([239, 159]))).all()


def test_noise_and_wrong_matches_are_as_told(photographs):
    exact, noisy = seen(photographs, count=4000), seen(photographs, count=4000, noise_px=0.5, wrong=0.1)
    off = noisy.points2d - exact.points2d
    assert noisy.wrong.double().mean() == pytest.approx(0.1, abs=0.02)
    assert off[~noisy.wrong].std() == pytest.approx(0.5, rel=0.05)
    assert off[noisy.wrong].norm(dim=1).median() > 20


@pytest.mark.slow
def test_a_picture_shows_what_tracks_say(photographs):
    """The same place of the world has the same colour in any two pictures that show it."""
    tracks = seen(photographs, count=2000, kept=1.0)
    pictures = np.stack([photographs.picture(v, seed=3) for v in range(4)]).astype(float)
    x, y = tracks.points2d.round().long().T.numpy()
    colors = pictures[tracks.camera_index.numpy(), y, x]
    number = np.bincount(tracks.point_index.numpy())[:, None]
    mean = np.stack([np.bincount(tracks.point_index.numpy(), c) for c in colors.T], 1) / number
    within = np.abs(colors - mean[tracks.point_index.numpy()]).mean()
    shuffled = np.abs(colors - mean[torch.randperm(len(mean)).numpy()][tracks.point_index.numpy()]).mean()
    assert within < 0.5 * shuffled
    again = photographs.picture(0, seed=3)
    assert np.array_equal(again, pictures[0])


def test_a_cut_moves_the_principal_point_and_nothing_else(photographs):
    assert photographs.K[0, 2].item() == pytest.approx(119.5 + 0.05 * 240)
    assert photographs.K[1, 2].item() == pytest.approx(79.5 - 0.03 * 160)
    assert photographs.K[0, 0] == photographs.K[1, 1] == 0.9 * 240


def test_cameras_stand_within_the_walls_and_look_inward(photographs):
    centres = se3.centre(photographs.world_to_camera)
    assert (centres.abs()[:, [0, 2]] < 8.1).all()
    middle = se3.transform(photographs.world_to_camera, torch.zeros(1, 3).double())
    assert (middle[..., 2] > 3).all()
