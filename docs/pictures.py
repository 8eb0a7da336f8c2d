"""The pictures of conventions.md and architecture.md, drawn by the code that they explain."""

import re
from pathlib import Path

import torch
from importlinter.api import read_configuration
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from datasets.files import replacing
from experiments.drawing.figures import BLUE, FRUSTUM_EDGES, GREY, ORANGE
from geometry import project, se3
from geometry.camera import distort

K = torch.tensor([[4.0, 0, 3], [0, 4, 2], [0, 0, 1]], dtype=torch.float64)
SIZE = 7, 5  # columns and rows of the picture's image


def looking(at: Tensor, centre: Tensor) -> Tensor:
    """world_to_camera (4,4) of a level camera in a world whose Z is up."""
    forward = torch.nn.functional.normalize(at - centre, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, forward.new_tensor([0, 0, 1])), dim=0)
    R = torch.stack([right, torch.linalg.cross(forward, right), forward])
    return se3.make(R, -R @ centre)


def frames() -> Figure:
    """World and camera, and a point in both, seen from the side."""
    origin = torch.zeros(3, dtype=torch.float64)
    point, centre = origin.new_tensor([0.9, 0.7, 1.1]), origin.new_tensor([-0.4, -3.0, 1.5])
    camera_to_world = se3.inverse(looking(point + origin.new_tensor([0, 0.4, 0.1]), centre))
    onto_page = looking(origin, origin.new_tensor([4.0, -3.4, 2.0]))[:2, :3] * origin.new_tensor([[1], [-1]])
    corners = origin.new_tensor([[0, 0, 0], [-0.8, -0.6, 1.3], [0.8, -0.6, 1.3], [0.8, 0.6, 1.3], [-0.8, 0.6, 1.3]])
    corners = se3.transform(camera_to_world, corners)

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()

    def flat(*points: Tensor) -> Tensor:
        return (torch.stack(points) @ onto_page.T)[:, :2].T

    for pair in FRUSTUM_EDGES:
        axes.plot(*flat(*corners[list(pair)]), color="#A9B0BA", linewidth=1)
    axes.plot(*flat(centre, point), color=ORANGE, linewidth=1.2, linestyle="--")
    axes.plot(*flat(point), "o", color=ORANGE)
    axes.annotate("p", flat(point)[:, 0], xytext=(8, 4), textcoords="offset points", color=ORANGE, fontsize=12)
    for at, directions, color, name, names in (
        (origin, torch.eye(3).to(origin), GREY, "world", ("X", "Y", "Z")),
        (centre, camera_to_world[:3, :3].T, BLUE, "camera", ("x right", "y down", "z forward")),
    ):
        begin = flat(at)[:, 0]
        axes.annotate(name, begin, xytext=(-8, 4), textcoords="offset points", ha="right", color=color, fontsize=12)
        for direction, its in zip(directions, names, strict=True):
            end = flat(at + direction)[:, 0]
            axes.plot(*end, "")  # so that the axes reach there
            axes.annotate("", end, xytext=begin, arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 2})
            sideways = abs(end[0] - begin[0]) > abs(end[1] - begin[1])
            axes.annotate(
                its, end, xytext=(3, 6) if sideways else (0, 6 if end[1] > begin[1] else -14),
                textcoords="offset points", color=color, fontsize=11, ha="left" if sideways else "center",
            )  # fmt: skip
    axes.set_title("p_camera = world_to_camera p_world", fontsize=12)
    axes.set_aspect("equal")
    axes.margins(0.1)
    axes.set_axis_off()
    return figure


