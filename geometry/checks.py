"""Checks that every public function makes of its arguments: ValueError names the one that is wrong.

What a thing is (`check_tensors`, `whole`, `positive`, `one_of`, `function`) is asked of every call. What a tensor holds
(`values`) is looked at on the host, once a call, and not while torch.compile draws a graph.
"""

import math
from collections.abc import Callable, Collection, Sequence
from functools import partial, wraps
from numbers import Integral, Real
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = [
    "ONE_PROBLEM",
    "ROUNDED",
    "alike",
    "batched",
    "boolean",
    "breaks_graphs",
    "finite",
    "function",
    "check_tensors",
    "check_tensors_or_none",
    "indices",
    "intercepted",
    "leading",
    "misshapen",
    "one_of",
    "plainly",
    "positive",
    "shaped",
    "spread",
    "unlike",
    "untransformed",
    "values",
    "whole",
    "width_and_height",
]

P = ParamSpec("P")
T = TypeVar("T")


ONE_PROBLEM = "this is one problem and knows no batch: call it in a loop, not torch.func.vmap"
"""What a solver of one problem says to torch.func.vmap."""


class _Plainly(torch.autograd.Function):
    """Runs on plain values, whatever wraps them: torch.func.vmap refuses to branch on its own."""

    @staticmethod
    def forward(run: Callable[..., None], batched: bool, *values: Tensor) -> Tensor:
        run(*values)
        return torch.empty(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, run: Callable[..., None], batched: bool, *values: Tensor) -> tuple[Tensor, None]:
        if not batched:
            raise NotImplementedError(ONE_PROBLEM)
        values = tuple(v if dim is None else v.movedim(dim, 0) for v, dim in zip(values, in_dims[2:], strict=True))
        return _Plainly.apply(run, batched, *values), None


def breaks_graphs(f: Callable[P, T]) -> Callable[P, T]:
    """f, which graphs of torch.compile do not look into, as it branches on values."""

    @wraps(f)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return (torch._dynamo.disable(f) if torch.compiler.is_compiling() else f)(*args, **kwargs)

    return call


def untransformed() -> bool:
    """Whether tensors are what they seem: neither a transform of torch.func nor a level of dual numbers is open."""
    return not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0


_PLAIN = (Tensor, torch.nn.Parameter)


def intercepted(tensors: Sequence[Tensor]) -> bool:
    """Whether anything wants to see the operations on these tensors: a graph or a trace, a transform, a mode of torch's
    dispatch, a type of tensor of its own, another device than the CPU."""
    if torch.compiler.is_compiling() or not untransformed():
        return True
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
        return True
    return not all(type(tensor) in _PLAIN and tensor.is_cpu for tensor in tensors)


@breaks_graphs
def plainly(run: Callable[..., T], *values: Tensor, batched: bool = True) -> T:
    """What `run` returns of the plain values of tensors, whatever transform wraps them; it may branch, and raise.

    batched: under torch.func.vmap `run` is given the values of all instances at once; else NotImplementedError is
    raised. What it returns belongs to no graph.
    """
    if untransformed():
        return run(*(value.detach() for value in values))
    found: list[T] = []
    _Plainly.apply(lambda *plain: found.append(run(*plain)), batched, *(value.detach() for value in values))
    return found[0]


def check_tensors(floating: bool = True, /, **named: Any) -> None:
    """Raise ValueError for what is no tensor, is complex or, if `floating`, has no floating-point dtype."""
    for name, value in named.items():
        _check_tensor(name, value)
        if not value.is_floating_point() and (floating or value.is_complex()):
            remedy = "" if value.is_complex() else f": {name}.double()"
            raise ValueError(f"{name} must be of a floating-point dtype, got {value.dtype}{remedy}")


def _check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        how = "from_numpy" if isinstance(value, np.ndarray) else "tensor" if isinstance(value, (list, tuple)) else ""
        remedy = f": torch.{how}({name})" if how else ""
        raise ValueError(f"{name} must be a torch.Tensor, got {_described(value)}{remedy}")


def check_tensors_or_none(**named: Any) -> None:
    """`check_tensors`, of those that are not None."""
    check_tensors(**{name: value for name, value in named.items() if value is not None})


def boolean(name: str, value: Any) -> None:
    """Raise ValueError unless value is a tensor of truth values."""
    _check_tensor(name, value)
    if value.dtype != torch.bool:
        raise ValueError(f"{name} must be of dtype torch.bool, got {value.dtype}: {name} != 0")


