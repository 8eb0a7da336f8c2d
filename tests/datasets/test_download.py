"""Files from a server of this machine that breaks off, forgets ranges, changes its mind or has no such file."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from datasets import download
from datasets.download import fetch

CONTENT = np.random.default_rng(0).bytes(200_000)


class Server(ThreadingHTTPServer):
    """What it serves, what it was asked for, and how it misbehaves: bytes after which it breaks off, deaf to ranges."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/file.zip": CONTENT}
        self.asked: list[tuple[str, str | None]] = []
        self.breaks: list[int] = []
        self.errors: list[int] = []
        self.ranges = True

    def url(self, name: str = "/file.zip") -> str:
        return f"http://127.0.0.1:{self.server_port}{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.asked.append((self.path, wanted))
        content = self.server.files.get(self.path)
        if self.server.errors:
            self.send_error(self.server.errors.pop(0))
            return
        if content is None:
            self.send_error(404)
            return
        start = int(wanted[6:-1]) if wanted and self.server.ranges else 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + self.server.breaks.pop(0) if self.server.breaks else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_a_file_arrives_once(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.zip"
    assert fetch(server.url(), path) == path
    assert path.read_bytes() == CONTENT
    assert fetch(server.url(), path) == path
    assert server.asked == [("/file.zip", None)]
    assert [child.name for child in path.parent.iterdir()] == ["file.zip"]


def test_what_breaks_off_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    server.breaks = [70_000, 50_000, 0, 0, 0, 0, 1]  # four times in a row nothing at all
    fetch(server.url(), tmp_path / "file.zip", pause=0)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked[:3]] == [None, "bytes=70000-", "bytes=120000-"]
    assert server.asked[-1][1] == "bytes=120001-"


def test_a_server_deaf_to_ranges_sends_all_of_it_again(server: Server, tmp_path: Path) -> None:
    server.breaks, server.ranges = [70_000], False
    fetch(server.url(), tmp_path / "file.zip", pause=0)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_what_never_arrives_is_kept_and_another_call_goes_on(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file.zip"
    server.breaks = [70_000, *[0] * 5]
    with pytest.raises(OSError, match=r"could not be read: 70000 of 200000 bytes came.*put the file there yourself"):
        fetch(server.url(), path, pause=0)
    assert not path.exists()
    fetch(server.url(), path)
    assert server.asked[-1][1] == "bytes=70000-"
    assert path.read_bytes() == CONTENT


def test_a_whole_part_that_was_not_yet_renamed_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.zip.part").write_bytes(CONTENT)
    fetch(server.url(), tmp_path / "file.zip", pause=0)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_of_another_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.zip.part").write_bytes(CONTENT + b"more")
    fetch(server.url(), tmp_path / "file.zip", pause=0)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_server_that_is_busy_is_asked_again_and_one_that_has_no_such_file_is_not(
    server: Server, tmp_path: Path
) -> None:
    server.errors = [503, 429]
    fetch(server.url(), tmp_path / "file.zip", pause=0)
    server.asked.clear()
    with pytest.raises(OSError, match=re.escape(f"{server.url('/none.zip')}: 404 Not Found: is the name right?")):
        fetch(server.url("/none.zip"), tmp_path / "none.zip", pause=0)
    assert len(server.asked) == 1
    assert [child.name for child in tmp_path.iterdir()] == ["file.zip"]


def test_a_disk_too_small_is_told_before(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 199_999})())
    with pytest.raises(OSError, match="GB wanted on the disk of"):
        fetch(server.url(), tmp_path / "file.zip", pause=0)
    assert not (tmp_path / "file.zip").exists()
    monkeypatch.undo()
    fetch(server.url(), tmp_path / "file.zip", pause=0)


def test_an_address_of_a_file_is_read_as_well(tmp_path: Path) -> None:
    (tmp_path / "there.zip").write_bytes(CONTENT)
    fetch((tmp_path / "there.zip").as_uri(), tmp_path / "here.zip")
    assert (tmp_path / "here.zip").read_bytes() == CONTENT
