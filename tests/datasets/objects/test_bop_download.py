"""BOP's archives, by its names, from an address on this machine: what is unpacked, and what interruptions leave."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from datasets.objects import download as module
from datasets.objects.download import download
from datasets.objects.generated import generate
from datasets.objects.layout import read_models, read_split

PARTS = ("base", "models", "test_all", "train_pbr")
pytestmark = pytest.mark.slow  # a set is rendered


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set by the names of LINEMOD's."""
    folder = generate(tmp_path_factory.mktemp("made") / "lm", train=2, test=1, objects=(1, 4), processes=1)
    (folder / "train").rename(folder / "train_pbr")
    return folder


@pytest.fixture(scope="module")
def source(original: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where its archives are published, each as BOP cuts them."""
    place = tmp_path_factory.mktemp("published")
    published = place / "lm" / "resolve" / "main"
    published.mkdir(parents=True)
    for part, entry in zip(PARTS, ("", "models", "test", "train_pbr"), strict=True):
        with zipfile.ZipFile(published / f"lm_{part}.zip", "w") as archive:
            files = (original / entry).rglob("*") if entry else original.glob("*.json")
            for path in files:
                archive.write(path, path.relative_to(original if entry else original.parent))
    return place.as_uri()


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_the_set_is_what_was_published_and_is_read(original: Path, source: str, tmp_path: Path) -> None:
    folder = download("lm", tmp_path, PARTS, source)
    assert folder == tmp_path / "lm"
    assert content(folder) == content(original)
    assert not list(tmp_path.glob("*.zip*"))
    models = read_models(folder)
    assert list(models) == [1, 4]
    for one, other in zip(read_split(folder, "train_pbr"), read_split(original, "train_pbr"), strict=True):
        np.testing.assert_array_equal(one.pose, other.pose)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    download("lm", tmp_path, PARTS, "file:///nowhere")  # is not asked
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_an_interruption_leaves_nothing_in_halves(
    original: Path, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while an archive is unpacked, and between the entries of one that is."""
    extract, moves = zipfile.ZipFile.extractall, module.os.replace

    def dying(self: zipfile.ZipFile, path: Path) -> None:
        self.extract(self.namelist()[0], path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", dying)
        with pytest.raises(KeyboardInterrupt):
            download("lm", tmp_path, PARTS, source)
    assert not content(tmp_path / "lm")

    def moved_once(one: Path, other: Path) -> None:
        if list((tmp_path / "lm").glob("*.json")):
            raise KeyboardInterrupt
        moves(one, other)

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", moved_once)
        with pytest.raises(KeyboardInterrupt):
            download("lm", tmp_path, ("base",), source)
    assert len(content(tmp_path / "lm")) == 1
    assert extract is zipfile.ZipFile.extractall
    download("lm", tmp_path, PARTS, source)
    assert content(tmp_path / "lm") == content(original)


def test_an_archive_that_lies_there_is_taken_and_a_damaged_one_is_named(source: str, tmp_path: Path) -> None:
    published = Path(source.removeprefix("file://")) / "lm" / "resolve" / "main"
    whole = (published / "lm_models.zip").read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1  # one bit, inside a mesh
    path = tmp_path / "lm_models.zip"
    for bad in (damaged, whole[:-100], b"<html>busy</html>"):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"lm_models\.zip: BOP's archive wanted, found a damaged one"):
            download("lm", tmp_path, ("models",), "file:///nowhere")
        assert not content(tmp_path / "lm")
    path.write_bytes(whole)
    assert list(read_models(download("lm", tmp_path, ("models",), "file:///nowhere"))) == [1, 4]


def test_an_archive_cannot_write_outside_its_set(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "lm_models.zip", "w") as archive:
        archive.writestr("../../../outside.txt", "no")
        archive.writestr("models/models_info.json", "{}")
    download("lm", tmp_path, ("models",), "file:///nowhere")
    assert not list(tmp_path.parent.glob("outside.txt"))
    assert (tmp_path / "lm" / "models" / "models_info.json").exists()


def test_what_is_not_published_is_named(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.download.time.sleep", lambda _: None)
    with pytest.raises(OSError, match=r"lm_train_real\.zip could not be read"):
        download("lm", tmp_path, ("train_real",), source)
