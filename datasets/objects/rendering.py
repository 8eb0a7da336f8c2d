"""Pictures and depth maps of coloured meshes, on the processor and with nothing but Open3D's ray caster.

Open3D's RaycastingScene (Embree) finds what a ray meets; what light makes of it are the few lines below. A physically
based renderer (Mitsuba: 206 MB installed, 0.3 s for a picture of this size) shows a network nothing more here.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from datasets.ply import Mesh

__all__ = ["Light", "Picture", "render", "render_depth"]

_GREY = 180  # of a mesh without colours
_CONTRAST = 0.06  # of neighbours, the range of colours being 1, from which on a pixel gets four rays
_LIFT = 0.5  # mm by which a shadow ray starts above the surface, or the surface would shadow itself


class Light(NamedTuple):
    """Parallel light: direction (3,) towards where it comes from, in camera axes; color (3,), linear."""

    direction: np.ndarray
    color: np.ndarray


class Picture(NamedTuple):
    """color (H,W,3) uint8, RGB; depth (H,W) float32, mm along z, 0 where nothing is; which (H,W) int16, -1 there."""

    color: np.ndarray
    depth: np.ndarray
    which: np.ndarray


def render_depth(
    meshes: Sequence[Mesh], poses: np.ndarray, K: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """What a pinhole camera sees of meshes in mm: how far, and which.

    poses (M,4,4) lead from each mesh's frame into the camera's (x right, y down, z forward); K (3,3) in pixels, (0, 0)
    the centre of the top-left pixel; size (width, height). A pixel shows what the ray through its centre meets first,
    on either side of a face. Returns depth (H,W) float32, mm along z, 0 where nothing is, and index (H,W) int16, the
    position in `meshes`, -1 there.

    Raises ValueError for shapes other than these, a K that is no pinhole's, a pose that cannot be inverted, a vertex
    that is not finite and a face without its vertices.
    """
    meshes, poses, K, (width, height) = _checked(meshes, poses, K, size)
    v, u = np.indices((height, width)).reshape(2, -1)
    hits = _cast(_bodies(meshes, poses, K), _directions(K, u, v), u, v)
    return hits.t.reshape(height, width), hits.which.reshape(height, width)


def render(
    meshes: Sequence[Mesh],
    poses: np.ndarray,
    K: np.ndarray,
    size: tuple[int, int],
    lights: Sequence[Light] = (Light(np.array([-1.0, -2.0, -2.0]), np.full(3, 0.8)),),
    ambient: float | np.ndarray = 0.4,
    background: np.ndarray | None = None,
    *,
    specular: float = 0.1,
    shininess: float = 30.0,
) -> Picture:
    """A picture of meshes under parallel lights that cast shadows; its depth and meshes are those of `render_depth`.

    Lambert's diffuse and Blinn's specular reflection (Blinn, SIGGRAPH 1977) on normals and vertex colours interpolated
    over each face, plus `ambient` (a number or one a channel) of light from everywhere. A pixel has one ray, or
    the mean of four where colours vary around it (Whitted, CACM 1980). Colours are encoded with a gamma of 2, near
    enough to sRGB's and no more than a square root. A mesh has smooth normals wherever its faces share vertices, and
    an edge where they do not. `background` (H,W,3) uint8 is what pixels show where nothing is, else black.

    Raises ValueError as `render_depth` does, and for a background of another size.
    """
    meshes, poses, K, (width, height) = _checked(meshes, poses, K, size)
    if background is None:
        background = np.zeros((height, width, 3), np.uint8)
    if background.shape != (height, width, 3) or background.dtype != np.uint8:
        wanted = f"uint8 of shape ({height}, {width}, 3)"
        raise ValueError(f"background: {wanted} wanted, found {background.dtype} of shape {background.shape}")
    bodies, (attributes, faces, first) = _bodies(meshes, poses, K), _attributes(meshes, poses)
    behind = np.square(background.astype(np.float32) / 255)

    def trace(u: np.ndarray, v: np.ndarray, behind: np.ndarray) -> tuple[np.ndarray, _Hits]:
        """Linear colours (N,3) that the rays through pixels u, v bring, and what they hit."""
        directions = _directions(K, u, v)
        hits = _cast(bodies, directions, u, v)
        hit = np.flatnonzero(hits.which >= 0)
        corners = faces[first[hits.which[hit]] + hits.face[hit]]
        b, c = hits.uv[hit, :1], hits.uv[hit, 1:]
        values = (1 - b - c) * attributes[corners[:, 0]] + b * attributes[corners[:, 1]] + c * attributes[corners[:, 2]]
        light = behind.copy()
        light[hit] = _shade(bodies, hits.t[hit, None] * directions[hit], values, lights, ambient, specular, shininess)
        return light, hits

    v, u = np.indices((height, width)).reshape(2, -1)
    light, hits = trace(u, v, behind.reshape(-1, 3))
    light, which = light.reshape(height, width, 3), hits.which.reshape(height, width)
    v, u = np.nonzero(_varied(light, which))
    dv, du = np.array([(-0.25, -0.25, 0.25, 0.25), (-0.25, 0.25, -0.25, 0.25)])[..., None]
    four = trace((u + du).ravel(), (v + dv).ravel(), np.tile(behind[v, u], (4, 1)))[0]
    light[v, u] = four.reshape(4, -1, 3).mean(0)
    color = np.rint(255 * np.sqrt(light.clip(0, 1))).astype(np.uint8)
    return Picture(color, hits.t.reshape(height, width), which)


def _checked(
    meshes: Sequence[Mesh], poses: np.ndarray, K: np.ndarray, size: tuple[int, int]
) -> tuple[list[Mesh], np.ndarray, np.ndarray, tuple[int, int]]:
    meshes, poses, K = list(meshes), np.asarray(poses, np.float64), np.asarray(K, np.float64)
    if poses.shape != (len(meshes), 4, 4) or not np.isfinite(poses).all():
        raise ValueError(f"poses: finite numbers of shape ({len(meshes)}, 4, 4) wanted, found shape {poses.shape}")
    if not np.linalg.det(poses).all():
        raise ValueError(f"poses: matrices that can be inverted wanted, found {poses.tolist()}")
    if K.shape != (3, 3) or not np.isfinite(K).all() or K[2].tolist() != [0, 0, 1] or min(K[0, 0], K[1, 1]) <= 0:
        raise ValueError(f"K: (3, 3), focal lengths positive and third row (0, 0, 1) wanted, found {K.tolist()}")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: (width, height), both positive, wanted, found {size}")
    for i, mesh in enumerate(meshes):
        if not np.isfinite(mesh.vertices).all():
            raise ValueError(f"meshes[{i}]: finite vertices wanted, found nan or infinite ones")
        if mesh.faces.size and not 0 <= mesh.faces.min() <= mesh.faces.max() < len(mesh.vertices):
            raise ValueError(f"meshes[{i}]: faces of its {len(mesh.vertices)} vertices wanted, found one of others")
    return meshes, poses, K, (int(size[0]), int(size[1]))


class _Body(NamedTuple):
    """A mesh's ray caster; (4,4) from the camera's frame to its own; vertices (3,V) in the camera's; pixels (2,V)."""

    caster: Any
    inverse: np.ndarray
    points: np.ndarray
    pixels: np.ndarray | None


