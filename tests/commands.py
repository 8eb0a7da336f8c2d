"""Commands as a user gives them, in this process: what a process of its own would add is three seconds of imports."""

import io
import runpy
import sys
from contextlib import redirect_stdout

import pytest

__all__ = ["python_m"]


def python_m(module: str, *arguments: str) -> str:
    """`python -m module arguments`: what it prints; a SystemExit that tells of a failure is passed on."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", [module, *arguments])
        patch.delitem(sys.modules, module, raising=False)  # it is executed once more, from its beginning
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if end.code:
                raise
    return printed.getvalue()
