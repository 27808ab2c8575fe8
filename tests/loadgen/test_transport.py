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

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from loadgen.record import Outcome
from loadgen.transport.client import Client, Exchange
from loadgen.transport.connection import Target
from tests.loadgen.scripted import CHUNKED, END, HEAD, Script, chunk, reset, send, serving, stall

REQUEST = b"POST /x HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n"
EVENTS = [b"data: %d\n\n" % number for number in range(10)]


def _fetch(client: Client, timeout_s: float = 5.0) -> tuple[Exchange, list[tuple[bytes, int]]]:
    exchange, pieces = Exchange(), []
    client.fetch(exchange, REQUEST, b"hi", lambda data, stamp: pieces.append((data, stamp)), timeout_s)
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
    assert 0 <= exchange.read_lag_ns < 50_000_000


def test_stream_that_ends_with_the_connection() -> None:
    exchange, got = _once(send(HEAD + b"\r\n", *EVENTS, gap_s=0.02, keep=False))
    assert exchange.failure is None
    assert b"".join(data for data, _ in got) == b"".join(EVENTS)
    assert len(got) == len(EVENTS)


def test_the_stamp_is_the_kernels_not_that_of_a_late_reader() -> None:
    """The reader is stopped for 200 ms while the answer lies in the socket."""
    with serving(send(CHUNKED + chunk(b"data: 1\n\n") + END)) as server:
        client = Client(Target.of(f"http://127.0.0.1:{server.port}"))
        exchange, pieces = Exchange(), []
        send_now = client._open(exchange)
        assert send_now is None
        connection = client._connection
        assert connection is not None
        time.sleep(0.05)  # of the first connection that asks for stamps, the kernel stamps what comes a little later
        connection.send(REQUEST + b"hi")
        sent = time.monotonic_ns()
        time.sleep(0.2)
        client._read(exchange, connection, lambda data, stamp: pieces.append(stamp))
        client.close()
    assert (pieces[0] - sent) / 1e6 < 50
    assert exchange.read_lag_ns / 1e6 > 150


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
        assert [first.attempts, second.attempts, third.attempts] == [1, 1, 2]
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


def test_tls_is_verified_and_stamped_by_the_reader(tmp_path: Path) -> None:
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
    assert (exchange.failure, [data for data, _ in got], exchange.kernel_stamps) == (None, [b"x"], False)
    assert exchange.tls_us is not None
    assert exchange.read_lag_ns == -1
