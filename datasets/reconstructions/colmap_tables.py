"""The three files of a COLMAP model as tables of records: text and binary, read and written.

A record is a head and a number of items: a camera and its parameters, an image and its 2D points, a point and its
track. What is wrong in a file raises ValueError naming the file and the line or byte.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.arrays import Bytes, Numbers, find_ids
from datasets.files import quote, replacing
from geometry.interop.colmap import LENSES

__all__ = ["CAMERAS", "IMAGES", "NAMES", "POINTS", "UNSEEN", "Table", "read_table", "slots", "write_table"]


NAMES = {lens.id: name for name, lens in LENSES.items()}
_WANTED_LENS = f"one of the camera models {', '.join(LENSES)}"
UNSEEN = -1  # of a 2D point that shows no 3D point


class Kind(NamedTuple):
    """One of the three files: its records are a head and a number of items, laid out as in the binary file."""

    file: str
    name: str
    head: np.dtype
    item: np.dtype


CAMERAS = Kind(
    "cameras",
    "camera",
    np.dtype([("id", "<u4"), ("lens", "<i4"), ("size", "<u8", 2)]),
    np.dtype([("parameter", "<f8")]),
)
IMAGES = Kind(
    "images",
    "image",
    np.dtype([("id", "<u4"), ("quat_wxyz", "<f8", 4), ("t", "<f8", 3), ("camera", "<u4")]),
    np.dtype([("xy", "<f8", 2), ("point", "<i8")]),
)
POINTS = Kind(
    "points3D",
    "point",
    np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("color", "u1", 3), ("error", "<f8")]),
    np.dtype([("image", "<u4"), ("index", "<u4")]),
)
_COUNT = np.dtype("<u8")


class Table(NamedTuple):
    """The records of one file: heads (n,), items of all (sum of counts,), counts (n,), an image's name in names (n,).

    error(i, message): a ValueError that names the place of record i.
    """

    heads: np.ndarray
    items: np.ndarray
    counts: np.ndarray
    names: list[str] | None = None
    error: Callable[[int, str], ValueError] = lambda i, message: ValueError(message)

    def by_id(self) -> "Table":
        """The same in ascending order of ids. Raises ValueError where an id stands twice."""
        ids = self.heads["id"]
        find_ids(ids[:0], ids, lambda i, message: self.error(i, f"id {message}"))
        order = np.argsort(ids)
        starts = np.cumsum(self.counts) - self.counts
        items = self.items[np.repeat(starts[order], self.counts[order]) + slots(self.counts[order])]
        names = self.names and [self.names[i] for i in order]
        return Table(self.heads[order], items, self.counts[order], names, lambda i, m: self.error(int(order[i]), m))


def slots(counts: np.ndarray) -> np.ndarray:
    """0 … count-1 for each count, one after another."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def read_table(path: Path, kind: Kind) -> Table:
    """The records of a .bin or .txt file, by id."""
    return (_read_binary if path.suffix == ".bin" else _read_text)(path, kind).by_id()


