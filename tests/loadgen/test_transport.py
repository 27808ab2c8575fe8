"""The transport against scripted servers on real sockets: framing, stamps, endings, failures."""

from __future__ import annotations

import datetime
import ipaddress
import itertools
import socket
import ssl
import time
from dataclasses import replace
from pathlib import Path

import gevent
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from loadgen.record import Outcome
from loadgen.transport import reactor
from loadgen.transport.client import Client
from loadgen.transport.response import Exchange
from loadgen.transport.target import Target
from tests.loadgen.scripted import CHUNKED, END, HEAD, Script, chunk, reset, send, serving, stall

REQUEST = b"POST /x HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n"
EVENTS = [b"data: %d\n\n" % number for number in range(10)]


def _fetch(client: Client, timeout_s: float = 5.0) -> tuple[Exchange, list[tuple[bytes, int]]]:
    exchange, pieces = Exchange(), []

    def feed(data: list[bytes], stamps: list[int]) -> bool:
        pieces.extend(zip(data, stamps, strict=True))
        return True

    client.fetch(exchange, REQUEST, b"hi", feed, timeout_s)
    return exchange, pieces


def _once(script: Script, timeout_s: float = 5.0) -> tuple[Exchange, list[tuple[bytes, int]]]:
    with serving(script) as server:
        client = Client(Target.of(f"http://127.0.0.1:{server.port}"))
        try:
            return _fetch(client, timeout_s)
        finally:
            client.close()


@pytest.mark.parametrize(
    "pieces",
    [
        [CHUNKED, *(chunk(event) for event in EVENTS), END],
        [HEAD + b"Content-Length: 90\r\n\r\n", *EVENTS],
    ],
    ids=["chunked", "content-length"],
)
def test_every_event_has_its_own_stamp(pieces: list[bytes]) -> None:
    exchange, got = _once(send(*pieces, gap_s=0.03))
    assert exchange.failure is None
    assert [data for data, _ in got] == EVENTS
    gaps = [(later[1] - earlier[1]) / 1e6 for earlier, later in itertools.pairwise(got)]
    assert all(20 < gap < 60 for gap in gaps), gaps
    assert exchange.sent_ns < exchange.first_byte_ns <= got[0][1] <= got[-1][1] <= exchange.end_ns
    assert exchange.kernel_stamps
    assert 0 <= exchange.read_lag_us < 50_000


def test_stream_that_ends_with_the_connection() -> None:
    exchange, got = _once(send(HEAD + b"\r\n", *EVENTS, gap_s=0.02, keep=False))
    assert exchange.failure is None
    assert b"".join(data for data, _ in got) == b"".join(EVENTS)
    assert len(got) == len(EVENTS)


def test_the_stamp_is_the_kernels_not_that_of_a_late_reader() -> None:
    """The reader is stopped for 200 ms while the answer lies in the socket."""
    with serving(*[send(CHUNKED + chunk(b"data: 1\n\n") + END)] * 2) as server:
        client = Client(Target.of(f"http://127.0.0.1:{server.port}"))
        _fetch(client)  # of the first connection that asks for stamps, the kernel stamps what comes a little later
        gevent.get_hub().loop.run_callback(time.sleep, 0.2)  # stops the loop once the request has left
        exchange, pieces = _fetch(client)
        client.close()
    assert exchange.sent_ns is not None
    assert (pieces[0][1] - exchange.sent_ns) / 1e6 < 50
    assert exchange.read_lag_us / 1e3 > 150


def test_interim_answers_are_skipped() -> None:
    exchange, got = _once(send(b"HTTP/1.1 100 Continue\r\n\r\n", CHUNKED + chunk(b"x") + END))
    assert (exchange.status, exchange.failure, [data for data, _ in got]) == (200, None, [b"x"])


