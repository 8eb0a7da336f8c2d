"""What the drivers' tests may ask for."""

from collections.abc import Callable
from typing import Any

import pytest

from experiments.running.run import Run


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
