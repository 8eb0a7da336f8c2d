"""Rendered solids: what rays meet, and pictures whose pixels lie where the cameras say."""

import pytest
import torch
from torch import Tensor

from datasets.made.surfaces import Skin, Solids, _blurred, _rendered, draw_solids, take_pictures
from geometry import project, se3


def solids(seed: int) -> tuple[Solids, Skin]:
    return draw_solids(torch.Generator().manual_seed(seed))


def inside(bodies: Solids, places: Tensor) -> Tensor:
    """Whether each place (n,3) is in any of the solids: by their equations, without a ray."""
    local = torch.linalg.solve(bodies.linear[:, None], (places - bodies.middle[:, None])[..., None]).squeeze(-1)
    norms = torch.where(bodies.ball[:, None], local.norm(dim=-1), local.abs().amax(-1))
    return (norms < 1).any(0)


@pytest.mark.slow
def test_rays_end_where_the_first_solid_begins() -> None:
    for seed in range(2):
        bodies, _ = solids(seed)
        generator = torch.Generator().manual_seed(seed)
        origin = torch.tensor([0.3, -0.5, -4.0], dtype=torch.float64)
        aims = 0.7 * torch.randn(300, 3, generator=generator, dtype=torch.float64)
        directions = aims - origin
        away, normal, _ = bodies.first(origin, directions)
        hit = away.isfinite()
        assert hit.any()
        assert (~hit).any()
        shares = torch.linspace(0, 1, 60, dtype=torch.float64)[:, None, None]
        before = origin + shares * (away[hit, None] - 1e-6) * directions[hit]
        assert not inside(bodies, before.view(-1, 3)).any()
        behind = origin + (away[hit, None] + 1e-6) * directions[hit]
        assert inside(bodies, behind).double().mean() > 0.99  # some only graze
        missed = origin + 2 * shares * directions[~hit]
        assert not inside(bodies, missed.view(-1, 3)).any()
        # the normal is across the surface: it looks back, and places next to it along the surface are as deep
        assert ((normal[hit] * directions[hit]).sum(-1) < 0).all()
        torch.testing.assert_close(normal[hit].norm(dim=-1), torch.ones(int(hit.sum()), dtype=torch.float64))
        nearby = directions[hit] + 1e-5 * torch.randn(int(hit.sum()), 3, generator=generator, dtype=torch.float64)
        moved, _, _ = bodies.first(origin, nearby)
        near = (moved - away[hit]).abs() < 1e-3
        step = origin + moved[:, None] * nearby - (origin + away[hit, None] * directions[hit])
        across = ((step * normal[hit]).sum(-1) / step.norm(dim=-1).clamp_min(1e-12)).abs()
        assert near.double().mean() > 0.95
        assert across[near].median() < 1e-3


def test_many_origins_are_as_one_at_a_time() -> None:
    bodies, _ = solids(0)
    generator = torch.Generator().manual_seed(0)
    places = torch.tensor([[0.0, 0, -4], [3, -1, -2]], dtype=torch.float64)
    which = torch.randint(2, (40,), generator=generator)
    directions = 0.3 * torch.randn(40, 3, generator=generator, dtype=torch.float64) - places[which]
    away, normal = bodies.along(places[which], directions)
    for i in range(2):
        one, its, _ = bodies.first(places[i], directions[which == i])
        assert torch.equal(away[which == i], one)
        assert torch.equal(normal[which == i], its)


@pytest.mark.slow
def test_a_ball_is_seen_where_it_is_projected() -> None:
    """Lit from the camera, so that its light has its middle where it has: (0, 0) is the top-left pixel's centre."""
    _, skin = solids(1)
    middle = torch.tensor([[0.21, -0.13, 0.05]], dtype=torch.float64)
    ball = Solids(torch.tensor([True]), 0.1 * torch.eye(3, dtype=torch.float64)[None], middle)
    plain = skin._replace(shift=skin.shift[:1], paint=0.0, relief=0.0)
    taken = take_pictures(ball, plain, torch.Generator().manual_seed(3), views=3, image_size=(160, 120))
    for pose in taken.world_to_camera:
        towards = torch.nn.functional.normalize(se3.centre(pose) - middle[0], dim=0)
        seen = _rendered(ball, plain, pose, taken.K, (160, 120), towards).double() - 0.02
        rays = len(seen) // 120  # along a side of a pixel
        v, u = ((torch.arange(n) - (rays - 1) / 2) / rays for n in seen.shape)
        found = torch.stack([(seen.sum(0) * u).sum(), (seen.sum(1) * v).sum()]) / seen.sum()
        assert (found - project(middle, pose, taken.K)[0]).norm() < 0.03


@pytest.mark.slow
def test_a_picture_moves_with_the_principal_point() -> None:
    """Texture, shading and blur in front of the sensor follow a shift of the sensor by whole pixels exactly."""
    bodies, skin = solids(2)
    taken = take_pictures(bodies, skin, torch.Generator().manual_seed(0), views=1, image_size=(96, 80))
    light = torch.tensor([0.3, -0.8, -0.5], dtype=torch.float64)
    moved = taken.K.clone()
    moved[:2, 2] += torch.tensor([3.0, 2.0])
    one, other = (
        _blurred(_rendered(bodies, skin, taken.world_to_camera[0], K, (96, 80), light), 1.0) for K in (taken.K, moved)
    )
    torch.testing.assert_close(one[10:-20, 10:-20], other[14:-16, 16:-14], atol=2e-3, rtol=0)


@pytest.mark.slow
def test_a_seed_gives_the_same_pictures_and_another_one_others() -> None:
    def pictures(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return take_pictures(*draw_solids(generator), generator, views=2, image_size=(64, 48)).pictures

    assert torch.equal(pictures(5), pictures(5))
    assert not torch.equal(pictures(5), pictures(6))


def test_cameras_stand_around_the_solids_and_look_at_them() -> None:
    generator = torch.Generator().manual_seed(0)
    taken = take_pictures(*draw_solids(generator), generator, views=5, image_size=(64, 48))
    seen = project(torch.zeros(1, 3, dtype=torch.float64), taken.world_to_camera, taken.K)[:, 0]
    assert ((seen > 0) & (seen < torch.tensor([64, 48]))).all()
    turns = taken.world_to_camera[1:, :3, :3] @ taken.world_to_camera[:-1, :3, :3].mT
    angles = se3.rotation_angle(turns).rad2deg()
    assert ((angles > 3) & (angles < 35)).all()
    assert (se3.centre(taken.world_to_camera).norm(dim=-1) - 4).abs().max() < 0.4
