"""The notebooks of docs/notebooks: every one runs to its end, and the pages show it as it ran."""

import os
import re
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install -e .[dev]")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install -e .[dev]")

from datasets import locate  # noqa: E402

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))
DATA = {"structure_from_photographs": "temple_sparse_ring"}
"""The data set that a notebook reads."""


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if path.stem in DATA:
        try:
            locate.find(DATA[path.stem])
        except locate.AbsentDataError as absent:
            pytest.skip(str(absent))
    # a kernel of this interpreter, whatever kernels a person has installed
    kernel = tmp_path / "kernels" / "python3"
    kernel.mkdir(parents=True)
    command = f'{{"argv": ["{sys.executable}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"], '
    (kernel / "kernel.json").write_text(command + '"display_name": "Python 3", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(path.parents[2]), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(path.parent)}}).execute()
    told, shown = (
        [re.findall(r"'(CONVERGED|SINGULAR|FOUND|AMBIGUOUS)", str(cell.outputs)) for cell in code(each)]
        for each in (nbformat.read(path, as_version=4), notebook)
    )
    assert told == shown  # statuses and verdicts are those that the page shows


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_as_it_ran(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert pictures
    text = "".join(str(output.get("text", "")) for output in outputs)
    assert not re.search(r"/(home|root|work|tmp|Users)/", text)  # nobody's folders


def test_the_pages_list_them_all() -> None:
    listed = re.findall(r"(?m)^\w+$", (NOTEBOOKS[0].parent / "index.md").read_text())
    assert sorted(listed) == [path.stem for path in NOTEBOOKS]
