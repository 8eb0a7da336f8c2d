"""What every test may ask for."""

from collections.abc import Callable
from pathlib import Path

import pytest

from datasets.shared import find


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """Gives the folder of a real data set by name; the test is skipped where the machine lacks it."""

    def folder(name: str) -> Path:
        try:
            return find(name)
        except FileNotFoundError as error:
            pytest.skip(str(error))

    return folder
