"""The reference run of gradient_comparison, and what docs/gradients.md says of it in words."""

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from experiments.gradients.measures import Quality
from experiments.gradients.methods import LAYERS, UNWEIGHTED, Method
from experiments.gradients.outcomes import Outcome, across, chosen
from experiments.gradients.report import report
from experiments.gradients.scenes import REGIMES, Regime

REFERENCE = Path(__file__).parents[3] / "results/reference"


def reference() -> tuple[list[Outcome], Any, Any]:
    """Outcomes, quality and the rest of results/reference/gradient_comparison.json."""
    told = json.loads((REFERENCE / "gradient_comparison.json").read_text())
    outcomes = [Outcome.loaded(one) for one in told["outcomes"]]
    quality = {
        float(noise): {m: Quality(**one) for m, one in found.items()} for noise, found in told["quality"].items()
    }
    return outcomes, quality, told


def test_the_reference_is_what_the_report_makes_of_its_numbers() -> None:
    """The tables of docs/gradients.md, which are included from results/reference/gradient_comparison.md."""
    outcomes, quality, told = reference()
    made = report(outcomes, quality, told["goal"], told["settings"])
    assert made == (REFERENCE / "gradient_comparison.md").read_text()
    assert {outcome.regime for outcome in outcomes} == set(REGIMES)
    assert told["settings"]["seed"] >= 200
    assert told["settings"]["seeds"] >= 10


def test_what_the_page_says_in_words_is_what_the_reference_has() -> None:
    outcomes, quality, _ = reference()
    found = {outcome.regime: outcome for outcome in outcomes}

    def behind(method: Method, other: Method, *regimes: Regime) -> bool:
        return all(found[regime].against(method, other).low > 1 for regime in regimes)

    # where ours loses, where it wins
    assert behind(
        "exact", "likelihood", "noise", "near_symmetric", "planar", "ambiguous", "far_keypoints", "wrong_init"
    )
    for regime in ("noise", "planar", "ambiguous", "far_keypoints"):
        labels, solved = (median(found[regime].arrivals(method, 2.0)) for method in ("likelihood", "exact"))
        times = {method: trace.milliseconds for method, trace in found[regime].traces.items()}
        assert labels * times["likelihood"] < solved * times["exact"]
    bad = found["wrong_init"]
    assert len(bad.reached("exact", 2.0)[0]) < 5
    tried = bad.traces["exact"].tried
    assert max(rate for rate, end in tried.items() if end < 1.05 * min(tried.values())) == chosen(tried)
    assert min(rate for rate, end in tried.items() if end < 1.05 * min(tried.values())) < chosen(tried)
    for outcome in (found["near_symmetric"], found["wrong_init"]):
        assert outcome.final("exact").high > 1.5 * outcome.final("exact").low
    assert found["shared_noise"].level == ["exact", "gauss_newton"]
    # wrong matches
    confused: tuple[Regime, ...] = ("outliers", "near_symmetric")
    assert behind("dsac", "nabla_ransac", *confused)
    assert behind("exact", "nabla_ransac", *confused)
    assert behind("likelihood", "nabla_ransac", *confused)
    assert behind("likelihood", "linear_covariance", *confused)
    for regime in confused:
        assert found[regime].order[0] == "nabla_ransac"
        for method in found[regime].traces:
            if method not in UNWEIGHTED:
                assert behind("unweighted", method, regime)
                assert behind("reprojection", method, regime)
    # exact or approximate
    assert across(outcomes, "gauss_newton", "exact").level
    assert across(outcomes, "unrolled", "exact").level
    assert across(outcomes, "published", "unweighted").middle == pytest.approx(1, abs=0.05)
    assert all(some["published"].error == pytest.approx(0.13, abs=0.01) for some in quality.values())
    # shares
    for some in quality.values():
        for method in LAYERS:
            assert median(some[method].right_way) == pytest.approx(2 / 3, abs=0.02)
        for method in ("linear_covariance", "reprojection", "likelihood"):
            assert min(some[method].right_way) > 0.999
    # EPro-PnP's additions
    ratios = {outcome.regime: outcome.against("epro_pnp_full", "epro_pnp") for outcome in outcomes
              if "epro_pnp_full" in outcome.traces}  # fmt: skip
    assert not any(ratio.high < 1 for ratio in ratios.values())
    assert ratios["outliers"].low > 1
    # a large network
    assert found["large_network"].level == ["linear_covariance"]
    assert all(not found["large_network"].reached(method, 2.0)[0] for method in found["large_network"].traces)