class _Hits(NamedTuple):
    """Of N rays: depth (0: nothing there), mesh (-1), face of that mesh, barycentric coordinates (N,2)."""

    t: np.ndarray
    which: np.ndarray
    face: np.ndarray
    uv: np.ndarray


def _bodies(meshes: list[Mesh], poses: np.ndarray, K: np.ndarray) -> list[_Body]:
    bodies = []
    for mesh, pose in zip(meshes, poses, strict=True):
        caster = _caster(mesh.vertices.astype(np.float32).tobytes(), mesh.faces.astype(np.uint32).tobytes())
        points = pose[:3, :3] @ mesh.vertices.T + pose[:3, 3:]
        pixels = (K @ points)[:2] / points[2] if points[2].min(initial=np.inf) > 1 else None
        bodies.append(_Body(caster, np.linalg.inv(pose).astype(np.float32), points, pixels))
    return bodies


def _around(points: np.ndarray | None, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which of N places x, y are in the box around points (2,V), the only ones where a mesh can be; None: all."""
    if points is None:
        return np.ones(len(x), bool)
    low, high = points.min(1, initial=np.inf) - 0.01, points.max(1, initial=-np.inf) + 0.01
    return (x >= low[0]) & (x <= high[0]) & (y >= low[1]) & (y <= high[1])


@lru_cache(maxsize=16)
def _caster(vertices: bytes, faces: bytes) -> Any:
    """A mesh in its own frame, ready for rays. Kept, as that takes longer than all else: it is the rays that move."""
    import open3d as o3d

    caster = o3d.t.geometry.RaycastingScene(nthreads=1)  # pictures are made side by side, in processes
    if faces:
        points, corners = (np.frombuffer(*x).reshape(-1, 3).copy() for x in ((vertices, "f4"), (faces, "u4")))
        caster.add_triangles(o3d.core.Tensor.from_numpy(points), o3d.core.Tensor.from_numpy(corners))
    return caster


def _directions(K: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Rays (N,3) float32 through pixels, z = 1, so that the length along a ray is the depth."""
    y = (v - K[1, 2]) / K[1, 1]
    x = (u - K[0, 2] - K[0, 1] * y) / K[0, 0]
    return np.stack([x, y, np.ones_like(x)], -1).astype(np.float32)


def _cast(bodies: list[_Body], directions: np.ndarray, u: np.ndarray, v: np.ndarray) -> _Hits:
    """What rays (N,3) from the camera through pixels u, v meet first."""
    import open3d as o3d

    N = len(directions)
    t, which = np.full(N, np.inf, np.float32), np.full(N, -1, np.int16)
    hits = _Hits(t, which, np.zeros(N, np.int64), np.zeros((N, 2), np.float32))
    for i, (caster, inverse, _, pixels) in enumerate(bodies):
        near = np.flatnonzero(_around(pixels, u, v))
        turned = directions[near] @ inverse[:3, :3].T
        rays = np.concatenate([np.broadcast_to(inverse[:3, 3], turned.shape), turned], -1)
        found = caster.cast_rays(o3d.core.Tensor.from_numpy(rays), nthreads=1)
        length = found["t_hit"].numpy()
        closer = np.flatnonzero(length < t[near])
        at = near[closer]
        t[at], which[at] = length[closer], i
        hits.face[at] = found["primitive_ids"].numpy()[closer]
        hits.uv[at] = found["primitive_uvs"].numpy()[closer]
    t[which < 0] = 0
    return hits


def _shadowed(bodies: list[_Body], points: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """Whether anything is between points (N,3) and the light in direction `towards`."""
    import open3d as o3d

    shadow = np.zeros(len(points), bool)
    across = np.linalg.svd(towards[None].astype(np.float64))[2][1:]  # (2,3), the plane that the light sees
    x, y = across @ points.T
    for caster, inverse, vertices, _ in bodies:
        near = np.flatnonzero(~shadow & _around(across @ vertices, x, y))
        origins = points[near] @ inverse[:3, :3].T + inverse[:3, 3]
        rays = np.concatenate([origins, np.broadcast_to(inverse[:3, :3] @ towards, origins.shape)], -1)
        shadow[near] = caster.test_occlusions(o3d.core.Tensor.from_numpy(rays), nthreads=1).numpy()
    return shadow


def _varied(light: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Pixels (H,W) bool where the surface ends or its colour varies in the 3 x 3 around them."""
    import cv2

    box, surface = np.ones((3, 3), np.uint8), (which >= 0).astype(np.uint8)
    level = np.sqrt(light.clip(0, 1))
    contrast = np.maximum.reduce(cv2.split(cv2.dilate(level, box) - cv2.erode(level, box)))
    return (cv2.dilate(surface, box) > 0) & ((contrast > _CONTRAST) | (cv2.erode(surface, box) == 0))


def _attributes(meshes: list[Mesh], poses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of all meshes in one: normal in camera axes and linear colour (V,6), faces (F,3), and each mesh's first face."""
    attributes, faces = [np.zeros((0, 6), np.float32)], [np.zeros((0, 3), np.int64)]
    vertices = 0
    for mesh, pose in zip(meshes, poses, strict=True):
        normals = _normals(mesh) @ pose[:3, :3].T
        colors = np.full(mesh.vertices.shape, _GREY) if mesh.colors is None else mesh.colors
        attributes.append(np.concatenate([normals, np.square(colors / 255)], -1).astype(np.float32))
        faces.append(mesh.faces + vertices)
        vertices += len(mesh.vertices)
    first = np.cumsum([len(f) for f in faces])[:-1]
    return np.concatenate(attributes), np.concatenate(faces), first


def _normals(mesh: Mesh) -> np.ndarray:
    """Normals (V,3) of vertices: the sum of those of their faces, which are as long as the faces are large."""
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    normals = np.cross(b - a, c - a)
    corners = mesh.faces.T.ravel()
    summed = [np.bincount(corners, np.tile(n, 3), minlength=len(mesh.vertices)) for n in normals.T]
    return np.stack(summed, -1)


def _shade(
    bodies: list[_Body],
    points: np.ndarray,
    values: np.ndarray,
    lights: Sequence[Light],
    ambient: float | np.ndarray,
    specular: float,
    shininess: float,
) -> np.ndarray:
    """Linear light (N,3) that points (N,3) with normals and colours (N,6) send to the camera at the origin."""
    view, normals, albedo = -_unit(points), _unit(values[:, :3]), values[:, 3:]
    normals *= np.where(_dot(normals, view) < 0, np.float32(-1), np.float32(1))[:, None]
    total = albedo * np.asarray(ambient, np.float32)
    for light in lights:
        towards = (light.direction / np.linalg.norm(light.direction)).astype(np.float32)
        cosine = normals @ towards
        lit = np.flatnonzero(cosine > 0)
        lit = lit[~_shadowed(bodies, points[lit] + np.float32(_LIFT) * normals[lit], towards)]
        highlight = specular * _dot(normals[lit], _unit(view[lit] + towards)).clip(0) ** np.float32(shininess)
        total[lit] += (albedo[lit] * cosine[lit, None] + highlight[:, None]) * light.color.astype(np.float32)
    return total


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ni,ni->n", a, b)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.sqrt(_dot(vectors, vectors)).clip(1e-12)[:, None]
