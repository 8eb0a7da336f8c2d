"""What every driver needs: a typed config, its command line, and one run folder that survives being killed.

A driver is one file, read top to bottom:

    @dataclass(frozen=True)
    class Config(RunConfig):
        iterations: int = 1000  # this name: a resumed run may ask for more of them

    PRESETS = {"default": Config(preset="default"), "smoke": Config(preset="smoke", iterations=5)}

    @experiment("pose_estimation")
    def main(run: Run, config: Config) -> dict:   # called as main(config)
        x, loss = start(), math.inf
        if saved := run.restore():                # right before the loop: it restores the random state, too
            x, loss = saved["x"], saved["loss"]
        for step in run.iterations(config.iterations):   # maybe none: killed after its last checkpoint
            x, loss = update(x)
            run.log(step, loss=loss)
            if run.records(step):
                run.frame(step, points3d=x)
            if run.due(step):
                run.checkpoint(step, x=x, loss=loss)
        return run.finish(
            converged=loss < 1e-6, goal="loss below 1e-6", iterations=config.iterations, loss=loss, errors={...}
        )

    if __name__ == "__main__":
        command(main, __doc__, PRESETS)

results/<experiment>/<run>/ then holds config.json, metrics.csv, checkpoint.pt, TensorBoard events, the recording that
viewers read, figures and point clouds, and, once the run is finished, index.html, the page to look at it, and
summary.json. All but metrics and events, which grow, are written whole or not at all.
"""

from __future__ import annotations

import csv
import io
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from datasets.files import replacing
from experiments.drawing.figures import BLUE, FRUSTUM_EDGES, ORANGE, array, frusta, rgb
from experiments.records import recording
from experiments.records.files import plain, read_summary, write_json
from experiments.records.progress import plan
from experiments.records.quantities import Quantity
from experiments.running import saved
from experiments.running.config import RunConfig, told_in_a_sentence
from experiments.running.folder import FREE_ON_RESUME, check, prepare
from experiments.running.randomness import random_state, set_random_state
from experiments.running.tensorboard import Board

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from matplotlib.figure import Figure

    from datasets.reconstructions.model import Reconstruction

F = TypeVar("F", bound=Callable[..., Any])


