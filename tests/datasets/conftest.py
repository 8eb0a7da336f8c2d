"""What the tests of the reconstruction formats share."""

import dataclasses

import pytest
import torch

from datasets.reconstructions.model import Reconstruction
from geometry import project, se3
from geometry.camera import matrix_from_intrinsics


@pytest.fixture
def make_scene():
    """Makes a reconstruction with every field filled: 5 images of 2 cameras, observations in a random order."""

    def make(model="radtan", coefficients=2, cameras=2, fy=1.0, centre=(0.0, 0.0), seed=0):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        V, N, C = 5, 12, cameras
        rotvec = normal(V, 3)
        rotvec[0] *= (torch.pi - 1e-7) / rotvec[0].norm()  # the hard end of rotation vectors and quaternions
        rotvec[1] = 0
        pose = se3.make(se3.exp(rotvec), normal(V, 3))
        f = 500 + 50 * normal(C, 1).abs()
        K = matrix_from_intrinsics(torch.cat([f, fy * f, torch.tensor(centre).double().expand(C, 2)], -1))
        camera_index, point_index = torch.nonzero(torch.rand(V, N, generator=generator) < 0.7).unbind(-1)
        order = torch.randperm(len(camera_index), generator=generator)
        return Reconstruction(
            world_to_camera=pose,
            points3d=normal(N, 3),
            K=K,
            distortion=0.1 * normal(C, coefficients),
            intrinsics_index=torch.arange(V) % C,
            camera_index=camera_index[order],
            point_index=point_index[order],
            points2d=300 * normal(len(order), 2),
            model=model,
            colors=torch.randint(256, (N, 3), dtype=torch.uint8, generator=generator),
            names=tuple(f"folder/ä {v}.png" for v in range(V)),
            image_sizes=torch.randint(1, 5000, (C, 2), generator=generator),
        )

    return make


@pytest.fixture
def project_all():
    """Gives the pixels (M,2) where a reconstruction's own cameras see its points."""

    def project_all(scene):
        camera = scene.intrinsics_index[scene.camera_index]
        points, pose = scene.points3d[scene.point_index][:, None], scene.world_to_camera[scene.camera_index]
        return project(points, pose, scene.K[camera], scene.distortion[camera], model=scene.model)[:, 0]

    return project_all


@pytest.fixture
def assert_same():
    """Compares reconstructions field by field to 1e-12, observations as a set; `different` names fields left out."""

    def sort(scene):
        order = (scene.camera_index * len(scene.points3d) + scene.point_index).argsort(stable=True)
        sorted_fields = ("camera_index", "point_index", "points2d")
        return dataclasses.replace(scene, **{name: getattr(scene, name)[order] for name in sorted_fields})

    def assert_same(found, wanted, different=(), tolerance=1e-12):
        found, wanted = sort(found), sort(wanted)
        for field in dataclasses.fields(Reconstruction):
            if field.name in different:
                continue
            a, b = getattr(found, field.name), getattr(wanted, field.name)
            if torch.is_tensor(b) or (field.name == "rigs" and b is not None):
                torch.testing.assert_close(
                    a, b, rtol=tolerance, atol=tolerance, msg=lambda text, name=field.name: f"{name}: {text}"
                )
            else:
                assert a == b, field.name

    return assert_same
