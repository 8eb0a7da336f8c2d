"""`pnp` under torch.func, double backward, torch.compile, autocast, data parallelism and pickling."""

import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, jacrev, vmap

from geometry import BPnP, Status, barron, cauchy, pnp, se3
from geometry.camera import Model
from geometry.pose import operator
from geometry.robust import Kernel
from tests.numbers import DOUBLE

NAMES = ("points2d", "points3d", "K", "distortion", "weights", "init")


def close(a: Any, b: Any, atol: float = 1e-11, rtol: float = 1e-11) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=rtol)


def inputs_of(
    make_scene: Any, B: int = 2, N: int = 7, noise: float = 1.0, seed: int = 1, model: Model = "radtan"
) -> dict[str, Tensor]:
    """Every tensor argument of `pnp`, one of each per problem."""
    scene = make_scene(B, N, noise, model=model, distorted=True, seed=seed)
    g = torch.Generator().manual_seed(seed)
    return {
        "points2d": scene.points2d,
        "points3d": scene.points3d,
        "K": scene.K.repeat(B, 1, 1),
        "distortion": scene.distortion.repeat(B, 1),
        "weights": 0.7 + 0.6 * torch.rand(B, N, 2, generator=g, **DOUBLE),
        "init": scene.world_to_camera_gt,
    }


def pose_of(**inputs: Any) -> Tensor:
    return pnp(**inputs).x


def scalar_of(**inputs: Any) -> Tensor:
    pose = pose_of(**inputs)
    return (pose[..., :3, :] * torch.linspace(-1, 1, 12, dtype=pose.dtype).view(3, 4)).sum()


def stacked(inputs: dict[str, Tensor], batched: set[str], size: int = 3) -> dict[str, Tensor]:
    """`size` instances of the arguments in `batched`, each of them a little different."""
    g = torch.Generator().manual_seed(5)
    scale = {"points2d": 1.0, "points3d": 1e-2, "K": 1.0, "distortion": 1e-3, "weights": 0.05, "init": 1e-2}

    def several(name: str, value: Tensor) -> Tensor:
        noise = torch.randn(size, *value.shape, generator=g, **DOUBLE)
        if name == "K":
            noise[..., 2, :] = 0
        return (
            se3.retract(value, scale[name] * noise[..., 0, :].repeat(1, 1, 2)[..., :6])
            if name == "init"
            else (value + scale[name] * noise)
        )

    return {k: several(k, v) if k in batched else v for k, v in inputs.items()}


def mapped(f: Callable[..., Any], inputs: dict[str, Tensor], batched: set[str]) -> tuple[Any, list[Any]]:
    """vmap of f, and the loop that it stands for."""
    names = list(inputs)
    g = lambda *values: f(**dict(zip(names, values, strict=True)))
    at_once = vmap(g, in_dims=tuple(0 if k in batched else None for k in names))(*inputs.values())
    return at_once, [f(**{k: v[i] if k in batched else v for k, v in inputs.items()}) for i in range(3)]


@pytest.mark.parametrize("B", [1, 2, 5])
@pytest.mark.parametrize("batched", [*NAMES, "all"])
def test_vmap_is_a_loop_whichever_argument_is_batched(make_scene: Any, batched: str, B: int) -> None:
    chosen = set(NAMES) if batched == "all" else {batched}
    inputs = stacked(inputs_of(make_scene, B), chosen)
    at_once, loop = mapped(pose_of, inputs, chosen)
    close(at_once, torch.stack(loop))
    leaves = tuple(k for k in NAMES if k != "init")

    def gradients(**values: Tensor) -> tuple[Tensor, ...]:
        f = lambda *own: scalar_of(**{**values, **dict(zip(leaves, own, strict=True))})
        return grad(f, argnums=tuple(range(5)))(*(values[k] for k in leaves))

    at_once, loop = mapped(gradients, inputs, chosen)
    for k, g, own in zip(leaves, at_once, zip(*loop, strict=True), strict=True):
        assert g.abs().max() > 0, k
        torch.testing.assert_close(g, torch.stack(own), atol=1e-10, rtol=1e-9, msg=k)


