"""Where solvers run: on a CUDA device, or on the CPU with what stands in for one, which counts what it is asked for."""

import importlib
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from geometry.pose import cuda

__all__ = ["PLACES", "Launches", "Place", "StandIn", "simulated_grid"]

T = TypeVar("T")

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
        if f.namespace != "learnable_geometry" or name not in self._operators:
            return super().__torch_dispatch__(f, types, args, kwargs)
        self.kernels[{"pnp": "solve", "pnp_search": "search", "pnp_adjoint": "adjoint"}[name]] += 1
        team = simulated_grid("warp").TEAM
        with self, patch.object(cuda, "grid", simulated_grid), patch.object(cuda, "_WARP", team):
            return self._operators[name](*args)

    @property
    def launches(self) -> int:
        """Kernels and operations that start one, which setting memory aside does not."""
        set_aside = sum(n for name, n in self.names.items() if name.startswith(("new_empty", "empty")))
        return self.names.total() - set_aside + self.kernels.total()


@dataclass(frozen=True)
class Place:
    """A device to measure on, by torch's name, or the stand-in for one."""

    name: str

    @property
    def stand_in(self) -> bool:
        return self.name == "stand-in"

    @property
    def device(self) -> torch.device:
        return torch.device("cpu") if self.stand_in else torch.device(self.name, 0)

    def run(self, f: Callable[[], T]) -> T:
        """f() there, and what it has begun has ended."""
        with StandIn() if self.stand_in else nullcontext():
            found = f()
        if not self.stand_in:
            torch.cuda.synchronize(self.device)
        return found


PLACES = ("cuda", "stand-in")