def test_connection_is_kept_and_a_stale_one_is_replaced_once() -> None:
    answer = CHUNKED + chunk(b"x") + END
    with serving(send(answer), send(answer, keep=False), send(answer)) as server:
        client = Client(Target.of(f"http://127.0.0.1:{server.port}"))
        first, _ = _fetch(client)
        second, _ = _fetch(client)
        time.sleep(0.1)  # the server closes the kept connection
        third, got = _fetch(client)
        client.close()
        assert [first.attempts, second.attempts] == [1, 1]
        assert third.attempts in (1, 2), "the end of the connection may be seen before the request is sent"
        assert (first.connect_us is not None, second.connect_us, third.connect_us is not None) == (True, None, True)
        assert third.failure is None
        assert [data for data, _ in got] == [b"x"]
        assert (len(server.requests), server.connections) == (3, 2)


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        (send(CHUNKED, chunk(b"x"), keep=False), Outcome.TRUNCATED),
        (send(HEAD + b"Content-Length: 50\r\n\r\nhalf", keep=False), Outcome.TRUNCATED),
        (send(b"HTTP/1.1 200 OK\r\nContent-", keep=False), Outcome.TRUNCATED),
        (send(keep=False), Outcome.RESET),
        (reset(CHUNKED, chunk(b"x")), Outcome.RESET),
        (send(b"220 smtp.example.com ready\r\n", keep=False), Outcome.MALFORMED),
        (send(CHUNKED + b"zz\r\nx", keep=False), Outcome.MALFORMED),
        (send(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000), Outcome.MALFORMED),
    ],
)
def test_failures_are_told_apart(script: Script, outcome: Outcome) -> None:
    exchange, _ = _once(script)
    assert exchange.failure is not None
    assert exchange.failure.outcome is outcome, exchange.failure
    assert exchange.end_ns >= exchange.sent_ns


def test_deadline_bounds_the_whole_answer() -> None:
    started = time.monotonic()
    exchange, _ = _once(stall(1.0), timeout_s=0.2)
    assert exchange.failure is not None
    assert exchange.failure.outcome is Outcome.TIMEOUT
    trickle, got = _once(send(CHUNKED, *(chunk(b"x") for _ in range(40)), gap_s=0.05), timeout_s=0.3)
    assert trickle.failure is not None
    assert trickle.failure.outcome is Outcome.TIMEOUT
    assert 3 <= len(got) <= 7
    assert time.monotonic() - started < 3


def test_body_of_an_error_is_kept_apart() -> None:
    exchange, got = _once(send(b"HTTP/1.1 429 Slow down\r\nContent-Length: 4\r\n\r\nbusy"))
    assert (exchange.status, exchange.error_body, got, exchange.failure) == (429, b"busy", [], None)


def test_refused_and_unknown_hosts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for url, text in ((f"http://127.0.0.1:{port}", "refused"), ("http://no-such-host.invalid:80", "resolved")):
        exchange, _ = _fetch(Client(Target.of(url)))
        assert exchange.failure is not None
        assert exchange.failure.outcome is Outcome.CONNECT_ERROR
        assert text in exchange.failure.text
        assert exchange.sent_ns is None


def _certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(1)
        )
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    encoding, pkcs8, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file = folder / "server.pem"
    file.write_bytes(certificate.public_bytes(encoding) + key.private_bytes(encoding, pkcs8, plain))
    return file


def test_tls_is_verified_and_stamped_by_the_kernel(tmp_path: Path) -> None:
    file = _certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with serving(send(CHUNKED, chunk(b"x") + END), tls=context) as server:
        target = Target.of(f"https://127.0.0.1:{server.port}")
        refused, _ = _fetch(Client(target))
        assert refused.failure is not None
        assert refused.failure.outcome is Outcome.TLS_ERROR
        assert target.tls is not None
        target.tls.load_verify_locations(file)
        client = Client(replace(target))
        exchange, got = _fetch(client)
        client.close()
    assert (exchange.failure, [data for data, _ in got], exchange.kernel_stamps) == (None, [b"x"], True)
    assert exchange.tls_us is not None
    assert exchange.read_lag_us >= 0


def test_tls_is_resumed_and_can_be_trusted_by_file_or_not_verified(tmp_path: Path) -> None:
    file = _certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    scripts = [send(CHUNKED, chunk(b"x") + END)] * 3
    with serving(*scripts, tls=context) as server:
        url = f"https://127.0.0.1:{server.port}"
        for target in (Target.of(url, ca_file=str(file), reuse=False), Target.of(url, insecure=True)):
            client = Client(target)
            for _ in range(2 if not target.reuse else 1):
                exchange, _ = _fetch(client)
                assert (exchange.failure, exchange.status) == (None, 200)
            if not target.reuse:
                assert target.session is not None
            client.close()
    assert server.connections == 3