@pytest.mark.parametrize("batched", [{"points2d"}, {"points3d", "weights"}, set(NAMES) - {"init"}])
def test_vmap_of_the_global_start_is_a_loop(make_scene: Any, batched: set[str]) -> None:
    inputs = inputs_of(make_scene, 2, 12)
    del inputs["init"]
    inputs = stacked(inputs, batched)

    def all_of(**values: Tensor) -> tuple[Tensor, ...]:
        s = pnp(**values)  # type: ignore[arg-type]
        return s.x, s.cost, s.status, s.second, s.ratio  # type: ignore[return-value]

    at_once, loop = mapped(all_of, inputs, batched)
    for found, own in zip(at_once, zip(*loop, strict=True), strict=True):
        close(found, torch.stack(own), atol=1e-9)


def test_vmap_of_a_mask_is_a_loop(make_scene: Any) -> None:
    inputs = inputs_of(make_scene, 2, 9)
    masks = torch.arange(9) < torch.tensor([9, 7, 5])[:, None, None]
    at_once = vmap(lambda mask: pose_of(**inputs, mask=mask))(masks)
    close(at_once, torch.stack([pose_of(**inputs, mask=mask) for mask in masks]))
    assert (at_once[0] - at_once[2]).abs().max() > 1e-4


def test_nested_vmap_and_other_dimensions_are_loops(make_scene: Any) -> None:
    inputs = inputs_of(make_scene, 2)
    K = inputs["K"] + torch.arange(2.0, **DOUBLE)[:, None, None, None] * torch.diag(torch.tensor([3.0, 3, 0], **DOUBLE))
    pixels = inputs["points2d"] + 0.1 * torch.arange(3.0, **DOUBLE)[:, None, None, None]
    rest = {k: v for k, v in inputs.items() if k not in ("K", "points2d")}
    one = lambda k, x: scalar_of(K=k, points2d=x, **rest)
    for f in (one, grad(one), grad(one, argnums=1)):
        found = vmap(vmap(f, (None, 2)), (1, None))(K.movedim(0, 1), pixels.movedim(0, 2))
        close(found, torch.stack([torch.stack([f(k, x) for x in pixels]) for k in K]), atol=1e-10)


def test_jacobian_by_jacrev_is_row_by_row(make_scene: Any) -> None:
    inputs = inputs_of(make_scene)
    rest = {k: v for k, v in inputs.items() if k != "points2d"}
    f = lambda x: se3.rotvec_t(pose_of(points2d=x, **rest))
    leaf = inputs["points2d"].clone().requires_grad_()
    six = f(leaf)
    rows = [torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in six.flatten()]
    close(jacrev(f)(inputs["points2d"]), torch.stack(rows).view(2, 6, 2, 7, 2))
    assert torch.stack(rows).abs().max() > 1e-4


