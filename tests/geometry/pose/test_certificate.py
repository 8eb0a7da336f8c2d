"""A certificate is a proof: it is never given to a pose that is beaten, and its parts never exclude a better one."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from geometry import huber, pnp, pnp_problem, project, se3
from geometry.optim import linearize
from geometry.pose.basin import Basin, Views, basin
from geometry.pose.certificate import Form, Known, _coarse, _in_basin, _narrowed, _pairs, _views, _within
from geometry.pose.data import prepare
from geometry.pose.rotation_boxes import Boxes, tables
from tests.numbers import DOUBLE, close, generator

K = torch.tensor([[800.0, 0, 320], [0, 780, 240], [0, 0, 1]], **DOUBLE)
TABLES = tables(torch.device("cpu"))


class Problems(NamedTuple):
    points2d: Tensor
    points3d: Tensor
    truth: Tensor


def problems(B: int, N: int, noise: float, flat: bool = False, seed: int = 0) -> Problems:
    """Objects of size 2 at 3 to 8 units of distance."""
    g = generator(seed)
    points3d = 2 * torch.rand(B, N, 3, generator=g, **DOUBLE) - 1
    if flat:
        points3d[..., 2] = 0
    R = se3.rotation_from_quat_wxyz(torch.randn(B, 4, generator=g, **DOUBLE))
    place = torch.rand(B, 3, generator=g, **DOUBLE)
    depth = 3 + 5 * place[:, 2]
    truth = se3.make(R, torch.stack([0.6 * (place[:, 0] - 0.5) * depth, 0.4 * (place[:, 1] - 0.5) * depth, depth], -1))
    pixels = project(points3d, truth, K)
    return Problems(pixels + noise * torch.randn(B, N, 2, generator=g, **DOUBLE), points3d, truth)


def certified(points2d: Tensor, points3d: Tensor, camera: Tensor = K, **options: Tensor) -> Tensor:
    proved = pnp(points2d, points3d, camera, certify=True, **options).certified  # type: ignore[arg-type]
    assert proved is not None
    return proved


def views_of(given: Problems, pose: Tensor) -> tuple[Views, Tensor]:
    """The views, and poses in their frame."""
    data, frame = prepare(given.points2d, given.points3d, K, None, None, None).masked().centred(scaled=True)
    return _views(data), frame.to_frame(pose)


def basins_of(given: Problems, pose: Tensor) -> Basin:
    """About poses in the frame of the views."""
    data, _ = prepare(given.points2d, given.points3d, K, None, None, None).masked().centred(scaled=True)
    return basin(pose, _views(data), linearize(pnp_problem(), pose, tuple(data), exact=True))


def squares(pose: Tensor, views: Views) -> Tensor:
    """|r|^2 of poses (B,…,4,4), infinite where a point is not ahead."""
    extra = pose.ndim - 3
    X, seen, W = (each.view(len(each), *[1] * extra, *each.shape[1:]) for each in views[:3])
    p = se3.transform(pose, X)
    r = W @ (p[..., :2] / p[..., 2:] - seen)[..., None]
    return torch.where((p[..., 2] > 0).all(-1), r.square().sum((-3, -2, -1)), torch.inf)


@pytest.mark.parametrize(
    ("N", "noise", "flat", "least"),
    [(8, 2.0, False, 0.95), (24, 2.0, False, 0.98), (100, 0.5, False, 0.98), (8, 2.0, True, 0.9), (24, 1.0, True, 0.9)],
)
def test_most_minima_are_proved_global_and_none_that_is_beaten(N: int, noise: float, flat: bool, least: float) -> None:
    given = problems(100, N, noise, flat, seed=N)
    found = pnp(given.points2d, given.points3d, K, certify=True)
    assert found.certified is not None
    assert found.ratio is not None
    assert found.second is not None
    assert found.certified[found.ratio < 0.5].double().mean() >= least
    beaten = (found.ratio > 0) & (found.ratio < 1 - 1e-6)
    assert not (certified(given.points2d, given.points3d, init=found.second) & beaten).any()
    assert beaten.sum() > (50 if flat else -1)


def test_no_descent_from_anywhere_beats_what_is_certified() -> None:
    B, starts = 60, 64
    given = problems(B, 6, 3.0, seed=1)
    found = pnp(given.points2d, given.points3d, K, certify=True)
    assert found.certified is not None
    assert found.certified.double().mean() > 0.8
    g = generator(2)
    R = se3.rotation_from_quat_wxyz(torch.randn(B * starts, 4, generator=g, **DOUBLE))
    init = se3.make(R, torch.tensor([0.0, 0, 6], **DOUBLE).expand(B * starts, 3))
    again = pnp(given.points2d.repeat_interleave(starts, 0), given.points3d.repeat_interleave(starts, 0), K, init=init)
    cost = torch.where(again.converged, again.cost, torch.inf).view(B, starts).amin(1)
    assert (cost[found.certified] >= found.cost[found.certified] * (1 - 1e-8)).all()
    assert (cost < torch.inf).all()


def test_a_proof_knows_no_origin_unit_order_batch_or_pixel() -> None:
    given = problems(40, 8, 4.0, flat=True, seed=3)
    expected = certified(given.points2d, given.points3d)
    assert 0.5 < expected.double().mean() < 1
    order = torch.randperm(8, generator=generator(4))
    larger = K * torch.tensor([[4.0], [4], [1]], **DOUBLE)
    far = given.points3d * 1000 + torch.tensor([4e5, -5e6, 300], **DOUBLE)
    half = [certified(given.points2d[i:j], given.points3d[i:j]) for i, j in ((0, 17), (17, 40))]
    twice = torch.cat([given.points2d, given.points2d + 50], 1), torch.cat([given.points3d, given.points3d], 1)
    for name, proved in {
        "origin and unit": certified(given.points2d, far),
        "order": certified(given.points2d[:, order], given.points3d[:, order]),
        "batch": torch.cat(half),
        "pixel": certified(4 * given.points2d, given.points3d, larger),
        "sigma": certified(given.points2d, given.points3d, weights=torch.full((8,), 1e-3, **DOUBLE)),
        "mask": certified(*twice, mask=torch.arange(16).expand(40, 16) < 8),
    }.items():
        assert (proved == expected).double().mean() >= 0.95, name


def test_noise_free_and_hopeless_problems() -> None:
    given = problems(20, 8, 0.0, seed=5)
    assert certified(given.points2d, given.points3d).all()
    noise = torch.rand(given.points2d.shape, generator=generator(6), **DOUBLE) * 400
    assert not certified(noise, given.points3d).any()
    line = torch.linspace(-1, 1, 8, **DOUBLE)[:, None] * torch.tensor([1.0, 2, 0.5], **DOUBLE)
    assert not certified(project(line.expand(20, 8, 3), given.truth, K), line).any()


def test_no_problem_is_no_proof() -> None:
    given = problems(1, 8, 1.0)
    assert certified(given.points2d[:0], given.points3d[:0]).shape == (0,)


def test_a_bad_sample_leaves_the_others_certified() -> None:
    given = problems(5, 8, 1.0, seed=7)
    mask = torch.ones(5, 8, dtype=torch.bool)
    mask[2, 3:] = False
    assert certified(given.points2d, given.points3d, mask=mask).tolist() == [True, True, False, True, True]


def test_a_start_with_points_behind_troubles_no_other() -> None:
    given = problems(3, 8, 1.0, seed=15)
    init = given.truth.clone()
    init[1, 2, 3] = -6
    assert certified(given.points2d, given.points3d, init=init).tolist() == [True, False, True]


def test_certificates_under_transforms_and_in_float32() -> None:
    given = problems(6, 10, 1.0, seed=8)
    mapped = torch.func.vmap(certified)(given.points2d.view(2, 3, 10, 2), given.points3d.view(2, 3, 10, 3))
    assert mapped.shape == (2, 3)
    assert mapped.all()
    found = pnp(given.points2d.float(), given.points3d.float(), K.float(), certify=True)
    assert found.x.dtype == torch.float32
    assert found.certified is not None
    assert found.certified.all()
    points2d = given.points2d.requires_grad_()
    (with_proof,) = torch.autograd.grad(pnp(points2d, given.points3d, K, certify=True).x.sum(), points2d)
    (plain,) = torch.autograd.grad(pnp(points2d, given.points3d, K).x.sum(), points2d)
    assert torch.equal(with_proof, plain)


def test_what_no_proof_is_known_of_is_refused() -> None:
    given = problems(2, 8, 1.0)
    arguments = given.points2d, given.points3d
    for options in (
        {"kernel": huber(2.0)}, {"distortion": torch.zeros(4, **DOUBLE)}, {"solve_dtype": torch.float32},
        {"model": "fisheye"},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="certify must be False but for"):
            pnp(*arguments, K, certify=True, **options)


def test_boxes_hold_every_rotation_and_are_halved() -> None:
    g = generator(9)
    q = torch.randn(500, 4, generator=g, **DOUBLE)
    boxes = Boxes.everything(torch.zeros(1, dtype=torch.long))
    for _ in range(2):
        # a rotation is in a box where its quaternion, with the entry of the face 1, is within half of the centre
        places = torch.stack([(q / q[:, face : face + 1]).roll(-face - 1, 1)[:, :3] for face in range(4)])
        inside = ((places[boxes.face] - boxes.centre[:, None]).abs() <= boxes.half).all(-1)
        assert (inside.sum(0) == 1).all()
        boxes = boxes.split()
    assert len(boxes.owner) == 4 * 64


def test_polynomials_of_boxes() -> None:
    g = generator(10)
    boxes = Boxes.everything(torch.zeros(1, dtype=torch.long)).split()
    boxes = boxes.some(torch.rand(32, generator=g) < 0.3).split()
    n = len(boxes.owner)
    square = torch.randn(10, 10, generator=g, **DOUBLE)
    form = Form(
        (square + square.T).expand(n, 10, 10), torch.randn(n, 10, generator=g, **DOUBLE), torch.ones(n), torch.ones(n)
    )
    within = _within(boxes, form)
    a = 2 * torch.rand(50, 3, generator=g, **DOUBLE) - 1
    q = boxes.quaternions(a)
    i, j = torch.triu_indices(4, 4)
    k = q[..., i] * q[..., j]
    entries = k @ TABLES.entries.T
    length = q.square().sum(-1)
    close(entries[..., 9], length, 1e-12)
    close(entries[..., :9] / length[..., None], se3.rotation_from_quat_wxyz(q).flatten(-2), 1e-12)
    homogeneous = torch.cat([torch.ones(50, 1, **DOUBLE), a], 1)
    two = homogeneous[:, i] * homogeneous[:, j]

    # the coefficient of a monomial is the sum of those of all products that are equal to it
    values = (k @ form.square * k).sum(-1)
    powers = [tuple(int(c) for c in e) for e in torch.cartesian_prod(*[torch.arange(5)] * 3).tolist() if sum(e) <= 4]
    monomials = torch.stack([a.pow(torch.tensor(e)).prod(-1) for e in powers], -1)
    close(within.square @ monomials.T, values, 1e-10)

    close(within.ahead @ two.T, (k @ form.ahead[..., None])[..., 0], 1e-11)
    close(within.length @ two.T, length, 1e-11)
    assert (within.least()[:, None] <= values).all()
    halves, smaller = boxes.split(), within.split()
    again = _within(halves, Form(*(each.repeat_interleave(8, 0) for each in form)))
    for one, other in zip(smaller, again, strict=True):
        close(one, other, 1e-10)


def test_no_part_of_the_proof_excludes_a_pose_that_is_better() -> None:
    """For any pose with the points ahead: where its own sum of squares is what to beat, its boxes stay in."""
    g = generator(11)
    given = problems(30, 6, 30.0, seed=12)
    views, minimum = views_of(given, pnp(given.points2d, given.points3d, K).x)
    basins = Basin(*(torch.stack([each, each], 1) for each in basins_of(given, minimum)))
    looked = narrowed = 0
    for _ in range(60):
        # from next to the minimum to anywhere
        spread = 10 ** (-2 + 2.5 * torch.rand(30, 1, generator=g, **DOUBLE))
        pose = se3.retract(minimum, spread * torch.randn(30, 6, generator=g, **DOUBLE))
        beat = squares(pose, views)
        known = Known(views, _pairs(views), beat * (1 + 1e-12), basins)
        unaided = known._replace(basins=basins._replace(radius=0 * basins.radius))
        form = _coarse(known)
        q = se3.quat_wxyz_from_rotation(pose[:, :3, :3])
        usable = torch.isfinite(beat) & (form.room > 0)
        face = q.abs().argmax(-1)
        y = torch.stack([(each / each[f]).roll(-int(f) - 1)[:3] for each, f in zip(q, face, strict=True)])
        owner = torch.arange(30)[usable]
        for division in range(9):
            half = 0.5**division
            centre = ((y / half + 1) / 2).floor() * 2 * half if division else torch.zeros_like(y)
            boxes = Boxes(owner, face[usable], centre[usable], half)
            assert ((y[usable] - boxes.centre).abs() <= half * (1 + 1e-12)).all()
            fresh = _within(boxes, Form(*(each[usable] for each in form)))
            assert fresh.possible(fresh.least()).all()
            if division >= 2:
                _, possible = _narrowed(unaided, boxes, fresh, fresh.least())
                assert possible.all()
                corners = boxes.quaternions(TABLES.corners)
                corners = corners / corners.norm(dim=-1, keepdim=True)
                deepest = se3.transform(pose, views.points)[usable][..., 2]
                # the minimum is no better than this pose, so that a basin that claims its box would be wrong
                worse = beat[usable] < basins.squares[usable, 0] * (1 - 1e-9)
                assert not (_in_basin(known, owner, corners, deepest) & worse).any()
                narrowed += len(owner)
            looked += len(owner)
    assert looked > 3000
    assert narrowed > 2000


@pytest.mark.parametrize("flat", [False, True])
def test_in_its_basin_a_minimum_is_the_best(flat: bool) -> None:
    given = problems(50, 8, 2.0, flat, seed=13)
    found = pnp(given.points2d, given.points3d, K)
    views, pose = views_of(given, found.x)
    about = basins_of(given, pose)
    assert (about.radius > 0).double().mean() > 0.9
    close(about.squares, 2 * found.cost, 1e-9)

    def cost(step: Tensor, pose: Tensor, points: Tensor, seen: Tensor, whiten: Tensor) -> Tensor:
        p = points @ (se3.exp(step[:3]) @ pose[:3, :3]).T + pose[:3, 3] + step[3:]
        return (whiten @ (p[:, :2] / p[:, 2:] - seen)[..., None]).square().sum() / 2

    step = torch.zeros(50, 6, **DOUBLE)
    H = torch.func.vmap(torch.func.hessian(cost))(step, pose, *views[:3])
    L = torch.linalg.cholesky(H)
    g = generator(14)
    y = torch.nn.functional.normalize(torch.randn(200, 50, 6, generator=g, **DOUBLE), dim=-1)
    share = torch.rand(200, 50, 1, generator=g, **DOUBLE) ** (1 / 6)
    d = torch.linalg.solve_triangular(L.mT, (share * about.radius[:, None] * y)[..., None], upper=True)[..., 0]
    R = se3.exp(d[..., :3]) @ pose[:, :3, :3]
    moved = se3.make(R, pose[:, :3, 3] + d[..., 3:]).transpose(0, 1)
    gain = squares(moved, views) - about.squares[:, None]
    bound = 1e-3 * (share[..., 0] * about.radius).square().T
    assert (gain[about.radius > 0] >= 0.5 * bound[about.radius > 0]).all()
    near = se3.retract(pose, 1e-3 * torch.randn(50, 6, generator=g, **DOUBLE))
    assert (basins_of(given, near).radius == 0).all()
