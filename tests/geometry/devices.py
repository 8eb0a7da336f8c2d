"""Devices for tests: one that counts what it is asked for, and one that stands in for a CUDA device."""

import importlib
from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from geometry.pose import cuda

__all__ = ["Launches", "StandIn", "simulated_grid"]

_WAITS = ("_local_scalar_dense", "nonzero", "masked_select")
# a scalar argument of `where` becomes a tensor on the host
_FREE = ("scalar_tensor", "_unsafe_view", "_reshape_alias", "detach")


class Launches(TorchDispatchMode):
    """Counts operations but views, and those among them that the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = f.overloadpacket.__name__
        if not f.is_view and name not in _FREE:
            self.names[name] += 1
        return f(*args, **(kwargs or {}))

    @property
    def waits(self) -> int:
        return sum(self.names[name] for name in _WAITS)


def simulated_grid(team: str) -> Any:
    """What starts kernels as plain Python, for `geometry.compiled.launch.grid`."""
    name = {"cuda": "simulated", "warp": "simulated_warp"}[team]
    return importlib.import_module(f"geometry.compiled.{name}.grid")


class StandIn(Launches):
    """The CPU in the part of a CUDA device: operators run as there, by kernels in plain Python, which count as one."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self._operators = {"pnp": cuda.solve, "pnp_search": cuda.search, "pnp_adjoint": cuda.adjoint}

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = f.overloadpacket.__name__
        if f.namespace != "learnable_geometry":
            return super().__torch_dispatch__(f, types, args, kwargs)
        self.kernels[{"pnp": "solve", "pnp_search": "search", "pnp_adjoint": "adjoint"}[name]] += 1
        with self:
            return self._operators[name](*args)

    @property
    def launches(self) -> int:
        """Kernels and operations that start one, which setting memory aside does not."""
        set_aside = sum(n for name, n in self.names.items() if name.startswith(("new_empty", "empty")))
        return self.names.total() - set_aside + self.kernels.total()
