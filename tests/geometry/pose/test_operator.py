"""The compiled path of `pnp` against the tensor path, which is taken for a kernel that is a function of one's own."""

import multiprocessing
import os
import runpy
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from geometry import PoseSolution, barron, cauchy, geman_mcclure, huber, pnp, project, se3
from geometry.robust import Kernel
from tests.commands import PATIENCE
from tests.numbers import DOUBLE

LENS = (-0.28, 0.11, 0.0011, -0.0015, -0.02, 0.03, -0.01, 0.004, 0.002, -0.001, 0.0015, 0.0005)
KERNELS: dict[str, Kernel | None] = {
    "none": None,
    "huber": huber(3.0),
    "cauchy": cauchy(6.0),
    "geman_mcclure": geman_mcclure(20.0),
    "barron 1": barron(1.0, 4.0),
    "barron -2": barron(-2.0, 10.0),
    "barron 0.5": barron(0.5, 4.0),
}


def unknown(kernel: Kernel | None) -> Kernel:
    return lambda s: s if kernel is None else kernel(s)


UNKNOWN = {name: unknown(kernel) for name, kernel in KERNELS.items()}
"""The same functions, by a name that the compiled solver does not know."""
POINTWISE = ("points2d", "points3d", "weights", "mask")


def inputs_of(
    make_scene: Any, B: int = 9, N: int = 10, lens: int = 5, noise: float = 2.0, seed: int = 1
) -> dict[str, Tensor]:
    """Every argument of `pnp`, one of each per problem, init a few degrees off."""
    scene = make_scene(B, N, 0.0, seed=seed)
    g = torch.Generator().manual_seed(seed + 100)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, **DOUBLE)

    K = scene.K + normal(B, 3, 3) * torch.tensor([[9.0, 0, 3], [0, 9, 3], [0, 0, 0]], **DOUBLE)
    distortion = torch.tensor(LENS[:lens], **DOUBLE) * (1 + 0.1 * normal(B, lens))
    pixels = torch.stack([project(X, T, k, d) for X, T, k, d in zip(scene.points3d, scene[4], K, distortion)])  # noqa: B905
    return {
        "points2d": pixels + noise * normal(B, N, 2),
        "points3d": scene.points3d,
        "K": K,
        "distortion": distortion,
        "weights": 0.7 + 0.6 * torch.rand(B, N, 2, generator=g, **DOUBLE),
        "init": se3.retract(scene.world_to_camera_gt, 0.05 * normal(B, 6)),
    }


def solve(inputs: dict[str, Tensor], **options: Any) -> tuple[PoseSolution, dict[str, Tensor]]:
    """Solution, and the gradients of one fixed function of the poses."""
    names = [k for k, v in inputs.items() if v.is_floating_point() and k != "init" and v.shape[-1]]
    leaves = {k: v.detach().requires_grad_() if k in names else v for k, v in inputs.items()}
    solution = pnp(**leaves, **options)  # type: ignore[arg-type]
    covector = torch.linspace(-1, 1, 12, dtype=solution.cost.dtype).view(3, 4)
    gradients = torch.autograd.grad((solution.x[:, :3] * covector).sum(), [leaves[k] for k in names])
    return solution, dict(zip(names, gradients, strict=True))


def assert_same(a: Any, b: Any, rounding: float = 1e-9) -> None:
    """Equal statuses, and poses, costs and gradients that differ by a part in `rounding`, problem by problem."""
    (found, grad), (expected, grad_expected) = a, b
    assert torch.equal(found.status, expected.status)
    assert found.converged.all()
    torch.testing.assert_close(found.x, expected.x, rtol=0, atol=rounding)
    torch.testing.assert_close(found.cost, expected.cost, rtol=rounding, atol=1e-20)
    assert grad.keys() == grad_expected.keys()
    for name, g in grad_expected.items():
        assert grad[name].shape == g.shape
        if g.numel():
            assert g.abs().max() > 0, name
            assert (grad[name] - g).norm() <= rounding * g.norm(), name


