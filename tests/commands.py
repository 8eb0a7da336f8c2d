"""Commands as a user gives them, in this process or in one of their own."""

import io
import runpy
import sys
from contextlib import redirect_stdout

import pytest

__all__ = ["PATIENCE", "ended", "python_m"]

PATIENCE = 300.0
"""Seconds after which whatever a test waits for has died: no machine is so busy."""


def python_m(module: str, *arguments: str) -> str:
    """As `ended`: what it prints; a SystemExit that tells of a failure is passed on."""
    code, printed = ended(module, *arguments)
    if code:
        raise SystemExit(code)
    return printed


def ended(module: str, *arguments: str) -> tuple[str | int | None, str]:
    """`python -m module arguments`: its exit code, or the sentence it ends with, and what it prints.

    It runs in this process: one of its own would add three seconds of imports.
    """
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", [module, *arguments])
        patch.delitem(sys.modules, module, raising=False)  # it is executed once more, from its beginning
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            return end.code, printed.getvalue()
    return 0, printed.getvalue()