def test_connections_are_new_when_they_are_not_reused() -> None:
    with serving(*[send(CHUNKED + chunk(b"x") + END)] * 3) as server:
        client = Client(Target.of(f"http://127.0.0.1:{server.port}", reuse=False, sources=("127.0.0.2", "127.0.0.3")))
        exchanges = [_fetch(client)[0] for _ in range(3)]
    assert all(exchange.connect_us is not None for exchange in exchanges)
    assert server.connections == 3
    assert server.peers == ["127.0.0.2", "127.0.0.3", "127.0.0.2"]


def test_a_long_answer_is_taken_apart_in_slices_and_on_time() -> None:
    """What is held of an answer is bounded, whatever its length."""
    pieces = [chunk(b"%06d" % number * 50) for number in range(2000)]
    held: list[int] = []

    def feed(data: list[bytes], stamps: list[int]) -> bool:
        held.append(sum(map(len, data)))
        assert stamps == sorted(stamps)
        return True

    with serving(send(CHUNKED, *pieces, END)) as server:
        client, exchange = Client(Target.of(f"http://127.0.0.1:{server.port}")), Exchange()
        client.fetch(exchange, REQUEST, b"hi", feed, 10)
        client.close()
    assert exchange.failure is None
    assert sum(held) == 2000 * 300
    assert len(held) > 5
    assert max(held) < 200_000


def test_an_event_that_looks_like_the_end_is_none() -> None:
    event = b"data: 0\r\n\r\n"
    exchange, got = _once(send(CHUNKED, chunk(event[:7]) + b"b\r\n" + event, b"\r\n" + END, gap_s=0.03))
    assert exchange.failure is None
    assert b"".join(data for data, _ in got) == event[:7] + event


@pytest.mark.parametrize(
    "end",
    [[b"0\r\n\r\n"], [b"0\r\nX-Took: 1\r\n\r\n"], [b"0", b"\r\n\r\n"], [b"0\r\n", b"\r\n"], [b"0\r\n\r", b"\n"]],
)
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_every_end_of_a_stream_is_seen(end: list[bytes], line_end: bytes) -> None:
    events = [chunk(b"data: %d" % number + line_end * 2) for number in range(4)]
    exchange, got = _once(send(CHUNKED, *events, *end, gap_s=0.02), timeout_s=2.0)
    assert exchange.failure is None
    assert len(got) == 4


def test_bytes_after_the_answer_end_the_connection() -> None:
    answer = CHUNKED + chunk(b"x") + END
    exchange, _ = _once(send(answer + b"HTTP/1.1 200 OK\r\n"))
    assert exchange.failure is not None
    assert exchange.failure.outcome is Outcome.MALFORMED
    with serving(send(answer, b"late", gap_s=0.05), send(answer)) as server:
        client = Client(Target.of(f"http://127.0.0.1:{server.port}"))
        _fetch(client)
        gevent.sleep(0.15)
        exchange, _ = _fetch(client)
        client.close()
    assert (exchange.failure, server.connections) == (None, 2)


def test_no_output_in_time() -> None:
    """The deadline of the first output: kept alive by headers and comments, until there is output."""

    def run(*scripted: bytes) -> Exchange:
        exchange, body = Exchange(), bytearray()

        def feed(data: list[bytes], _: list[int]) -> bool:
            body.extend(b"".join(data))
            return b"data:" in body

        with serving(send(CHUNKED, *scripted, END, gap_s=0.15)) as server:
            client = Client(Target.of(f"http://127.0.0.1:{server.port}"))
            client.fetch(exchange, REQUEST, b"hi", feed, 5.0, 0.4)
            client.close()
        return exchange

    late = run(*[chunk(b": ping\n\n")] * 4, chunk(b"data: x\n\n"))
    assert late.failure is not None
    assert (late.failure.outcome, late.failure.text) == (Outcome.TIMEOUT, "no output within 0.4 s")
    assert run(*[chunk(b"data: x\n\n")] * 5).failure is None


