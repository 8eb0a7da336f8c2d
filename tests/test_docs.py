"""The pages of docs/: every code block does what it says, they build without a warning, every link leads somewhere.

Each page is read top to bottom in a folder that stands for the project: its own files are links, and what a page writes
or runs stays there. What the languages of a block mean:

    python    is executed; the blocks of a page share their names
    python or sh with a caption    is a file of that name, written before what follows
    output    is what the python or sh block above it prints, digit by digit
    sh        each line is executed; of a long run, and of make, only the command line is checked
    text      is shown: on the pages for those who come from a library, what they wrote with it, which need not be there
"""

import importlib
import io
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch

import run_all
from geometry import Status
from tests.commands import python_m

sybil = pytest.importorskip("sybil", reason="sybil is not installed: pip install -e .[dev]")
from sybil import Example, Sybil  # noqa: E402
from sybil.evaluators.python import PythonEvaluator  # noqa: E402
from sybil.parsers.myst import CodeBlockParser  # noqa: E402

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
PARTS = (".ci", "geometry", "datasets", "experiments", "tests", "docs", "results/reference")
FILES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "constraints.txt",
    "pyproject.toml",
    "run_all.py",
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder as the project's, of links; the process is in it, and tasks written there can be imported."""
    for name in PARTS:
        for source in (ROOT / name).rglob("*"):
            made = {"_generated", "api", ".mypy_cache", ".ruff_cache", ".pytest_cache"} & set(source.parts)
            if source.is_file() and not made:
                place = tmp_path / source.relative_to(ROOT)
                place.parent.mkdir(parents=True, exist_ok=True)
                if name == "docs":
                    shutil.copy(source, place)  # pages that are links would look for each other where they lead
                else:
                    place.symlink_to(source)
    for name in FILES:
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("geometry.tasks", "experiments.tasks"):
        package = importlib.import_module(name)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / name.replace(".", "/"))])
    before, dtype = set(sys.modules), torch.get_default_dtype()
    yield tmp_path
    torch.set_default_dtype(dtype)
    for name in set(sys.modules) - before:
        if re.match(r"(geometry|experiments)\.tasks\.", name):
            del sys.modules[name]


def caption(example: Example) -> str | None:
    """The file that a block is, or None."""
    found = re.match(r"[^\n]*\n:caption: *(\S+)\n", example.document.text[example.start : example.end])
    return found[1] if found else None


class Blocks:
    """What becomes of the blocks of one page, in their order."""

    def __init__(self, project: Path) -> None:
        self.project, self.printed = project, ""

    def file(self, example: Example) -> bool:
        """Whether the block is a file; it is written."""
        name = caption(example)
        if name:
            path = self.project / name
            path.unlink(missing_ok=True)  # a link to a file of the project's is not written through
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(example.parsed)
            importlib.invalidate_caches()
        return bool(name)

    def python(self, example: Example) -> None:
        if self.file(example):
            return
        with redirect_stdout(io.StringIO()) as printed:
            PythonEvaluator()(example)
        self.printed = printed.getvalue()

    def output(self, example: Example) -> str | None:
        found, self.printed = self.printed, ""
        said = example.parsed
        return None if found == said else f"the page says\n{said}and the block above prints\n{found}"

    def sh(self, example: Example) -> None:
        if not self.file(example):
            self.printed = "".join(run(line, self.project) for line in example.parsed.splitlines())


def run(line: str, project: Path) -> str:
    """What a command prints. Of a long one the command line is checked, as its driver would, and nothing is run."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        words = ["make", "--dry-run", *words[1:]]
    elif words[0].startswith(".venv/bin/"):
        program = Path(words[0]).name
        words = [sys.executable, *([] if program == "python" else ["-m", program]), *words[1:]]
        if words[1] == "run_all.py" and "--help" not in words:
            run_all.options_of(words[2:])
            return ""
        # the scaffold writes next to its own file, which must be the folder's
        if words[1:2] == ["-m"] and words[2].startswith("experiments.") and words[2] != "experiments.new":
            return "" if is_long(words[2:]) else python_m(*words[2:])
    done = subprocess.run(words, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def is_long(words: list[str]) -> bool:
    """Whether this is a run of a driver that is not of smoke size; its command line is parsed then."""
    module = importlib.import_module(words[0])
    presets = getattr(module, "PRESETS", {})
    if not presets or words[1:2] == ["smoke"] or "--help" in words:
        return False
    if not {*words[1:2]} & presets.keys():  # a benchmark's command may leave it out
        words = [words[0], "default", *words[1:]]
    from experiments.running.config import cli

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        try:
            cli(module.__doc__, presets)
        except SystemExit:
            pytest.fail(f"{words} is refused by its driver")
    return True


@pytest.mark.parametrize(
    "page", [pytest.param(name, marks=[pytest.mark.slow] * ("```sh" in text)) for name, text in PAGES.items()]
)
def test_every_block_of_a_page_does_what_it_says(page: str, project: Path) -> None:
    blocks = Blocks(project)
    parsers = [CodeBlockParser(name, getattr(blocks, name)) for name in ("python", "output", "sh")]
    document = Sybil(parsers, pattern="*.md", path=str(ROOT / "docs")).parse(ROOT / "docs" / page)
    examples = list(document.examples())
    for example in examples:
        example.evaluate()
    fences = re.findall(r"^ *(?:```|~~~|:::)\{?([\w-]+)", document.text, re.MULTILINE)
    known = {"python", "code-block", "output", "sh"}
    assert len(examples) == sum(fence in known for fence in fences), "a block is not read"
    prose = re.sub(r"^```.*?^```$", "", document.text, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"^(?: {4}|\t)", prose, re.MULTILINE), "a block that is indented is not read"
    directives = {"toctree", "include", "eval-rst", "tasks", "image", "figure", "note"}
    shown = {"text"} if page.startswith("coming_from_") else set()
    assert set(fences) <= known | directives | shown, "a block is of a language that nothing executes"


def test_every_status_has_its_section() -> None:
    assert re.findall(r"^## ([A-Z_]+)$", PAGES["troubleshooting.md"], re.MULTILINE) == [
        status.name for status in Status
    ]


class Links(HTMLParser):
    """Where a page leads, and what in it can be led to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name in ("href", "src"):
                self.targets.append(value)
            if value and (name == "id" or (tag == "a" and name == "name")):
                self.anchors.add(value)


@pytest.mark.slow
def test_the_pages_build_without_a_warning_and_their_links_lead_somewhere(project: Path) -> None:
    pytest.importorskip("furo", reason="furo is not installed: pip install -e .[dev]")
    out = project / "build" / "docs"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(out)]
    built = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = {path: Links(path.read_text()) for path in out.rglob("*.html")}
    assert {out / f"{Path(name).stem}.html" for name in PAGES} <= pages.keys()
    lost = []
    for page, links in pages.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme:
                continue
            path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            anchors = pages[path].anchors if path in pages else {parts.fragment}
            if not path.is_file() or (parts.fragment and unquote(parts.fragment) not in anchors):
                lost.append(f"{page.relative_to(out)}: {target}")
    assert not lost
    for task in (project / "geometry" / "tasks").glob("[a-z]*.py"):
        assert (out / "api" / f"geometry.tasks.{task.stem}.html").exists()
