"""Generalised P3P: every root is found, every root is one, and its gradient is right."""

import numpy as np
import poselib
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from geometry import se3
from geometry.consensus.minimal import generalised_p3p, p3p
from tests.numbers import DOUBLE, central_difference, close, normal


def sights(B: int, baseline: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centres, rays and points (B,3,3), and the pose (B,4,4) that puts these on those."""
    centres, rays = baseline * normal(B, 3, 3, seed=seed), normalize(normal(B, 3, 3, seed=seed + 1), dim=-1)
    truth = se3.make(se3.rotation_from_quat_wxyz(normal(B, 4, seed=seed + 2)), normal(B, 3, seed=seed + 3))
    depth = 1 + 9 * torch.rand(B, 3, 1, generator=torch.Generator().manual_seed(seed), **DOUBLE)
    return centres, rays, se3.transform(se3.inverse(truth), centres + depth * rays), truth


def real(poses: Tensor) -> Tensor:
    return torch.isfinite(poses).all(-1).all(-1)


@pytest.mark.parametrize("baseline", [1e-3, 0.3, 3.0])
def test_every_root_is_one_and_none_is_missing(baseline: float) -> None:
    centres, rays, points3d, truth = sights(500, baseline)
    found = generalised_p3p(centres, 3 * rays, points3d)
    there = real(found)
    close((found - truth[:, None]).abs().amax((-1, -2)).nan_to_num(torch.inf).amin(1), torch.zeros(500, **DOUBLE), 1e-8)
    along = se3.transform(found, points3d[:, None]) - centres[:, None]
    off = torch.linalg.cross(along, rays[:, None].expand_as(along)).norm(dim=-1).amax(-1)
    assert off[there].max() < 1e-7
    assert ((along * rays[:, None]).sum(-1) > 0).all(-1)[there].all()
    for i, (c, b, X) in enumerate(zip(*(a.numpy() for a in (centres, rays, points3d)), strict=True)):
        theirs = [np.asarray(pose.Rt) for pose in poselib.gp3p(list(c), list(b), list(X))]
        ahead = [Rt for Rt in theirs if (((X @ Rt[:, :3].T + Rt[:, 3] - c) * b).sum(-1) > 0).all()]
        for Rt in ahead:
            assert (found[i, there[i], :3] - torch.from_numpy(Rt)).abs().amax((-1, -2)).min() < 1e-5


def test_rays_from_one_place_are_those_of_p3p() -> None:
    _, rays, points3d, _ = sights(300, 0.0)
    centre = torch.tensor([1.0, -2, 3], **DOUBLE)
    found, expected = generalised_p3p(centre.expand(300, 3, 3), rays, points3d), p3p(rays, points3d)
    expected[..., :3, 3] += centre
    assert torch.equal(real(found).sum(1), real(expected).sum(1))
    apart = (found[:, :, None] - expected[:, None]).abs().amax((-1, -2)).nan_to_num(torch.inf).amin(1)
    assert (apart < 1e-7)[real(expected)].all()


def test_gradients_agree_with_finite_differences() -> None:
    *data, _ = sights(8, 0.5, seed=4)
    for i, value in enumerate(data):
        direction = normal(*value.shape, seed=9)

        def moved(h: Tensor, i: int = i, direction: Tensor = direction) -> Tensor:
            found = generalised_p3p(*(d + h * direction if j == i else d for j, d in enumerate(data)))
            return torch.where(real(found)[..., None, None], found, 0.0).sum(1)[:, :3]

        ours = torch.autograd.functional.jacobian(moved, torch.zeros((), **DOUBLE))
        wanted = central_difference(lambda h: moved(torch.tensor(h, **DOUBLE)), 1e-5)
        close(ours, wanted, 1e-6 * wanted.abs().max().item())


def test_what_determines_no_pose_is_nan() -> None:
    centres, rays, points3d, _ = sights(4, 0.5)
    points3d[0, 1] = points3d[0, 0]
    points3d[1] = torch.nan
    found = generalised_p3p(centres, rays, points3d)
    assert not real(found)[:2].any()
    assert real(found)[2:].any(1).all()
    with pytest.raises(ValueError, match=r"centres must have shape \(…,3,3\)"):
        generalised_p3p(centres[:, :2], rays, points3d)
