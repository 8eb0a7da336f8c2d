"""Lenses of made photographs: which unknowns their tracks ask for, and what is seen where one is missing."""

import pytest
import torch

from datasets.made.photographs import take_photographs
from experiments.structure.lens import COEFFICIENTS, Fit, Sought, in_words, of_views
from experiments.structure.refinement import refine
from experiments.structure.scenes import Scene
from experiments.structure.start import Growing, start_sought
from experiments.structure.tracks import Flat
from geometry import Bundle
from geometry.reconstruction import as_table


def collection(seed=0, *, wrong=0.0, points=700, **lens):
    """Photographs, their tracks, and a bundle to start from: the truth, but for a lens of the picture's middle."""
    g = torch.Generator().manual_seed(seed)
    photographs = take_photographs(g, views=6, **lens)
    tracks = photographs.tracks(points, g, noise_px=0.4, wrong=wrong)
    sought = Sought(photographs.image_size, {}, None, "")
    K = photographs.K.clone()
    K[:2, 2] = torch.tensor([sought.usual["cx"], sought.usual["cy"]])
    V = len(photographs.world_to_camera)
    start = Bundle(
        photographs.world_to_camera, tracks.points3d, K.expand(V, 3, 3), torch.zeros(V, COEFFICIENTS).double()
    )
    return photographs, Flat(*tracks[:3], V), start, sought


@pytest.mark.slow
def test_a_cut_picture_asks_for_its_principal_point():
    photographs, tracks, start, sought = collection(k1=-0.15, crop=(0.06, -0.04))
    fit = Fit(tracks, "radtan", 1.0, False, {})
    choice = fit.choose(start, sought.usual)
    assert set(choice.free) >= {"f", "k1", "cx", "cy"}
    assert "cx cy (p " in in_words(choice).partition(" asked for by the data")[0]
    f, true = choice.estimate.values[0], photographs.K[0, 0]
    assert abs(f - true) < 4 * choice.estimate.covariance[0, 0].sqrt() < 0.02 * true
    assert not fit.pattern(of_views(choice.estimate.found), sought.image_size).present
    for free in (("f", "k1"), ("f", "cx", "cy")):
        assert fit.pattern(of_views(fit.adjust(start, free)), sought.image_size).present


@pytest.mark.slow
def test_a_whole_picture_of_a_plain_lens_asks_for_nothing():
    _, tracks, start, sought = collection(seed=1)
    choice = Fit(tracks, "radtan", 1.0, False, {}).choose(start, sought.usual)
    assert choice.free == ("f",)
    assert "as usual: k1 (p " in in_words(choice)


@pytest.mark.parametrize("bends", [True, False])
def test_a_lens_that_does_not_fit_is_told_before_deviations(bends):
    photographs, tracks, start, sought = collection(k1=-0.15)
    table = as_table(tracks.points2d, tracks.camera, tracks.point, tracks.views, len(start.points3d))
    free = ("f", "k1") if bends else ("f",)
    scene = Scene(
        *table, start.K, start.distortion, sought=sought._replace(free=free), image_size=photographs.image_size
    )
    found = refine(scene, start.points3d, start.world_to_camera, 0.5)
    told, deviations = found.note.find("THE LENS DOES NOT FIT"), found.note.index("±")
    assert told == -1 if bends else 0 <= told < deviations
    assert (found.errors["pattern_deviations"] > 3) != bends


def test_what_is_known_is_held_to():
    photographs, tracks, start, _ = collection(points=300)
    true = photographs.K[0, 0].item()

    def found(sigma):
        return Fit(tracks, "radtan", 1.0, False, {"f": (1.1 * true, sigma), "k2": (1.0, 1e-9)}).adjust(
            start, ("f", "k1")
        )

    sure, unsure = found(1e-6), found(1e6)
    assert sure.x.K[0, 0, 0].item() == pytest.approx(1.1 * true, rel=1e-6)
    assert unsure.x.K[0, 0, 0].item() == pytest.approx(true, rel=0.03)
    # of what is not free nothing can be known
    assert (unsure.x.distortion[:, 1:] == 0).all()


def test_lenses_of_views_come_back():
    _, tracks, start, _ = collection(points=300)
    found = of_views(Fit(tracks, "radtan", 1.0, False, {}).adjust(start, ("f",)))
    assert found.K.shape == start.K.shape
    assert found.distortion.shape == start.distortion.shape
    assert (found.K[0] == found.K).all()


@pytest.mark.slow
@pytest.mark.parametrize("told", [True, False])
def test_a_lens_that_bends_is_found_from_tracks(told):
    """A tenth of the matches is wrong; the focal length that is known is 8 % off, or it is sought."""
    photographs, tracks, _, sought = collection(seed=2, wrong=0.1, points=1500, k1=-0.2, focal_share=1.1)
    f = photographs.K[0, 0].item()
    sought = sought._replace(known={"f": (1.08 * f, 0.1 * f)} if told else {})
    found = start_sought(tracks, sought, Growing(candidates_f=2, inlier_px=2.0, robust_px=0.5), 0)
    assert found.registered.all()
    assert found.bundle.K[0, 0, 0].item() == pytest.approx(f, rel=0.02)
    assert found.bundle.distortion[0, 0].item() == pytest.approx(-0.2, abs=0.05)
