"""Lines of Prometheus pages, and servers that give none, too slowly or not to the end."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from conftest import Sent, Site

from remote_agents.agent.fetch import Fetcher
from remote_agents.agent.prometheus import Reader, Source, count_series, samples

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


@contextlib.contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """The URL of a server that answers each connection's first request with what `answer` sends."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(10_000)
                    answer(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def trickle(connection: socket.socket) -> None:
    connection.sendall(HEAD % 1000)
    for _ in range(100):
        connection.sendall(b"x")
        time.sleep(0.02)


def stop_early(connection: socket.socket) -> None:
    connection.sendall(HEAD % 1000 + b"half")


def say_nothing(connection: socket.socket) -> None:
    time.sleep(0.3)


def hang_up(connection: socket.socket) -> None:
    pass


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (trickle, "no whole answer within 0.2 s"),
        (say_nothing, "no whole answer within 0.2 s"),
        (stop_early, "its answer cannot be used (the answer ended too early)"),
        (hang_up, "it cannot be reached (Remote end closed connection without response)"),
    ],
)
def test_a_server_that_does_not_answer_well_is_said_once(
    sent: Sent, answer: Callable[[socket.socket], None], said: str
) -> None:
    with serving(answer) as url:
        reader = Reader(Source(url, None, "figures", "our figures", "", ""), sent.outbox, timeout_s=0.2)
        started = time.monotonic()
        assert reader.read() is None
        assert time.monotonic() - started < 1
        paused = reader.pause_ns > 0
        assert reader.read() is None
    [event] = sent.events()
    assert (event["kind"], event["text"]) == ("no_figures", f"no our figures at {url}: {said}")
    assert paused == (answer is not hang_up)  # who is slow is given time; who restarts is looked for


def test_an_unknown_host_is_said(sent: Sent) -> None:
    reader = Reader(Source("http://no-such-host.invalid/metrics", None, "figures", "figures", "", ""), sent.outbox)
    assert reader.read() is None
    assert "it cannot be reached (" in sent.events()[0]["text"]


def test_a_problem_is_news_again_after_there_were_figures(site: Site, sent: Sent) -> None:
    reader = Reader(Source(site.url + "/metrics", None, "figures", "figures", "", ""), sent.outbox)
    site.pages["/metrics"] = (200, "a 1\n", 0)
    assert reader.read() is not None
    assert [reader.accept(), reader.accept()] == [True, False]
    for _ in range(2):
        site.pages["/metrics"] = (502, "", 0)
        assert [reader.read(), reader.read()] == [None, None]
        assert [event["kind"] for event in sent.events()] == ["no_figures"]
        assert [reader.accept(), reader.accept()] == [True, False]


def test_the_times_of_an_answer_leave_the_handshake_out(site: Site) -> None:
    site.pages["/metrics"] = (200, "x" * 100_000, 0.03)
    fetcher = Fetcher(site.url + "/metrics")
    before_ns = time.monotonic_ns()
    first, second = fetcher.fetch(), fetcher.fetch()
    assert before_ns + first.round_trip_ns <= first.t0_ns
    assert first.t1_ns - first.t0_ns >= 30_000_000
    assert first.t1_ns <= first.end_ns <= second.t0_ns
    assert first.round_trip_ns == second.round_trip_ns  # the connection is the same
    assert len(first.body) == 100_000


def test_lines() -> None:
    text = """# HELP a b{c="d"} 1
a 1
a{} 2
a{b="c"} 3 1700000000000
a_total{b="x}y",c="a \\"b\\"\\\\ \\n"} 4 # {trace_id="f"} 9 1.5
a{b="c",} 5e-1
a {b="c"} 6
a{b="c"}
a{b="c} 7
a NaN
a +Inf
a many
ab 8
"""
    assert list(samples(text, {"a"})) == [
        ("a", {}, 1),
        ("a", {}, 2),
        ("a", {"b": "c"}, 3),
        ("a", {"b": "x}y", "c": 'a "b"\\ \n'}, 4),
        ("a", {"b": "c"}, 0.5),
        ("a", {"b": "c"}, 6),
    ]
    assert count_series(text) == 3


def test_a_long_broken_line_takes_no_time() -> None:
    broken = 'a{b="' + "x\\" * 100_000
    started = time.process_time()
    assert list(samples(broken + "\n" + 'a{b="c"} ' + '"' * 100_000, {"a"})) == []
    assert time.process_time() - started < 1