def assert_paths_agree(inputs: dict[str, Tensor], kernel: str = "none", **options: Any) -> None:
    assert_same(solve(inputs, kernel=KERNELS[kernel], **options), solve(inputs, kernel=UNKNOWN[kernel], **options))


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["exact", "gauss_newton"])
@pytest.mark.parametrize("lens", [0, 2, 4, 5, 8, 12])
def test_paths_agree_for_every_lens(make_scene: Any, lens: int, gradient: str) -> None:
    assert_paths_agree(inputs_of(make_scene, lens=lens), gradient=gradient)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["exact", "gauss_newton"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_paths_agree_for_every_robust_kernel(make_scene: Any, kernel: str, gradient: str) -> None:
    assert_paths_agree(inputs_of(make_scene, N=14, noise=5.0), kernel, gradient=gradient, max_steps=500)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["per point", "one component zero", "ragged", "ragged and weights", "no weights"])
def test_paths_agree_for_weights_and_masks(make_scene: Any, case: str) -> None:
    inputs = inputs_of(make_scene, B := 9, N=13)
    if case == "per point":
        inputs["weights"] = inputs["weights"][..., 0]
    if case == "one component zero":
        inputs["weights"][:, ::3, 0] = 0
        inputs["weights"][:, 1::3, 1] = 0
        inputs["weights"][1, 2] = 0
    if case.startswith("ragged"):
        inputs["mask"] = torch.arange(13) < 5 + torch.arange(B)[:, None] % 9
    if case in ("ragged", "no weights"):
        del inputs["weights"]
    assert_paths_agree(inputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shared", "B"), [*((name, 9) for name in ("points3d", "K", "distortion", "weights", "mask", "init")), ("all", 2)]
)
def test_paths_agree_for_shared_arguments(make_scene: Any, shared: str, B: int) -> None:
    """Shared by a leading size of 1, which is then summed over in the gradient."""
    inputs = inputs_of(make_scene, B)
    inputs["mask"] = torch.arange(10) < 10 - torch.arange(B)[:, None] % 4
    names = ("points3d", "K", "distortion", "weights", "mask") if shared == "all" else (shared,)
    truth = make_scene(B, 10, 0.0, seed=1).world_to_camera_gt
    world = {k: inputs[k] for k in ("points3d", "init", "K", "distortion")} | {"init": truth}
    seen = zip(*(v[:1].expand_as(v) if k in names else v for k, v in world.items()), strict=True)
    g = torch.Generator().manual_seed(3)
    inputs["points2d"] = torch.stack([project(*a) for a in seen]) + torch.randn(B, 10, 2, generator=g, **DOUBLE)
    assert_paths_agree({k: v[:1] if k in names else v for k, v in inputs.items()})


SIZES = [(B, 10) for B in (1, 3, 4, 7, 8, 9, 17)] + [(2 + 3 * (N % 2), N) for N in (*range(3, 10), 255, 256, 257)]


@pytest.mark.slow
@pytest.mark.parametrize(("B", "N"), SIZES)
def test_paths_agree_for_every_way_to_fill_the_lanes(make_scene: Any, B: int, N: int) -> None:
    inputs = inputs_of(make_scene, B, N, noise=0.3, seed=4)
    if N == 3:  # three points fit exactly: the weights have no say
        inputs = {**inputs, "weights": torch.ones_like(inputs["weights"])}
        found, grad = solve(inputs)
        expected, grad_expected = solve(inputs, kernel=UNKNOWN["none"])
        for g in (grad, grad_expected):
            assert g.pop("weights").abs().max() < 1e-9
        torch.testing.assert_close(found.cost, expected.cost, rtol=0, atol=1e-18)
        zero = torch.zeros(B, **DOUBLE)
        inputs_a, inputs_b = ({**s.__dict__, "cost": zero} for s in (found, expected))
        return assert_same((PoseSolution(**inputs_a), grad), (PoseSolution(**inputs_b), grad_expected))
    assert_paths_agree(inputs)


