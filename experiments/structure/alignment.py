"""Structure from images alone is known up to a similarity: laid onto the truth, and compared with it."""

from torch import Tensor

from geometry import Similarity, align_similarity, se3


def move(similarity: Similarity, points: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
    """The points (N,3) and the cameras (V,4,4) of a world that is moved; every camera sees what it saw."""
    R = poses[:, :3, :3] @ similarity.R.mT
    return similarity.apply(points), se3.make(R, similarity.scale * poses[:, :3, 3] - (R @ similarity.t))


def rms_radius(points: Tensor) -> Tensor:
    """Root mean square distance of points (N,3) from their mean."""
    return (points - points.mean(0)).square().sum(-1).mean().sqrt()


def shape_errors(points: Tensor, points_gt: Tensor) -> dict[str, float]:
    """After similarity alignment: rms over the object's rms radius, and the share of points within 1 % of it."""
    error = (align_similarity(points, points_gt).apply(points) - points_gt).norm(dim=-1)
    size = rms_radius(points_gt)
    return {
        "rms_share": (error.square().mean().sqrt() / size).item(),
        "within_1_percent": (error < 0.01 * size).double().mean().item(),
    }
