"""The kernels are built for CUDA devices that are not there (`make test-ptx`); what their compiler says is printed."""

import importlib.util
from typing import Any

import pytest

_WHY = "`make test-ptx` installs the compilers that this needs"
if importlib.util.find_spec("numba_cuda") is None:
    pytest.skip(_WHY, allow_module_level=True)
if not pytest.importorskip("numba.cuda.cudadrv.nvvm", reason=_WHY).is_available():
    pytest.skip(_WHY, allow_module_level=True)

thread = pytest.importorskip("geometry.compiled.cuda.ptx")
warp = pytest.importorskip("geometry.compiled.warp.ptx")

CAPABILITIES = ((8, 0), (9, 0), (10, 0))


@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda c: f"sm_{c[0]}{c[1]}")
@pytest.mark.parametrize(
    ("ptx", "name", "precision", "arguments"),
    [(ptx, *of) for ptx in (thread, warp) for of in ptx.signatures()],
    ids=str,
)
def test_every_kernel_is_built(
    ptx: Any, name: str, precision: object, arguments: object, capability: tuple[int, int]
) -> None:
    text = ptx.compiled(name, arguments, capability)
    assert f".target sm_{capability[0]}{capability[1]}" in text
    said = ptx.assembled(text, capability)
    print(f"sm_{capability[0]}{capability[1]} {ptx.__name__.split('.')[2]} {name} {precision}: {said}")
    assert ("shfl" in text) == (ptx is warp)
    assert not said.startswith("?")