def experiment(
    name: str, reads: Callable[[Any], Any] | None = None
) -> Callable[[Callable[..., dict[str, Any]]], Callable[[Any], dict[str, Any]]]:
    """Make of `body(run, config)`, which returns the run's summary, an experiment that is called with its config alone.

    Where the config asks to resume a run that is finished, its stored summary is returned and nothing computed. What
    `reads(config)` returns is the body's third argument. It is called before an earlier run is overwritten. Shared data
    that are absent (AbsentDataError) skip the experiment; what else it cannot read ends the driver with a sentence.
    """

    def called_with_config(body: Callable[..., dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
        @wraps(body)
        def main(config: Any) -> dict[str, Any]:
            since = time.monotonic()
            with told_in_a_sentence():
                check(config.folder(name), name, config)  # what is read may take minutes
                device_of(config.device)
                data = () if reads is None else (reads(config),)
            spent = time.monotonic() - since
            with begun(name, config) as run:
                run.spend(spent)
                return run.finished or body(run, config, *data)

        return main

    return called_with_config


def device_of(name: str, there: bool = True) -> torch.device:
    """The device that torch calls so. Raises ValueError for another name and, unless `there` is False, if it is not."""
    try:
        return torch.empty(0, device=name).device if there else torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name}: {str(error).splitlines()[0]}") from error


@contextmanager
def begun(name: str, config: RunConfig) -> Iterator[Run]:
    """A run of the experiment `name`; what stands in the way of one ends the driver with a sentence."""
    with ExitStack() as stack:
        with told_in_a_sentence():
            run = stack.enter_context(Run(name, config))
        yield run


def _counted(method: F) -> F:
    """Add the time this method of Run takes to what summary.json says of the price of logging, or of final results."""

    @wraps(method)
    def timed(self: Run, *args: Any, **kwargs: Any) -> Any:
        final = kwargs.get("final") or method.__name__.startswith("save_")
        begun = time.monotonic()
        try:
            return method(self, *args, **kwargs)
        finally:
            self._spent["drawing_seconds" if final else "logging_seconds"] += time.monotonic() - begun

    return timed  # type: ignore[return-value]


class Run:
    """One run of an experiment and the folder it writes: a context manager, used as in the example above.

    Left by an exception before anything was logged, it takes the folder away again.
    """

    def __init__(self, experiment: str, config: RunConfig) -> None:
        self.experiment, self.config = experiment, config
        self.folder = config.folder(experiment)
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self.device = device_of(config.device)
        self.start = 0
        """First iteration that is still to be computed."""
        self.finished: dict[str, Any] | None = None
        """The stored summary, where the run to be resumed is done."""
        self._saved: dict[str, Any] | None = None
        self._restored = False
        self._loadable = False
        self._columns: list[str] = []
        self._number = 0
        self._stage: recording.Stage | None = None
        self._spent = {"logging_seconds": 0.0, "drawing_seconds": 0.0}
        self._total = 0
        self._clock = 0.0
        self._bar: tqdm | None = None
        self._made: list[Path] = []
        self._open = ExitStack()

    def __enter__(self) -> Run:
        with ExitStack() as undone:  # where it does not begin, after Ctrl-C, too, nothing stays open or locked
            undone.push(self._open.__exit__)
            self._begin()
            undone.pop_all()
        return self

    def _begin(self) -> None:
        self._made = [parent for parent in self.folder.parents if not parent.exists()]
        self.finished, self._saved = earlier = prepare(self.folder, self.experiment, self.config, self._open)
        self.start = earlier.start
        if self.finished:
            return
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
        self._board = Board(self.folder, self.start)
        self._open.callback(self._board.close)
        if self._saved:
            self._spent = self._saved["spent"]
        self._clock = time.monotonic() - (self._saved["seconds"] if self._saved else 0.0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
        if kind is not None and (self.folder / "checkpoint.pt").exists():
            print(f"{self.folder} is unfinished: --resume continues it", file=sys.stderr)
        elif kind is not None and not self._columns and not self.finished:  # there is nothing in it to keep
            shutil.rmtree(self.folder, ignore_errors=True)
            with suppress(OSError):
                for parent in self._made:
                    parent.rmdir()

    def spend(self, seconds: float) -> None:
        """Count what was spent before the run began, on reading, among its seconds."""
        self._clock -= seconds

    # ---- the loop ----

    def iterations(self, total: int) -> Iterator[int]:
        """The steps `start` ... `total - 1`, behind a progress bar."""
        if self._saved and not self._restored:
            raise RuntimeError("this run is resumed: call run.restore() before run.iterations()")
        self._total = total
        plan(self.folder, total)
        pause = 0.1 if sys.stderr.isatty() else 30.0  # a log file gets a line twice a minute
        self._bar = tqdm(
            range(self.start, total), f"{self.experiment} {self.folder.name}", total, initial=self.start,
            mininterval=pause, maxinterval=max(pause, 10.0), file=sys.stderr,
        )  # fmt: skip
        self._open.callback(self._bar.close)
        yield from self._bar

    def due(self, step: int) -> bool:
        """Whether this step is one to checkpoint: every `log_every`-th, and the last."""
        return step % self.config.log_every == 0 or step + 1 == self._total

    def records(self, step: int) -> bool:
        """Whether this step is one to `frame`: each of the first 64, then fewer and fewer (recording.is_recorded)."""
        return recording.is_recorded(step)

    @_counted
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
        self._board.scalars(step, {tag: float(value) for tag, value in values.items()})
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {float(values['loss']):.3e}", refresh=False)

    @_counted
    def checkpoint(self, step: int, **state: Any) -> None:
        """Save what `restore` gives back: tensors, numbers, strings, and lists, tuples and dicts of them."""
        self._metrics.flush()
        self._board.flush()
        kept = {
            "state": state,
            "step": step,
            "seconds": time.monotonic() - self._clock,
            "spent": self._spent,
            "metrics_bytes": self._metrics.tell(),
            "random": random_state(),
        }
        # a state that cannot be loaded fails here, not on the day it is needed
        saved.save(self.folder / "checkpoint.pt", kept, check=not self._loadable)
        self._loadable = True

    def restore(self) -> dict[str, Any] | None:
        """The state of the last checkpoint; random states of python, numpy and torch are set to theirs."""
        if self._saved is None:
            return None
        set_random_state(self._saved["random"])
        self._restored = True
        return self._saved["state"]

    # ---- what there is to look at ----

    @_counted
    def stage(self, number: int = 0, **values: Any) -> None:
        """What does not move in the frames to come: keywords are those of `recording.Stage`.

        A driver that treats several targets in turn has a stage for each; a resumed one states its own again.
        """
        self._number, self._stage = number, recording.add_stage(self.folder, number, **values)

    @_counted
    def frame(self, step: int, **values: Any) -> None:
        """What there is to see at this step: keywords are those of `recording.Frame`. Also for TensorBoard."""
        if self._stage is None:
            self.stage()
            assert self._stage is not None
        frame = recording.add_frame(self.folder, step=step, stage=self._number, **values)
        self._metrics.flush()  # whoever watches sees curves as long as the frames
        self._board.frame(self._stage, frame)

    def recorded(self) -> recording.Recording:
        """All of it so far."""
        return recording.read_run(self.folder)

    @_counted
    def figure(self, tag: str, step: int, figure: Figure, final: bool = False) -> None:
        """A figure for TensorBoard; the `final` one also becomes <tag>.png in the run folder."""
        png = io.BytesIO()
        figure.savefig(png, dpi=150 if final else 80, format="png")
        self._show(tag, step, png.getvalue(), final)

    @_counted
    def picture(self, tag: str, step: int, picture: np.ndarray, final: bool = False) -> None:
        """The same for a picture (H,W,3) uint8, RGB."""
        import cv2

        self._show(tag, step, cv2.imencode(".png", picture[..., ::-1])[1].tobytes(), final)

    def _show(self, tag: str, step: int, png: bytes, final: bool) -> None:
        self._board.picture(tag, step, png)
        if final:
            with replacing(self.folder / f"{tag.replace('/', '_')}.png") as temporary:
                temporary.write_bytes(png)

    @_counted
    def save_points(self, name: str, points: Any, colors: Any = None, cameras: Any = None, K: Any = None) -> None:
        """<name>.ply with points (N,3), colors (N,3) uint8; `cameras` (V,4,4) in <name>_cameras.ply, lines."""
        from datasets.ply import write_ply

        points = array(points)
        colors = np.broadcast_to(rgb(BLUE), points.shape) if colors is None else np.asarray(colors)
        if colors.dtype != np.uint8 or colors.shape != points.shape:
            raise ValueError(f"colors must be {points.shape} uint8, not {colors.shape} {colors.dtype}")
        write_ply(self.folder / f"{name}.ply", points, colors)
        if cameras is not None:
            corners = frusta(cameras, points, K)
            edges = np.array(FRUSTUM_EDGES) + 5 * np.arange(len(corners))[:, None, None]
            corners = corners.reshape(-1, 3)
            lines = np.broadcast_to(rgb(ORANGE), corners.shape), edges.reshape(-1, 2)
            write_ply(self.folder / f"{name}_cameras.ply", corners, *lines)

    @_counted
    def save_model(self, name: str, model: Reconstruction) -> None:
        """A COLMAP model, binary, in the folder `name` of the run's."""
        from datasets.reconstructions.colmap import write_colmap

        write_colmap(self.folder / name, model)

    def finish(
        self,
        *,
        converged: bool,
        goal: str,
        iterations: int,
        loss: Any,
        errors: Mapping[str, Any],
        reference: Mapping[str, Any] | None = None,
        note: str = "",
        picture: str = "",
        undetermined: Sequence[str] = (),
        found: Mapping[str, Quantity] | None = None,
        left_out: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Write index.html and summary.json, which marks the run as finished, and return what it says.

        `goal` is a short phrase of what was to be reached, such as "loss below 1e-10", and `converged` whether it was;
        `undetermined` holds sentences that name what is reported though the data do not determine it. The summary is
        converged where the goal was reached and nothing is undetermined. `found` are the numbers that were sought, by
        name; one whose deviation is nan is undetermined. `left_out` says of what was not used why, by name (of views,
        say). `errors` are against the truth, by name; `reference` holds the paper's figures for the same things;
        `picture` is the tag of the figure that shows most.
        """
        from experiments.viewers.page import write_page

        found = found or {}
        open_ = ", ".join(name for name, quantity in found.items() if quantity.is_open)
        undetermined = [*undetermined, *([f"The data do not determine {open_}."] if open_ else [])]
        config = self.config
        figures = sorted(path.name for path in self.folder.glob("*.png"))
        summary = {
            "experiment": self.experiment,
            **{field: getattr(config, field) for field in ("preset", "seed", "dtype")},
            "converged": bool(converged) and not undetermined,
            "goal": goal,
            "undetermined": list(undetermined),
            "iterations": iterations,
            "seconds": time.monotonic() - self._clock,
            "loss": loss,
            "found": {name: quantity._asdict() for name, quantity in found.items()},
            "left_out": left_out or {},
            "errors": errors,
            "reference": reference or {},
            "note": note,
            "figures": sorted(figures, key=lambda name: name != f"{picture}.png"),
        }
        final = {key: float(plain(value)) for key, value in {"loss": loss, **errors}.items()}
        chosen = {
            key: value
            for key, value in plain(asdict(config)).items()
            if (key == "iterations" or key not in FREE_ON_RESUME) and not isinstance(value, (list, dict))
        }
        self._board.hyperparameters(chosen, final, iterations)
        self._open.close()
        shown = replace(self.recorded(), summary=plain(summary))
        begun = time.monotonic()
        best = self.folder / f"{picture}.png"
        write_page(shown, self.folder / "index.html", best.read_bytes() if picture and best.exists() else b"")
        self._spent["drawing_seconds"] += time.monotonic() - begun
        summary |= self._spent
        write_json(self.folder / "summary.json", summary)
        return read_summary(self.folder / "summary.json")
