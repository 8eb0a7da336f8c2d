"""The search of RANSAC for poses in batched tensor operations: the reference of the kernels, and what serves all else.

Its contract, which `geometry.pose.ransac` has two more of:

search(hypotheses, confidence, generator)   poses (B,4,4), inliers (B,N), samples drawn (B,), points present (B,),
                                            chance of a random inlier (B,)
score(pose)                                 costs (B,) and inliers (B,N) of poses (B,4,4)
"""

import math

import torch
from torch import Tensor
from torch.func import vmap

from geometry import se3
from geometry.alignment import Frame
from geometry.consensus import ransac
from geometry.pose.data import Options
from geometry.pose.problem import PoseModel
from geometry.pose.rig_data import Data, RigFrame
from geometry.pose.triples import poses_of_three

__all__ = ["REFINE", "TensorSearch", "mirrored"]

REFINE = 2  # models of a round that are refined


class TensorSearch:
    """Poses among wrong correspondences. candidates (B|1,N): the odds of each; threshold: of an inlier."""

    def __init__(self, data: Data, candidates: Tensor, threshold: float, model: PoseModel) -> None:
        options = Options(model)
        data = data.prepared()
        self.rays, valid = data.rays(options.lens)
        # what the lens cannot have imaged is as if absent
        present = data.mask & (candidates > 0) & valid
        self.data: Data
        self.frame: Frame | RigFrame
        self.data, self.frame = data.centred(present)
        self.odds = torch.where(present, candidates.expand(present.shape), 0)
        self.threshold, self.options = threshold, options

    def _three_points(self, index: Tensor) -> Tensor:
        """The poses (B,4H|8H,4,4) of samples (B,H,3)."""
        row = torch.arange(len(index), device=index.device)[:, None, None]
        return poses_of_three(self.data, self.rays, row, index, self.options.model).flatten(1, 2)

    def search(
        self, hypotheses: int, confidence: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """See the module."""
        found = ransac(
            self.options.problem, self._three_points, *self.data, candidates=self.odds, size=3,
            threshold=self.threshold, hypotheses=hypotheses, confidence=confidence, refine=REFINE, generator=generator,
            alternative=lambda pose, inliers: mirrored(pose, self.data.points3d, inliers),
        )  # fmt: skip
        # where no sample has a root there is nothing but NaN
        pose = torch.where(torch.isfinite(found.x), found.x, torch.eye(4, dtype=found.x.dtype, device=found.x.device))
        present = self.data.mask
        count = present.sum(1)
        tiny = torch.finfo(self.data.weights.dtype).tiny
        disc = 1 / self._information().clamp_min(tiny)
        share = torch.where(present, disc, 0).sum(1) / count.clamp_min(1) / self._field(present).clamp_min(tiny)
        chance = (math.pi * self.threshold**2 * share).clamp(max=1)
        return self.frame.from_frame(pose), found.inliers, found.steps, count, chance

    def _information(self) -> Tensor:
        """The inverse area (B,N), but for pi, of the disc of residuals of length one, in pixels or on the sphere."""
        area = self.data.weights.prod(-1).abs()
        return area if self.options.model != "ray" else area * torch.linalg.det(self.data.K[..., :2, :2]).abs()

    def _field(self, present: Tensor) -> Tensor:
        """What the disc is a part of: the box (B,) around all pixels, or the cap around all bearings."""
        if self.options.model == "ray":
            middle = torch.where(present[..., None], self.rays, 0.0).sum(1, keepdim=True)
            middle = middle / middle.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(middle.dtype).tiny)
            least = torch.where(present, (middle * self.rays).sum(-1), 1.0).amin(1)
            return 2 * math.pi * (1 - least)
        points2d = self.data.points2d
        low = torch.where(present[..., None], points2d, torch.inf).amin(1)
        high = torch.where(present[..., None], points2d, -torch.inf).amax(1)
        return torch.where(present.any(1), (high - low).prod(-1), 1.0)

    def score(self, pose: Tensor) -> tuple[Tensor, tuple[Tensor]]:
        """See the module."""
        r = vmap(self.options.problem.residual)(self.frame.to_frame(pose), *self.data)
        square, bound, present = r.square().sum(-1), self.threshold**2, self.data.mask
        inliers = present & (square <= bound)
        return 0.5 * torch.where(inliers, square, torch.where(present, bound, 0.0)).sum(1), (inliers,)


def mirrored(pose: Tensor, points3d: Tensor, inliers: Tensor) -> Tensor:
    """The pose (B,4,4) of the other look of a flat, small object: its depths turned about, its inliers (B,N) in place.

    Seen from afar, a plane and its mirror image in depth look alike (Oberkampf, DeMenthon and Davis 1996; Schweighofer
    and Pinz 2006): R becomes S(v) R S(n) with the reflections S along the line of sight v to the middle of the inliers
    and along the direction n in which they extend least. NaN where they are on a line, or none.
    """
    w = inliers[..., None].to(points3d)
    middle = (w * points3d).sum(1) / w.sum(1)
    apart = w * (points3d - middle[:, None])
    normal = _least_direction(apart.mT @ apart)
    p = se3.transform(pose, middle[:, None])[:, 0]
    R = _reflection(p / p.norm(dim=-1, keepdim=True)) @ pose[:, :3, :3] @ _reflection(normal)
    return se3.make(R, p - (R @ middle[..., None])[..., 0])


def _reflection(direction: Tensor) -> Tensor:
    """The reflection (B,3,3) along a direction (B,3) of length one."""
    eye = torch.eye(3, dtype=direction.dtype, device=direction.device)
    return eye - 2 * direction[:, :, None] * direction[:, None, :]


def _least_direction(A: Tensor) -> Tensor:
    """The eigenvector (B,3) of the least eigenvalue of A (B,3,3), about, without a decomposition.

    The adjugate has the eigenvectors of A, and its largest eigenvalue where A has its least; powers leave that alone.
    """
    rows = [torch.linalg.cross(A[:, (i + 1) % 3], A[:, (i + 2) % 3]) for i in range(3)]
    A = torch.stack(rows, -2)
    for _ in range(6):
        A = A / A.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        A = A @ A
    column = A.gather(-1, A.diagonal(dim1=-2, dim2=-1).argmax(-1)[:, None, None].expand(-1, 3, 1))[..., 0]
    return column / column.norm(dim=-1, keepdim=True)
