"""Tracks: which pixels of several images show the same point of the scene. From images alone, no camera needed.

SIFT (Lowe 2004) on its root (Arandjelovic and Zisserman 2012), matches that are best and distinct both ways, an
epipolar geometry for each pair of images (USAC with MAGSAC++: Barath et al. 2020), and the connected components of
what is left. A component with two places in one image joins two points of the scene; it is dropped as a whole: 31 of
templeSparseRing. To cut them at their least certain matches instead would save 1.4 % of the observations.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets.arrays import read_image
from datasets.files import image_paths
from datasets.progress import progress

__all__ = ["Tracks", "find_tracks", "link"]


@dataclass(frozen=True)
class Tracks:
    """M observations of N points in V images; every point in two images at least, at one place in each.

    camera_index (M,), point_index (M,): int64; sorted by point, then camera. points2d (M,2): float64, pixels, (0, 0)
    is the centre of the sensor's top-left pixel: EXIF's orientation is ignored. names of all V images, in the order
    given; image_size (width, height) in pixels; colors (N,3): uint8, red, green, blue, mean of the pixels, None where
    there are no images; left_out: (image name, reason) for each image without an observation.
    """

    camera_index: Tensor
    point_index: Tensor
    points2d: Tensor
    names: tuple[str, ...]
    image_size: tuple[int, int]
    colors: Tensor | None
    left_out: tuple[tuple[str, str], ...] = ()


class _Features(NamedTuple):
    """Places (n,2) px in an image and their colours (n,3); descriptors (f,128) of unit length, place (f,) of each.

    A place has a descriptor for each dominant orientation of its surroundings.
    """

    points2d: np.ndarray
    colors: np.ndarray
    descriptors: Tensor
    place: np.ndarray


def find_tracks(
    images: str | Path | Iterable[str | Path],
    *,
    pairs: Iterable[tuple[int, int]] | None = None,
    contrast: float = 0.01,
    most_features: int = 8000,
    ratio: float = 0.9,
    threshold: float = 1.0,
    fewest: int = 30,
) -> Tracks:
    """Find the tracks of a folder of images (natural order of names), or of a list of files (its order).

    pairs: places in that order to match, all pairs by default. contrast: of SIFT's weakest features; OpenCV's own
    0.04 finds half as many tracks. most_features: at most so many an image, the strongest. ratio: a match must be so
    much nearer than the second best, from both sides. threshold: distance from the epipolar line, in pixels. fewest:
    so many matches must agree on an epipolar geometry (unrelated images reach 21 by chance, of 2000 features).

    The same images in another order give the same tracks; no random state outside is read or changed.
    An image of another size than most, without features, or without matches is listed in `left_out`.
    Raises ValueError for fewer than two images, the same one twice, pairs that are none, a file that is no image, and
    where no two images match; FileNotFoundError when a path is missing.
    """
    paths = image_paths(images)
    if len(paths) < 2:
        raise ValueError(f"images: two at least wanted, found {len(paths)}: {paths[0]}")
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"images: different files wanted, found one twice in {[path.name for path in paths]}")
    if not (0 < ratio <= 1 and threshold > 0 and fewest >= 8 and contrast >= 0 and most_features > 0):
        given = {"ratio": ratio, "threshold": threshold, "fewest": fewest, "contrast": contrast}
        raise ValueError(
            "ratio in 0 … 1, threshold > 0 px, fewest >= 8, contrast >= 0 and most_features > 0 wanted, found "
            f"{given | {'most_features': most_features}}"
        )
    chosen = set(combinations(range(len(paths)), 2)) if pairs is None else {(min(p), max(p)) for p in pairs}
    wrong = sorted(p for p in chosen if not 0 <= p[0] < p[1] < len(paths))
    if wrong:
        raise ValueError(f"pairs: two different numbers in 0 … {len(paths) - 1} wanted, found {wrong[0]}")

    features, sizes = zip(
        *(_detect(path, contrast, most_features) for path in progress(paths, "finding features")), strict=True
    )
    reasons: dict[int, str] = {}
    usual: tuple[int, int] = Counter(sizes).most_common(1)[0][0]  # the first may be a thumbnail
    for v, size in enumerate(sizes):
        if size != usual:
            reasons[v] = f"image size {size}, most images have {usual}"
        elif len(features[v].place) < fewest:
            reasons[v] = f"{len(features[v].place)} features found, {fewest} wanted"
    matches: dict[tuple[int, int], np.ndarray] = {}
    for pair in progress(chosen, "matching images"):
        if reasons.keys().isdisjoint(pair):
            # by path, so that the order of the images makes no difference, not even in rounding
            i, j = sorted(pair, key=lambda v: paths[v].resolve())
            matches[i, j] = _match(features[i], features[j], ratio, threshold, fewest)
    camera, place, point = link(matches)
    if len(point) == 0:
        why = "; ".join(f"{paths[v].name}: {reason}" for v, reason in reasons.items())
        raise ValueError(
            f"{paths[0].parent}: two images that match wanted, found none{f' ({why})' if why else ''}: take them a few "
            "degrees apart, of the same place, sharp and with texture"
        )
    for v in np.setdiff1d(np.arange(len(paths)), camera):
        reasons.setdefault(int(v), "no other image matches it")

    points2d, colors = (
        np.stack([field[v][k] for v, k in zip(camera, place, strict=True)])
        for field in ([f.points2d for f in features], [f.colors for f in features])
    )
    total = np.zeros((point.max() + 1, 3))
    np.add.at(total, point, colors)
    return Tracks(
        torch.from_numpy(camera),
        torch.from_numpy(point),
        torch.from_numpy(points2d),
        tuple(path.name for path in paths),
        usual,
        torch.from_numpy((total / np.bincount(point)[:, None]).round().astype(np.uint8)),
        tuple((paths[v].name, reasons[v]) for v in sorted(reasons)),
    )


def link(matches: Mapping[tuple[int, int], np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join pairwise matches into tracks: the connected components with one place in each image.

    matches: for images (i, j), rows (place in i, place in j), int (k,2). Returns image, place and track, (M,) int64
    each, sorted by track, then image. A component that has two places of one image is dropped.
    """
    ends = [
        (np.full(len(rows), image), rows[:, side])
        for side in (0, 1)
        for pair, rows in sorted(matches.items())
        for image in (pair[side],)
    ]
    if sum(len(place) for _, place in ends) == 0:
        return (np.zeros(0, dtype=np.int64),) * 3
    both = np.stack([np.concatenate(column) for column in zip(*ends, strict=True)], axis=1).astype(np.int64)
    nodes, edge = np.unique(both, axis=0, return_inverse=True)
    one, other = edge.reshape(2, -1)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(len(nodes), len(nodes)))
    component = connected_components(graph, directed=False)[1]
    _, first, count = np.unique(np.stack([component, nodes[:, 0]]), axis=1, return_index=True, return_counts=True)
    kept = ~np.isin(component, component[first[count > 1]])
    image, place = nodes[kept].T
    _, track = np.unique(component[kept], return_inverse=True)
    order = np.lexsort((image, track))
    return image[order], place[order], track[order].astype(np.int64)


