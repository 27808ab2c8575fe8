"""Failures: each outcome told apart, texts bounded in number, one raw example of each kind, no secret in them."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import gevent
import pytest

from loadgen.endpoints import Failure
from loadgen.failures import MAX_KINDS, FailureLog, normalise, secrets_of
from loadgen.options import parse_settings
from loadgen.record import Outcome
from loadgen.transport.client import Client
from loadgen.transport.response import Exchange
from loadgen.transport.target import Target
from tests.loadgen.driven import a_chat, answered, drive
from tests.loadgen.scripted import CHUNKED, END, chunk, send, serving, stall


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _record_of(url: str, timeout_s: float = 5.0) -> tuple[str, str]:
    client = Client(Target.of(url))
    record = drive(client, a_chat(), timeout_s)
    client.close()
    return record["outcome"], record["error"]


def test_timeouts_say_how_far_it_came() -> None:
    silent = answered(stall(0.4), timeout_s=0.2)
    assert (silent["outcome"], silent["error"]) == ("TIMEOUT", "no answer within <n> s")
    assert silent["end_ns"] - silent["sent_ns"] > 150e6
    slow = answered(send(CHUNKED, chunk(b": x\n\n"), END, gap_s=0.2), timeout_s=0.3)
    assert (slow["outcome"], slow["error"], slow["status"]) == ("TIMEOUT", "no complete answer within <n> s", 200)


def test_a_connection_that_is_not_made_in_time() -> None:
    """The listener's queue is full, so the handshake of TCP does not end."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        found = _record_of(f"http://127.0.0.1:{address[1]}", timeout_s=0.3)
        for one in waiting:
            one.close()
    assert found == ("TIMEOUT", "no connection within <n> s")


def test_connections_that_are_not_made() -> None:
    assert _record_of(f"http://127.0.0.1:{_closed_port()}") == ("CONNECT_ERROR", "connection refused")
    assert _record_of("http://a..b:80") == ("CONNECT_ERROR", "name cannot be resolved: not a valid host name")
    outcome, text = _record_of("http://no-such-host.invalid:80")
    assert (outcome, text.split(":")[0]) == ("CONNECT_ERROR", "name cannot be resolved")


@pytest.mark.parametrize("reply", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15"], ids=["plain HTTP", "cut"])
def test_tls_that_is_none(reply: bytes) -> None:
    with serving(unread=reply) as server:
        outcome, text = _record_of(f"https://127.0.0.1:{server.port}")
    assert (outcome, text[:5]) == ("TLS_ERROR", "TLS: "), text


def test_what_the_harness_cuts_closes_its_connection() -> None:
    with serving(stall(1.0)) as server:
        client, exchange = Client(Target.of(f"http://127.0.0.1:{server.port}")), Exchange()
        greenlet = gevent.spawn(client.fetch, exchange, b"GET / HTTP/1.1\r\n\r\n", b"", lambda *_: None, 5.0)
        gevent.sleep(0.1)
        greenlet.kill()
    assert client._connection is None
    assert (exchange.failure, exchange.status) == (None, None)
    assert exchange.end_ns > (exchange.sent_ns or 0) > 0


NORMALISED = [
    ("no slot 17 of 32", "no slot <n> of <n>"),
    ("HTTP 503: retry in 1.25s", "HTTP 503: retry in <n>s"),
    ("The model `my-model` does not exist", "The model <name> does not exist"),
    ("field 'top_k' can't be \"auto\", don't send it", "field <name> can't be <name>, don't send it"),
    ("request chatcmpl-9f8e7d6c5b4a failed", "request <id> failed"),
    ("id 123e4567-e89b-12d3-a456-426614174000 at 0x7fFF12", "id <id> at <id>"),
    ("peer 10.0.0.12:8000,", "peer <n>,"),
    ("out of memory\n\n  at line 3", "out of memory at line <n>"),
    ("max_new_tokens is too large", "max_new_tokens is too large"),
    ("half a pair: \ud800", "half a pair: ?"),
]


@pytest.mark.parametrize(("text", "expected"), NORMALISED)
def test_normalised_texts(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_normalising_is_bounded_whatever_comes() -> None:
    for text in ("'" * 10_000, "a1-" * 100_000, "word " * 100_000, "1" * 10_000, "`'\"" * 5000):
        assert len(normalise(text)) <= 200


def test_kinds_are_bounded_and_each_has_one_example(tmp_path: Path) -> None:
    file = tmp_path / "worker-0.errors.jsonl"
    log = FailureLog(file, ())
    texts = []
    for number in range(3 * MAX_KINDS):
        word = "".join("abcdefghij"[int(digit)] for digit in f"{number // 2:04}")
        outcome = Outcome.HTTP_ERROR if number % 2 else Outcome.STREAM_ERROR
        failure = Failure(outcome, f"{word} {number}", b"body %d" % number)
        for _ in range(2):
            text, example = log.note(failure, {"t_ns": number})
            if example is not None:
                log.write(example)
            texts.append(text)
    assert len(set(texts)) == MAX_KINDS // 2 + 2
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == MAX_KINDS + 2
    assert len({(line["outcome"], line["error"]) for line in lines}) == len(lines)
    assert [line["error"] for line in lines[-2:]] == ["other (STREAM_ERROR)", "other (HTTP_ERROR)"]
    assert lines[3] == {"t_ns": 3, "outcome": "HTTP_ERROR", "error": "aaab <n>", "raw": "body 3"}


def test_there_is_no_file_without_failures(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    FailureLog(file, ())
    assert not file.exists()


def test_secrets_that_a_server_repeats_are_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "sk-of-the-environment")
    header = "Authorization: Bearer s3cret-token\nCookie: session=abcdefgh; other=ijklmnop\nX-Team: red"
    settings = parse_settings({"header": header, "api_key_env": "A_KEY"}, simulated=False, steps_required=True)
    log = FailureLog(tmp_path / "x", secrets_of(settings))
    told = "Incorrect key s3cret-token (sk-of-the-environment, abcdefgh, ijklmnop) of team red, Bearer"
    text, example = log.note(Failure(Outcome.HTTP_ERROR, told, told.encode()), {})
    assert example is not None
    hidden = "Incorrect key (hidden) ((hidden), (hidden), (hidden)) of team red, Bearer"
    assert (text, example["raw"]) == (hidden, hidden)


def test_a_secret_is_hidden_before_the_text_is_cut(tmp_path: Path) -> None:
    log = FailureLog(tmp_path / "x", ("s3cret-token",))
    _, example = log.note(Failure(Outcome.HTTP_ERROR, "no", b"x" * 4090 + b"s3cret-token" + b"y" * 99), {})
    assert example is not None
    assert example["raw"] == "x" * 4090 + "(hidde"
