"""Every conversion has its way back, under the same noun."""

import importlib
import pkgutil

import pytest

import geometry.interop

LIBRARIES = [m.name for m in pkgutil.iter_modules(geometry.interop.__path__) if not m.name.startswith("_")]


@pytest.mark.parametrize("library", LIBRARIES)
def test_to_and_from_come_in_pairs(library: str) -> None:
    module = importlib.import_module(f"geometry.interop.{library}")
    functions = {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    public = {name for name in functions if name[0].islower()}
    assert public
    assert public <= {*module.__all__}
    there, back = ({name.removeprefix(way) for name in public if name.startswith(way)} for way in ("to_", "from_"))
    assert there == back
    assert public == {way + noun for noun in there for way in ("to_", "from_")}