def test_paths_agree_for_a_skewed_camera(make_scene: Any) -> None:
    inputs = inputs_of(make_scene)
    inputs["K"][:, 0, 1], inputs["K"][:, 1, 0] = 7.0, -2.0
    assert_paths_agree(inputs)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["none", "barron 1"])
def test_paths_agree_without_init(make_scene: Any, kernel: str) -> None:
    inputs = inputs_of(make_scene, 17, 12, noise=1.0)
    del inputs["init"]
    assert_paths_agree(inputs, kernel)


@pytest.mark.parametrize("B", [3, 9])
def test_solving_in_float32_is_near_float64(make_scene: Any, B: int) -> None:
    inputs = inputs_of(make_scene, B, 20)
    small = {k: v.float() for k, v in inputs.items()}
    assert_same(solve(small, solve_dtype=torch.float32), solve(small, solve_dtype=torch.float64), 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_pixels_among_float32(make_scene: Any, dtype: torch.dtype) -> None:
    inputs = {k: v.float() for k, v in inputs_of(make_scene).items()}
    inputs["points2d"] = inputs["points2d"].to(dtype)
    found, grad = solve(inputs)
    expected, grad_expected = solve({**inputs, "points2d": inputs["points2d"].float()})
    assert found.x.dtype == found.cost.dtype == torch.float32
    assert {k: g.dtype for k, g in grad.items()} == {k: v.dtype for k, v in inputs.items() if k != "init"}
    assert torch.equal(found.x, expected.x)
    assert torch.equal(grad["points2d"], grad_expected["points2d"].to(dtype))
    assert torch.equal(grad["K"], grad_expected["K"])


@pytest.mark.parametrize("B", [3, 9])
def test_expanded_and_strided_arguments_are_as_good_as_copies(make_scene: Any, B: int) -> None:
    inputs = inputs_of(make_scene, B)
    inputs["mask"] = torch.arange(10).expand(B, 10) < 9
    inputs["weights"] = inputs["weights"][:, :, :1].expand(B, 10, 2)
    inputs["K"] = inputs["K"][:1].expand(B, 3, 3)
    strided = {k: torch.stack([v, v], -1).flip(-2).flip(-2)[..., 0].mT.contiguous().mT for k, v in inputs.items()}
    assert not any(v.is_contiguous() for k, v in strided.items() if k != "init")
    (a, grad_a), (b, grad_b) = solve(inputs), solve(strided)
    assert torch.equal(a.x, b.x)
    assert all(torch.equal(g, grad_b[k]) for k, g in grad_a.items())


@pytest.mark.parametrize("init", [True, False])
def test_no_problems_no_poses(make_scene: Any, init: bool) -> None:
    inputs = {k: v[:0] for k, v in inputs_of(make_scene).items() if k != "init" or init}
    solution, grad = solve(inputs)
    assert solution.x.shape == (0, 4, 4)
    assert all(g.shape == inputs[k].shape for k, g in grad.items())
    if not init:
        assert solution.second is not None
        assert solution.ratio is not None
        assert solution.second.shape == (0, 4, 4)
        assert solution.ratio.shape == (0,)


@pytest.mark.slow
def test_paths_agree_for_a_hundred_thousand_points_in_one_problem(make_scene: Any) -> None:
    assert_paths_agree(inputs_of(make_scene, 1, 100_000), "cauchy")


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("init", [True, False])
def test_threads_change_no_bit(make_scene: Any, set_threads: Callable[[int], None], init: bool) -> None:
    inputs = inputs_of(make_scene, 271, 40)
    inputs["K"] = inputs["K"][:1]
    if not init:
        del inputs["init"]
    a, grad_a = solve(inputs)
    set_threads(2)
    b, grad_b = solve(inputs)
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.cost, b.cost)
    for name in ("points2d", "points3d", "distortion", "weights"):
        assert torch.equal(grad_a[name], grad_b[name]), name
    torch.testing.assert_close(grad_a["K"], grad_b["K"], rtol=1e-12, atol=0)


