"""The page as it is served: what it answers, to whom, and how it follows a run."""

import http.client
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from experiments import view
from experiments.records.recording import Recording
from experiments.viewers.page import encode
from experiments.viewers.server import _Payload, _server
from experiments.viewers.source import Source
from tests.commands import PATIENCE
from tests.experiments.viewers.recordings import sphere, written

pytestmark = pytest.mark.slow  # a fixture that takes seconds, a browser, or runs of a driver

EARLY = replace(sphere(), frames=sphere().frames[:3], summary={})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return written(EARLY, tmp_path / "toy" / "sphere")


@pytest.fixture
def served() -> Iterator[Callable[..., int]]:
    """served(run, watch): the port at which it is."""
    servers: list[Any] = []

    def begin(run: Path, watch: bool) -> int:
        server = _server(_Payload(Source(run), watch).answers, "127.0.0.1", 0)
        servers.append(server)
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server.server_port

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def recorded(run: Path) -> Recording:
    return Source(run).read()


def test_the_page_its_data_and_their_version_are_served(run: Path, served: Callable[..., int]) -> None:
    port = served(run, False)
    status, headers, page = ask(port, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b"<title>toy / sphere</title>" in page
    status, headers, data = ask(port, "/recording?anything")
    assert (status, headers["Content-Type"]) == (200, "application/octet-stream")
    assert data == encode(recorded(run))
    for path in ("/", "/recording", "/version"):
        whole, head = ask(port, path), ask(port, path, "HEAD")
        assert head[0] == 200
        assert head[2] == b""
        assert head[1]["Content-Length"] == whole[1]["Content-Length"] == str(len(whole[2]))


@pytest.mark.parametrize("path", ["/config.json", "/recording/", "/../view.py", "/%2e%2e/", "/recordings"])
def test_nothing_else_is(run: Path, served: Callable[..., int], path: str) -> None:
    assert ask(served(run, False), path)[0] == 404


def test_nothing_can_be_written(run: Path, served: Callable[..., int]) -> None:
    port = served(run, False)
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(port, "/", method)[0] >= 400


def test_other_sites_names_for_this_machine_are_refused(run: Path, served: Callable[..., int]) -> None:
    port = served(run, False)
    for host in ("evil.example", "evil.example:8765", "localhost.evil.example"):
        status, _, body = ask(port, "/recording", Host=host)
        assert status == 403
        assert len(body) < 1000
    for host in ("localhost", f"localhost:{port}", "127.0.0.1:1234", "[::1]:80"):
        assert ask(port, "/version", Host=host)[0] == 200


def test_a_run_that_is_watched_is_read_again_when_it_has_changed(
    run: Path, served: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, still = served(run, True), served(run, False)
    before = [ask(port, path) for port in (watched, still) for path in ("/version", "/recording")]
    reads: list[int] = []
    read = Source.read
    monkeypatch.setattr(Source, "read", lambda self: reads.append(1) or read(self))
    assert [ask(port, path)[2] for port in (watched, still) for path in ("/version", "/recording")] == [
        body for _, _, body in before
    ]
    assert reads == []
    written(replace(sphere(), summary={}), run)
    assert ask(watched, "/version")[2] != before[0][2]
    assert [ask(watched, "/recording")[2] for _ in range(3)] == 3 * [encode(recorded(run))]
    assert len(reads) == 2  # the server's, and this test's
    assert [ask(still, path)[2] for path in ("/version", "/recording")] == [before[2][2], before[3][2]]


def test_what_is_damaged_for_a_moment_leaves_what_there_was(
    run: Path, served: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    port = served(run, True)
    before = ask(port, "/recording")[2]
    (run / "recording" / "frame-00000003.npz").write_bytes(b"PK")
    assert ask(port, "/recording")[2] == before
    assert "frame-00000003.npz is damaged" in capsys.readouterr().err
    written(replace(sphere(), summary={}), run)
    assert ask(port, "/recording")[2] == encode(recorded(run))


def test_a_port_that_is_taken_leaves_the_next_and_twenty_are_enough(
    run: Path, served: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = served(run, False)
    with _server(_Payload(Source(run), False).answers, "127.0.0.1", port) as second:
        assert port < second.server_port < port + 20
    monkeypatch.setattr("experiments.viewers.server.PORTS", 1)
    assert view.main([str(run), "--serve", "--port", str(port)]) == 2
    assert "give another --port" in capsys.readouterr().err


@pytest.mark.parametrize("where", [("--host", "192.0.2.1"), ("--port", "99999"), ("--port", "-1")])
def test_an_address_that_cannot_be_had_is_said(
    run: Path, where: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert view.main([str(run), "--serve", *where]) == 2
    error = capsys.readouterr().err
    assert where[1] in error
    assert error.count("\n") == 1


def test_the_command_says_where_it_serves_and_ends_with_ctrl_c(run: Path, tmp_path: Path) -> None:
    later = tmp_path / "toy" / "later"
    command = [sys.executable, "-m", "experiments.view", str(later), "--serve", "--watch", "--port", "8790"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as viewer:
        assert viewer.stdout is not None
        assert viewer.stdout.readline() == f"waiting for {later} to begin (Ctrl-C ends)\n"
        written(replace(EARLY, frames=()), later)
        where = viewer.stdout.readline()
        port = int(where.split("127.0.0.1:")[1].split("/")[0])
        assert where == f"toy / later: open http://127.0.0.1:{port}/ (Ctrl-C ends)\n"
        assert viewer.stdout.readline().startswith(f"from another machine: ssh -L {port}:127.0.0.1:{port} ")
        assert viewer.stdout.readline().startswith(f"waiting for the first frame of {later}")
        with pytest.raises(OSError, match=r"refused|unreachable"):  # loopback alone
            socket.create_connection((_address(), port), timeout=2).close()
        version = ask(port, "/version")[2]
        written(EARLY, later)
        assert ask(port, "/version")[2] != version
        assert ask(port, "/recording")[2] == encode(recorded(later))
        viewer.send_signal(signal.SIGINT)
        assert viewer.wait(timeout=PATIENCE) == 0
        assert viewer.stderr is not None
        assert viewer.stderr.read() == ""


def _address() -> str:
    """This machine's in the network; no packet is sent for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("there is no network that could see the server")
        return probe.getsockname()[0]


def test_a_browser_follows_the_run(run: Path, served: Callable[..., int], visit: Callable[..., Any]) -> None:
    page = visit(f"http://127.0.0.1:{served(run, True)}/")
    page.wait_for_function("document.querySelector('#moment').innerText.includes('of 3')")
    written(replace(sphere(), frames=sphere().frames[:9], summary={}), run)
    page.wait_for_function("document.querySelector('#moment').innerText.includes('of 9')")
    assert "Iteration 8" in page.locator("#moment").inner_text()
