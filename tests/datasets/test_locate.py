import numpy as np
import pytest

from datasets.arrays import load_npz, rows_to_tensor
from datasets.files import image_paths, require_file
from datasets.locate import AbsentDataError, find, locate


def test_find_reads_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("LEARNABLE_GEOMETRY_DATA", str(tmp_path))
    (tmp_path / "some set").mkdir()
    assert find("some set") == tmp_path / "some set"
    with pytest.raises(FileNotFoundError, match=r"'another'.*set LEARNABLE_GEOMETRY_DATA"):
        find("another")
    with pytest.raises(FileNotFoundError):
        find("")  # not the root itself


def test_find_defaults_to_the_folder_beside_the_project(monkeypatch):
    monkeypatch.delenv("LEARNABLE_GEOMETRY_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"shared/data/no such set, which does not exist"):
        find("no such set")


def test_only_a_known_set_is_absent_and_any_other_path_is_mistyped(tmp_path, monkeypatch):
    monkeypatch.setenv("LEARNABLE_GEOMETRY_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AbsentDataError):
        locate("bal/some.txt")
    (tmp_path / "data" / "bal").mkdir(parents=True)
    for name in ("bal/some.txt", "bla/some.txt", "bla", "/bla"):
        with pytest.raises(FileNotFoundError, match="found nothing") as raised:
            locate(name)
        assert not isinstance(raised.value, AbsentDataError)
    (tmp_path / "data" / "bal" / "some.txt").touch()
    assert locate("bal/some.txt").is_file()
    (tmp_path / "my_photos").mkdir()
    with pytest.raises(FileNotFoundError, match=r"my_fotos: .* found nothing; did you mean my_photos\?$"):
        locate("my_fotos")


def test_images_of_a_folder_are_its_visible_files_each_once(tmp_path):
    for name in ("2.png", "10.PNG", "._2.png", ".hidden.png", "text.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "1.png").symlink_to("2.png")
    (tmp_path / "3.png").symlink_to("nowhere.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "5.png").touch()
    (tmp_path / "4.png").symlink_to("elsewhere/5.png")
    assert [path.name for path in image_paths(tmp_path)] == ["2.png", "4.png", "10.PNG"]


def test_require_file(tmp_path):
    (tmp_path / "a").touch()
    assert require_file(str(tmp_path / "a")) == tmp_path / "a"
    with pytest.raises(FileNotFoundError, match="found a folder"):
        require_file(tmp_path)
    with pytest.raises(FileNotFoundError, match="found nothing"):
        require_file(tmp_path / "missing")


def test_load_npz_keeps_the_order(tmp_path):
    np.savez(tmp_path / "a.npz", b=np.zeros(2), a=np.ones(3))
    assert list(load_npz(tmp_path / "a.npz")) == ["b", "a"]


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 a broken one"])
def test_load_npz_rejects_what_is_none(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz: an npz of numeric arrays wanted"):
        load_npz(tmp_path / "a.npz")


def test_load_npz_rejects_npy_pickles_truncation_and_emptiness(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "a.npy").rename(tmp_path / "single.npz")
    np.savez(tmp_path / "pickle.npz", a=np.array([None, {}], dtype=object))
    np.savez(tmp_path / "whole.npz", a=np.arange(100.0))
    (tmp_path / "truncated.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:300])
    for name in ("single", "pickle", "truncated"):
        with pytest.raises(ValueError, match=rf"{name}\.npz: an npz of numeric arrays wanted"):
            load_npz(tmp_path / f"{name}.npz")
    np.savez(tmp_path / "empty.npz")
    with pytest.raises(ValueError, match="found none"):
        load_npz(tmp_path / "empty.npz")


def test_rows_to_tensor():
    rows = rows_to_tensor(np.arange(6, dtype=np.int16).reshape(2, 3), 3, "here", rows=2)
    assert rows.dtype.is_floating_point
    assert rows.tolist() == [[0, 1, 2], [3, 4, 5]]
    for array, columns, n in [
        (np.zeros(6), 3, None),
        (np.zeros((2, 3)), 2, None),
        (np.zeros((2, 3)), 3, 4),
        (np.zeros((0, 3)), 3, None),
        (np.array([["a", "b"]]), 2, None),
    ]:
        with pytest.raises(ValueError, match=r"^here: numbers of shape .* wanted, found"):
            rows_to_tensor(array, columns, "here", rows=n)
    with pytest.raises(ValueError, match=r"^here, row 1: finite numbers wanted, found \[2.0, nan\]"):
        rows_to_tensor(np.array([[0, 1], [2, np.nan]]), 2, "here")
