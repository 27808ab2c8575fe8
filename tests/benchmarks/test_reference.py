"""The reference server by nothing but the standard library: framing, faults, TLS, and times that its log tells truly.

Lateness is a matter of the machine: what is held here is that a token is never early, and that the log says how late.
"""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import reference
from benchmarks.reference import Certificate, Server

Serving = Callable[..., Server]
CHAT = "/v1/chat/completions"


def _connection(server: Server) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)


def _stream(
    server: Server,
    path: str = CHAT,
    body: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    connection: http.client.HTTPConnection | None = None,
) -> tuple[list[tuple[int, bytes]], int]:
    """CLOCK_REALTIME ns and data of every event, and the status."""
    connection = connection or _connection(server)
    message = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}], **(body or {})}
    connection.request("POST", path, json.dumps(message), {"Content-Type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    events = []
    while line := answer.readline():
        if line.startswith(b"data: "):
            events.append((time.time_ns(), line[6:].strip()))
    return events, answer.status


def _sent(server: Server, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.sendall(data)
    return connection


def _request(path: str, body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST %b HTTP/1.1" % path.encode(), b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _to_the_end(connection: socket.socket) -> bytes:
    data = b""
    while piece := connection.recv(65536):
        data += piece
    connection.close()
    return data


def _chunks(data: bytes) -> list[bytes]:
    """The chunks of a whole chunked answer."""
    head, rest = data.split(b"\r\n\r\n", 1)
    assert b"Transfer-Encoding: chunked" in head
    chunks = []
    while True:
        size, rest = rest.split(b"\r\n", 1)
        length = int(size, 16)
        assert rest[length : length + 2] == b"\r\n"
        if not length:
            assert rest == b"\r\n"
            return chunks
        chunks.append(rest[:length])
        rest = rest[length + 2 :]


def test_without_a_compiler_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(reference.BuildError, match=r"needs gcc: `make system-deps` installs it"):
        reference.build(tmp_path)


def test_without_headers_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gcc").write_text(f'#!/bin/sh\nexec {shutil.which("gcc")} -nostdinc -I{tmp_path} "$@"\n')
    (tmp_path / "gcc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(reference.BuildError, match=r"needs [\w/]+\.h: `make system-deps` installs it"):
        reference.build(tmp_path)


def test_chat_is_streamed(serving: Serving) -> None:
    with serving("--ttft-ms", 5, "--itl-ms", 1) as server:
        events, status = _stream(server, body={"max_tokens": 7, "stream_options": {"include_usage": True}})
        assert (status, events[-1][1]) == (200, b"[DONE]")
        messages = [json.loads(data) for _, data in events[:-1]]
        assert len(messages) == 9
        for message in messages[:7]:
            assert (message["object"], message["model"]) == ("chat.completion.chunk", "m")
            assert message["choices"] == [{"index": 0, "delta": {"content": " tok"}, "finish_reason": None}]
        assert messages[7]["choices"][0]["finish_reason"] == "length"
        assert messages[8]["choices"] == []
        assert messages[8]["usage"]["completion_tokens"] == 7
        assert len({message["id"] for message in messages}) == 1
        assert len(_stream(server, body={"max_tokens": 1})[0]) == 3


def test_completions_and_answers_that_are_not_streamed(serving: Serving) -> None:
    with serving("--ttft-ms", 5, "--itl-ms", 1) as server:
        events, _ = _stream(server, "/v1/completions", {"max_tokens": 3, "prompt": "x"})
        assert [json.loads(data)["choices"][0]["text"] for _, data in events[:3]] == [" tok"] * 3
        connection = _connection(server)
        for path in (CHAT, "/v1/completions"):
            began = time.monotonic()
            connection.request("POST", f"{path}?ttft_ms=20&itl_ms=10", json.dumps({"max_tokens": 4}))
            message = json.loads(connection.getresponse().read())
            assert time.monotonic() - began >= 0.050
            choice = message["choices"][0]
            assert (choice["message"]["content"] if path == CHAT else choice["text"]) == " tok" * 4
            assert message["usage"]["completion_tokens"] == 4
        for path, status in (("/health", 200), ("/v1/models", 200), ("/stats", 200), ("/nowhere", 404)):
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == status
            json.loads(answer.read())


@pytest.mark.parametrize(
    "options",
    [(), ("--number",), ("--role-chunk", "first"), ("--burst", 3), ("--split",), ("--headers-late",)],
    ids=lambda options: options[0] if options else "plain",
)
def test_chunks_are_well_framed_and_options_change_what_they_say(
    serving: Serving, options: tuple[str | int, ...]
) -> None:
    with serving("--ttft-ms", 2, "--itl-ms", 1, "--tokens", 12, *options) as server:
        data = _to_the_end(_sent(server, _request(CHAT, b'{"stream":true}', b"Connection: close")))
    chunks = _chunks(data)
    if "--split" not in options:
        assert all(chunk.startswith(b"data: ") and chunk.endswith(b"\n\n") for chunk in chunks)
    events = b"".join(chunks).split(b"\n\n")[:-1]
    deltas = [json.loads(event[6:])["choices"][0]["delta"] for event in events[:-1]]
    texts = [text for delta in deltas if (text := delta.get("content"))]
    assert texts == ([f" t{number:05}" for number in range(12)] if "--number" in options else [" tok"] * 12)
    assert ("role" in deltas[0]) == ("--role-chunk" in options)


def test_requests_in_every_form(serving: Serving) -> None:
    """Chunked bodies, bodies in pieces, pipelining, Expect, and keys that are hidden in strings."""
    words = 'say "stream": true, "max_tokens": 9 \\" {[,'
    message = {"messages": [{"role": "user", "content": words}], "tools": [{"max_tokens": 50}], "max_tokens": 3}
    body = json.dumps(message).encode()
    with serving("--ttft-ms", 1, "--itl-ms", 1, "--tokens", 2) as server:
        connection = _sent(server, b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(body), 10):
            piece = body[start : start + 10]
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            time.sleep(0.002)
        connection.sendall(b"0\r\n\r\n")
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert json.loads(answer.read())["usage"]["completion_tokens"] == 3
        pipelined = _request("/predict", b"{}") * 3 + _request("/predict?ms=5", b"{}") * 2
        data = _to_the_end(_sent(server, pipelined + _request("/predict", b"{}", b"Connection: close")))
        assert data.count(b"HTTP/1.1 200") == 6
        whole = _request("/predict", b"{}", b"Expect: 100-continue")
        connection = _sent(server, whole[:-2])
        assert b"100 Continue" in connection.recv(100)
        connection.sendall(whole[-2:])
        assert b"200 OK" in connection.recv(1000)
        whole = _request("/predict", b"{}")
        for start in range(0, len(whole), 12):
            connection.sendall(whole[start : start + 12])
            time.sleep(0.002)
        assert b"200 OK" in connection.recv(1000)


def test_faults_of_a_request(serving: Serving) -> None:
    with serving("--ttft-ms", 2, "--itl-ms", 1, "--tokens", 20, "--stall-ms", 100) as server:

        def ask(fault: str) -> tuple[list[bytes], int]:
            events, status = _stream(server, headers={"x-ref-fault": fault})
            return [data for _, data in events], status

        assert ask("error") == ([], 500)
        with pytest.raises(ConnectionResetError):
            ask("reset")
        began = time.monotonic()
        assert len(ask("stall")[0]) == 22
        assert time.monotonic() - began > 0.1
        try:
            assert ask("truncate")[0][-1] != b"[DONE]"
        except http.client.IncompleteRead:
            pass
        assert len(ask("garbage")[0]) == 23
        *_, error, done = ask("inband")[0]
        assert (json.loads(error)["error"]["message"], done) == ("injected", b"[DONE]")
        log = server.stop()
    outcomes = ["http_error", "reset", "ok", "truncated", "garbage", "inband_error"]
    assert list(log["outcome"]) == outcomes


def test_faults_by_rate(serving: Serving) -> None:
    asked = 400
    with serving("--ttft-ms", 0, "--itl-ms", 0, "--tokens", 3, "--error-rate", 0.3, "--truncate-rate", 0.2) as server:
        for _ in range(asked):
            try:
                _stream(server)
            except http.client.IncompleteRead:
                pass
        outcomes = server.stop()["outcome"].value_counts()
    assert outcomes["http_error"] / asked == pytest.approx(0.3, abs=0.08)
    assert outcomes["truncated"] / asked == pytest.approx(0.2, abs=0.08)
    assert outcomes.sum() == asked


def test_tokens_keep_an_absolute_schedule_and_the_log_says_how_late_they_were(serving: Serving) -> None:
    with serving() as server:
        connection = _connection(server)
        connection.request("GET", "/health")  # so that the connection is there
        connection.getresponse().read()
        sent = time.time_ns()
        identity = {"x-request-id": "abc-1"}
        events, _ = _stream(server, f"{CHAT}?ttft_ms=50&itl_ms=5&n=60", headers=identity, connection=connection)
        (row,) = server.stop().to_dict("records")
    assert (row["id"], row["n_sent"], row["status"], row["outcome"]) == ("abc-1", 60, 200, "ok")
    first, last, read = row["t_first"], row["t_last"], row["t_read"]
    slack = row["late_max_ns"] + 1_000_000  # between a token's turn and its stamp
    assert 50_000_000 <= first - read <= 50_000_000 + slack
    assert read + 50_000_000 + 59 * 5_000_000 <= last <= read + 50_000_000 + 59 * 5_000_000 + slack
    assert row["late_sum_ns"] <= 60 * row["late_max_ns"]
    assert sent <= row["t_arrived"] <= read
    assert first <= events[0][0]
    assert last <= events[59][0]


def test_a_sequence_is_repeatable(serving: Serving) -> None:
    plans = []
    for seed in (5, 5, 6):
        with serving(
            "--seed", seed, "--ttft-ms", 5, "--ttft-sigma", 0.5, "--itl-ms", 1, "--itl-sigma", 0.5, "--tokens", 5
        ) as server:
            for _ in range(20):
                _stream(server)
            plans.append(list(server.stop()["plan_ttft_ns"]))
    assert plans[0] == plans[1] != plans[2]
    assert len(set(plans[0])) > 15


def test_slots_are_given_in_order(serving: Serving) -> None:
    with serving("--slots", 2, "--ttft-ms", 40, "--itl-ms", 0, "--tokens", 1) as server:

        def ask(number: int) -> None:
            time.sleep(number * 0.003)
            _stream(server, headers={"x-request-id": str(number)})

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        log = server.stop()
    starts = log.sort_values("t_read")["t_start"]
    assert starts.is_monotonic_increasing
    waited_ms = (log["t_start"] - log["t_read"]) / 1e6
    assert sum(waited_ms > 25) == 4
    assert server.stats["active_max"] == 2


def test_many_streams_at_once_are_whole(serving: Serving) -> None:
    body = b'{"stream":true}'
    with serving("--ttft-ms", 100, "--itl-ms", 10, "--tokens", 20) as server:
        connections = [_sent(server, _request(CHAT, body, b"Connection: close")) for _ in range(300)]
        for connection in connections:
            data = _to_the_end(connection)
            assert data.count(b"data: ") == 22
            assert data.endswith(b"0\r\n\r\n")
        outcomes = server.stop()["outcome"]
    assert list(outcomes) == ["ok"] * 300


def test_what_lies_in_a_socket_counts_before_the_end(serving: Serving) -> None:
    with serving("--ttft-ms", 10_000) as server:
        connection = _sent(server, _request(CHAT, b'{"stream":true}'))
        connection.recv(1000)
        connection.close()
        assert list(server.stop()["outcome"]) == ["client_closed"]


def test_tls_with_resumed_sessions_and_true_times(serving: Serving, certificate: Certificate) -> None:
    context = ssl.create_default_context(cafile=str(certificate.cert))
    request = _request(f"{CHAT}?ttft_ms=20&itl_ms=2&n=30", b'{"stream":true}', b"Connection: close")
    session = None
    with serving(tls=certificate) as server:
        for _ in range(2):
            plain = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            connection = context.wrap_socket(plain, server_hostname="127.0.0.1", session=session)
            assert (connection.version(), connection.session_reused) == ("TLSv1.3", session is not None)
            sent = time.time_ns()
            connection.sendall(request)
            data = b""
            while piece := connection.recv(65536):  # to a close_notify: else Python raises
                data += piece
            ended = time.time_ns()
            assert len(_chunks(data)) == 32
            session = connection.session
            connection.close()
        log = server.stop()
    assert list(log["outcome"]) == ["ok", "ok"]
    assert (server.stats["tls_handshakes"], server.stats["tls_resumed"], server.stats["bad"]) == (2, 1, 0)
    last = log.iloc[-1]
    assert sent <= last["t_arrived"] <= last["t_read"]
    assert last["t_read"] + 20_000_000 <= last["t_first"]
    assert last["t_read"] + 20_000_000 + 29 * 2_000_000 <= last["t_last"] <= ended


def test_what_is_no_tls_is_hung_up_on(serving: Serving, certificate: Certificate) -> None:
    with serving(tls=certificate) as server:
        _to_the_end(_sent(server, b"GET / HTTP/1.1\r\n\r\n"))
        server.stop()
    assert server.stats["bad"] == 1


def test_half_of_a_certificate_is_refused(serving: Serving) -> None:
    with pytest.raises(RuntimeError, match="exit status 2"):
        serving("--tls-cert", "cert.pem")