def test_calls_from_many_python_threads_do_not_mix(make_scene: Any, set_threads: Callable[[int], None]) -> None:
    problems = [inputs_of(make_scene, 250 + 7 * i, 40, seed=i) for i in range(6)]
    expected = [solve(p) for p in problems]
    set_threads(3)
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            for (a, grad_a), (b, grad_b) in zip(pool.map(solve, problems), expected, strict=True):
                assert torch.equal(a.x, b.x)
                assert all(torch.equal(g, grad_b[k]) for k, g in grad_a.items())


class Poses(Dataset[Tensor]):
    def __init__(self, inputs: dict[str, Tensor], threads: int) -> None:
        self.inputs, self.threads = inputs, threads

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Tensor:
        torch.set_num_threads(self.threads)
        pose, gradients = solve({k: v.roll(i, 0) for k, v in self.inputs.items()})
        return torch.cat([pose.x.detach().flatten(), gradients["points2d"].flatten()])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")
@pytest.mark.parametrize("threads", [1, 2])
def test_data_loader_workers_after_the_parent_used_its_threads(
    make_scene: Any, set_threads: Callable[[int], None], threads: int
) -> None:
    inputs = inputs_of(make_scene, 250, 40)
    set_threads(2)
    data = Poses(inputs, threads)
    solve(inputs)  # starts the pool, whose threads a forked worker does not have
    context = multiprocessing.get_context("fork")
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context=context, timeout=PATIENCE)
    found = list(loader)
    set_threads(1)
    assert all(torch.equal(a, data[i]) for i, a in enumerate(found))


@pytest.mark.parametrize("B", [3, 9])
@pytest.mark.parametrize("name", ["points2d", "points3d", "K", "distortion", "weights", "init"])
def test_nan_names_its_argument(make_scene: Any, name: str, B: int) -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        inputs = inputs_of(make_scene, B, 10)
        inputs[name][B - 1, -1] = bad
        if name == "K":  # its last row is (0, 0, 1) by convention and not read
            inputs[name][B - 1, 1] = bad
        if name == "init":
            inputs[name][B - 1, 0, 3] = bad
        for kernel in (None, UNKNOWN["none"]):
            with pytest.raises(ValueError, match=f"^{name} must be finite where mask is True"):
                pnp(**inputs, kernel=kernel)  # type: ignore[arg-type]
            if name != "init":
                with pytest.raises(ValueError, match=f"^{name} must be finite where mask is True"):
                    pnp(**{k: v for k, v in inputs.items() if k != "init"}, kernel=kernel)  # type: ignore[arg-type]


@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize("B", [3, 9])
def test_what_a_mask_hides_changes_no_bit(make_scene: Any, B: int, init: bool) -> None:
    inputs = inputs_of(make_scene, B, 12)
    inputs["mask"] = torch.arange(12) < 12 - torch.arange(B)[:, None] % 5
    if not init:
        del inputs["init"]
    wild = {k: v.clone() for k, v in inputs.items()}
    for name, bad in (("points2d", torch.nan), ("points3d", torch.inf), ("weights", -torch.inf)):
        wild[name][~inputs["mask"]] = bad
    (a, grad_a), (b, grad_b) = solve(inputs), solve(wild)
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.cost, b.cost)
    for name, g in grad_a.items():
        assert torch.equal(g, grad_b[name]), name
        if name in POINTWISE:
            assert (g[~inputs["mask"]] == 0).all(), name


