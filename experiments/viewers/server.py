"""The page served from where the results are: for a machine without a screen, and to follow a run."""

import errno
import socket
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from threading import Lock
from typing import Any

from experiments.records.recording import Recording
from experiments.viewers.page import encode, page
from experiments.viewers.source import CannotViewError, Source

__all__ = ["serve", "serve_text"]

HTML = "text/html; charset=utf-8"
Answers = dict[str, tuple[str, Callable[[], bytes]]]
"""What there is at each address: its kind, and the bytes when somebody asks."""

PORTS = 20  # that are tried, one after the other, until one is free


def serve(source: Source, host: str, port: int, watch: bool) -> None:
    """Serve until Ctrl-C. Raises CannotViewError where `source` cannot be read, or that address cannot be had."""
    payload = _Payload(source, watch)
    with _server(payload.answers, host, port) as server:
        _tell(payload.recording.title, host, server.server_port)
        if watch and not payload.recording.frames:
            print(f"waiting for the first frame of {source.path}: the page shows it as soon as it is there", flush=True)
        server.serve_forever()


def serve_text(text: str, title: str, host: str, port: int) -> None:
    """Serve one page that does not change, until Ctrl-C."""
    with _server({"/": (HTML, text.encode)}, host, port) as server:
        _tell(title, host, server.server_port)
        server.serve_forever()


def _tell(title: str, host: str, port: int) -> None:
    shown = socket.gethostname() if host in ("0.0.0.0", "") else host
    print(f"{title}: open http://{shown}:{port}/ (Ctrl-C ends)")
    if _is_loopback(host):
        print(f"from another machine: ssh -L {port}:{host}:{port} {socket.gethostname()}, then the same address there")
    sys.stdout.flush()


class _Payload:
    """What the page asks for, read anew when there is something new; for any number of threads."""

    def __init__(self, source: Source, watch: bool) -> None:
        self._source, self._watch = source, watch
        self._lock = Lock()
        self._version, self.recording = self.version(), source.read()
        self._encoded = encode(self.recording)

    @property
    def answers(self) -> Answers:
        return {
            "/": (HTML, lambda: page(self.recording, live="/").encode()),
            "/recording": ("application/octet-stream", self.encoded),
            "/version": ("text/plain; charset=utf-8", lambda: self.version().encode()),
        }

    def version(self) -> str:
        return self._source.version() if self._watch else "0"

    def encoded(self) -> bytes:
        with self._lock:
            version = self.version()
            if version != self._version and (recording := _read_calmly(self._source)) is not None:
                self._version, self.recording, self._encoded = version, recording, encode(recording)
            return self._encoded


def _read_calmly(source: Source, attempts: int = 5) -> Recording | None:
    """Read a run that may be starting over at this moment; None, and a word about it, where that does not help."""
    for attempt in range(attempts):
        try:
            return source.read()
        except CannotViewError as error:
            if attempt == attempts - 1:
                print(f"{error}; the page keeps what it had", file=sys.stderr)
            time.sleep(0.1)
    return None


def _server(answers: Answers, host: str, port: int) -> ThreadingHTTPServer:
    for candidate in range(port, port + PORTS) if port else [0]:
        try:
            return _Server((host, candidate), _handler(answers, host))
        except (OSError, OverflowError) as error:
            if not isinstance(error, OSError) or error.errno != errno.EADDRINUSE:
                raise CannotViewError(
                    f"nothing can be served at {host}:{candidate} ({error}): try another --port or --host"
                ) from None
    raise CannotViewError(f"ports {port} to {port + PORTS - 1} of {host} are all taken: give another --port")


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # a browser keeps its connection; Ctrl-C does not wait for it

    def handle_error(self, *_: Any) -> None:
        """A browser that left before its answer was sent is none of the user's concern."""


def _handler(answers: Answers, host: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if _is_loopback(host) and self._asked_host() not in ("localhost", "127.0.0.1", "[::1]", host):
                # another site's name that leads here: its scripts would read what this machine keeps to itself
                self.send_error(HTTPStatus.FORBIDDEN, "Ask for localhost")
                return
            kind, answer = answers.get(self.path.partition("?")[0], ("", bytes))
            if not kind:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            body = answer()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def _asked_host(self) -> str:
            return self.headers.get("Host", "localhost").rpartition(":")[0] or self.headers.get("Host", "localhost")

        def log_message(self, format: str, *args: Any) -> None:
            """One request a second is no news."""

    return Handler


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
