import json
from pathlib import Path

import pytest

from experiments.gradient_error import OURS, PUBLISHED, Config, main
from experiments.gradients.derivatives import STEPS


@pytest.mark.slow
def test_ours_are_the_derivatives_and_the_published_formula_is_not(tmp_path: Path) -> None:
    columns = main(Config(noise=(0.0, 2.0), problems=4, points=8, out=tmp_path))
    for column in columns.values():
        for name in STEPS:
            if "exact" in column[name]:
                assert column[name]["exact"]["max"] < 1e-6, name
        for name in ("points2d", "points3d"):
            assert column[name][PUBLISHED]["median"] > 0.01, name
    assert "exact" not in columns[0.0]["weights"]  # the residual vanishes, and with it the gradient
    assert "exact" in columns[2.0]["weights"]
    for name in STEPS:
        assert columns[2.0][name]["gauss_newton"]["median"] > 100 * columns[2.0][name]["exact"]["median"]
        assert columns[2.0][name]["unrolled"]["median"] < columns[2.0][name]["gauss_newton"]["median"]
    folder = tmp_path / "gradient_error"
    assert json.loads((folder / "table.json").read_text())["errors"]["2.0"] == columns[2.0]
    rows = (folder / "table.md").read_text().splitlines()[5:]
    assert len(rows) == len(STEPS) * (len(OURS) + 1)
    assert all(row.count("|") == 5 for row in rows)
    assert sorted(path.name for path in folder.iterdir()) == ["table.json", "table.md"]  # no temporary file stays


@pytest.mark.parametrize("bad", [{"problems": 0}, {"noise": ()}, {"noise": (-1.0,)}])
def test_a_setting_that_makes_no_sense_is_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match="problems must be at least 1 and noise not negative"):
        Config(**bad)
