"""How wrong is the gradient of a PnP layer? Every way to differentiate the pose, against finite differences.

On the published cube and poses, for every input of the layer, the error of a method on one problem is

    |J - F| / |F| ,    J, F = d (omega, t) / d input by the method and by finite differences (6 x n, Frobenius norm),

omega in radians, t in half sides of the cube. Methods: `exact`, `gauss_newton`, `unrolled` are those of
`geometry.argmin`; `published formula` is the one of Chen et al.'s code (CVPR 2020), which differentiates the
root of

    f_j = sum_i < c_ij, S_i (x_i - proj_i) > ,    c_ij = -2 d proj_i / d pose_j ,    S_i the depth of point i,

although its solver minimises the error in pixels, without S_i. Writes results/gradient_error/table.md and table.json.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor

from datasets.made.published import read_poses
from datasets.made.scenes import CUBE, random_poses
from experiments.gradients.derivatives import STEPS, numeric, published, solve, tangent
from experiments.records.files import write_json, write_text
from geometry import project, se3
from geometry.camera import matrix_from_intrinsics
from geometry.optim import Gradient

OURS: tuple[Gradient, ...] = ("exact", "gauss_newton", "unrolled")
PUBLISHED = "published formula"


@dataclass(frozen=True)
class Config:
    noise: tuple[float, ...] = (0.0, 1.0, 10.0)
    """Lists the standard deviations of the pixels' noise; each has a column."""
    problems: int = 50
    """Sets the number of poses: the published ones, as far as they go, then random ones."""
    points: Literal[8, 12] = 8
    """Sets the number of points: 8 are the corners of the cube; with 12, four are random ones inside it."""
    seed: int = 0
    """Seeds the noise, the inner points and the random poses."""
    out: Path = Path("results")
    """Names the folder of all results; the table goes to OUT/gradient_error."""

    def __post_init__(self) -> None:
        if self.problems < 1 or not self.noise or min(self.noise) < 0:
            raise ValueError(f"problems must be at least 1 and noise not negative, got {self.problems}, {self.noise}")


def problems(config: Config, noise: float) -> tuple[dict[str, Tensor], Tensor]:
    """Every differentiable input of the layer, each flat (B,n), and the poses (B,4,4) behind the pixels."""
    g = torch.Generator().manual_seed(config.seed)
    B, N = config.problems, config.points
    points3d = torch.cat([CUBE, 2 * torch.rand(4, 3, generator=g, dtype=torch.float64) - 1])[:N].expand(B, N, 3)
    try:
        poses = se3.from_rotvec_t(read_poses())[:B]
    except FileNotFoundError:
        poses = torch.empty(0, 4, 4, dtype=torch.float64)
    poses = torch.cat([poses, random_poses(B - len(poses), g)])
    intrinsics = torch.tensor([300.0, 300, 128, 128], dtype=torch.float64).expand(B, 4)  # the published camera
    pixels = project(points3d, poses, matrix_from_intrinsics(intrinsics))
    pixels = pixels + noise * torch.randn(pixels.shape, generator=g, dtype=torch.float64)
    inputs = {
        "points2d": pixels.flatten(1),
        "points3d": points3d.flatten(1),
        "K": intrinsics,
        "distortion": torch.zeros(B, 5, dtype=torch.float64),
        "weights": torch.ones(B, 2 * N, dtype=torch.float64),
    }
    return inputs, poses


def analytic(inputs: dict[str, Tensor], init: Tensor, gradient: Gradient) -> dict[str, Tensor]:
    """The same by the layer's backward pass."""
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    pose = solve(leaves, init, gradient)
    six = tangent(pose, pose.detach())
    rows = [torch.autograd.grad(six[:, j].sum(), list(leaves.values()), retain_graph=True) for j in range(6)]
    return {name: torch.stack([row[i] for row in rows], 1) for i, name in enumerate(leaves)}


def measure(config: Config, noise: float) -> dict[str, dict[str, dict[str, float]]]:
    """input -> method -> median and max of the error; none where the true gradient is zero."""
    inputs, poses = problems(config, noise)
    optimum = solve(inputs, poses)
    # so far off that there is something to unroll
    away = torch.tensor([0.1, -0.1, 0.05, 0.05, -0.05, 0.3], dtype=poses.dtype)
    start = se3.retract(poses, away.expand(len(poses), 6))
    found: dict[str, dict[str, Tensor]] = {method: analytic(inputs, start, method) for method in OURS}
    found[PUBLISHED] = published(inputs, optimum)
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name, true in numeric(inputs, optimum).items():
        size = true.flatten(1).norm(dim=1)
        table[name] = {}
        for method, jacobians in found.items():
            if name in jacobians and size.min() > 1e-9:
                error = (jacobians[name] - true).flatten(1).norm(dim=1) / size
                table[name][method] = {"median": error.median().item(), "max": error.max().item()}
    return table


def markdown(config: Config, columns: dict[float, dict[str, dict[str, dict[str, float]]]]) -> str:
    """The table, a row for each input and method."""
    lines = [
        f"Relative error of d pose / d input, median / max over {config.problems} problems of {config.points} points.",
        "A dash: the method lacks the input, or the true gradient is zero (weights, where the residual vanishes).",
        "",
        "| input | method | " + " | ".join(f"{noise:g} px" for noise in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for name in STEPS:
        for method in (*OURS, PUBLISHED):
            cells = [column[name].get(method) for column in columns.values()]
            shown = [f"{cell['median']:.1e} / {cell['max']:.1e}" if cell else "–" for cell in cells]
            lines.append(f"| {name} | {method} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def main(config: Config) -> dict[float, dict[str, dict[str, dict[str, float]]]]:
    """Measure, print and save; noise -> input -> method -> median and max."""
    columns = {noise: measure(config, noise) for noise in config.noise}
    print(text := markdown(config, columns))
    (folder := config.out / "gradient_error").mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.md", text)
    write_json(folder / "table.json", {"config": vars(config), "errors": columns})
    return columns


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
