"""What every driver needs: a typed config, its command line, and one run folder that survives being killed.

A driver is one file, read top to bottom:

    @dataclass(frozen=True)
    class Config(RunConfig):
        iterations: int = 1000  # this name: a resumed run may ask for more of them

    PRESETS = {"default": Config(preset="default"), "smoke": Config(preset="smoke", iterations=5)}

    def main(config: Config) -> dict:
        data = ...                                # or skip("... are absent"), before there is a run folder
        with Run("pose_estimation", config) as run:
            if run.finished:                      # --resume of a run that is done
                return run.finished
            x, loss = start(data), math.inf
            if saved := run.restore():            # right before the loop: it restores the random state, too
                x, loss = saved["x"], saved["loss"]
            for step in run.iterations(config.iterations):   # maybe none: killed after its last checkpoint
                x, loss = update(x)
                run.log(step, loss=loss)
                if run.due(step):
                    run.cloud("points", step, x)
                    run.checkpoint(step, x=x, loss=loss)
            return run.finish(converged=loss < 1e-6, iterations=config.iterations, loss=loss, errors={...})

    if __name__ == "__main__":
        main(cli(__doc__, PRESETS))

results/<experiment>/<run>/ then holds config.json, metrics.csv, checkpoint.pt, TensorBoard events, figures
and point clouds, and, once the run is finished, summary.json. All but metrics and events, which grow, are
written whole or not at all.
"""

import csv
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, TypeVar

import numpy as np
import torch
import tyro
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from datasets.colmap import write_colmap
from datasets.reconstruction import Reconstruction
from experiments import EXIT_SKIPPED, plain, replacing, write_json
from experiments.figures import FRUSTUM_EDGES, ORANGE, colored_points, frusta

# What may differ between an interrupted run and the one that continues it.
FREE_ON_RESUME = {"resume", "threads", "out", "name", "log_every", "iterations"}


@dataclass(frozen=True)
class RunConfig:
    """What every experiment can be told; its own Config inherits from this."""

    preset: tyro.conf.Suppress[str] = ""
    """Which preset this started from; part of the run folder's name."""
    seed: int = 0
    """Seed of python, numpy and torch."""
    dtype: Literal["float32", "float64"] = "float64"
    """Floating-point type of the computation."""
    device: str = "cpu"
    """Where to compute, as torch names it: cpu, cuda, cuda:1."""
    threads: int = 1
    """CPU threads of torch: most steps here are too small to gain from a second one."""
    out: Path = Path("results")
    """Folder of all results; the run goes to OUT/<experiment>/NAME."""
    name: str = ""
    """Run folder; left empty, <preset>-seed<seed>. An earlier run there is overwritten."""
    resume: bool = False
    """Continue the run in that folder from its last checkpoint."""
    log_every: int = 10
    """Iterations between checkpoints, point clouds and figures."""

    def __post_init__(self) -> None:
        if self.log_every < 1:
            raise ValueError(f"log_every must be at least 1, not {self.log_every}")
        if not 0 <= self.seed < 2**32:  # numpy takes no other
            raise ValueError(f"seed must be in 0 ... 2^32 - 1, not {self.seed}")
        if self.name != Path(self.name).name or self.name == "..":
            raise ValueError(f"name must be a plain folder name, not {self.name!r}")


C = TypeVar("C", bound=RunConfig)