def write_table(path: Path, kind: Kind, table: Table) -> None:
    """Write a .bin or .txt file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes((_to_binary if path.suffix == ".bin" else _to_text)(kind, table))


def _parameters(lens: int) -> int:
    """How many parameters the camera model of id `lens` has."""
    return LENSES[NAMES[lens]].focal_lengths + 2 + LENSES[NAMES[lens]].coefficients


def _read_binary(path: Path, kind: Kind) -> Table:
    file = Bytes(path)
    total = int(file.take([("count", _COUNT)], 1, f"the number of {kind.file}")["count"][0])
    if total * kind.head.itemsize > len(file.data):
        raise file.error(0, f"{total} {kind.file} need {total * kind.head.itemsize} bytes, found {len(file.data)}")
    heads, items, names, starts, item_starts, counts = [], [], [], [], [], []  # per record; starts in bytes
    for i in range(total):
        what = f"{kind.name} {i} of {total}"
        starts.append(file.offset)
        heads.append(file.raw(kind.head.itemsize, what))
        if kind is IMAGES:
            end = file.data.find(b"\0", file.offset)
            name = file.raw((end if end >= 0 else len(file.data)) - file.offset + 1, f"the name of {what} and a zero")
            names.append(name[:-1].decode("utf-8", "surrogateescape"))
        if kind is CAMERAS:
            lens = int.from_bytes(heads[-1][4:8], "little", signed=True)
            if lens not in NAMES:
                raise file.error(starts[-1] + 4, f"{_WANTED_LENS} wanted for {what}, found model {lens}")
            count = _parameters(lens)
        else:
            count = int.from_bytes(file.raw(_COUNT.itemsize, f"the number of items of {what}"), "little")
        counts.append(count)
        item_starts.append(file.offset)
        items.append(file.raw(kind.item.itemsize * count, f"{count} items of {what}"))
    file.end()
    table = Table(
        np.frombuffer(b"".join(heads), kind.head),
        np.frombuffer(b"".join(items), kind.item),
        np.array(counts, dtype=np.int64),
        names if kind is IMAGES else None,
        lambda i, message: file.error(starts[i], f"{kind.name} {i} of {total}: {message}"),
    )
    file.check_finite(table.heads, np.array(starts), kind.name)
    offsets = np.repeat(np.array(item_starts, dtype=np.int64), table.counts) + kind.item.itemsize * slots(table.counts)
    file.check_finite(table.items, offsets, f"an item of {kind.file}")
    return table


def _read_text(path: Path, kind: Kind) -> Table:
    """A line of head and items each; for images the head ends with a name, and the items have a line, maybe empty."""
    lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    numeric = [b""] * len(lines)  # the lines without comments, names and words
    names, places, announced, k = [], [], None, 0
    while k < len(lines):
        line, k = lines[k].strip(), k + 1
        if line.startswith(b"#"):
            match = re.match(rb"#\s*Number of \w+: (\d+)", line)
            announced = (k, int(match[1])) if match else announced
        if not line or line.startswith(b"#"):
            continue
        places.append(k)
        if kind is CAMERAS:
            first, lens, *rest = [*line.split(None, 2), b"", b""]
            if lens.decode(errors="replace") not in LENSES:
                raise ValueError(f"{path}, line {k}: {_WANTED_LENS} wanted, found {quote(lens)}")
            line = b" ".join([first, b"%d" % LENSES[lens.decode()].id, *rest])
        if kind is IMAGES:
            fields = line.split(None, 9)
            if len(fields) < 10 or k == len(lines):
                found = f"{len(fields)} words" if len(fields) < 10 else "the end of the file"
                wanted = "id, quaternion, t, camera and name of an image wanted, and a line of 2D points"
                raise ValueError(f"{path}, line {k}: {wanted}, found {found}")
            names.append(fields.pop().decode("utf-8", "surrogateescape"))
            line, numeric[k], k = b" ".join(fields), lines[k], k + 1
        numeric[places[-1] - 1] = line
    if announced and announced[1] != len(places):
        raise ValueError(f"{path}, line {announced[0]}: {announced[1]} {kind.file} announced, found {len(places)}")

    numbers = Numbers(path, b"\n".join(numeric), lambda _: f"a {kind.name}")
    words = np.array([len(line.split()) for line in [*numeric, b""]])
    first_line = np.array(places, dtype=np.int64) - 1
    totals = words[first_line] + (words[first_line + 1] if kind is IMAGES else 0)
    starts = np.cumsum(totals) - totals
    head, item = _width(kind.head), _width(kind.item)
    counts, rest_of_item = np.divmod(totals - head, item)

    def error(i: int, message: str) -> ValueError:
        return ValueError(f"{path}, line {places[i]}: {message}")

    for i in np.flatnonzero((counts < 0) | (rest_of_item != 0))[:1]:
        raise error(i, f"{head} numbers wanted for a {kind.name}, then {item} for each item, found {totals[i]}")
    heads = _rows(numbers, starts, kind.head, kind.name)
    if kind is CAMERAS:
        parameters = np.array([_parameters(lens) for lens in heads["lens"]])
        for i in np.flatnonzero(counts != parameters)[:1]:
            raise error(i, f"{parameters[i]} parameters of {NAMES[heads['lens'][i]]} wanted, found {counts[i]}")
    items = _rows(numbers, np.repeat(starts + head, counts) + item * slots(counts), kind.item, kind.name)
    return Table(heads, items, counts, names if kind is IMAGES else None, error)


def _width(dtype: np.dtype) -> int:
    """How many numbers a record has."""
    return sum(dtype[name].shape[0] if dtype[name].shape else 1 for name in dtype.names or ())


def _rows(numbers: Numbers, starts: np.ndarray, dtype: np.dtype, what: str) -> np.ndarray:
    """Records of `dtype` from the numbers that start at tokens `starts` (n,)."""
    rows, column = np.empty(len(starts), dtype), 0
    for name in dtype.names or ():
        base, shape = dtype[name].base, dtype[name].shape
        at = starts[:, None] + column + np.arange(shape[0] if shape else 1)
        if base.kind == "f":
            values = numbers.values[at]
        else:  # beyond 2^53 a float64 is no longer exact
            low, high = (UNSEEN if base.kind == "i" else 0), min(np.iinfo(base).max, 2**53)
            values = numbers.integers(at.ravel(), f"{what}: {name}", low, high).reshape(at.shape)
        rows[name] = values.reshape(-1, *shape)
        column += at.shape[1]
    return rows


def _to_binary(kind: Kind, table: Table) -> bytes:
    heads, items, k = table.heads.tobytes(), table.items.tobytes(), 0
    parts, size = [np.array(len(table.heads), _COUNT).tobytes()], kind.head.itemsize
    for i, count in enumerate(table.counts.tolist()):
        parts.append(heads[i * size : (i + 1) * size])
        if table.names is not None:
            parts.append(table.names[i].encode("utf-8", "surrogateescape") + b"\0")
        if kind is not CAMERAS:
            parts.append(count.to_bytes(_COUNT.itemsize, "little"))
        parts.append(items[k : k + count * kind.item.itemsize])
        k += count * kind.item.itemsize
    return b"".join(parts)


def _to_text(kind: Kind, table: Table) -> bytes:
    heads = zip(*(_words(table.heads[name]) for name in kind.head.names or ()), strict=True)
    items = [
        " ".join(words) for words in zip(*(_words(table.items[name]) for name in kind.item.names or ()), strict=True)
    ]
    rows, k = [f"# Number of {kind.file}: {len(table.heads)}"], 0
    for i, (words, count) in enumerate(zip(heads, table.counts.tolist(), strict=True)):
        if kind is CAMERAS:
            words = (words[0], NAMES[int(words[1])], *words[2:])
        if table.names is None:
            rows.append(" ".join([*words, *items[k : k + count]]))
        else:
            rows += [" ".join([*words, table.names[i]]), " ".join(items[k : k + count])]
        k += count
    return ("\n".join(rows) + "\n").encode("utf-8", "surrogateescape")


def _words(column: np.ndarray) -> list[str]:
    """The numbers of each row (n,) or (n,m) as text that reads back as the same."""
    return [" ".join(map(repr, row)) for row in column.reshape(len(column), int(np.prod(column.shape[1:]))).tolist()]
