"""Look at a run, finished or going on, or at points in a file: in a window, in a browser, or as a picture.

Where there is a screen a window opens (left, right, home, end: step; space: play). Where there is none, as over ssh, a
page is served. `--save out.png` needs neither. Two runs are shown side by side, on one page.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from datasets.files import replacing
from experiments.records.files import write_text
from experiments.running.mistyped import option_mistyped
from experiments.viewers.export import EXPORTS, convert
from experiments.viewers.page import side_by_side, write_page
from experiments.viewers.picture import picture
from experiments.viewers.rerun_log import show_in_rerun
from experiments.viewers.scene import has_space
from experiments.viewers.server import serve, serve_text
from experiments.viewers.source import CannotViewError, Source
from experiments.viewers.window import has_screen, show

PICTURES = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class Options:
    path: tyro.conf.Positional[Path]
    """Names a run's folder, results/EXPERIMENT/RUN; a .ply; a COLMAP model's folder; a BAL, Bundler or libmv file."""
    beside: tyro.conf.Positional[Path | None] = None
    """Names a second one: both are shown side by side, on one slider and from the same side."""
    save: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Writes what the name says, and ends: a picture (.png, .pdf, .svg), the page (.html), a video of the learning
    (.mp4, .gif), its points (.ply), points and cameras as glTF (.glb), what Rerun shows (.rrd), or a COLMAP
    model (a folder, as model/)."""
    step: Annotated[int | None, tyro.conf.arg(metavar="ITERATION")] = None
    """Shows it as it stood at this iteration; left out, as it is now."""
    watch: bool = False
    """Follows a run that goes on, or has still to begin."""
    serve: bool = False
    """Serves the page, even where there is a screen."""
    rerun: bool = False
    """Shows it in Rerun's viewer, where rerun-sdk is installed; --save run.rrd writes what it shows."""
    host: str = "127.0.0.1"
    """Says where to serve: nobody but this machine can see the default; 0.0.0.0 is open to the network."""
    port: int = 8765
    """Sets the first port to try."""


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, or 2 where something is wrong with what was asked, which stderr says in one sentence."""
    if wrong := option_mistyped("view", sys.argv[1:] if arguments is None else arguments, Options):
        print(wrong, file=sys.stderr)
        return 2
    options = tyro.cli(
        Options, args=arguments, prog="python -m experiments.view", description=__doc__,
        config=(tyro.conf.FlagCreatePairsOff,),
    )  # fmt: skip
    try:
        _view(options)
    except CannotViewError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
    return 0


def _view(options: Options) -> None:
    source = Source(options.path, options.step)
    if options.beside:
        _view_both(source, Source(options.beside, options.step), options)
        return
    if options.save:
        if options.watch or options.serve:
            raise CannotViewError("--save writes one file and ends: leave out --watch and --serve")
        _save(source, options.save)
        return
    if options.rerun:
        _show_in_rerun(source, options)
        return
    if options.watch:
        _await_run(source)
    if not options.serve and has_screen() and _has_space(source, options.watch):
        show(source, options.watch)
    else:
        serve(source, options.host, options.port, options.watch)


def _view_both(left: Source, right: Source, options: Options) -> None:
    if options.watch:
        raise CannotViewError("two runs are shown as they stand: leave out --watch")
    recordings = left.read(), right.read()
    if options.save is None:
        titles = " and ".join(recording.title for recording in recordings)
        serve_text(side_by_side(*recordings), titles, options.host, options.port)
        return
    if options.save.suffix.lower() != ".html":
        raise CannotViewError(f"--save {options.save}: of two runs the name must end in .html")
    with _told(options.save):
        write_text(options.save, side_by_side(*recordings))
    print(options.save)


def _show_in_rerun(source: Source, options: Options) -> None:
    if options.watch or options.serve:
        raise CannotViewError("--rerun shows it as it stands, in a viewer of its own: leave out --watch and --serve")
    try:
        show_in_rerun(source.read())
    except (ValueError, RuntimeError) as error:  # it is not installed, or its viewer does not start
        raise CannotViewError(str(error)) from None


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say in a sentence that a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise CannotViewError(f"{path} cannot be written ({error.strerror}): choose another place") from None
    except ValueError as error:  # what there is not, or what the format cannot say
        raise CannotViewError(str(error)) from None


def _save(source: Source, path: Path) -> None:
    kind = path.suffix.lower()
    if kind not in (*PICTURES, *EXPORTS, ".html") or path.name.startswith("."):
        ends = ", ".join([*PICTURES, *filter(None, EXPORTS)])
        raise CannotViewError(f"--save {path}: the name must end in {ends} or .html, or be that of a folder")
    if kind == "" and path.is_dir() and any(path.iterdir()) and not any(path.glob("cameras.*")):
        raise CannotViewError(f"--save {path}: a new folder, or one of a COLMAP model, wanted; it holds something else")
    recording = source.read()
    with _told(path):
        if kind == ".html":
            write_page(recording, path)
        elif kind == "" and not recording.is_run and source.path.suffix.lower() != ".ply":
            convert(source.path, path)  # with all that the file says
        elif kind == "" and source.step is None and (source.path / "colmap").is_dir():
            convert(source.path / "colmap", path)  # what the run wrote itself: a recording has no lens
        elif kind in EXPORTS:
            EXPORTS[kind](recording, path)
        else:
            if not has_space(recording):
                raise CannotViewError(
                    f"{source.path} has nothing in space to draw: --save it as .html, with its curves and figures"
                )
            figure = picture(recording)
            with replacing(path) as temporary:
                figure.savefig(temporary, dpi=150)
    print(path)


def _await_run(source: Source) -> None:
    """Until the run's folder is there. Raises CannotViewError where the path is that of something else."""
    path, told = source.path, False
    while not source.has_begun:
        if path.is_file() or (path.is_dir() and any(not child.name.startswith(".") for child in path.iterdir())):
            source.read()  # says what is wrong, but with a file that can be shown
            raise CannotViewError(f"{path} is no run: leave out --watch")
        if not told:
            print(f"waiting for {path} to begin (Ctrl-C ends)", flush=True)
            told = True
        time.sleep(0.2)


def _has_space(source: Source, watch: bool) -> bool:
    """Whether there is something to show in a window; of a run to watch, as soon as there is a frame or the end."""
    recording, told = source.read(), False
    while watch and not recording.frames and not recording.summary:
        if not told:
            print(f"waiting for the first frame of {source.path} (Ctrl-C ends)", flush=True)
            told = True
        time.sleep(0.5)
        recording = source.read()
    if not has_space(recording):
        print(f"{source.path} has neither points nor cameras for a window: its page shows what there is")
    return has_space(recording)


if __name__ == "__main__":
    sys.exit(main())