def pixels() -> Figure:
    """The pixel grid of an image, and a projected point on it."""
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.add_subplot()
    columns, rows = SIZE
    for u in range(columns + 1):
        axes.plot([u - 0.5, u - 0.5], [-0.5, rows - 0.5], color="#C5CBD3", linewidth=1)
    for v in range(rows + 1):
        axes.plot([-0.5, columns - 0.5], [v - 0.5, v - 0.5], color="#C5CBD3", linewidth=1)
    point = project(torch.tensor([[0.5, 0.25, 1]], dtype=torch.float64), torch.eye(4, dtype=torch.float64), K)[0]
    marks = (
        ((0, 0), "(0, 0): centre of the\ntop-left pixel", GREY, (12, -30)),
        (tuple(K[:2, 2].tolist()), "(cx, cy)", BLUE, (8, 8)),
        (tuple(point.tolist()), f"K (0.5, 0.25, 1) = ({point[0]:g}, {point[1]:g})", ORANGE, (-62, -18)),
        ((-0.5, -0.5), "(-0.5, -0.5): corner", GREY, (4, 8)),
    )
    for at, text, color, offset in marks:
        axes.plot(*at, "o", color=color, markersize=7, clip_on=False)
        axes.annotate(text, at, xytext=offset, textcoords="offset points", color=color, fontsize=11, va="center")
    axes.set(xlabel="u, columns (px)", ylabel="v, rows (px)", xlim=(-0.9, columns - 0.1), ylim=(rows - 0.2, -1.1))
    axes.set_xticks(range(columns))
    axes.set_yticks(range(rows))
    axes.set_aspect("equal")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def lenses() -> Figure:
    """A square grid through two lenses."""
    figure = Figure(figsize=(6.4, 3.5), layout="constrained")
    line = torch.linspace(-0.8, 0.8, 41, dtype=torch.float64)
    for axes, k1 in zip(figure.subplots(1, 2), (-0.2, 0.2), strict=True):
        for fixed in torch.linspace(-0.8, 0.8, 9, dtype=torch.float64):
            for xy in (torch.stack([line, fixed.expand(41)], -1), torch.stack([fixed.expand(41), line], -1)):
                axes.plot(*xy.T, color="#C5CBD3", linewidth=1)
                axes.plot(*distort(xy, torch.tensor([k1, 0.0], dtype=torch.float64)).T, color=BLUE, linewidth=1.4)
        axes.set_title(f"k1 = {k1:g}", fontsize=11)
        axes.set_aspect("equal")
        axes.set(xlim=(-1.1, 1.1), ylim=(1.1, -1.1))
        axes.set_axis_off()
    return figure


def floors() -> Figure:
    """The rooms of the three packages, floor by floor, as the contracts of pyproject.toml have them."""
    contracts = read_configuration(str(Path(__file__).parents[1] / "pyproject.toml"))["contracts_options"]
    stacks = {}
    for name in ("geometry", "datasets", "experiments"):
        layers = next(contract["layers"] for contract in contracts if contract["name"].startswith(f"{name}: "))
        stacks[name] = [re.split(r"[\s|]+", layer.strip()) for layer in layers]
    stacks["experiments"][0] = ["drivers"]  # sixteen, whose names matter little here
    figure = Figure(figsize=(10.5, 3.9), layout="constrained")
    for axes, (name, stack), color in zip(figure.subplots(1, 3), stacks.items(), (BLUE, GREY, ORANGE), strict=True):
        for i, rooms in enumerate(stack):
            y, width = len(stack) - 1 - i, 1 / len(rooms)
            for j, room in enumerate(rooms):
                box = {"width": width - 0.02, "height": 0.78, "facecolor": f"{color}22", "edgecolor": color}
                axes.add_patch(Rectangle((j * width + 0.01, y), **box))
                label = room.replace("_", "_\n", 1) if len(room) > 10 and len(rooms) > 2 else room
                axes.annotate(label, ((j + 0.5) * width, y + 0.39), ha="center", va="center", fontsize=8)
        axes.annotate("", (-0.04, 0), xytext=(-0.04, len(stack)), arrowprops={"arrowstyle": "-|>", "color": "#A9B0BA"})
        axes.set(xlim=(-0.08, 1), ylim=(-0.2, 8.2), title=name)
        axes.axis("off")
    return figure


def draw(folder: Path) -> None:
    """Write the pictures to folder."""
    folder.mkdir(exist_ok=True)
    for make in (frames, pixels, lenses, floors):
        with replacing(folder / f"{make.__name__}.svg") as temporary:
            make().savefig(temporary, format="svg", metadata={"Date": None})