def indices(name: str, value: Any) -> None:
    """Raise ValueError unless value is a tensor of whole numbers."""
    _check_tensor(name, value)
    if value.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name} must be of dtype torch.int64 or torch.int32, got {value.dtype}: {name}.long()")


def alike(**named: Tensor | None) -> None:
    """Raise ValueError unless the tensors that are not None have the dtype and the device of the first."""
    (first, like), *others = ((name, value) for name, value in named.items() if value is not None)
    for name, value in others:
        if value.dtype != like.dtype or value.device != like.device:
            raise unlike(name, value, first, like)


def unlike(name: str, value: Tensor, first: str, like: Tensor) -> ValueError:
    """What is raised for a tensor whose dtype or device is not that of the first."""
    return ValueError(
        f"{name} must have the dtype and device of {first} ({like.dtype}, {like.device}), "
        f"got {value.dtype}, {value.device}: {name}.to({first})"
    )


def misshapen(name: str, value: Tensor, wanted: str, fits: Callable[[tuple[int, ...]], bool]) -> ValueError:
    """What is raised for a tensor of another shape than `wanted`; fits: whether a shape is one that is wanted.

    Points in columns instead of rows, one problem instead of a batch, and the numbers of a pose or a camera instead of
    its matrix are what happens: where that is all, the message says how to write it.
    """
    *leading, rows, columns = shape = (1,) * (2 - value.ndim) + tuple(value.shape)
    turned = (*leading, columns, rows)
    others = [(".mT", turned), ("[None]", (1, *value.shape)), (".mT[None]", (1, *turned))]
    others += [("[..., None]", (*value.shape, 1)), *([("[..., 0]", tuple(value.shape[:-1]))] if columns == 1 else [])]
    remedy = next((f": {name}{how}" for how, other in others if value.ndim > 1 and other != shape and fits(other)), "")
    for matrix, numbers, made in (("4,4)", 6, "se3.from_rotvec_t"), ("3,3)", 4, "camera.matrix_from_intrinsics")):
        if wanted.endswith(matrix) and value.ndim and value.shape[-1] == numbers:
            remedy = remedy or f": {made}({name})"
    if name == "points2d" and columns == 3 and wanted.endswith("2)"):
        remedy = remedy or ": pixels come before points3d here"
    return ValueError(f"{name} must have shape {wanted}, got {tuple(value.shape)}{remedy}")


def not_finite(name: str, where: str = "") -> ValueError:
    """What is raised for NaN or infinity; where: of which elements, as " where mask is True"."""
    masked = where and name in ("points2d", "points3d")
    remedy = f": mask={name}.isfinite().all(-1) is as if they were absent" if masked else ""
    return ValueError(f"{name} must be finite{where}, got NaN or infinity{remedy}")


def shaped(**named: tuple[Tensor | None, str]) -> None:
    """Raise ValueError unless each tensor that is not None has its shape, such as "V,N,2" or, with any leading
    dimensions, "…,N,2". Letters are sizes that must agree."""
    sizes: dict[str, int] = {}
    for name, (value, shape) in named.items():
        if value is None:
            continue
        *leading, wanted = shape.split("…,") if shape[0] == "…" else (shape,)
        letters = wanted.split(",")
        ndim = range(len(letters), 99 if leading else len(letters) + 1)
        if not _fits(letters, ndim, sizes, value.shape):
            one = ",".join(str(sizes.get(letter, letter)) for letter in letters)
            raise misshapen(name, value, f"({'…,' * bool(leading)}{one})", partial(_fits, letters, ndim, sizes))


def _fits(letters: Sequence[str], ndim: range, sizes: dict[str, int], shape: tuple[int, ...]) -> bool:
    """Whether a shape has that many dimensions, the last of them of the sizes of the letters; those that were not known
    are known then. One for all of a batch B serves for each."""
    good, known = len(shape) in ndim, dict(sizes)
    for letter, size in zip(reversed(letters), reversed(shape), strict=False):
        if letter != "B" or size != 1:
            good &= size == (int(letter) if letter.isdigit() else known.setdefault(letter, size))
    if good:
        sizes.update(known)
    return good


def whole(name: str, value: Any, least: int) -> None:
    """Raise ValueError unless value is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, Integral)) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {_described(value)}")


def positive(name: str, value: Any) -> None:
    """Raise ValueError unless value is a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Real)) or not 0 < float(value) < math.inf:
        raise ValueError(f"{name} must be a positive number, got {_described(value)}")


