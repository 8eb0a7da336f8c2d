import math
from dataclasses import replace

import pytest

from experiments.object_poses.evaluation import Record
from experiments.object_poses.table import report, summarize

FINE = Record(0, 0, 1, 0, 100.0, False, 0, 0, 0, 0, 0, 0, 0)


def records(wrong: int) -> list[Record]:
    """Four pictures of object 1, `wrong` of them wrong by every measure, and one of object 5, symmetric and right."""
    bad = {name: math.inf for name in ("add", "adds", "projection", "degrees", "mm", "mssd", "mspd")}
    some = [replace(FINE, image=i, **(bad if i < wrong else {})) for i in range(4)]
    return [*some, replace(FINE, object=5, symmetric=True)]


def test_numbers_by_object_their_mean_and_all_instances() -> None:
    summary = summarize({"l_h": records(1), "l_m": records(0)}, {1: "cat"})
    assert list(summary) == ["l_h", "l_m"]
    assert list(summary["l_h"]) == ["cat", "5*", "mean", "all instances"]
    assert {row: scores["add_0.1d"] for row, scores in summary["l_h"].items()} == {
        "cat": 0.75, "5*": 1.0, "mean": 0.875, "all instances": 0.8,
    }  # fmt: skip


def test_the_tables_of_several_methods() -> None:
    lines = report(summarize({"l_h": records(1), "l_m": records(0)}, {1: "cat"})).splitlines()
    first = lines.index("**ADD(-S)**, % correct") + 2
    assert lines[first : first + 6] == [
        "| object | 0.02 d: l_h | 0.02 d: l_m | 0.05 d: l_h | 0.05 d: l_m | 0.1 d: l_h | 0.1 d: l_m |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| cat | 75.0 | **100.0** | 75.0 | **100.0** | 75.0 | **100.0** |",
        "| 5* | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 |",  # nobody is better
        "| mean | 87.5 | **100.0** | 87.5 | **100.0** | 87.5 | **100.0** |",
        "| all instances | 80.0 | **100.0** | 80.0 | **100.0** | 80.0 | **100.0** |",
    ]
    assert "| object | 5 px: l_h | 5 px: l_m | 5 cm, 5°: l_h | 5 cm, 5°: l_m |" in lines
    assert "| object | MSSD: l_h | MSSD: l_m | MSPD: l_h | MSPD: l_m |" in lines  # no VSD was measured
    assert "Starred objects are symmetric" in lines[-1]


def test_one_method_needs_no_name_and_nothing_in_bold() -> None:
    rows = [replace(record, vsd=(0.12,) * 10) for record in records(2)]
    lines = report(summarize({"BPnP": rows})).splitlines()
    assert "| object | VSD | MSSD | MSPD | AR |" in lines
    assert "| 1 | 80.0 | 50.0 | 50.0 | 60.0 |" in lines
    assert not any("BPnP" in line or "| **" in line for line in lines)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="results: the records of one method"):
        summarize({})
    with pytest.raises(ValueError, match="records: one record at least"):
        summarize({"l_h": []})
    with pytest.raises(
        ValueError, match="the same instances wanted, found 4 of 'l_m' and 5 of 'l_h', 1 of them in one"
    ):
        summarize({"l_h": records(0), "l_m": records(0)[:4]})
    with pytest.raises(ValueError, match=r"names: .* found 'cat' twice"):
        summarize({"l_h": [FINE, replace(FINE, object=2)]}, {1: "cat", 2: "cat"})
