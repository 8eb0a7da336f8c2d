"""What a release and a public page of the project consist of: one version, and files of the form that others read."""

import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest

yaml: Any = pytest.importorskip("yaml", reason="pyyaml is not installed: pip install -e .[dev]")

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text()
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def of_project(name: str) -> str:
    found = re.search(rf'(?m)^{name} = "(.*)"$', PROJECT)
    assert found, name
    return found[1]


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_every_place_has_the_version_and_the_day_of_the_last_release() -> None:
    number, day = re.findall(r"(?m)^## \[(\d+\.\d+\.\d+)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text())[0]
    citation = load("CITATION.cff")
    assert (
        number
        == of_project("version")
        == citation["version"]
        == load(".github/conda/recipe.yaml")["context"]["version"]
    )
    assert day == citation["date-released"] == date.fromisoformat(day).isoformat()
    assert f"git tag -a v{number}" in (ROOT / "CONTRIBUTING.md").read_text()


def test_the_citation_is_of_version_1_2_0_of_its_format() -> None:
    """Its required fields, and the paper as the README cites it."""
    citation = load("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["type"] == "software"
    assert citation["license"] == of_project("license")
    assert all(author.keys() in ({"name"}, {"family-names", "given-names"}) for author in citation["authors"])
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    readme = re.sub(r"[{}]", "", (ROOT / "README.md").read_text())
    assert paper["title"] in readme
    assert str(paper["year"]) in readme
    assert [author["family-names"] for author in paper["authors"]] == re.findall(
        r"(\w+), ",
        re.search(r"author = (.*)", readme)[1],  # type: ignore[index]
    )
    assert paper["url"] in readme
    assert paper["url"] in PROJECT


def test_the_conda_recipe_asks_for_what_the_wheel_asks_for() -> None:
    recipe = load(".github/conda/recipe.yaml")
    listed = re.search(r"(?m)^dependencies = \[(.*?)\]", PROJECT)
    assert listed
    wanted = {name: least for name, least in re.findall(r'"([\w-]+)>=([\d.]+)"', listed[1])}
    wanted["pytorch"] = wanted.pop("torch")
    python, *run = recipe["requirements"]["run"]
    assert dict(one.split(" >=") for one in run) == wanted
    assert python == "python >=${{ python_min }}"
    assert f">={recipe['context']['python_min']}" == of_project("requires-python")
    (setuptools,) = re.findall(r'(?m)^requires = \["(setuptools>=\d+)"\]', PROJECT)
    assert setuptools.replace(">=", " >=") in recipe["requirements"]["host"]
    assert recipe["package"]["name"] == of_project("name")


@pytest.mark.parametrize("path", [path for path in FORMS if path.name != "config.yml"], ids=lambda path: path.name)
def test_an_issue_form_is_one(path: Path) -> None:
    """As GitHub reads them: kinds of fields, each with a label and an id of its own, and something that is required."""
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= form.keys()
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert {part["type"] for part in fields} <= {"textarea", "input", "dropdown", "checkboxes"}
    assert all(part["attributes"]["label"] for part in fields)
    assert all(part["attributes"]["value"] for part in form["body"] if part["type"] == "markdown")
    ids = [part["id"] for part in fields]
    assert len({*ids}) == len(ids)
    assert any(part.get("validations", {}).get("required") for part in fields)
    for page in re.findall(r"docs/\w+\.md", path.read_text()):
        assert (ROOT / page).exists()


def test_a_bug_is_reported_with_a_status_versions_and_input() -> None:
    from geometry import Status

    fields = {part.get("id"): part for part in load(".github/ISSUE_TEMPLATE/bug.yml")["body"]}
    assert {"input", "status", "versions"} <= fields.keys()
    assert fields["status"]["attributes"]["options"][1:] == [status.name for status in Status]
