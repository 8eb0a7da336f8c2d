"""Whether the threshold of RANSAC is in the unit of its pixels: pixels beside normalised coordinates are told apart."""

from typing import Any

import pytest
import torch
from torch.func import vmap

from geometry import Status, pnp_ransac, project, rig_pnp_ransac, se3
from tests.numbers import DOUBLE, normal

N = 20
POINTS = normal(3, N, 3)
POSES = se3.from_rotvec_t(torch.tensor([[0.3, -0.2, 0.1, 0, 0, 8], [0, 0, 0, 0, 0, 30], [1, 0, 0, 0, 0, 6]], **DOUBLE))
K = torch.tensor([[800.0, 0, 320], [0, 780, 240], [0, 0, 1]], **DOUBLE)
ONE = torch.eye(3, **DOUBLE)
SEEN = project(POINTS, POSES, ONE)
RAYS = se3.transform(POSES, POINTS)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def of_a_rig(camera: torch.Tensor, **options: Any) -> Any:
    sensor = torch.arange(N) % 2
    return rig_pnp_ransac(project(POINTS, POSES, camera), POINTS, camera.expand(2, 3, 3), torch.eye(4, **DOUBLE).expand(
        2, 4, 4), sensor, hypotheses=64, generator=generator(), **options)  # fmt: skip


def test_pixels_beside_normalised_coordinates_are_refused() -> None:
    said = r"^threshold must be in the unit of points2d and K, got 4 beside a focal length of 1 and points2d "
    with pytest.raises(ValueError, match=said):
        pnp_ransac(SEEN, POINTS, ONE)
    with pytest.raises(ValueError, match=said):
        pnp_ransac(SEEN, POINTS, ONE.expand(3, 3, 3), mask=torch.arange(N)[None] < 12, model="fisheye")
    with pytest.raises(ValueError, match=said):
        vmap(lambda x: pnp_ransac(x, POINTS[0], ONE).x, randomness="same")(SEEN.expand(2, 3, N, 2))
    with pytest.raises(ValueError, match=said):
        of_a_rig(ONE)
    with pytest.raises(
        ValueError, match=r'threshold must be an angle in radians, below pi, with model="ray", got 4\.0'
    ):
        pnp_ransac(RAYS, POINTS, None, model="ray")


def test_a_threshold_in_their_own_unit_is_not() -> None:
    for camera, threshold in ((ONE, 4 / 800), (K, 4.0)):
        found = pnp_ransac(project(POINTS, POSES, camera), POINTS, camera, threshold=threshold, generator=generator())
        assert found.converged.all()
    assert pnp_ransac(RAYS, POINTS, None, model="ray", threshold=4 / 800, generator=generator()).converged.all()
    assert of_a_rig(ONE, threshold=4 / 800).converged.all()


def test_weights_change_the_unit_and_are_left_alone() -> None:
    """Normalised coordinates with 1 / sigma for weights have a threshold of so many sigmas."""
    weights = torch.full((1, N), 800.0, **DOUBLE)
    assert pnp_ransac(SEEN, POINTS, ONE, weights=weights, generator=generator()).converged.all()
    assert pnp_ransac(RAYS, POINTS, None, weights=weights, model="ray", generator=generator()).converged.all()


def test_a_small_object_alone_is_a_matter_of_its_status() -> None:
    """The pixels of an object far away lie together within the threshold, and an empty batch nowhere: no mistakes."""
    small = project(0.02 * POINTS, POSES, K)
    assert float((small.amax(1) - small.amin(1)).norm(dim=1).min()) < 8
    found = pnp_ransac(small, 0.02 * POINTS, K, generator=generator())
    assert {*found.status.tolist()} <= {Status.CONVERGED, Status.TOO_FEW}
    assert Status.TOO_FEW in found.status
    assert len(pnp_ransac(SEEN[:0], POINTS[:0], ONE).x) == 0
    nobody = torch.zeros(1, N, dtype=torch.bool)
    assert (pnp_ransac(SEEN, POINTS, ONE, mask=nobody).status == Status.TOO_FEW).all()


def test_what_is_refused_could_only_have_been_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geometry.pose.ransac.check_unit", lambda *_: None)
    assert (pnp_ransac(SEEN, POINTS, ONE, generator=generator()).status == Status.TOO_FEW).all()
    assert (pnp_ransac(RAYS, POINTS, None, model="ray", hypotheses=64).status == Status.TOO_FEW).all()
