"""What the drivers' tests may ask for."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.running.run import Run
from tests.experiments.summaries import without_times


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """interrupted(driver.main, config, at=step): a run that Ctrl-C ends when it would log that step."""

    def run(main: Callable[[Any], Any], config: Any, *, at: int) -> None:
        log = Run.log

        def dying(self: Run, step: int, **values: Any) -> None:
            if step == at:
                raise KeyboardInterrupt
            log(self, step, **values)

        with monkeypatch.context() as patch:
            patch.setattr(Run, "log", dying)
            with pytest.raises(KeyboardInterrupt):
                main(config)

    return run


@pytest.fixture
def same_when_resumed(tmp_path: Path, interrupted: Callable[..., None]) -> Callable[..., dict[str, Any]]:
    """same_when_resumed(driver.main, config, at=step): cut and resumed, a run says what it says in one go, returned.

    whole: summary and folder of the run in one go, where there is one already.
    """

    def check(
        main: Callable[[Any], dict[str, Any]],
        config: Any,
        *,
        at: int,
        files: Sequence[str] = ("metrics.csv",),
        whole: tuple[dict[str, Any], Path] | None = None,
    ) -> dict[str, Any]:
        run = Path(main.__module__.rpartition(".")[2], f"{config.preset}-seed{config.seed}")
        if whole is None:
            whole = main(replace(config, out=tmp_path / "whole")), tmp_path / "whole" / run
        interrupted(main, replace(config, out=tmp_path / "cut"), at=at)
        resumed = main(replace(config, out=tmp_path / "cut", resume=True))
        for name in files:
            assert (whole[1] / name).read_bytes() == (tmp_path / "cut" / run / name).read_bytes()
        assert without_times(whole[0]) == without_times(resumed)
        return whole[0]

    return check
