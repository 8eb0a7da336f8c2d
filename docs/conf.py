"""Sphinx: pages in Markdown (MyST), API from docstrings, pictures and the table of tasks made at build time."""

import importlib
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import pictures  # noqa: E402

project = "Learnable geometry"
author = "the learnable-geometry authors"
copyright = f"{author}, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.viewcode"]
exclude_patterns = ["_templates"]
templates_path = ["_templates"]
default_role = "code"  # docstrings name things in single backticks

myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks hold their pictures; the tests execute them

autosummary_generate = True
autodoc_default_options = {"members": True, "member-order": "bysource", "no-value": True}
autodoc_inherit_docstrings = False  # what torch says of forward() is not about ours
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 100
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sphinx = False
html_copy_source = False


def as_written(text: str) -> str:
    """A docstring as reStructuredText that shows it as it stands.

    Our docstrings are plain text: `names` in backticks, tables and formulas indented; |r|^2, 2 * x and x_ mean
    themselves. An indented block becomes a literal one, an example (>>>) stays one, the rest is escaped.
    """
    text = re.sub(r"(?m)^(?!- |  )(.*\S)\n(?=- )", r"\1\n\n", text)  # a list may follow its sentence at once
    blocks: list[str] = []
    for block in re.split(r"\n\s*\n", text):
        literal = block.startswith(" ")
        if literal and blocks and blocks[-1].startswith("::"):
            blocks[-1] += f"\n\n{block}"
        elif literal:
            blocks.append(f"::\n\n{block}")
        elif block.startswith(">>>"):
            blocks.append(block)
        else:
            parts = re.split(r"(`[^`]*`)", block)
            parts[::2] = [re.sub(r"([\\*|_])", r"\\\1", part) for part in parts[::2]]
            parts[1::2] = [rf"``{part[1:-1]}``\ " for part in parts[1::2]]  # so that `name`s may follow
            blocks.append("".join(parts))
    return "\n\n".join(blocks)


def plain_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [*as_written("\n".join(lines)).splitlines(), ""]


class Tasks(SphinxDirective):
    """A table of the modules of geometry.tasks that have a `Problem`, each with the driver of its name."""

    def run(self) -> list[nodes.Node]:
        import experiments.tasks
        import geometry.tasks
        from geometry import Problem

        drivers = {module.name for module in pkgutil.iter_modules(experiments.tasks.__path__)}
        rows = ["| task | what it solves | presets of its driver |", "|---|---|---|"]
        for name in sorted(module.name for module in pkgutil.iter_modules(geometry.tasks.__path__)):
            module = importlib.import_module(f"geometry.tasks.{name}")
            if not any(isinstance(value, Problem) for value in vars(module).values()):
                continue
            presets = importlib.import_module(f"experiments.tasks.{name}").PRESETS if name in drivers else ()
            rows.append(
                f"| {{py:mod}}`{name} <geometry.tasks.{name}>` | {first_sentence(module.__doc__)} "
                f"| {', '.join(f'`{preset}`' for preset in presets)} |"
            )
        here = nodes.container()
        self.state.nested_parse(StringList(rows, self.get_source_info()[0]), self.content_offset, here)
        return here.children


def first_sentence(text: str | None) -> str:
    return " ".join((text or "").strip().split("\n\n")[0].split()).replace("|", r"\|")


def setup(app: Sphinx) -> None:
    app.add_directive("tasks", Tasks)
    app.connect("autodoc-process-docstring", plain_docstring)
    pictures.draw(HERE / "_generated")
