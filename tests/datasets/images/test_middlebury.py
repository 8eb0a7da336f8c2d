import math
import shutil

import cv2
import numpy as np
import pytest
import torch

from datasets.images.middlebury import read_middlebury
from geometry import se3

CAMERA = "1500 0 320 0 1510 240 0 0 1  0 -1 0 1 0 0 0 0 1  0.1 -0.2 0.6"


@pytest.fixture
def folder(tmp_path):
    """A folder of two images, and a function that writes its parameters."""
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((4, 6, 3), np.uint8))

    def write(text):
        (tmp_path / "set_par.txt").write_text(text)
        return tmp_path

    return write


def test_a_set_as_the_benchmark_writes_it(folder):
    views = read_middlebury(folder(f"2\nb.png {CAMERA}\na.png {CAMERA}\n\n"))
    assert views.names == ("b.png", "a.png")
    assert [path.name for path in views.images] == ["b.png", "a.png"]
    assert views.K[0].tolist() == [[1500, 0, 320], [0, 1510, 240], [0, 0, 1]]
    wanted = [[0, -1, 0, 0.1], [1, 0, 0, -0.2], [0, 0, 1, 0.6], [0, 0, 0, 1]]
    np.testing.assert_allclose(views.world_to_camera[1], wanted, atol=1e-15)
    assert views.K.dtype == views.world_to_camera.dtype == torch.float64


def test_r_is_the_rotation_nearest_to_what_is_rounded(folder):
    """That of dinoSparseRing deviates from orthogonality by 1.5e-6."""
    R = se3.exp(torch.tensor([0.3, -1.2, 0.5], dtype=torch.float64))
    stored = (R + 7e-7 * torch.tensor([[1.0, -1, 1], [1, 1, 1], [-1, 1, 1]], dtype=torch.float64)).flatten().tolist()
    camera = "1500 0 320 0 1510 240 0 0 1 " + " ".join(map(repr, stored)) + " 0.1 -0.2 0.6"
    found = read_middlebury(folder(f"1\na.png {camera}\n")).world_to_camera[0, :3, :3]
    assert (found @ found.mT - torch.eye(3)).abs().max() < 1e-14
    assert (found - R).abs().max() < 2e-6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the number of images wanted"),
        (f"a.png {CAMERA}", "line 1: the number of images wanted"),
        (f"2\na.png {CAMERA}", "line 1: states 2 images, 1 lines"),
        (f"1\na.png {CAMERA} 3", "line 2: a name and 21 finite numbers"),
        (f"2\n\nb.png {CAMERA}\na.png {CAMERA[:-3]}nan", "line 4: a name and 21 finite numbers"),
        (f"1\na.png {CAMERA[:-3]}x", "line 2: numbers wanted after the name"),
        (f"1\na.png {CAMERA.replace('0 0 1  ', '0 0 2  ')}", "line 2: K with"),
        (f"1\na.png {CAMERA.replace('1500', '-1500')}", "line 2: K with"),
        (f"1\na.png {CAMERA.replace('0 -1 0', '0 1 0')}", "line 2: a rotation matrix wanted"),
        (f"2\na.png {CAMERA}\na.png {CAMERA}", "line 3: every image once wanted, found 'a.png' again"),
    ],
)
def test_errors_name_the_file_and_the_line(folder, text, message):
    with pytest.raises(ValueError, match=f"set_par.txt, {message}"):
        read_middlebury(folder(text))


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"one \*_par.txt wanted, found 0"):
        read_middlebury(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_middlebury(tmp_path / "absent")
    path = folder(f"3\na.png {CAMERA}\nd.png {CAMERA}\nc.png {CAMERA}")
    with pytest.raises(FileNotFoundError, match=r"lacks: d\.png, c\.png"):
        read_middlebury(path)
    shutil.copy(tmp_path / "set_par.txt", tmp_path / "more_par.txt")
    with pytest.raises(FileNotFoundError, match="found 2"):
        read_middlebury(tmp_path)


def test_temple_is_a_ring_of_cameras_that_look_at_the_temple(real_data):
    views = read_middlebury(real_data("temple_sparse_ring"))
    assert len(views.images) == 16
    centres = se3.inverse(views.world_to_camera)[:, :3, 3]
    assert torch.cdist(centres, centres).max().item() == pytest.approx(1.1252, abs=1e-4)
    # the box around the temple that the data set states
    middle = torch.tensor([[-0.02236, 0.10181, 0.02515]], dtype=torch.float64)
    towards = se3.transform(views.world_to_camera, middle).squeeze(1)
    assert (towards[:, 2] / towards.norm(dim=1)).min() > math.cos(math.radians(5))