def cli(description: str | None, presets: Mapping[str, C]) -> C:
    """The config that `sys.argv` asks for: a preset's name, then `--field value` for what should differ."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return tyro.extras.overridable_config_cli(
        {name: (f"The {name} preset, with these changes.", preset) for name, preset in presets.items()},
        prog=f"python -m {module.name}" if module else None,
        description=description,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def skip(message: str) -> NoReturn:
    """End the driver because its data are absent; `message` says in one sentence how to get them."""
    print(message, file=sys.stderr)
    raise SystemExit(EXIT_SKIPPED)


class Run:
    """One run of an experiment and the folder it writes: a context manager, used as in the example above."""

    def __init__(self, experiment: str, config: RunConfig) -> None:
        self.experiment, self.config = experiment, config
        self.folder = config.out / experiment / (config.name or f"{config.preset}-seed{config.seed}")
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self.device = torch.device(config.device)
        torch.empty(0, device=self.device)  # a missing device is reported before an old run is overwritten
        self.start = 0
        """First iteration that is still to be computed."""
        self.finished: dict[str, Any] | None = None
        """The stored summary, once there is one."""
        self._saved: dict[str, Any] | None = None
        self._restored = False
        self._loadable = False
        self._columns: list[str] = []
        self._total = 0
        self._bar: tqdm | None = None
        self._open = ExitStack()

    def __enter__(self) -> "Run":
        self._prepare_folder()
        if self.finished:
            return self
        torch.set_num_threads(self.config.threads)
        random.seed(self.config.seed)
        np.random.seed(self.config.seed)  # noqa: NPY002 - whatever draws from the global state
        torch.manual_seed(self.config.seed)
        # Operations that have a deterministic variant use it, the others warn. (use_deterministic_algorithms
        # does the same, but imports the compiler: 1.5 s.)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        self._open.callback(torch.set_deterministic_debug_mode, torch.get_deterministic_debug_mode())
        torch.set_deterministic_debug_mode("warn")

        path = self.folder / "metrics.csv"
        self._metrics = self._open.enter_context(path.open("r+" if self._saved else "w", newline=""))
        if self._saved:
            self._columns = self._metrics.readline().strip().split(",")
            size = self._saved["metrics_bytes"]
            if path.stat().st_size < size:
                raise ValueError(f"{path} is shorter than it was at the checkpoint: cannot resume")
            self._metrics.seek(size)
            self._metrics.truncate()  # rows after the checkpoint are computed, and written, again
        self._board = SummaryWriter(str(self.folder), purge_step=self.start if self._saved else None)
        self._open.callback(self._board.close)
        self._clock = time.monotonic() - (self._saved["seconds"] if self._saved else 0.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
        if kind is not None and (self.folder / "checkpoint.pt").exists():
            print(f"{self.folder} is unfinished: --resume continues it", file=sys.stderr)

    # ---- the loop ----

    def iterations(self, total: int) -> Iterator[int]:
        """The steps `start` ... `total - 1`, behind a progress bar."""
        if self._saved and not self._restored:
            raise RuntimeError("this run is resumed: call run.restore() before run.iterations()")
        self._total = total
        pause = 0.1 if sys.stderr.isatty() else 30.0  # a log file gets a line twice a minute
        self._bar = tqdm(
            range(self.start, total), f"{self.experiment} {self.folder.name}", total, initial=self.start,
            mininterval=pause, maxinterval=max(pause, 10.0), file=sys.stderr,
        )  # fmt: skip
        self._open.callback(self._bar.close)
        yield from self._bar

    def due(self, step: int) -> bool:
        """Whether this step is one to checkpoint and to draw: every `log_every`-th, and the last."""
        return step % self.config.log_every == 0 or step + 1 == self._total

    def log(self, step: int, *, loss: Any, **scalars: Any) -> None:
        """One row of metrics.csv and as many TensorBoard scalars; every step has the first one's columns."""
        values = {tag: plain(value) for tag, value in {"loss": loss, **scalars}.items()}
        rows = csv.writer(self._metrics, lineterminator="\n")
        if not self._columns:
            self._columns = ["step", *values]
            rows.writerow(self._columns)
        if self._columns != ["step", *values]:
            raise ValueError(f"log got {list(values)}, but this run's columns are {self._columns[1:]}")
        rows.writerow([step, *values.values()])
        for tag, value in values.items():
            self._board.add_scalar(tag, float(value), step)
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {float(values['loss']):.3e}", refresh=False)

    def checkpoint(self, step: int, **state: Any) -> None:
        """Save what `restore` gives back: tensors, numbers, strings, and lists, tuples and dicts of them."""
        self._metrics.flush()
        self._board.flush()
        saved = {
            "state": state,
            "step": step,
            "seconds": time.monotonic() - self._clock,
            "metrics_bytes": self._metrics.tell(),
            "random": _random_state(),
        }
        with replacing(self.folder / "checkpoint.pt") as temporary:
            torch.save(saved, temporary)
            if not self._loadable:  # a state that cannot be loaded fails here, not on the day it is needed
                torch.load(temporary, weights_only=True)
                self._loadable = True

    def restore(self) -> dict[str, Any] | None:
        """The state of the last checkpoint; random states of python, numpy and torch are set to theirs."""
        if self._saved is None:
            return None
        _set_random_state(self._saved["random"])
        self._restored = True
        return self._saved["state"]

    # ---- what there is to look at ----

    def cloud(self, tag: str, step: int, points: Any, colors: Any = None, cameras: Any = None, K: Any = None) -> None:
        """Points (N,3) with colors (N,3) uint8 as TensorBoard's mesh `tag`; `cameras` as dotted frusta.

        Dotted: the mesh plugin shows no lines beside points, and another tag would have its own slider.
        """
        points, colors = colored_points(points, colors, cameras, K)
        seen = np.isfinite(points).all(1)  # one nan blanks the whole view
        points = points[seen] * [1, -1, -1]  # the viewer's y is up, and it looks along -z
        size = 0.005 * float(np.ptp(points, axis=0).max()) if len(points) else 1.0
        self._board.add_mesh(
            tag,
            torch.tensor(points[None], dtype=torch.float32),
            colors=torch.tensor(colors[seen][None]),
            config_dict={"material": {"cls": "PointsMaterial", "size": size}},
            global_step=step,
        )

    def figure(self, tag: str, step: int, figure: Figure, final: bool = False) -> None:
        """A figure for TensorBoard; the `final` one also becomes <tag>.png in the run folder."""
        self._board.add_figure(tag, figure, step, close=False)  # close=True is for pyplot's figures
        if final:
            with replacing(self.folder / f"{tag.replace('/', '_')}.png") as temporary:
                figure.savefig(temporary, dpi=150)

    def save_points(self, name: str, points: Any, colors: Any = None, cameras: Any = None, K: Any = None) -> None:
        """<name>.ply with points (N,3), colors (N,3) uint8; `cameras` (V,4,4) in <name>_cameras.ply."""
        import open3d as o3d  # here: it is slow, and needs system libraries that not every machine has

        points, colors = colored_points(points, colors)
        vectors = o3d.utility.Vector3dVector
        cloud = o3d.geometry.PointCloud(vectors(points))
        cloud.colors = vectors(colors / 255)
        with replacing(self.folder / f"{name}.ply") as temporary:
            if not o3d.io.write_point_cloud(temporary, cloud):
                raise OSError(f"open3d could not write {name}.ply")
        if cameras is not None:
            corners = frusta(cameras, points, K)
            edges = np.array(FRUSTUM_EDGES) + 5 * np.arange(len(corners))[:, None, None]
            pairs = o3d.utility.Vector2iVector(edges.reshape(-1, 2))
            lines = o3d.geometry.LineSet(vectors(corners.reshape(-1, 3)), pairs)
            lines.paint_uniform_color(to_rgb(ORANGE))
            with replacing(self.folder / f"{name}_cameras.ply") as temporary:
                if not o3d.io.write_line_set(temporary, lines):
                    raise OSError(f"open3d could not write {name}_cameras.ply")

    def save_model(self, name: str, model: Reconstruction) -> None:
        """A COLMAP model, binary, in the folder `name` of the run's."""
        write_colmap(self.folder / name, model)

    def finish(
        self,
        *,
        converged: bool,
        iterations: int,
        loss: Any,
        errors: Mapping[str, Any],
        reference: Mapping[str, Any] | None = None,
        note: str = "",
    ) -> dict[str, Any]:
        """Write summary.json, which marks the run as finished, and return what it says.

        `errors` are against the truth, by name; `reference` holds the paper's figures for the same things.
        """
        config = self.config
        summary = {
            "experiment": self.experiment,
            **{field: getattr(config, field) for field in ("preset", "seed", "dtype")},
            "converged": bool(converged),
            "iterations": iterations,
            "seconds": time.monotonic() - self._clock,
            "loss": loss,
            "errors": errors,
            "reference": reference or {},
            "note": note,
        }
        final = {f"final/{key}": float(plain(value)) for key, value in {"loss": loss, **errors}.items()}
        chosen = {
            key: str(value) if isinstance(value, (list, dict)) else value
            for key, value in plain(asdict(config)).items()
            if key == "iterations" or key not in FREE_ON_RESUME
        }
        writer: Any = self._board.file_writer  # add_hparams would put them into a second run, beside this one
        for block in hparams(chosen, final):
            writer.add_summary(block)
        for tag, value in final.items():
            self._board.add_scalar(tag, value, iterations)
        self._open.close()
        write_json(self.folder / "summary.json", summary)
        self.finished = json.loads((self.folder / "summary.json").read_text())
        assert self.finished is not None
        return self.finished

    # ---- the folder ----

    def _prepare_folder(self) -> None:
        """Leave the folder ready for what is to come: `finished`, `_saved` to continue from, or emptied."""
        checkpoint, summary = self.folder / "checkpoint.pt", self.folder / "summary.json"
        stored = self._stored_config()
        wanted = plain({"experiment": self.experiment, **asdict(self.config)})
        if self.config.resume and (checkpoint.exists() or summary.exists()):
            for field in sorted((stored.keys() | wanted.keys()) - FREE_ON_RESUME):
                was, now = stored.get(field), wanted.get(field)
                if was != now:
                    raise ValueError(f"cannot resume {self.folder}: {field} was {was!r}, is now {now!r}")
            if summary.exists() and stored.get("iterations") == wanted.get("iterations"):
                self.finished = json.loads(summary.read_text())
                return
        if self.config.resume and checkpoint.exists():
            self._saved = torch.load(checkpoint, weights_only=True)
            assert self._saved is not None
            self.start = self._saved["step"] + 1
            if wanted.get("iterations", self.start) < self.start:
                raise ValueError(f"cannot resume {self.folder}: it is at iteration {self.start} already")
        elif self.config.resume:
            print(f"{self.folder} has no checkpoint: starting at iteration 0", file=sys.stderr)
        self.folder.mkdir(parents=True, exist_ok=True)
        summary.unlink(missing_ok=True)
        if self._saved is None:
            # The checkpoint first and config.json never: whenever this is killed, what is left is a run of
            # ours that does not pretend to be finished or resumable.
            checkpoint.unlink(missing_ok=True)
            for child in self.folder.iterdir():
                if child.is_dir() and not child.is_symlink():
                    shutil.rmtree(child)
                elif child.name != "config.json":
                    child.unlink()
        write_json(self.folder / "config.json", wanted)

    def _stored_config(self) -> dict[str, Any]:
        """config.json, or {} where there is no run yet; anything else in the folder is not ours to delete."""
        if not self.folder.exists() or {path.name for path in self.folder.iterdir()} <= {".tmp-config.json"}:
            return {}
        try:
            stored = json.loads((self.folder / "config.json").read_text())
            ours = stored["experiment"] == self.experiment
        except (OSError, ValueError, TypeError, KeyError):
            ours = False
        if not ours:
            raise FileExistsError(f"{self.folder} holds no run of {self.experiment}; choose another name")
        return stored


def _random_state() -> dict[str, Any]:
    """The generators' states in types that torch.load(weights_only=True) takes."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    name, keys, *rest = numpy_state
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