def test_a_large_body_is_sent_while_the_answer_is_read() -> None:
    """More than the kernel takes at once; a server may answer before it has read everything, and hang up."""
    body = b"x" * (8 << 20)
    head = b"POST /x HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(body)

    refusal = b"HTTP/1.1 413 Too large\r\nContent-Length: 0\r\n\r\n"
    for served, status in (
        (serving(unread=refusal), 413),
        (serving(send(CHUNKED + chunk(b"x") + END)), 200),
    ):
        with served as server:
            client, exchange = Client(Target.of(f"http://127.0.0.1:{server.port}")), Exchange()
            client.fetch(exchange, head, body, lambda *_: True, 10.0)
            client.close()
        assert (exchange.status, exchange.failure) == (status, None)
    assert len(server.requests[0]) == len(head) + len(body)


def test_an_error_of_a_reader_reaches_its_greenlet_and_nobody_else() -> None:
    def feed(data: list[bytes], _: list[int]) -> bool:
        raise KeyError("mine")

    with serving(*[send(CHUNKED + chunk(b"x") + END)] * 2) as server:
        client = Client(Target.of(f"http://127.0.0.1:{server.port}"))
        with pytest.raises(KeyError, match="mine"):
            client.fetch(Exchange(), REQUEST, b"hi", feed, 5.0)
        exchange, _ = _fetch(client)
        client.close()
    assert exchange.failure is None


def test_a_step_of_the_wall_clock_moves_no_stamp() -> None:
    """The kernel stamps with the wall clock: an hour's jump changes the offset, not the instants."""
    current = reactor.current()
    with serving(*[send(CHUNKED + chunk(b"x") + END)] * 2) as server:
        client = Client(Target.of(f"http://127.0.0.1:{server.port}"))
        _fetch(client)
        current.offsets[-1] = (current.offsets[-1][0], current.offsets[-1][1] + 3_600_000_000_000)
        steps = current.clock_steps
        exchange, got = _fetch(client)
        client.close()
    assert current.clock_steps == steps + 1
    assert exchange.kernel_stamps
    assert 0 <= got[0][1] - (exchange.sent_ns or 0) < 1_000_000_000


def test_answers_that_begin_alike_are_read_as_any_other() -> None:
    """A head seen before needs no parser; what is not quite like it does."""

    def answer(body: bytes, head: bytes = b"X: 1\r\n", size: int | None = None) -> bytes:
        size = len(body) if size is None else size
        return b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (head, size, body)

    scripts = [
        *[send(answer(b"a")), send(answer(b"b")), send(answer(b"c")), send(answer(b"long")), send(answer(b"d"))],
        *[
            send(answer(b"ef")[:-1], b"f", gap_s=0.05),
            send(answer(b"g")),
            send(answer(b"h")),
            send(CHUNKED + chunk(b"i") + END),
        ],
        *[send(answer(b"j")), send(answer(b"k")), send(b"HTTP/1.1 404 No\r\nX: 1\r\nContent-Length: 1\r\n\r\nl")],
        *[send(answer(b"m")), send(answer(b"n")), send(answer(b"o", b"Connection: close\r\n"), keep=False)],
        *[send(answer(b"p")), send(answer(b"q")), send(answer(b"", size=1), keep=False)],
    ]
    bodies, statuses = [], []
    with serving(*scripts) as server:
        client = Client(Target.of(f"http://127.0.0.1:{server.port}"))
        for _ in scripts:
            exchange, got = _fetch(client)
            bodies.append(b"".join(data for data, _ in got))
            statuses.append((exchange.status, exchange.failure and exchange.failure.outcome))
            assert exchange.headers.get("x", "1") == "1"
        client.close()
    texts = [
        b"a",
        b"b",
        b"c",
        b"long",
        b"d",
        b"ef",
        b"g",
        b"h",
        b"i",
        b"j",
        b"k",
        b"",
        b"m",
        b"n",
        b"o",
        b"p",
        b"q",
        b"",
    ]
    assert bodies == texts
    assert statuses == [*[(200, None)] * 11, (404, None), *[(200, None)] * 5, (200, Outcome.TRUNCATED)]
    assert server.connections == 2
