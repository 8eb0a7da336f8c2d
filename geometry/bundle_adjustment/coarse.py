"""What conjugate gradients are slow at: motions of whole neighbourhoods of cameras, as unknowns of a coarse problem.

Long chains of cameras bend at almost no cost, and a preconditioner that knows single cameras takes hundreds of
iterations to see it. Here groups of neighbouring cameras move as a rigid, scalable whole, and change their intrinsics
together; the reduced matrix of those few unknowns is solved exactly in each iteration (two-level additive Schwarz:
Dryja and Widlund 1987).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from geometry import se3
from geometry.bundle_adjustment.indices import Layout

__all__ = ["Coarse", "coarse_motions", "similarities"]

# Cameras of a group at the most.
_GROUP = 8


class Coarse(NamedTuple):
    """groups (V,): which group a view belongs to; motions (V,p,c): how the columns of a view move with its group; first
    (V,p) bool: whether no view before has the same column."""

    groups: Tensor
    motions: Tensor
    first: Tensor

    @property
    def size(self) -> int:
        """How many groups there are."""
        return int(self.groups.max()) + 1


def similarities(pose: Tensor, points: Tensor, centroid: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """How poses (V,6,7) and points (N,3,7) move when the world is translated, rotated and scaled about the centroid.

    pose (V,4,4), points (N,3), centroid (3,), size (): length of a translation. No camera sees a difference.
    """
    eye = torch.eye(3, dtype=pose.dtype, device=pose.device)
    R = pose[:, :3, :3]
    seen = R @ centroid
    zero = torch.zeros_like(R)
    # the world turns by e about the centroid: R <- exp(-hat(R e)) R, and the camera sees the centroid where it was
    turn = torch.cat([-R, torch.linalg.cross(R.mT, seen[:, None].expand_as(R)).mT], 1)
    shift = torch.cat([zero, -size * R], 1)
    scale = torch.cat([zero[:, 0], seen + pose[:, :3, 3]], 1)[..., None]
    relative = points - centroid
    moved = torch.cat([size * eye.expand(len(points), 3, 3), -se3.hat(relative), relative[..., None]], -1)
    return torch.cat([shift, turn, scale], -1), moved


def coarse_motions(pose: Tensor, layout: Layout, frame: Tensor) -> Coarse:
    """Groups of poses by place, and their common motions. pose (F,4,4), frame (V,): which of them a view has."""
    centre = se3.centre(pose)
    groups = _halve(centre)
    count = int(groups.max()) + 1
    middle = torch.zeros(count, 3, dtype=centre.dtype, device=centre.device).index_add_(0, groups, centre)
    middle = middle / torch.bincount(groups, minlength=count)[:, None]
    # every camera about the middle of its group
    local = pose.clone()
    local[:, :3, 3] += (pose[:, :3, :3] @ middle[groups][..., None]).squeeze(-1)
    motions, _ = similarities(local, centre[:0], torch.zeros_like(centre[0]), centre.new_ones(()))
    rows = layout.rows
    P = rows.shape[1] - 6
    motions = torch.nn.functional.pad(motions[frame], (0, P, 0, P))
    motions[:, 6:, 7:] = torch.eye(P, dtype=pose.dtype, device=pose.device)
    # what views of several poses share moves with none of them
    V = len(rows)
    each = torch.arange(V, device=rows.device)[:, None].expand_as(rows)
    first = torch.full((layout.size + 1,), V, device=rows.device)
    first = first.scatter_reduce(0, rows.flatten(), each.flatten(), "amin")
    users = torch.bincount(rows[:, 6:].flatten(), minlength=layout.size + 1)
    own = (rows < layout.size) & (users[rows] <= 1)
    return Coarse(groups[frame], motions * own[..., None], first[rows] == each)


def _halve(places: Tensor) -> Tensor:
    """Groups (V,) of at most _GROUP neighbours: halves of halves along the longest side."""
    groups = torch.zeros(len(places), dtype=torch.long, device=places.device)
    todo, count = [torch.arange(len(places), device=places.device)], 0
    while todo:
        members = todo.pop()
        if len(members) <= _GROUP:
            groups[members] = count
            count += 1
            continue
        inside = places[members]
        side = (inside.amax(0) - inside.amin(0)).argmax()
        order = members[inside[:, side].argsort(stable=True)]
        todo += [order[: len(order) // 2], order[len(order) // 2 :]]
    return groups