@pytest.mark.parametrize("kernel", [None, UNKNOWN["none"]])
def test_a_far_plane_has_a_second_minimum(make_scene: Any, kernel: Kernel | None) -> None:
    scene = make_scene(12, 8, 0.3, planar=True, depth=40.0, seed=3)
    data = (scene.points2d, scene.points3d, scene.K)
    best = pnp(*data, kernel=kernel)
    assert best.converged.all()
    assert best.second is not None
    assert best.ratio is not None
    two = best.ratio > 0
    assert two.sum() >= 6
    assert (best.ratio <= 1).all()
    turned = (best.x[:, :3, :3] - best.second[:, :3, :3]).flatten(1).norm(dim=1)
    assert (turned[two] > 0.1).all()
    assert torch.equal(best.second[~two], best.x[~two])
    # its own gradient vanishes: the solver stays where it is
    there = pnp(*data, init=best.second, kernel=kernel)
    assert there.converged.all()
    torch.testing.assert_close(there.x, best.second, rtol=0, atol=1e-7)
    torch.testing.assert_close(best.ratio[two], (best.cost / there.cost)[two], rtol=1e-9, atol=0)


def test_paths_agree_on_the_second_minimum(make_scene: Any) -> None:
    scene = make_scene(12, 8, 0.3, planar=True, depth=40.0, seed=3)
    data = (scene.points2d, scene.points3d, scene.K)
    compiled, tensors = pnp(*data), pnp(*data, kernel=UNKNOWN["none"])
    torch.testing.assert_close(compiled.x, tensors.x, rtol=0, atol=1e-6)
    torch.testing.assert_close(compiled.ratio, tensors.ratio, rtol=1e-8, atol=0)


@pytest.mark.parametrize("kernel", [None, UNKNOWN["none"]])
def test_many_points_in_space_have_no_second_minimum(make_scene: Any, kernel: Kernel | None) -> None:
    scene = make_scene(9, 40, 0.5, seed=6)
    best = pnp(scene.points2d, scene.points3d, scene.K, kernel=kernel)
    assert best.ratio is not None
    assert (best.ratio == 0).all()
    torch.testing.assert_close(best.second, best.x, rtol=0, atol=1e-14)


def test_without_a_second_minimum_second_is_a_copy_of_x(make_scene: Any) -> None:
    """So says `PoseSolution`; `search` copies its own minimum, which `solve` then improves by a last bit."""
    scene = make_scene(9, 40, 0.5, seed=6)
    best = pnp(scene.points2d, scene.points3d, scene.K)
    assert torch.equal(best.second, best.x)  # type: ignore[arg-type]


def test_compiling_ahead_removes_what_is_older_than_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run on an empty copy of the package, with a stand-in for the processes that compile."""
    cache = tmp_path / "pose" / "__pycache__"
    cache.mkdir(parents=True)
    now = time.time()
    for path, age in (("pose/solve.py", 100), ("vectors.py", 50)):
        (tmp_path / path).touch()
        os.utime(tmp_path / path, (now - age, now - age))
    ages = {"solve.old.nbi": 70, "solve.old.1.nbc": 200, "solve.new.nbi": 10, "solve.new.1.nbc": 10, "solve.pyc": 200}
    for path, age in ages.items():
        (cache / path).touch()
        os.utime(cache / path, (now - age, now - age))
    compiled: list[str] = []

    class Pool(ThreadPoolExecutor):
        def map(self, function: Any, *names: Any, **_: Any) -> Any:  # type: ignore[override]
            compiled.extend(*names)
            return iter(())

    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", Pool)
    namespace = runpy.run_module("geometry.compiled.__main__")
    monkeypatch.setitem(namespace["main"].__globals__, "__file__", str(tmp_path / "__main__.py"))
    namespace["main"]()
    assert {path.name for path in cache.iterdir()} == {"solve.new.nbi", "solve.new.1.nbc", "solve.pyc"}
    assert sorted(compiled) == [
        "bundle_adjustment.observations",
        "bundle_adjustment.products",
        "consensus.rounds",
        "pose.adjoint",
        "pose.solve",
        "pose.start",
        "program.solve",
    ]
