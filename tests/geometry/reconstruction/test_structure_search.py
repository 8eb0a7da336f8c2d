"""Structure from nothing: what is found is the minimum next to the truth, and what the data leave open is said."""

import math

import pytest
import torch
from torch import Tensor

from datasets.made.unknown_shapes import UnknownShape, UnknownViews, made_unknown
from geometry import Bundle, align_similarity, bundle, find_structure, project, se3
from geometry.consensus.minimal import before_both, five_point, pose_of_essential
from geometry.reconstruction import StructureSolution, mirror
from geometry.reconstruction.structure_minima import Tracks, deviations, settled
from tests.numbers import DOUBLE

torch.set_num_threads(1)


def search(what: UnknownShape, seed: int, **options) -> tuple[UnknownViews, StructureSolution]:
    views = made_unknown(what, seed)
    torch.manual_seed(seed)
    given = {"K": views.K, "sigma": max(what.noise, 0.1)} | options
    return views, find_structure(views.points2d, views.visible, **given)


def off(found: Tensor, points_gt: Tensor) -> float:
    """Rms after a similarity, of a shape of unit radius."""
    return (align_similarity(found, points_gt).apply(found) - points_gt).square().sum(-1).mean().sqrt().item()


# ---- what is found ----


@pytest.mark.parametrize(
    "what",
    [
        UnknownShape(views=3, points=20),
        UnknownShape(views=3, points=30, shape="plane", noise=1.0),
        UnknownShape(views=4, points=30, shape="rod", noise=2.0),
    ],
    ids=str,
)
@pytest.mark.slow
def test_a_shape_is_found_and_it_is_the_minimum_next_to_the_truth(what: UnknownShape) -> None:
    views, found = search(what, 0)
    assert found.found, found.message
    assert found.determined.all()
    assert found.inlier.all()
    camera, point = views.visible.nonzero().T
    truth = bundle(views.points2d[camera, point], camera, point, views.world_to_camera, views.points3d, views.K)
    assert off(found.points3d, truth.x.points3d) < 1e-4
    error = project(found.points3d, found.world_to_camera, views.K) - views.points2d
    assert 0.5 * error.square().sum().item() == pytest.approx(truth.cost.item(), rel=1e-6)
    # the deviation is that of the noise: within a factor of two of the error that it made
    assert 0.5 < off(found.points3d, views.points3d) / found.deviation < 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_exact_observations_are_searched_no_longer_than_noisy_ones(seed: int) -> None:
    """Costs of nothing but rounding do not make one minimum many, each met once only."""
    steps = {}
    for noise in (0.0, 0.5):
        guesses: list[float] = []
        views = made_unknown(UnknownShape(views=6, points=40, noise=noise), seed)
        torch.manual_seed(seed)
        found = find_structure(
            views.points2d,
            views.visible,
            views.K,
            sigma=noise or 1e-7,
            callback=lambda g, to=guesses: to.append(g.cost),
        )
        assert found.found, found.message
        steps[noise] = len(guesses)
    assert steps[0.0] < 2 * steps[0.5]


@pytest.mark.slow
def test_wrong_observations_are_left_out() -> None:
    views, found = search(UnknownShape(views=4, points=30, wrong=0.2), 2)
    assert found.found, found.message
    assert found.inlier[~views.wrong].double().mean() > 0.9
    assert found.inlier[views.wrong].double().mean() < 0.05
    sure = found.determined
    assert sure.sum() >= 15
    assert off(found.points3d[sure], views.points3d[sure]) < 3 * found.deviation


@pytest.mark.slow
def test_a_focal_length_is_found_with_the_shape() -> None:
    what = UnknownShape(views=4, points=30)
    given = made_unknown(what, 1).K.clone()
    given[:, [0, 1], [0, 1]] *= 0.6
    views, found = search(what, 1, K=given, free=("f",))
    assert found.found, found.message
    difference = (found.K - views.K)[:, 0, 0].abs()
    assert (difference < 4 * found.focal_deviation).all()
    assert (found.focal_deviation < 0.02 * views.K[:, 0, 0]).all()
    assert off(found.points3d, views.points3d) < 3 * found.deviation