def _detect(path: Path, contrast: float, most_features: int) -> tuple[_Features, tuple[int, int]]:
    """Features of an image and its size (width, height)."""
    import cv2

    image = read_image(path)
    # Without precise upscaling every feature lies a quarter of a pixel too far right and down.
    sift = cv2.SIFT.create(nfeatures=most_features, contrastThreshold=contrast, enable_precise_upscale=True)
    keypoints, descriptors = sift.detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
    descriptors = np.zeros((0, 128), np.float32) if descriptors is None else descriptors
    root = torch.from_numpy(np.sqrt(descriptors / descriptors.sum(1, keepdims=True).clip(1)))
    points2d = np.array([keypoint.pt for keypoint in keypoints], dtype=np.float64).reshape(-1, 2)
    points2d, place = np.unique(points2d, axis=0, return_inverse=True)
    size = (image.shape[1], image.shape[0])
    x, y = points2d.round().astype(np.int64).clip(0, np.array(size) - 1).T
    return _Features(points2d, image[y, x], root, place.reshape(-1)), size


def _match(one: _Features, other: _Features, ratio: float, threshold: float, fewest: int) -> np.ndarray:
    """Matches that agree on an epipolar geometry, as rows (place in one, place in other); none if below `fewest`."""
    import cv2

    similarity = one.descriptors @ other.descriptors.T
    nearest, back = _distinct(similarity, ratio), _distinct(similarity.T, ratio)
    index = torch.arange(len(nearest))
    mutual = ((nearest >= 0) & (back[nearest] == index)).numpy()
    rows = np.stack([one.place[mutual], other.place[nearest.numpy()[mutual]]], axis=1)
    rows = np.unique(rows, axis=0)  # two orientations of a place may both match
    if len(rows) >= fewest:
        params = cv2.UsacParams()
        params.sampler, params.score = cv2.SAMPLING_UNIFORM, cv2.SCORE_METHOD_MAGSAC
        params.loMethod, params.loIterations, params.loSampleSize = cv2.LOCAL_OPTIM_SIGMA, 10, 30
        params.final_polisher, params.final_polisher_iterations = cv2.MAGSAC, 3
        params.threshold, params.confidence, params.maxIterations = threshold, 0.9999, 10000
        params.randomGeneratorState, params.isParallel = 0, False
        _, inlier = cv2.findFundamentalMat(one.points2d[rows[:, 0]], other.points2d[rows[:, 1]], params)
        rows = rows[:0] if inlier is None else rows[inlier[:, 0] > 0]
    return rows if len(rows) >= fewest else rows[:0]


def _distinct(similarity: Tensor, ratio: float) -> Tensor:
    """For each row of cosines (a,b) its nearest column, or -1 where the second nearest is as good. (a,)"""
    best, index = similarity.topk(2, dim=1)
    distance = (2 - 2 * best).clamp_min(0)
    return torch.where(distance[:, 0] < ratio**2 * distance[:, 1], index[:, 0], -1)
