"""Pictures of textured solids with the truth to a fraction of a hundredth of a pixel: what SIFT and its like measure.

Balls and boxes under affine maps, some on a floor, are seen by cameras on an arc. What covers them is a texture of the
place in space, so that it needs no map onto a shape; relief is the slope of such a texture, seen by its shading. A
pixel is the mean over its area (four rays) behind a lens that blurs, with gain, light and noise of the picture's own.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample, normalize, pad

from geometry import se3
from geometry.camera import matrix_from_intrinsics

__all__ = ["Pictures", "Skin", "Solids", "draw_solids", "take_pictures"]

_DISTANCE = 4.0
"""Of the cameras from the middle of a scene that is two units wide."""
_SIDE = 128
"""Of the cube of noise that textures are looked up in, which repeats beyond."""
_RAYS = 2
"""A pixel's rays are so many by so many."""


class Solids(NamedTuple):
    """S solids: those that are a ball (S,) rather than a cube from -1 to 1, each under p = linear (S,3,3) q + middle
    (S,3); float64."""

    ball: Tensor
    linear: Tensor
    middle: Tensor

    def first(self, origin: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What rays from a place (3,) along directions (n,3) meet first: how many directions away (n,), infinite for
        nothing, the normal there (n,3), and which solid (n,)."""
        away = directions.new_full((len(directions),), math.inf)
        normal, which = torch.zeros_like(directions), torch.zeros(len(directions), dtype=torch.long)
        length = directions.square().sum(-1)
        for s, (ball, linear, middle) in enumerate(zip(self.ball.tolist(), self.linear, self.middle, strict=True)):
            # a cube's corners are the farthest from its middle
            reach = (1 if ball else math.sqrt(3)) * torch.linalg.matrix_norm(linear, 2)
            there = middle - origin
            near_it = ((directions @ there).square() > (there @ there - reach**2) * length).nonzero().flatten()
            inverse = torch.linalg.inv(linear)
            o, d = inverse @ (origin - middle), directions[near_it] @ inverse.mT
            if ball:
                a, b, c = (d * d).sum(-1), d @ o, o @ o - 1
                root = (b * b - a * c).clamp_min(0).sqrt()
                t = torch.where(b * b > a * c, (-b - root) / a, math.inf)
                n = o + t[:, None].nan_to_num(posinf=0) * d
            else:
                near = (-d.sign() - o) / d
                t, axis = near.max(-1)
                t = torch.where(t < ((d.sign() - o) / d).min(-1).values, t, math.inf)
                n = torch.zeros_like(d).scatter_(1, axis[:, None], -d.sign().gather(1, axis[:, None]))
            nearer = (t > 0) & (t < away[near_it])
            at = near_it[nearer]
            away[at], normal[at], which[at] = t[nearer], n[nearer] @ inverse, s
        return away, normalize(normal, dim=-1), which

    def along(self, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """The same of rays from places (n,3) of their own: how many directions away (n,), and the normals (n,3)."""
        away, normal = torch.empty_like(origins[:, 0]), torch.empty_like(origins)
        for place in origins.unique(dim=0):
            here = (origins == place).all(-1)
            away[here], normal[here], _ = self.first(place, directions[here])
        return away, normal


class Skin(NamedTuple):
    """What covers the solids. noise (1,4,n,n,n): paint and the slopes of the relief; it is looked up twice, at scale
    (2,) voxels a unit of length, the second time turned (3,3), and at a shift (S,3) that each solid has. paint: how
    much it differs; edge: how hard its edges are; relief: how deep. float32."""

    noise: Tensor
    scale: Tensor
    turn: Tensor
    shift: Tensor
    paint: float
    edge: float
    relief: float

    def at(self, places: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Albedo (n,), 0 … 1, at places (n,3) of solids (n,), and the slope of the relief (n,3)."""
        places = places + self.shift[which]
        at = torch.stack([places * self.scale[0], (places @ self.turn.mT) * self.scale[1]])
        # grid_sample has the outermost voxels' centres at -1 and 1, and the noise repeats after _SIDE voxels
        grid = 2 * (at % _SIDE) / _SIDE - 1
        found = grid_sample(self.noise, grid.view(1, 2, 1, -1, 3), align_corners=True)[0, :, :, 0]
        paint = torch.tanh(self.edge * (found[0, 0] + found[0, 1]))
        slope = found[1:, 0].T + found[1:, 1].T @ self.turn
        return 0.5 + self.paint * paint, self.relief * slope


class Pictures(NamedTuple):
    """V pictures (V,H,W) uint8; world_to_camera (V,4,4) and K (3,3) float64."""

    pictures: Tensor
    world_to_camera: Tensor
    K: Tensor


def draw_solids(generator: torch.Generator) -> tuple[Solids, Skin]:
    """Four to eight solids within a ball of radius one, half of the times on a floor, and what covers them."""

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(size, generator=generator)

    count = int(torch.randint(4, 9, (), generator=generator))
    size = uniform(0.2, 0.55, count, 3)
    turn = se3.exp(
        normalize(torch.randn(count + 1, 3, generator=generator), dim=-1) * uniform(0, math.pi, count + 1, 1)
    )
    middle = normalize(torch.randn(count, 3, generator=generator), dim=-1) * uniform(0, 0.7, count, 1)
    ball, linear = uniform(0, 1, count) < 0.5, turn[:count] * size[:, None]
    if uniform(0, 1).item() < 0.5:
        ball, middle = torch.cat([ball, torch.tensor([False])]), torch.cat([middle, torch.tensor([[0, 0.9, 0]])])
        linear = torch.cat([linear, torch.diag(torch.tensor([1.5, 0.1, 1.5]))[None]])
    power, edge, relief = uniform(0.8, 1.8).item(), uniform(0.5, 3).item(), uniform(0, 1.2).item()
    paint, height = _noise(power, generator), _noise(power + 0.7, generator)
    slopes = [torch.roll(height, -1, axis) - torch.roll(height, 1, axis) for axis in (2, 1, 0)]  # by x, y, z
    noise = torch.stack([paint, *(slope / slopes[0].std() for slope in slopes)])
    scale = uniform(60, 120, 1) * torch.tensor([1.0, 0.37])
    # one voxel more on each axis, the first one, so that what repeats has no seam
    noise = torch.cat([noise, noise[:, :1]], 1)
    noise = torch.cat([noise, noise[:, :, :1]], 2)
    noise = torch.cat([noise, noise[..., :1]], 3)
    shift, amount = uniform(0, 10, len(ball), 3), uniform(0.1, 0.35).item()
    solid = Solids(ball, linear.double(), middle.double())
    return solid, Skin(noise[None], scale, turn[count], shift, amount, edge, relief)


def take_pictures(
    solids: Solids, skin: Skin, generator: torch.Generator, *, views: int = 8, image_size: tuple[int, int] = (400, 300)
) -> Pictures:
    """Pictures from an arc, 10 to 18 degrees from one to the next, from above or level, held nearly upright."""

    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(size, generator=generator, dtype=torch.float64)

    width, height = image_size
    f = 2.0 * height * uniform(0.9, 1.2).item()
    K = matrix_from_intrinsics(torch.tensor([f, f, (width - 1) / 2, (height - 1) / 2], dtype=torch.float64))
    angle = torch.deg2rad(uniform(10, 18)) * torch.arange(views) + uniform(0, 2 * math.pi) + uniform(-0.05, 0.05, views)
    above = uniform(0.0, 0.5) + uniform(-0.08, 0.08, views)
    out = torch.stack([above.cos() * angle.sin(), -above.sin(), above.cos() * angle.cos()], -1)
    centres = _DISTANCE * uniform(0.92, 1.08, views, 1) * out
    z = normalize(uniform(-0.1, 0.1, views, 3) - centres, dim=-1)
    x = normalize(torch.linalg.cross(torch.tensor([[0.0, 1, 0]]).double().expand_as(z), z), dim=-1)
    R = torch.stack([x, torch.linalg.cross(z, x), z], 1)
    roll = uniform(-0.1, 0.1, views)
    R = se3.exp(torch.stack([0 * roll, 0 * roll, roll], -1)) @ R
    poses = se3.make(R, -(R @ centres[..., None]).squeeze(-1))
    light = normalize(out.mean(0) + torch.tensor([0.0, -0.7, 0]) + 0.5 * uniform(-1, 1, 3), dim=-1)
    pictures = []
    for pose in poses:
        moved = normalize(light + 0.15 * uniform(-1, 1, 3), dim=-1)
        lens = uniform(0.35, 0.8).item()
        gain, noise = uniform(0.85, 1.15).item(), uniform(0.004, 0.012).item()
        fine = _blurred(_rendered(solids, skin, pose, K, image_size, moved), _RAYS * lens)
        linear = gain * fine.view(height, _RAYS, width, _RAYS).mean((1, 3))
        grain = noise * torch.randn(linear.shape, generator=generator) * (0.3 + linear.clamp_min(0)).sqrt()
        pictures.append((255 * (linear + grain).clamp(0, 1) ** (1 / 2.2)).round().to(torch.uint8))
    return Pictures(torch.stack(pictures), poses, K)


def _rays(pose: Tensor, K: Tensor, points2d: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays through pixels (n,2) begin (3,), and their directions (n,3), of length one along the camera's axis."""
    p = (points2d - K[:2, 2]) / K[[0, 1], [0, 1]]
    return se3.centre(pose), torch.cat([p, torch.ones_like(p[:, :1])], -1) @ pose[:3, :3]


def _rendered(
    solids: Solids, skin: Skin, pose: Tensor, K: Tensor, image_size: tuple[int, int], light: Tensor
) -> Tensor:
    """Light that comes along each ray from everywhere and from a direction (3,), linear: (_RAYS H, _RAYS W)."""
    width, height = image_size
    v, u = ((torch.arange(_RAYS * n, dtype=torch.float64) - (_RAYS - 1) / 2) / _RAYS for n in (height, width))
    grid = torch.stack(torch.meshgrid(u, v, indexing="xy"), -1).view(-1, 2)
    origin, directions = (t.float() for t in _rays(pose, K, grid))
    single = Solids(solids.ball, solids.linear.float(), solids.middle.float())
    away, normal, which = single.first(origin, directions)
    hit = away.isfinite().nonzero().flatten()
    albedo, slope = skin.at(origin + away[hit, None] * directions[hit], which[hit])
    n = normal[hit]
    n = normalize(n - (slope - (slope * n).sum(-1, keepdim=True) * n), dim=-1)
    seen = albedo * (0.3 + 0.7 * (n @ light.float()).clamp_min(0))
    return torch.full((len(grid),), 0.02).index_copy(0, hit, seen).view(_RAYS * height, _RAYS * width)


def _blurred(picture: Tensor, sigma: float) -> Tensor:
    """A picture (H,W) through a lens whose image of a point is normal, of deviation sigma px."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-torch.arange(-reach, reach + 1.0).square() / (2 * sigma**2))
    kernel /= kernel.sum()
    padded = pad(picture[None, None], [reach] * 4, mode="replicate")
    return conv2d(conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[0, 0]


def _noise(power: float, generator: torch.Generator) -> Tensor:
    """Noise (n,n,n) of deviation one whose amplitude falls with this power of the frequency; it repeats beyond."""
    n = _SIDE
    f = torch.fft.fftfreq(n)
    frequency = (f[:, None, None] ** 2 + f[:, None] ** 2 + torch.fft.rfftfreq(n) ** 2).sqrt()
    spectrum = torch.fft.rfftn(torch.randn(n, n, n, generator=generator))
    shaped = torch.fft.irfftn(spectrum / frequency.clamp_min(2 / n) ** power, s=(n, n, n))
    return (shaped - shaped.mean()) / shaped.std()
