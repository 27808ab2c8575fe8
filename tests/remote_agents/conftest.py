"""Real sockets, pipes and processes that the tests of the agents share."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_agents.agent.outbox import Outbox
from remote_agents.agent.protocol import EVENT, SAMPLE, Decoder, Frame


class Site:
    """A real HTTP server: path -> (status, body, seconds to wait), and what was asked of it."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, str, float]] = {}
        self.redirects: dict[str, str] = {}
        self.asked: list[tuple[str, str | None]] = []
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.asked.append((self.path, self.headers.get("Authorization")))
                status, body, wait_s = site.pages.get(self.path, (404, "no such page", 0))
                time.sleep(wait_s)
                data = body.encode()
                self.send_response(307 if self.path in site.redirects else status)
                if self.path in site.redirects:
                    self.send_header("Location", site.redirects[self.path])
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


class Sent:
    """An outbox, and what a collector that keeps up would be sent."""

    def __init__(self) -> None:
        self.outbox = Outbox("here", gather_ns=0)
        self._decoder = Decoder()
        self._decoder.in_step = True

    def frames(self) -> list[Frame]:
        """What was put since the last call."""
        frames: list[Frame] = []
        while (entry := self.outbox.after(self._decoder.received, 0)) is not None:
            frames += self._decoder.feed(entry.frame)
        self.outbox.acknowledge(self._decoder.received)
        return frames

    def events(self) -> list[dict[str, Any]]:
        return [frame.body for frame in self.frames() if frame.kind == EVENT]

    def rows(self, table: str) -> list[list[Any]]:
        samples = [frame.body for frame in self.frames() if frame.kind == SAMPLE]
        return [row for name, _, rows in samples if name == table for row in rows]


@pytest.fixture
def sent() -> Sent:
    return Sent()


def until(condition: Callable[[], Any], limit_s: float = 15.0) -> Any:
    """Wait until a condition holds and return its value."""
    end = time.monotonic() + limit_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {limit_s} s"
        time.sleep(0.02)


def running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def python(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
        **options,
    )
