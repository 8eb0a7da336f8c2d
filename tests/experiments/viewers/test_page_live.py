"""The page of a recording while its run goes on."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from experiments.records.recording import Recording
from experiments.viewers.page import encode, page
from tests.commands import PATIENCE
from tests.experiments.viewers.recordings import sphere
from tests.experiments.viewers.screen import settle

HURRY = "<script>setTimeout = ((wait) => (then, ms) => wait(then, ms / 20))(setTimeout)</script>"  # it asks more often


class Source:
    """What the server below gives; None is a run that cannot be read."""

    def __init__(self, recording: Recording | None) -> None:
        self.recording, self.version = recording, 0

    def set(self, recording: Recording | None) -> None:
        self.recording, self.version = recording, self.version + 1


@contextmanager
def serving(source: Source) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                text = page(source.recording, live="/")  # type: ignore[arg-type]
                body = text.replace("<head>", f"<head>{HURRY}", 1).encode()
            elif source.recording is None:
                body = b"a damaged file"
            else:
                body = encode(source.recording) if self.path == "/recording" else str(source.version).encode()
            self.send_response(200 if source.recording else 500)
            self.send_header("Content-Type", "text/html" if self.path == "/" else "application/octet-stream")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
def test_live_page_follows_the_run(visit: Callable[..., Any]) -> None:
    whole = sphere(count=40, frames=12)
    source = Source(replace(whole, frames=(), metrics={}, summary={}))
    with serving(source) as address:
        tab = visit(address)
        tab.wait_for_function("document.querySelector('#state').textContent === 'Unfinished'")
        source.set(replace(whole, frames=whole.frames[:6], summary={}))
        tab.wait_for_function("viewer.frames === 6")
        assert tab.evaluate("viewer.frame") == 5
        tab.select_option("#color", "error")
        settle(tab)
        before = tab.evaluate("viewer.screen(3)")
        tab.mouse.move(500, 500)
        tab.mouse.down()
        tab.mouse.move(560, 520)
        tab.mouse.up()
        tab.mouse.wheel(0, -200)
        settle(tab)  # the turn swings out
        turned = tab.evaluate("viewer.screen(3)")
        assert np.hypot(*np.subtract(turned, before)) > 5

        source.set(replace(whole, frames=(*whole.frames[:6], replace(whole.frames[5], step=6)), summary={}))
        tab.wait_for_function("viewer.frames === 7")
        assert tab.evaluate("viewer.frame") == 6  # it was at the end, and stays there
        np.testing.assert_allclose(tab.evaluate("viewer.screen(3)"), turned, atol=0.5)  # and so does the view
        assert tab.locator("#color").input_value() == "error"

        tab.evaluate("viewer.setFrame(2)")
        source.set(whole)
        tab.wait_for_function("viewer.frames === 12")
        assert tab.evaluate("viewer.frame") == 2
        assert tab.inner_text("#state") == "Finished, goal reached"
        assert tab.locator("#trouble").is_hidden()
        # the answer to its last question is read before the server leaves, and it asks no more
        tab.evaluate("new Promise((done) => { setTimeout = (_, wait) => wait === 1000 && done(); })")


@pytest.mark.slow
def test_live_page_says_that_the_server_left(browser: Any) -> None:
    source = Source(sphere(count=10, frames=3))
    context = browser.new_context()
    context.set_default_timeout(1000 * PATIENCE)
    tab = context.new_page()
    with serving(source) as address:
        tab.goto(address)
        tab.wait_for_function("viewer.frames === 3")
        source.set(None)
        tab.wait_for_selector("#trouble:not([hidden])")
        assert "a damaged file" in tab.inner_text("#trouble")
        source.set(sphere(count=10, frames=4))
        tab.wait_for_function("viewer.frames === 4")
        assert tab.locator("#trouble").is_hidden()
    tab.wait_for_selector("#trouble:not([hidden])")
    assert "no longer answers" in tab.inner_text("#trouble")
    assert tab.evaluate("viewer.frames") == 4
    context.close()