# ---- what cannot be told ----


@pytest.mark.slow
def test_a_mirror_image_that_fits_as_well_is_said() -> None:
    views, found = search(UnknownShape(views=4, points=20, far=1000.0), 0)
    assert found.verdict == "AMBIGUOUS", found.message
    shapes = [found.points3d, *(rival.points for rival in found.rivals)]
    assert min(off(shape, views.points3d) for shape in shapes) < 0.02
    assert min(off(shape, mirror(views.points3d)) for shape in shapes) < 0.02
    assert all(1 <= rival.odds < 1e4 for rival in found.rivals)


@pytest.mark.slow
def test_too_few_observations_are_said() -> None:
    _, found = search(UnknownShape(views=3, points=10, visible="half"), 0)
    assert found.verdict == "UNDETERMINED", found.message


@pytest.mark.slow
def test_views_that_share_no_point_are_said() -> None:
    """Two pairs of views, each of points of its own: both shapes are determined, how they lie to one another is not."""
    views = made_unknown(UnknownShape(views=4, points=40), 0)
    visible = torch.zeros(4, 40, dtype=torch.bool)
    visible[:2, :20] = visible[2:, 20:] = True
    torch.manual_seed(0)
    found = find_structure(views.points2d, visible, views.K, sigma=0.5)
    assert not found.found
    assert "2 parts" in found.message


def test_views_that_see_different_points_are_said() -> None:
    views = made_unknown(UnknownShape(views=2, points=16), 0)
    visible = torch.stack([torch.arange(16) < 8, torch.arange(16) >= 8])
    found = find_structure(views.points2d, visible, views.K, sigma=0.5)
    assert found.verdict == "UNDETERMINED"
    assert "no point is seen by two views" in found.message
    visible[0, 8] = True  # and with one point
    found = find_structure(views.points2d, visible, views.K, sigma=0.5)
    assert found.verdict == "UNDETERMINED", found.message


@pytest.mark.slow
def test_noise_larger_than_it_is_said_to_be_fits_nothing() -> None:
    _, found = search(UnknownShape(views=3, points=20, noise=5.0), 0, sigma=0.2, rounds=1)
    assert not found.found


def test_pixels_that_are_no_image_of_anything_are_not_found() -> None:
    torch.manual_seed(0)
    points2d = torch.rand(3, 20, 2, **DOUBLE) * torch.tensor([639.0, 479.0])
    K = made_unknown(UnknownShape(views=3), 0).K
    found = find_structure(points2d, torch.ones(3, 20, dtype=torch.bool), K, sigma=0.5, rounds=1)
    assert not found.found


@pytest.mark.slow
def test_a_view_of_points_that_no_other_sees_is_named() -> None:
    views = made_unknown(UnknownShape(views=4, points=30), 0)
    visible = views.visible.clone()
    visible[3] = torch.arange(30) >= 22
    visible[:3] = torch.arange(30) < 22
    torch.manual_seed(0)
    found = find_structure(views.points2d, visible, views.K, sigma=0.5, rounds=1)
    assert not found.found
    assert "views [3] could not be placed" in found.message
    assert torch.equal(found.determined, torch.arange(30) < 22)


@pytest.mark.slow
def test_what_is_found_has_the_dtype_of_the_input() -> None:
    views = made_unknown(UnknownShape(views=3, points=20), 0)
    torch.manual_seed(0)
    found = find_structure(views.points2d.float(), views.visible, views.K.float(), sigma=0.5)
    assert found.found
    assert {t.dtype for t in found if isinstance(t, Tensor) and t.is_floating_point()} == {torch.float32}
    assert off(found.points3d.double(), views.points3d) < 3 * found.deviation