def width_and_height(image_size: tuple[int, int]) -> tuple[int, int]:
    """The two sides of an image, after a ValueError unless they are two positive numbers."""
    try:
        width, height = image_size
    except (TypeError, ValueError):
        raise ValueError(f"image_size must be (width, height) in px, got {image_size!r}") from None
    positive("image_size", width)
    positive("image_size", height)
    return width, height


def one_of(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raise ValueError unless value is one of the choices."""
    if not (isinstance(value, (str, torch.dtype)) and value in choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {_described(value)}")


def function(name: str, value: Any, optional: bool = True, such_as: str = "") -> None:
    """Raise ValueError unless value can be called; None may stand for none. such_as: one that can."""
    if not callable(value) and not (optional and value is None):
        example = such_as and f": {such_as}, for example"
        raise ValueError(f"{name} must be a function{' or None' if optional else ''}, got {_described(value)}{example}")


def _described(value: Any) -> str:
    """A number or a word as it is, anything else by its type."""
    if value is None or isinstance(value, (str, int, float, torch.dtype)):
        return repr(value)
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


What = Literal["finite", "odds", "camera", "pose", "pose or NaN", "rotation"]
"""finite: no NaN, no infinity; odds: nor anything negative. camera: K (…,3,3) with the third row (0, 0, 1); pose
(…,4,4): a rotation and a translation, of column vectors; rotation (…,3,3): orthonormal, determinant 1."""

ROUNDED = 1e-3
"""How far R R^T may be from 1, and R from its own cofactors: files round rotations to three or four digits."""


def values(where: str = "", /, **named: tuple[Tensor | None, Any]) -> None:
    """Raise ValueError naming the first tensor that does not hold `What` it should; `where` says which values count.

    One look at the device for all of them, under whatever transform. None is passed over.
    """
    there = [(name, what, value) for name, (value, what) in named.items() if value is not None and value.numel()]
    tensors = [value for _, _, value in there]
    if not intercepted(tensors):
        for name, what, value in there:
            _refuse(name, what, where, value.dtype, _seen(value.detach(), what))
        return

    def look(*plain: Tensor) -> None:
        seen = [_seen(value, what) for value, (_, what, _) in zip(plain, there, strict=True)]
        if seen[0].device.type != "cpu":
            together = torch.cat([part.flatten() for part in seen]).cpu()
            seen = list(together.split([part.numel() for part in seen]))
        for (name, what, value), part in zip(there, seen, strict=True):
            _refuse(name, what, where, value.dtype, part)

    if there:
        plainly(look, *tensors)


def finite(name: str, value: Tensor, where: str = "") -> None:
    """Raise ValueError naming the argument unless all values are finite; `where` says which of them are meant."""
    values(where, **{name: (value, "finite")})


def _seen(value: Tensor, what: What) -> Tensor:
    """Matrices as they are; of other numbers the largest size and, of odds, the least number besides."""
    if what not in ("finite", "odds"):
        return value
    size = torch.linalg.vector_norm(value, torch.inf)
    return torch.stack([size, value.amin()]) if what == "odds" else size


def _refuse(name: str, what: What, where: str, dtype: torch.dtype, seen: Tensor) -> None:
    if what in ("finite", "odds"):
        largest, *least = seen.flatten().tolist()
        if not math.isfinite(largest):
            raise not_finite(name, where)
        if least and least[0] < 0:
            raise ValueError(f"{name} must be finite and not negative, got {least[0]}")
        return
    size = 16 if what in ("pose", "pose or NaN") else 9
    slack = ROUNDED if dtype in (torch.float32, torch.float64) else max(ROUNDED, 2 * torch.finfo(dtype).eps)
    if seen.numel() > size:
        seen = seen.reshape(-1, size)[_first_wrong(what, seen, size, slack)]
    m = seen.flatten().tolist()
    whole = sum(m)
    if what == "pose or NaN" and math.isnan(whole):
        return
    if not math.isfinite(whole):
        raise not_finite(name, where)
    exact, rounded = _errors(what, m)
    if any(exact):
        row = "third row (0, 0, 1)" if what == "camera" else "last row (0, 0, 0, 1)"
        raise ValueError(f"{name} must have the {row}, got {_rows(m)}")
    if rounded and not max(map(abs, rounded)) <= slack:
        raise ValueError(f"{name} must hold rotations (orthonormal, determinant 1), got {_rows(m)}")


def _rows(m: list[float]) -> list[list[float]]:
    n = math.isqrt(len(m))
    return [m[i : i + n] for i in range(0, len(m), n)]


@np.errstate(all="ignore")
def _first_wrong(what: What, matrices: Tensor, size: int, slack: float) -> int:
    """The number of the first matrix that is not what it should be, or 0."""
    m = matrices.double().numpy().reshape(-1, size).T
    exact, rounded = _errors(what, m)
    most = np.array([0.0] * len(exact) + [slack] * len(rounded))
    good = (np.abs((*exact, *rounded)) <= most[:, None]).all(0) & np.isfinite(m.sum(0))
    return int((good | np.isnan(m).any(0) if what == "pose or NaN" else good).argmin())


def _errors(what: What, m: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What must vanish exactly, and up to rounding; m: the entries of a matrix row by row, or arrays of those of many.

    Two rows of a rotation are orthonormal, and the third is their cross product.
    """
    if what == "camera":
        return (m[6], m[7], m[8] - 1), ()
    a, b, c, d, e, f, g, h, i = (*m[:3], *m[4:7], *m[8:11]) if len(m) == 16 else m
    lengths = a * a + b * b + c * c - 1, d * d + e * e + f * f - 1, a * d + b * e + c * f
    third = b * f - c * e - g, c * d - a * f - h, a * e - b * d - i
    return (m[12], m[13], m[14], m[15] - 1) if len(m) == 16 else (), (*lengths, *third)


def leading(name: str, value: Tensor, B: int, *one: tuple[int, ...]) -> Tensor:
    """The value with its leading dimension, of size B, or 1 where all share it: what lacks the dimension gets it.

    one: the shapes of one problem, or view, that it may have. Raises ValueError for any other.
    """
    shape = value.shape
    for size in one:
        if shape in ((B, *size), (1, *size)):
            return value
        if shape == size:
            return value[None]
    # The text is made on failure alone: torch.compile takes a size that is printed for a constant.
    wanted = " or ".join(f"({B}|1,{','.join(map(str, size))}) or {tuple(size)}".replace(", ", ",") for size in one)
    raise misshapen(name, value, wanted, lambda shape: any(shape in (size, (1, *size), (B, *size)) for size in one))


def spread(first: Tensor, ndim: int, *others: tuple[Any, int]) -> Tensor:
    """The first argument with its leading dimension, of the size that any of the arguments gives it.

    ndim: how many dimensions it has of one problem; others: each of the others, or None, and the same of it.
    """
    if not isinstance(first, Tensor) or first.ndim not in (ndim, ndim + 1) or (first.ndim > ndim and len(first) != 1):
        return first  # large enough, or wrong: who looks at its shape says so
    first = first if first.ndim > ndim else first[None]
    for value, of_one in others:
        if isinstance(value, Tensor) and value.ndim == of_one + 1 and value.shape[0] != 1:
            return first.expand(value.shape[0], *first.shape[1:])
    return first


def batched(least: int = 1, /, **arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The arguments as (B,…) each, in order.

    Each is a value and the shape of one instance, such as "N,2", "V,3,3", or "" for a number: letters stand for sizes
    that must agree; and, of matrices, `What` they are. What was given for one instance, or with B = 1, serves the whole
    batch; weights may be None, and are ones then. Raises ValueError naming the argument for what is no tensor, for
    another shape, for N less than `least`, for a dtype that is not floating-point or not that of the first, and for
    `values` that are not finite, or not those of such a matrix.
    """
    sizes: dict[str, int] = {}
    found: list[Tensor] = []
    check_tensors(**{name: value for name, (value, *_) in arguments.items() if name != "weights" or value is not None})
    first = next(iter(arguments.values()))[0]
    for name, (value, shape, *_) in arguments.items():
        wanted = shape.split(",") if shape else []
        if value is None:
            value = first.new_ones([sizes.get(size) or int(size) for size in wanted])
        single, ndim = value.ndim == len(wanted), range(len(wanted), len(wanted) + 2)
        if not _fits(["B", *wanted], ndim, sizes, value.shape):
            one = ",".join(str(sizes.get(size, size)) for size in wanted)
            either = f"({one}) or ({sizes.get('B', 'B')},{one})"
            raise misshapen(name, value, either, partial(_fits, ["B", *wanted], ndim, sizes))
        if sizes.get("N", least) < least:
            raise ValueError(f"{name} must hold at least {least} observations, got N={sizes['N']}")
        if value.dtype != first.dtype or value.device != first.device:
            raise unlike(name, value, next(iter(arguments)), first)
        found.append(value[None] if single else value)
    values(**{name: (value, what[0] if what else "finite") for name, (value, _, *what) in arguments.items()})
    return tuple(value.expand(sizes.get("B", 1), *value.shape[1:]) for value in found)
