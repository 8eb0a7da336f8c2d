import pytest
import torch

from datasets.made.unknown_shapes import UnknownShape, made_unknown
from geometry import project, se3


def test_what_is_asked_for_is_made() -> None:
    what = UnknownShape(views=5, points=400, noise=0.5, wrong=0.2, visible="half")
    views = made_unknown(what, 0)
    assert torch.equal(views.visible.sum(1), torch.full((5,), 200))
    depth = se3.transform(views.world_to_camera, views.points3d)[..., 2]
    assert (depth[views.visible].view(5, -1).amax(1) <= depth[~views.visible].view(5, -1).amin(1)).all()
    assert not views.wrong[~views.visible].any()
    assert views.wrong[views.visible].double().mean().item() == pytest.approx(0.2, abs=0.04)
    error = views.points2d - project(views.points3d, views.world_to_camera, views.K)
    assert error[~views.wrong].std().item() == pytest.approx(0.5, rel=0.05)
    assert error[views.wrong].norm(dim=-1).median() > 50
    assert torch.equal(made_unknown(what, 0).points2d, views.points2d)


@pytest.mark.parametrize(("shape", "ratio"), [("ball", 1.0), ("rod", 0.1), ("plane", 0.0)])
def test_shapes_are_as_flat_and_as_long_as_they_say(shape: str, ratio: float) -> None:
    points = made_unknown(UnknownShape(points=2000, shape=shape), 0).points3d
    sizes = torch.linalg.svdvals(points)
    assert (sizes[2] / sizes[0]).item() == pytest.approx(ratio, abs=0.06)
    assert points.square().sum(-1).mean().item() == pytest.approx(1)
