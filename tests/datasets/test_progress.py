"""Work that takes a while says how far it is, without a terminal as well; short work says nothing."""

import pytest

from datasets import progress as bars
from datasets.progress import progress


def test_a_log_gets_a_line_once_in_a_while(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress([3, 4], "placing")) == [3, 4]
    assert capsys.readouterr().err == ""
    clock = iter([0.0, 1.0, 11.0, 11.0, 12.0, 30.0, 30.0])
    monkeypatch.setattr(bars.time, "monotonic", lambda: next(clock))
    assert list(progress(iter("abcd"), "matching", 4)) == [*"abcd"]
    assert capsys.readouterr().err == "matching: 1 of 4\nmatching: 3 of 4\n"