def unit_inputs(make_scene: Any, **options: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Arguments in which a step of 1e-6 is neither large nor lost: a focal length near 1."""
    inputs = inputs_of(make_scene, **options)
    small = torch.diag(torch.tensor([1 / 800, 1 / 800, 1], **DOUBLE))
    inputs["points2d"], inputs["K"] = inputs["points2d"] / 800, small @ inputs["K"]
    return inputs, inputs.pop("init")


OPTIONS: dict[str, dict[str, Any]] = {
    "exact": {},
    "gauss_newton": {"gradient": "gauss_newton"},
    "cauchy": {"kernel": cauchy(2e-3)},
    "barron": {"kernel": barron(0.5, 2e-3)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["points2d", "points3d", "K", "distortion", "weights"])
@pytest.mark.parametrize("kind", ["exact", "cauchy", "barron", "fisheye"])
def test_first_and_second_derivatives_are_finite_differences(make_scene: Any, name: str, kind: str) -> None:
    options = {"model": "fisheye"} if kind == "fisheye" else OPTIONS[kind]
    inputs, init = unit_inputs(make_scene, N=6, model=options.get("model", "radtan"))

    def f(value: Tensor) -> Tensor:
        if name == "K":  # its last row is (0, 0, 1) by convention, and no derivative is taken by it
            value = torch.cat([value, inputs["K"][:, 2:]], 1)
        return pose_of(**{**inputs, name: value}, init=init, **options)[:, :3]

    leaf = (inputs[name][:, :2] if name == "K" else inputs[name]).clone().requires_grad_()
    assert torch.autograd.gradcheck(f, leaf, eps=1e-6, atol=1e-6, rtol=1e-6, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, leaf, eps=1e-6, atol=1e-5, rtol=1e-5, fast_mode=True)


def mixed_derivatives(inputs: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Gradient of the squared gradient by points2d, to all arguments."""
    leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    pose = pnp(**leaves, **options).x  # type: ignore[arg-type]
    (first,) = torch.autograd.grad(pose[:, :3].square().sum(), leaves["points2d"], create_graph=True)
    found = torch.autograd.grad(
        (first * torch.linspace(-1, 1, first[0].numel()).view_as(first[0])).sum(), list(leaves.values())
    )
    return dict(zip(leaves, found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPTIONS)
def test_mixed_second_derivatives_leave_a_failed_problem_at_zero(make_scene: Any, kind: str) -> None:
    inputs, init = unit_inputs(make_scene, B=3, N=6)
    alone = mixed_derivatives({k: v[::2] for k, v in inputs.items()}, init=init[::2], **OPTIONS[kind])
    init[1, 2, 3] = -6
    assert pnp(**inputs, init=init).status.tolist() == [Status.CONVERGED, Status.INFEASIBLE, Status.CONVERGED]  # type: ignore[arg-type]
    found = mixed_derivatives(inputs, init=init, **OPTIONS[kind])
    for name, g in found.items():
        assert alone[name].abs().max() > 0, name
        close(g[::2], alone[name], rtol=1e-8)
        assert (g[1] == 0).all(), name


def test_second_derivatives_by_shared_arguments_are_sums(make_scene: Any) -> None:
    inputs, init = unit_inputs(make_scene)
    shared = {k: v[:1] if k in ("K", "distortion") else v for k, v in inputs.items()}
    a, b = mixed_derivatives(inputs, init=init), mixed_derivatives(shared, init=init)
    for name in ("points2d", "points3d", "weights"):
        close(b[name], a[name], rtol=1e-8)
    for name in ("K", "distortion"):
        close(b[name], a[name].sum(0, keepdim=True), rtol=1e-8)


class Net(nn.Module):
    """Pixels from features, weights beside them, a pose from both, by `pnp`."""

    def __init__(
        self, scene: Any, init: bool, kernel: Kernel | None = None, dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 24, dtype=dtype)
        self.X, self.K, self.kernel = scene.points3d[0].to(dtype), scene.K.to(dtype), kernel
        self.register_buffer("mean", scene.points2d[0].to(dtype))
        self.focal = nn.Parameter(torch.ones((), dtype=dtype))
        self.start = scene.world_to_camera_gt[:1].to(dtype) if init else None

    def forward(self, features: Tensor) -> Tensor:
        out = self.linear(features).view(-1, 8, 3)
        K = self.K * torch.stack([self.focal, self.focal, torch.ones_like(self.focal)])[:, None]
        options: dict[str, Any] = {"weights": out[..., 2].sigmoid(), "kernel": self.kernel, "init": self.start}
        return pnp(self.mean + out[..., :2], self.X, K, **options).x

    def gradients(self, features: Tensor, model: nn.Module | None = None) -> list[Tensor]:
        """Of the mean square, so that two halves of a batch have the mean gradient of the whole."""
        self.zero_grad()
        pose = (self if model is None else model)(features)
        pose[:, :3].square().flatten(1).sum(1).mean().backward()
        return [p.grad.clone() for p in self.parameters() if p.grad is not None]


def features_of(B: int) -> Tensor:
    return torch.randn(B, 6, generator=torch.Generator().manual_seed(2), **DOUBLE)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize("kernel", [None, cauchy(3.0)])
def test_a_compiled_network_is_one_graph_with_eager_gradients(
    make_scene: Any, init: bool, kernel: Kernel | None
) -> None:
    net = Net(make_scene(1, 8, seed=3), init, kernel)
    assert_compiled_is_eager(net, torch.compile(net, fullgraph=True, backend="aot_eager"), 4)


def assert_compiled_is_eager(net: Net, compiled: Any, B: int) -> None:
    x = features_of(B)
    close(compiled(x), net(x), atol=1e-12)
    for g, expected in zip(net.gradients(x, compiled), net.gradients(x), strict=True):
        assert expected.abs().max() > 0
        close(g, expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_network_takes_batches_of_any_size(make_scene: Any) -> None:
    """The second size makes torch.compile trace anew, with a symbol for it; it gives up after eight such traces."""
    net = Net(make_scene(1, 8, seed=3), init=True)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for B in (4, 9, 2, 3, 5, 6, 7, 8, 10, 11, 12):
        assert_compiled_is_eager(net, compiled, B)


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["own", "shared"])
def test_operators_are_what_torch_library_asks_for(make_scene: Any, sharing: str) -> None:
    inputs = inputs_of(make_scene, 3)
    init = inputs.pop("init")
    if sharing == "shared":
        inputs = {k: v if k == "points2d" else v[:1] for k, v in inputs.items()}
    mask = torch.ones(3, 7, dtype=torch.bool)
    leaves = [v.clone().requires_grad_() for v in inputs.values()]
    options = ("radtan", "cauchy", 3.0, 1.0)
    # opcheck takes no gradient of search, which has none
    torch.library.opcheck(operator._search, (*inputs.values(), mask, *options, 50))
    torch.library.opcheck(operator._solve, (*leaves, mask, init, *options, 50, 3, True))
    poses, _, statuses, _ = operator._solve(*inputs.values(), mask, init, *options, 50, 3, True)
    covectors = torch.ones(3, 4, 4, **DOUBLE)
    for wanted in ([True] * 5, [True, False, True, False, False]):
        rest = (mask, poses, covectors, statuses, *options, True, wanted)
        torch.library.opcheck(operator._adjoint, (*inputs.values(), *rest))
        # not test_aot_dispatch_dynamic, which would trace the double backward: torch.compile has none
        utils = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(operator._adjoint, (*leaves, *rest), test_utils=utils)


def test_cost_carries_no_gradient(make_scene: Any) -> None:
    inputs = inputs_of(make_scene)
    inputs["points2d"] = inputs["points2d"].requires_grad_()
    solution = pnp(**inputs)  # type: ignore[arg-type]
    assert solution.x.requires_grad
    assert not solution.cost.requires_grad
    without = pnp(**{k: v for k, v in inputs.items() if k != "init"})  # type: ignore[arg-type]
    assert not without.second.requires_grad  # type: ignore[union-attr]
    assert not without.ratio.requires_grad  # type: ignore[union-attr]


def test_a_second_backward_without_retain_graph_raises(make_scene: Any) -> None:
    inputs = inputs_of(make_scene)
    inputs["points2d"] = inputs["points2d"].requires_grad_()
    loss = scalar_of(**inputs)
    loss.backward(retain_graph=True)
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_changing_an_input_in_place_before_backward_raises(make_scene: Any) -> None:
    inputs = inputs_of(make_scene)
    leaf = inputs["points2d"].clone().requires_grad_()
    loss = scalar_of(**{**inputs, "points2d": leaf})
    inputs["points3d"].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_pixels_of_an_autocast_network(make_scene: Any) -> None:
    scene = make_scene(1, 8, seed=3)
    net = Net(scene, True, dtype=torch.float32)
    x = features_of(5).float()
    with torch.autocast("cpu", torch.bfloat16):
        pose = net(x)
        assert net.linear(x).dtype == torch.bfloat16
    assert pose.dtype == torch.float32
    pose.square().sum().backward()
    exact = Net(scene, True)
    close(pose.double(), exact(x.double()), atol=0.05)
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 and p.grad.abs().max() > 0 for p in net.parameters()
    )


def worker(rank: int, net: Net, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    parallel = nn.parallel.DistributedDataParallel(net)
    torch.save(net.gradients(features_of(10).chunk(2)[rank], parallel), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_have_the_gradient_of_one(make_scene: Any, tmp_path: Path) -> None:
    net = Net(make_scene(1, 8, seed=3), init=False)
    context = torch.multiprocessing.start_processes(
        worker, (net, str(tmp_path)), nprocs=2, join=True, start_method="spawn"
    )
    assert context is None
    expected = net.gradients(features_of(10))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for g, e in zip(found, expected, strict=True):
            assert e.abs().max() > 0
            close(g, e, atol=1e-12, rtol=1e-12)


def test_a_module_survives_copying_and_pickling(make_scene: Any) -> None:
    scene = make_scene(3, 12, 1.0)
    layer = BPnP(scene.points3d, scene.K, vector=True, kernel=barron(0.5, 2.0), gradient="gauss_newton")
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    expected = layer(scene.points2d)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert torch.equal(other(scene.points2d), expected)
        assert other.points3d is not layer.points3d
