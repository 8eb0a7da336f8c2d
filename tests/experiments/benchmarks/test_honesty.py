import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.benchmarks import families
from experiments.benchmarks.families import pose_problem
from experiments.benchmarks.honesty import PRESETS, main
from experiments.benchmarks.judges import descend, moved, pose_cost, shape_at
from geometry import se3
from tests.numbers import DOUBLE, generator

SMOKE = PRESETS["smoke"]


def test_a_descent_finds_what_the_pixels_were_made_from_and_a_step_away_is_seen() -> None:
    problem = pose_problem(8, generator(3), fisheye=False, outliers=0.0, weighted=False)
    views, cost = problem.views, pose_cost(False, None)
    pose, at = descend(cost, problem.truth, views)
    assert (at.decrease <= 1e-9 * at.cost + 1e-12).all()
    assert (at.curvature > 0).all()
    X = views.points3d
    size = (X - X.mean(1, keepdim=True)).square().sum(-1).mean(-1).sqrt()
    step = 1e-3 * torch.randn(8, 6, generator=generator(1), **DOUBLE)
    away = shape_at(cost, 6, (torch.func.vmap(moved)(pose, step, X.mean(1), size), *views))
    assert (away.decrease > 10 * at.decrease).all()


def test_a_judge_sees_saddles_and_free_directions() -> None:
    def cost(step: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return a[0] * step[0].square() + a[1] * step[1].square() + 1.0

    a = torch.tensor([[1.0, 1.0], [1.0, -1e-3], [4.0, 0.0]], **DOUBLE)
    assert (shape_at(cost, 2, (a,)).curvature > 0).tolist() == [True, False, False]
    assert shape_at(cost, 2, (a[2:],), free=1).curvature.item() == pytest.approx(1.0)


def test_what_is_not_the_answer_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    solve = families.pnp

    def dishonest(*args: object, **options: object) -> object:
        found = solve(*args, **options)
        turn = se3.from_rotvec_t(torch.tensor([1e-2, 0, 0, 0, 0, 0], **DOUBLE))
        return replace(found, x=found.x @ turn)

    monkeypatch.setattr(families, "pnp", dishonest)
    verdict = families.poses(20, generator(5), True)
    assert verdict.wrong["moving"].all()


@pytest.mark.slow
def test_the_table_of_a_few_problems_of_each_kind(tmp_path: Path) -> None:
    found = main(replace(SMOKE, poses=200, ransacs=20, others=5, batch=20, out=tmp_path))
    stored = json.loads((tmp_path / "benchmark_honesty" / "table.json").read_text())
    assert stored["families"] == found
    assert all(row["CONVERGED"] > 0 for row in found.values())
    for row in found.values():
        assert not any(row.get(kind, 0) for kind in ("moving", "no minimum", "not finite")), row
