"""Between arrays of problems and tiles: eight problems side by side, or one dealt out to all lanes ("spread").

What Python calls takes plain tuples, whose type numba tells a microsecond faster than that of named ones, and names
their parts (`Data(*data)`) before it passes them on.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from geometry.checks import ROUNDED
from geometry.compiled.constants import FISHEYE

from ..vectors import TEAM, broadcast, clear, get, jit, lowest, member, put, room, scratch, total
from .equations import CAMERA, ROW, L, Tile


class Data(NamedTuple):
    """C-contiguous arrays of B problems, of leading size 1 where shared.

    points2d (B,N,2), points3d (B|1,N,3), K (B|1,3,3), distortion (B|1,k), weights (B|1,N,2), or (1,1,1) for ones, mask
    (B|1,N), or (1,1) for True. fisheye: 1 if that is the lens, else 0.
    """

    points2d: Any
    points3d: Any
    K: Any
    distortion: Any
    weights: Any
    mask: Any
    fisheye: Any


class Visible(NamedTuple):
    """Of the visible points in each lane: their centre (3 L); their number, and the first of them (2 L)."""

    centre: Any
    counts: Any


class Part(NamedTuple):
    """Problems begin to end - 1 of a batch, their place among what threads add up, and whether they are spread.

    workspace: on a device, an array (length, slots) that holds the tiles; None on the CPU, where they are allocated.
    """

    begin: Any
    end: Any
    slot: Any
    spread: Any
    workspace: Any


new_centre, new_counts = scratch(3 * L), scratch(2 * L, integer=True)


# Types of what every kernel begins with, and of the last
DATA = "Tuple(({0}[:,:,::1], {0}[:,:,::1], {0}[:,:,::1], {0}[:,::1], {0}[:,:,::1], uint8[:,::1], int64))"
INPUTS = DATA + ", Tuple((int64, float64, float64))"  # data, robust
PART = "Tuple((int64, int64, int64, boolean, none))"
# Rows that are laid out lane after lane before the next ones, so that they stay in the first-level cache.
BLOCK = 32


@jit
def new_tile(data: Any, part: Any, camera: Any) -> Any:
    """A tile for `fill`, whose camera is an array of CAMERA numbers."""
    n = data.points2d.shape[1]
    rows = (n + L * TEAM - 1) // (L * TEAM) if part.spread else n
    clear(camera, CAMERA)
    lens = FISHEYE if data.fisheye else data.distortion.shape[1]
    return Tile(room(part, 0, rows * ROW, camera), rows, camera, lens, part.spread)


@jit
def place(i: Any, lane: Any, spread: Any) -> Any:
    """Where point i of those in the tile, of the problem in a lane, begins in it."""
    return (i // L) * ROW + i % L if spread else i * ROW + lane


@jit
def number(i: Any, spread: Any) -> Any:
    """Which point of the problem is point i of those in the tile: the others are those of the rest of the team."""
    return i * TEAM + member() if spread else i


@jit
def share_of(n: Any) -> Any:
    """How many of n points, dealt out in turns, this thread of a team has: all if it is alone."""
    return (n - member() + TEAM - 1) // TEAM


@jit
def of_point(array: Any, width: Any, column: Any, i: Any) -> Any:
    """Of the numbers that a spread tile has of every point, `width` of them in an array, one of point i of the problem.

    All of a team ask for the same point at once.
    """
    own = i // TEAM
    return broadcast(get(array, (own // L * width + column) * L + own % L), i % TEAM)


@jit
def finite(s: Any) -> Any:
    """math.isfinite subtracts s from itself, which regrouping may cancel before NaN can show."""
    return abs(s) < np.inf


@jit
def _survey(data: Any, b: Any) -> Any:
    """Number of visible points of problem b, the first of them, their centre, and what is not finite (see `fill`).

    Each of a team looks at its own points.
    """
    points2d, points3d, K, distortion, weights, mask, _ = data
    n = points2d.shape[1]
    own = share_of(n)
    p2, p3 = b * n * 2, min(b, points3d.shape[0] - 1) * n * 3
    pw, pm = min(b, weights.shape[0] - 1) * n * 2, min(b, mask.shape[0] - 1) * n
    weighted, masked = weights.shape[1] > 1, mask.shape[1] > 1
    # not finite: seen in sums over all that are not masked
    cx = cy = cz = pixels = size = 0.0
    all_visible = not masked
    if weighted and not masked:
        for k in range(own):
            i = number(k, True)
            weight = abs(get(weights, pw + 2 * i)) + abs(get(weights, pw + 2 * i + 1))
            size += weight
            all_visible &= weight != 0.0
        all_visible = lowest(1.0 if all_visible else 0.0) > 0.0
    count, first = n, 0
    if all_visible:
        for k in range(own):
            i = number(k, True)
            cx += get(points3d, p3 + 3 * i)
            cy += get(points3d, p3 + 3 * i + 1)
            cz += get(points3d, p3 + 3 * i + 2)
            pixels += get(points2d, p2 + 2 * i) + get(points2d, p2 + 2 * i + 1)
    else:
        count, first, size = 0, n, 0.0
        for k in range(own):
            i = number(k, True)
            if masked and not get(mask, pm + i):
                continue
            x, y, z = get(points3d, p3 + 3 * i), get(points3d, p3 + 3 * i + 1), get(points3d, p3 + 3 * i + 2)
            pixels += get(points2d, p2 + 2 * i) + get(points2d, p2 + 2 * i + 1)
            weight = 1.0
            if weighted:
                weight = abs(get(weights, pw + 2 * i)) + abs(get(weights, pw + 2 * i + 1))
            size += weight
            if weight != 0.0:
                first = i if count == 0 else first
                count += 1
            else:
                x, y, z = x * 0.0, y * 0.0, z * 0.0
            cx, cy, cz = cx + x, cy + y, cz + z
        count = int(total(float(count)))
        first = int(lowest(float(first))) if count > 0 else 0
    cx, cy, cz, pixels, size = total(cx), total(cy), total(cz), total(pixels), total(size)
    k, d = min(b, K.shape[0] - 1) * 9, distortion.shape[1]
    camera = get(K, k) + get(K, k + 1) + get(K, k + 2) + get(K, k + 3) + get(K, k + 4) + get(K, k + 5)
    lens = 0.0
    for i in range(d):
        lens += get(distortion, min(b, distortion.shape[0] - 1) * d + i)
    bad = 0
    if get(K, k + 6) != 0.0 or get(K, k + 7) != 0.0 or get(K, k + 8) != 1.0:
        bad = 7
    if not finite(size):
        bad = 5
    if not finite(lens):
        bad = 4
    if not finite(camera):
        bad = 3
    if not finite(cx + cy + cz):
        bad = 2
    if not finite(pixels):
        bad = 1
    scale = 1.0 / max(count, 1)
    return count, first, cx * scale, cy * scale, cz * scale, bad


@jit
def _lay(data: Any, b: Any, begin: Any, end: Any, tile: Any, visible: Any, lane: Any) -> None:
    """Lay points begin to end - 1 of the tile, of problem b, into a lane, about their centre and the principal point.

    Absent points (masked, of weight zero, or beyond the last) become copies of the first visible one with weight zero.
    """
    points, spread, absent = tile.points, tile.spread, visible.counts[L + lane]
    cx, cy, cz = visible.centre[lane], visible.centre[L + lane], visible.centre[2 * L + lane]
    points2d, points3d, K, _, weights, mask, _ = data
    n = points2d.shape[1]
    p2, p3 = b * n * 2, min(b, points3d.shape[0] - 1) * n * 3
    pw, pm = min(b, weights.shape[0] - 1) * n * 2, min(b, mask.shape[0] - 1) * n
    weighted, masked = weights.shape[1] > 1, mask.shape[1] > 1
    k = min(b, K.shape[0] - 1) * 9
    u0, v0 = get(K, k + 2), get(K, k + 5)
    for at in range(begin, end):
        o, i = place(at, lane, spread), number(at, spread)
        wu, wv, source = 1.0, 1.0, i
        if i >= n or (masked and not get(mask, pm + i)):
            wu, wv, source = 0.0, 0.0, absent
        elif weighted:
            wu, wv = get(weights, pw + 2 * i), get(weights, pw + 2 * i + 1)
            if wu == 0.0 and wv == 0.0:
                source = absent
        put(points, o, get(points3d, p3 + 3 * source) - cx)
        put(points, o + L, get(points3d, p3 + 3 * source + 1) - cy)
        put(points, o + 2 * L, get(points3d, p3 + 3 * source + 2) - cz)
        put(points, o + 3 * L, get(points2d, p2 + 2 * source) - u0)
        put(points, o + 4 * L, get(points2d, p2 + 2 * source + 1) - v0)
        put(points, o + 5 * L, wu)
        put(points, o + 6 * L, wv)


@jit
def fill(data: Any, begin: Any, end: Any, tile: Any, visible: Any) -> Any:
    """Lay problems begin, ... into the lanes of a tile, or problem begin into all of them if spread.

    Their points are taken relative to their centre: about a far origin, rotation and translation can hardly be told
    apart. Lanes beyond problem end - 1 repeat it. Absent points become copies of a visible one with weight zero: as
    feasible as that, and without effect. Returns the place of the first argument with a value that is not finite and
    not masked: 1 points2d, 2 points3d, 3 K, 4 distortion, 5 weights; 7 where K has no third row (0, 0, 1); or 0.
    """
    K, distortion, camera, spread = data.K, data.distortion, tile.camera, tile.spread
    centre, counts = visible.centre, visible.counts
    width = 1 if spread else L
    for lane in range(width):
        b = min(begin + lane, end - 1)
        counts[lane], counts[L + lane], centre[lane], centre[L + lane], centre[2 * L + lane], bad = _survey(data, b)
        if bad:
            return bad
        k, d = min(b, K.shape[0] - 1) * 9, distortion.shape[1]
        for at in range(lane, L if spread else lane + 1):
            for i in range(2):
                put(camera, 2 * i * L + at, get(K, k + 3 * i))
                put(camera, (2 * i + 1) * L + at, get(K, k + 3 * i + 1))
                put(camera, (4 + i) * L + at, get(K, k + 3 * i + 2))
            for i in range(d):
                put(camera, (6 + i) * L + at, get(distortion, min(b, distortion.shape[0] - 1) * d + i))
    points = tile.rows * L if spread else tile.rows
    block = points if spread else BLOCK
    for i in range(0, points, block):
        for lane in range(width):
            _lay(data, min(begin + lane, end - 1), i, min(i + block, points), tile, visible, lane)
    return 0


@jit
def fill_pose(poses: Any, b: Any, at: Any, centre: Any, lane: Any, pose: Any) -> Any:
    """world_to_camera number b, its rotation made orthonormal, about the centre, into a lane.

    Returns 6 if it is not finite, 7 if it is no rotation to `ROUNDED` and no translation, else 0.
    """
    b = min(b, poses.shape[0] - 1)
    # Gram-Schmidt on the rows: a rotation that was rounded to float32, or came from a file, is made one again
    ax, ay, az = poses[b, 0, 0], poses[b, 0, 1], poses[b, 0, 2]
    bx, by, bz = poses[b, 1, 0], poses[b, 1, 1], poses[b, 1, 2]
    # what `geometry.checks` asks of a rotation
    lengths = max(abs(ax * ax + ay * ay + az * az - 1.0), abs(bx * bx + by * by + bz * bz - 1.0))
    angle = abs(ax * bx + ay * by + az * bz)
    third = max(abs(ay * bz - az * by - poses[b, 2, 0]), abs(az * bx - ax * bz - poses[b, 2, 1]))
    third = max(third, abs(ax * by - ay * bx - poses[b, 2, 2]))
    s = 1.0 / math.sqrt(ax * ax + ay * ay + az * az)
    ax, ay, az = ax * s, ay * s, az * s
    s = ax * bx + ay * by + az * bz
    bx, by, bz = bx - s * ax, by - s * ay, bz - s * az
    s = 1.0 / math.sqrt(bx * bx + by * by + bz * bz)
    bx, by, bz = bx * s, by * s, bz * s
    rows = ((ax, ay, az), (bx, by, bz), (ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx))
    sum_of_all = 0.0
    for i in range(3):
        x, y, z = rows[i]
        pose[(3 * i) * L + at], pose[(3 * i + 1) * L + at], pose[(3 * i + 2) * L + at] = x, y, z
        moved = poses[b, i, 3] + x * centre[lane] + y * centre[L + lane] + z * centre[2 * L + lane]
        pose[(9 + i) * L + at] = moved
        sum_of_all += poses[b, i, 0] + poses[b, i, 1] + poses[b, i, 2] + poses[b, i, 3]
    if not finite(sum_of_all + poses[b, 3, 0] + poses[b, 3, 1] + poses[b, 3, 2] + poses[b, 3, 3]):
        return 6
    if poses[b, 3, 0] != 0.0 or poses[b, 3, 1] != 0.0 or poses[b, 3, 2] != 0.0 or poses[b, 3, 3] != 1.0:
        return 7
    return 0 if max(lengths, angle, third) <= ROUNDED else 7


@jit
def fill_covector(covectors: Any, b: Any, at: Any, centre: Any, lane: Any, pose: Any, rhs: Any) -> None:
    """The covector of a world_to_camera matrix as one of a step (omega, v) about the centre."""
    ox = oy = oz = 0.0
    for j in range(4):
        # a column moves by omega x column; t = t_centred - R centre moves by v - omega x (R centre)
        gx, gy, gz = covectors[b, 0, j], covectors[b, 1, j], covectors[b, 2, j]
        if j < 3:
            x, y, z = pose[j * L + at], pose[(3 + j) * L + at], pose[(6 + j) * L + at]
        else:
            x = y = z = 0.0
            for k in range(3):
                x -= pose[k * L + at] * centre[k * L + lane]
                y -= pose[(3 + k) * L + at] * centre[k * L + lane]
                z -= pose[(6 + k) * L + at] * centre[k * L + lane]
            rhs[3 * L + at], rhs[4 * L + at], rhs[5 * L + at] = gx, gy, gz
        ox, oy, oz = ox + y * gz - z * gy, oy + z * gx - x * gz, oz + x * gy - y * gx
    rhs[at], rhs[L + at], rhs[2 * L + at] = ox, oy, oz


@jit
def write_pose(pose: Any, at: Any, centre: Any, lane: Any, poses: Any, b: Any) -> None:
    """The pose in lane `at`, about the origin instead of the centre in `lane`, as world_to_camera number b."""
    for i in range(3):
        moved = pose[(9 + i) * L + at]
        for j in range(3):
            poses[b, i, j] = pose[(3 * i + j) * L + at]
            moved -= poses[b, i, j] * centre[j * L + lane]
        poses[b, i, 3] = moved
        poses[b, 3, i] = 0.0
    poses[b, 3, 3] = 1.0


class Rows(NamedTuple):
    """The rows of one problem in out (B|slots,N,k): out[row], which several problems add to if shared."""

    out: Any
    row: Any
    shared: Any


@jit
def drain(tile: Any, column: Any, lane: Any, begin: Any, end: Any, good: Any, to: Any) -> None:
    """The k columns from `column` on of points begin to end - 1 of the tile into their `Rows`; zeros where not good.

    Absent points hold zeros by now: their weight is zero.
    """
    points, out, k = tile.points, to.out, to.out.shape[2]
    base, n = to.row * out.shape[1] * k, out.shape[1]
    own = share_of(n) if tile.spread else n
    for i in range(begin, min(end, own)):
        o, at = place(i, lane, tile.spread) + column * L, base + number(i, tile.spread) * k
        if to.shared:
            if good:
                for j in range(k):
                    put(out, at + j, get(out, at + j) + get(points, o + j * L))
        elif good:
            put(out, at, get(points, o))
            put(out, at + 1, get(points, o + L))
            if k > 2:
                put(out, at + 2, get(points, o + 2 * L))
        else:
            for j in range(k):
                put(out, at + j, 0.0)