# ---- how it is done ----


def test_the_search_ends_where_its_caller_says() -> None:
    guesses = []

    def watch(guess):
        guesses.append(guess)
        return len(guesses) == 3

    views, found = search(UnknownShape(points=12), 0, callback=watch)
    assert found.verdict == "EXHAUSTED"
    assert len(guesses) == 3
    assert torch.equal(found.points3d, guesses[-1].points)
    error = project(found.points3d, found.world_to_camera, views.K) - views.points2d
    assert 0.5 * error.square().sum().item() == pytest.approx(guesses[-1].cost, rel=1e-6)


def test_the_search_draws_from_the_global_generator_alone() -> None:
    views = made_unknown(UnknownShape(points=12), 0)

    def of(seed: int) -> Tensor:
        torch.manual_seed(seed)
        given = views.points2d, views.visible, views.K
        return find_structure(*given, sigma=0.5, callback=lambda guess: True).points3d

    assert torch.equal(of(0), of(0))
    assert not torch.equal(of(0), of(1))


def test_deviations_are_those_of_many_draws_of_noise() -> None:
    """And a similarity of the structure does not matter to them."""
    views = made_unknown(UnknownShape(views=3, points=15, noise=0.0), 3)
    K, lens = views.K.clone(), views.K.new_zeros(3, 0)
    g = torch.Generator().manual_seed(0)
    everything = torch.ones(3, dtype=torch.bool)
    shapes, focal = [], []
    for _ in range(60):
        noisy = views.points2d + 0.1 * torch.randn(views.points2d.shape, generator=g, **DOUBLE)
        tracks = Tracks(noisy, views.visible, K, lens, "radtan", 0.1, ("f",))
        start = Bundle(views.world_to_camera, views.points3d, K, lens)
        end = settled(tracks, start, views.visible, everything)
        shapes.append(off(end.bundle.points3d, views.points3d) ** 2)
        focal.append(end.bundle.K[0, 0, 0].item())
    shape, of_f = deviations(tracks, end)
    assert math.sqrt(sum(shapes) / 60) == pytest.approx(shape, rel=0.25)
    assert torch.tensor(focal).std().item() == pytest.approx(of_f[0].item(), rel=0.3)
    assert torch.equal(of_f, of_f[:1].expand(3))


def test_of_four_poses_of_an_essential_matrix_the_one_before_both_is_chosen() -> None:
    g = torch.Generator().manual_seed(0)
    X = torch.randn(12, 3, generator=g, **DOUBLE)
    a, b = se3.from_rotvec_t(torch.tensor([[0, 0, 0, 0, 0, 5.0], [0.3, -0.8, 0.2, 0.5, 0.1, 6.0]], **DOUBLE))
    rays = [torch.nn.functional.normalize(se3.transform(pose, X), dim=-1) for pose in (a, b)]
    E = five_point(*(r[:5] for r in rays))
    E = E[E.isfinite().all(-1).all(-1)]
    true = b @ se3.inverse(a)
    true[:3, 3] /= true[:3, 3].norm()
    poses = before_both(
        pose_of_essential(E), *(r.expand(len(E), 12, 3) for r in rays), torch.ones(len(E), 12, dtype=torch.bool)
    )
    assert (poses - true).abs().amax((1, 2)).min() < 1e-6


def test_bad_input_is_named() -> None:
    views = made_unknown(UnknownShape(points=12), 0)
    given = views.points2d, views.visible, views.K
    for name, options in (("sigma", {"sigma": 0.0}), ("free", {"free": ("cx",)}), ("rounds", {"rounds": 0})):
        with pytest.raises(ValueError, match=f"^{name} must"):
            find_structure(*given, **{"sigma": 1.0} | options)
    blind = views.visible.clone()
    blind[2] = False
    with pytest.raises(ValueError, match="view 2 sees no point"):
        find_structure(views.points2d, blind, views.K, sigma=1.0)
