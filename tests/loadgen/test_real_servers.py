"""Streams and failures as real servers send them, byte for byte and chunk for chunk, and the records that result.

Seen on the wire: llama-server, llama-cpp-python, transformers serve, Triton, LiteLLM, infinity, vLLM. A load tester
that trusts "200 and [DONE]" calls a broken server fast.
"""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest

from loadgen.endpoints.server_times import parse
from tests.loadgen.driven import a_chat, answered, client_of, drive
from tests.loadgen.scripted import CHUNKED, END, HEAD, Script, chunk, reset, send, serving

DONE = b"data: [DONE]\n\n"


def event(choices: Any = (), **fields: Any) -> bytes:
    """An event as llama-server writes it."""
    message = {"choices": list(choices), "created": 1790000000, "id": "chatcmpl-x", "model": "m", **fields}
    return b"data: " + json.dumps({**message, "object": "chat.completion.chunk"}).encode() + b"\n\n"


def delta(content: Any = None, finish: str | None = None, **fields: Any) -> bytes:
    inner = {"content": content} if content is not None else {}
    return event([{"finish_reason": finish, "index": 0, "delta": {**inner, **fields}}])


ROLE = delta(role="assistant", content="")
NULL_ROLE = event([{"finish_reason": None, "index": 0, "delta": {"role": "assistant", "content": None}}])
FINISH = delta(finish="length")


def usage(tokens: int, choices: Any = (), **fields: Any) -> bytes:
    return event(choices, usage={"completion_tokens": tokens, "prompt_tokens": 9, "total_tokens": 9 + tokens}, **fields)


def stream(*events: bytes, end: bytes = END) -> Script:
    """Each event in a chunk of its own, all at once."""
    return send(CHUNKED + b"".join(map(chunk, events)) + end)


def error_answer(status: bytes, kind: bytes, body: bytes, more: bytes = b"") -> Script:
    head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\n%bContent-Length: %d\r\n\r\n" % (status, kind, more, len(body))
    return send(head + body)


# -- framing


def test_llama_server_as_it_is() -> None:
    """First chunk: role and first token. Last: finish and usage with timings. Terminator in two packets."""
    timings = {"prompt_n": 9, "prompt_ms": 33.25, "predicted_n": 3, "predicted_ms": 71.5}
    pieces = [
        CHUNKED + chunk(NULL_ROLE + delta("a")),
        chunk(delta(" b")),
        chunk(delta(" c")),
        chunk(FINISH + usage(3, timings=timings)) + chunk(DONE),
        b"0\r\n",
        b"\r\n",
    ]
    times = [parse(f"field:timings.{name}") for name in ("prompt_ms", "predicted_ms", "draft_ms")]
    record = answered(send(*pieces, gap_s=0.02), server_times=times)
    assert (record["outcome"], record["finish_reason"], record["error"]) == ("OK", "length", None)
    assert (record["output_tokens"], record["token_source"], record["output_events"]) == (3, "usage", 3)
    assert (record["prompt_tokens"], record["coalesced_reads"]) == (9, 0)
    assert record["server_times_us"] == [33250, 71500, None]
    assert record["first_byte_ns"] == record["first_token_ns"]
    gaps = [record["last_token_ns"] - record["first_token_ns"], record["end_ns"] - record["last_token_ns"]]
    assert 35e6 < gaps[0] < 90e6
    assert gaps[1] > 50e6, "the end is the last byte of the terminator"
    assert len(record["chunk_gaps_us"]) == 2


def test_transformers_joins_queued_tokens_in_a_chunk() -> None:
    body = [CHUNKED + chunk(ROLE), chunk(delta("a") + delta("b") + delta("c")), chunk(delta("d", "stop")) + END]
    record = answered(send(*body, gap_s=0.02))
    assert (record["outcome"], record["output_events"], record["coalesced_reads"]) == ("OK", 4, 1)
    assert record["chunk_gaps_us"][:2] == [0, 0]
    assert record["token_source"] == "events"


def test_chunks_that_cut_events_and_characters() -> None:
    body = ROLE + delta("€uro") + delta("s", "stop") + DONE
    cuts = [body[at : at + 7] for at in range(0, len(body), 7)]
    record = answered(send(CHUNKED, *(chunk(piece) for piece in cuts), END))
    assert (record["outcome"], record["output_events"]) == ("OK", 2)


@pytest.mark.parametrize("end", [[DONE], []], ids=["[DONE]", "terminal chunk only"])
def test_done_is_not_universal(end: list[bytes]) -> None:
    last = usage(1, [{"index": 0, "delta": {}, "finish_reason": "stop"}])
    record = answered(stream(ROLE, delta("a"), last, *end))
    assert (record["outcome"], record["finish_reason"], record["output_tokens"]) == ("OK", "stop", 1)


def test_headers_and_role_long_before_the_first_token() -> None:
    """transformers admits a request long before it works on it."""
    record = answered(send(CHUNKED, chunk(ROLE), chunk(delta("a")), chunk(delta("b", "stop")) + END, gap_s=0.15))
    assert record["outcome"] == "OK"
    assert 250e6 < record["first_token_ns"] - record["first_byte_ns"] < 400e6
    assert record["first_byte_ns"] - record["sent_ns"] < 100e6


def test_comments_while_queued_are_no_tokens() -> None:
    pings = [chunk(b": ping - 2026-01-01 00:00:00.000000\r\n\r\n") for _ in range(3)]
    record = answered(
        send(CHUNKED, *pings, chunk(ROLE + delta("a")), chunk(delta("b", "stop") + DONE) + END, gap_s=0.03)
    )
    assert (record["outcome"], record["output_events"], record["coalesced_reads"]) == ("OK", 2, 0)
    assert record["first_token_ns"] - record["first_byte_ns"] > 80e6


def test_named_events_and_ids_are_read_over() -> None:
    named = b"event: completion\r\nid: 7\r\nretry: 100\r\n" + delta("a", "stop").replace(b"\n", b"\r\n")
    assert answered(stream(named, DONE))["outcome"] == "OK"


NO_TOKENS = {
    "empty": delta(""),
    "null": event([{"index": 0, "delta": {"content": None}, "finish_reason": None}]),
    "nothing": delta(),
    "delta null": event([{"index": 0, "delta": None}]),
    "no choice": event([]),
    "choices null": b'data: {"choices": null}\n\n',
    "empty tool calls": delta(tool_calls=[]),
}


@pytest.mark.parametrize("nothing", NO_TOKENS.values(), ids=NO_TOKENS.keys())
def test_deltas_without_output_are_no_tokens(nothing: bytes) -> None:
    record = answered(send(CHUNKED + chunk(nothing), chunk(delta("a")), chunk(nothing + FINISH) + END, gap_s=0.03))
    assert (record["outcome"], record["output_events"], record["output_tokens"]) == ("OK", 1, 1)
    assert record["first_token_ns"] - record["first_byte_ns"] > 20e6


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_content": "hm"},
        {"reasoning": "hm", "content": None},
        {"reasoning": "hm", "content": ""},
        {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"refusal": "no"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_reasoning_and_tool_calls_are_tokens(fields: dict[str, Any]) -> None:
    first = event([{"index": 0, "delta": fields, "finish_reason": None}])
    record = answered(send(CHUNKED + chunk(ROLE), chunk(first), chunk(delta("a")), chunk(FINISH) + END, gap_s=0.03))
    assert (record["outcome"], record["output_events"]) == ("OK", 2)
    assert 15e6 < record["last_token_ns"] - record["first_token_ns"] < 60e6


USAGES = {
    "never (llama-cpp-python)": ([FINISH], "events", 64, None),
    "null until the end (vLLM)": ([event([], usage=None), FINISH], "events", 64, None),
    "on the finish chunk (transformers)": (
        [usage(64, [{"index": 0, "delta": {}, "finish_reason": "length"}])],
        *("usage", 64, 9),
    ),
    "in a chunk of its own (llama-server)": ([FINISH, usage(64)], "usage", 64, 9),
    "with an empty choice, estimated (LiteLLM)": ([FINISH, usage(79, [{"index": 0, "delta": {}}])], "usage", 79, 9),
    "counts characters (infinity)": ([FINISH, usage(4_000_000)], "usage", 4_000_000, 9),
    "nonsense": ([FINISH, usage(-1), usage(1 << 40), event([], usage=[64])], "events", 64, 9),
}


@pytest.mark.parametrize(("ending", "source", "tokens", "prompt"), USAGES.values(), ids=USAGES.keys())
def test_usage(ending: list[bytes], source: str, tokens: int, prompt: int | None) -> None:
    """What the server claims is recorded beside what was seen: a mismatch shows."""
    record = answered(stream(ROLE, *(delta("a") for _ in range(64)), *ending, DONE))
    assert (record["outcome"], record["token_source"], record["output_tokens"]) == ("OK", source, tokens)
    assert (record["output_events"], record["prompt_tokens"]) == (64, prompt)


def test_finish_reason_absent_until_the_end_and_another_model() -> None:
    first = event([{"index": 0, "delta": {"content": "a"}}], model="another")
    record = answered(stream(first, delta("b", "stop"), DONE))
    assert (record["outcome"], record["finish_reason"]) == ("OK", "stop")


def test_length_short_of_max_tokens_is_well() -> None:
    record = answered(stream(ROLE, delta("a"), delta("b"), FINISH, usage(2), DONE), a_chat(max_tokens=512))
    assert (record["outcome"], record["output_tokens"], record["finish_reason"]) == ("OK", 2, "length")


# -- failures behind a 200


def test_interrupted_by_the_next_request() -> None:
    """llama-cpp-python's default: 50 streams, 50 x 200, 50 x [DONE], 49 without a finish reason, in 0.4 s."""
    cut = CHUNKED + chunk(ROLE) + chunk(DONE)
    scripts = [send(cut, keep=False)] * 25 + [send(cut + END)] * 24 + [stream(ROLE, delta("a", "stop"), DONE)]
    with serving(*scripts) as server:
        records = []
        for _ in scripts:
            client = client_of(server.port)
            records.append(drive(client, a_chat()))
            client.close()
    assert {record["status"] for record in records} == {200}
    found = [(outcome, len(list(group))) for outcome, group in itertools.groupby(r["outcome"] for r in records)]
    assert found == [("TRUNCATED", 25), ("EMPTY", 24), ("OK", 1)]


@pytest.mark.parametrize(
    ("script", "outcome", "error"),
    [
        (stream(), "EMPTY", "an empty stream"),
        (stream(b": ping\n\n"), "EMPTY", "an empty stream"),
        (send(HEAD + b"Content-Length: 0\r\n\r\n"), "EMPTY", "an empty stream"),
        (stream(DONE), "EMPTY", "no token, no finish reason"),
        (stream(ROLE, delta(finish="stop"), DONE), "EMPTY", "no token, finish reason stop"),
        (stream(ROLE, delta("a"), DONE), "TRUNCATED", "no finish reason"),
        (stream(ROLE, delta("a", "abort"), DONE), "STREAM_ERROR", "finish reason abort"),
        (stream(ROLE, delta("a", "error"), DONE), "STREAM_ERROR", "finish reason error"),
    ],
    ids=["nothing", "comment", "length 0", "[DONE] only", "stop without content", "no finish", "abort", "error"],
)
def test_a_200_without_an_answer(script: Script, outcome: str, error: str) -> None:
    record = answered(script)
    assert (record["outcome"], record["error"], record["status"]) == (outcome, error, 200)


TRACEBACK = 'Traceback (most recent call last):\n  File "model.py", line 7, in run\nRuntimeError: CUDA out of memory'
IN_BAND = {
    "string": (b'data: {"error": "slot 3 unavailable"}\n\n', "slot <n> unavailable"),
    "object": (
        b'data: {"error": {"message": "Internal error", "type": "server_error", "code": 500}}\n\n',
        "Internal error",
    ),
    "traceback": (
        b"data: " + json.dumps({"error": TRACEBACK}).encode() + b"\n\n",
        "RuntimeError: CUDA out of memory",
    ),
    "bare": (b'data: {"object": "error", "message": "too busy", "code": 503}\n\n', "too busy"),
    "named event": (b'event: error\ndata: {"detail": "worker died"}\n\n', "worker died"),
    "no blank line": (b'data: {"error": "cut"}', "cut"),
}


@pytest.mark.parametrize("ending", ["done", "no done", "cut", "reset"])
@pytest.mark.parametrize(("data", "error"), IN_BAND.values(), ids=IN_BAND.keys())
def test_errors_in_the_stream(data: bytes, error: str, ending: str) -> None:
    body = CHUNKED + chunk(ROLE) + chunk(delta("a")) + chunk(data)
    if ending == "done" and data.endswith(b"\n\n"):
        body += chunk(DONE)
    script = {"cut": send(body, keep=False), "reset": reset(body)}.get(ending, send(body + END))
    record = answered(script)
    assert (record["outcome"], record["error"], record["status"]) == ("STREAM_ERROR", error, 200)
    assert record["raw"].encode() in data
    assert record["output_events"] == 1


def test_a_200_with_an_error_instead_of_a_stream() -> None:
    record = answered(error_answer(b"200 OK", b"application/json", b'{"error": {"message": "no such model"}}'))
    assert (record["outcome"], record["error"]) == ("STREAM_ERROR", "no such model")


MALFORMED = {
    "cut JSON": (chunk(b'data: {"error": "oo\n\n') + END, "an event is no JSON", '{"error": "oo'),
    "no JSON": (chunk(b"data: Internal Server Error\n\n") + END, "an event is no JSON", "Internal Server Error"),
    "not UTF-8": (chunk(b'data: {"a": "\xff"}\n\n') + END, "an event is no JSON", '{"a": "\ufffd"}'),
    "deep": (chunk(b"data: " + b"[" * 100_000 + b"\n\n") + END, "an event is no JSON", "[" * 4096),
    "a number": (chunk(b"data: 5\n\n") + END, "an event of an unknown shape", "5"),
    "a choice that is text": (
        chunk(b'data: {"choices": ["a"]}\n\n') + END,
        "an event of an unknown shape",
        '{"choices": ["a"]}',
    ),
    "a page": (
        chunk(b"<html><body>Please sign in</body></html>") + END,
        "a body that is no event stream",
        "<html><body>Please sign in</body></html>",
    ),
    "a bad chunk": (b"zz\r\nx", "no HTTP: Invalid character in chunk size", "zz\r\nx"),
}


@pytest.mark.parametrize(("body", "error", "raw"), MALFORMED.values(), ids=MALFORMED.keys())
def test_bytes_that_cannot_be_read(body: bytes, error: str, raw: str) -> None:
    record = answered(send(CHUNKED, body, gap_s=0.02))
    assert (record["outcome"], record["error"], record["status"]) == ("MALFORMED", error, 200)
    assert record["raw"] == raw


def test_tokens_before_the_damage_are_kept() -> None:
    record = answered(send(CHUNKED + chunk(ROLE) + chunk(delta("a")) + chunk(delta("b")) + b"zz\r\n"))
    assert (record["outcome"], record["output_events"]) == ("MALFORMED", 2)


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        (send(CHUNKED + chunk(ROLE) + chunk(delta("a")) + chunk(delta("b")), keep=False), "TRUNCATED"),
        (send(CHUNKED + chunk(ROLE) + chunk(delta("a")) + chunk(delta("b"))[:40], keep=False), "TRUNCATED"),
        (stream(ROLE, delta("a"), delta("b")), "TRUNCATED"),
        (reset(CHUNKED + chunk(ROLE) + chunk(delta("a")) + chunk(delta("b"))), "RESET"),
    ],
    ids=["just the end", "within a chunk", "terminal chunk by a proxy", "reset"],
)
def test_upstream_killed_in_the_middle(script: Script, outcome: str) -> None:
    record = answered(script)
    assert (record["outcome"], record["attempts"], record["finish_reason"]) == (outcome, 1, None)
    assert record["first_token_ns"] is not None


def test_llama_server_at_sigterm() -> None:
    """It stops the tokens, hangs (30 s), sends one comment, and cuts without the terminal chunk."""
    pieces = [CHUNKED + chunk(NULL_ROLE + delta("a")), chunk(delta("b")), chunk(b":\n\n")]

    def script(connection: Any, request: bytes) -> bool:
        send(*pieces[:2], gap_s=0.02)(connection, request)
        time.sleep(0.4)
        return send(pieces[2], keep=False)(connection, request)

    record = answered(script)
    assert (record["outcome"], record["output_events"]) == ("TRUNCATED", 2)
    assert record["error"] == "connection closed before the end of the answer"
    assert record["end_ns"] - record["last_token_ns"] > 350e6, "the silence is in the record"


# -- requests that are refused


PYDANTIC = {
    "type": "extra_forbidden",
    "loc": ["body", "ignore_eos"],
    "msg": "Extra inputs are not permitted",
    "input": 1,
}
REFUSALS = {
    "422 text": (
        *(b"422 Unprocessable Entity", b"application/json"),
        b"{\"detail\": \"Unexpected fields in the request: {'ignore_eos', 'min_tokens'}\"}",
        "HTTP 422: Unexpected fields in the request: {<name>, <name>}",
    ),
    "422 list": (
        *(b"422 Unprocessable Entity", b"application/json", json.dumps({"detail": [PYDANTIC]}).encode()),
        "HTTP 422: body.ignore_eos: Extra inputs are not permitted",
    ),
    "400": (
        *(b"400 Bad Request", b"application/json; charset=utf-8"),
        b'{"error":{"code":400,"message":"request (5000 tokens) exceeds the available context size (4096 tokens)"}}',
        "HTTP 400: request (<n> tokens) exceeds the available context size (<n> tokens)",
    ),
    "401": (
        *(b"401 Unauthorized", b"application/json", b'{"error":{"message":"Invalid API Key"}}'),
        "HTTP 401: Invalid API Key",
    ),
    "500 JSON as text (Triton)": (
        *(b"500 Internal Server Error", b"text/plain", b'{"error":"failed to parse the request JSON buffer"}'),
        "HTTP 500: failed to parse the request JSON buffer",
    ),
    "500 text": (
        *(b"500 Internal Server Error", b"text/plain; charset=utf-8", b"Internal Server Error"),
        "HTTP 500: Internal Server Error",
    ),
    "503": (
        *(b"503 Service Unavailable", b"application/json", b'{"error":{"message":"Loading model","code":503}}'),
        "HTTP 503: Loading model",
    ),
    "502 page": (
        *(b"502 Bad Gateway", b"text/html"),
        b"<html>\r\n<head><title>502 Bad Gateway</title></head><body><h1>nginx/1.27</h1></body></html>",
        "HTTP 502: <n> Bad Gateway",
    ),
    "500 null": (b"500 Internal Server Error", b"application/json", b"null", "HTTP 500"),
    "429 nothing": (b"429 Too Many Requests", b"text/plain", b"", "HTTP 429"),
    "500 bytes": (b"500 Oops", b"application/octet-stream", b"\xff\xfe\x00", "HTTP 500: \ufffd\ufffd\x00"),
}


@pytest.mark.parametrize(("status", "kind", "body", "error"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals(status: bytes, kind: bytes, body: bytes, error: str) -> None:
    record = answered(error_answer(status, kind, body))
    assert (record["outcome"], record["error"], record["status"]) == ("HTTP_ERROR", error, int(status[:3]))
    assert record["raw"] == (body.decode(errors="replace") or error)
    assert (record["output_tokens"], record["first_token_ns"]) == (None, None)


def test_a_refusal_that_is_cut_is_a_refusal() -> None:
    script = send(b"HTTP/1.1 503 Busy\r\nContent-Length: 900\r\n\r\nno slot", keep=False)
    record = answered(script)
    assert (record["outcome"], record["status"], record["error"]) == ("HTTP_ERROR", 503, "HTTP 503: no slot")


def test_a_refusal_before_the_request_is_read() -> None:
    """A server may answer 413 and hang up while a long prompt is still on its way."""
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 8\r\nConnection: close\r\n\r\ntoo long"
    with serving(unread=refusal) as server:
        record = drive(client_of(server.port), a_chat()._replace(body=b"x" * 20_000_000))
    assert (record["outcome"], record["error"], record["attempts"]) == ("HTTP_ERROR", "HTTP 413: too long", 1)


def test_compressed_answers_are_refused() -> None:
    gzipped = b"Content-Encoding: gzip\r\n"
    record = answered(error_answer(b"200 OK", b"text/event-stream", b"\x1f\x8b\x08\x00", gzipped))
    assert record["outcome"] == "MALFORMED"
    assert record["error"] == "answer in the encoding gzip, although identity was asked for"
    refused = answered(error_answer(b"500 Oops", b"text/plain", b"\x1f\x8b\x08\x00", gzipped))
    assert (refused["outcome"], refused["error"]) == ("HTTP_ERROR", "HTTP 500: a body in the encoding gzip")
    plain = answered(
        error_answer(b"200 OK", b"text/event-stream", delta("a", "stop"), b"Content-Encoding: identity\r\n")
    )
    assert plain["outcome"] == "OK"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_errors_that_name_the_location(status: int) -> None:
    location = b"Location: https://models.example.com/v2/chat\r\n"
    record = answered(error_answer(b"%d Moved" % status, b"text/html", b"", location))
    assert (record["outcome"], record["status"]) == ("HTTP_ERROR", status)
    assert record["error"] == f"HTTP {status}: redirects to https://models.example.com/v<n>/chat"
    assert record["raw"] == f"HTTP {status}: redirects to https://models.example.com/v2/chat"


def test_interim_answers_are_none() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nContent-Encoding: gzip\r\n\r\n"
    record = answered(send(b"HTTP/1.1 100 Continue\r\n\r\n" + early, CHUNKED + chunk(delta("a", "stop")) + END))
    assert (record["outcome"], record["status"]) == ("OK", 200)
    only = answered(send(early, keep=False))
    assert (only["outcome"], only["status"]) == ("TRUNCATED", None)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000, b"HTTP/1.1 100 Continue\r\n\r\n" * 4000])
def test_headers_without_an_end(head: bytes) -> None:
    record = answered(send(head))
    assert (record["outcome"], record["error"]) == ("MALFORMED", "more than <n> bytes of headers")


@pytest.mark.parametrize("surplus", [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", b"xyz"])
def test_more_than_the_answer(surplus: bytes) -> None:
    record = answered(send(CHUNKED + chunk(delta("a", "stop")) + END + surplus))
    assert record["outcome"] == "MALFORMED"


# -- connections that were kept


ANSWER = stream(ROLE, delta("a", "stop"), DONE)


def hang_up(after_s: float = 0.0, hard: bool = False) -> Script:
    """Read the request and end the connection without a byte."""

    def script(connection: Any, request: bytes) -> bool:
        time.sleep(after_s)
        return (reset() if hard else send(keep=False))(connection, request)

    return script


@pytest.mark.parametrize("hard", [False, True], ids=["FIN", "RST"])
def test_a_kept_connection_that_is_closed_before_a_byte_is_replaced_once(hard: bool) -> None:
    with serving(ANSWER, hang_up(hard=hard), ANSWER) as server:
        client = client_of(server.port)
        first, second = drive(client, a_chat()), drive(client, a_chat())
        client.close()
        assert (server.connections, len(server.requests)) == (2, 3)
    assert (first["outcome"], first["attempts"]) == ("OK", 1)
    assert (second["outcome"], second["attempts"], second["error"]) == ("OK", 2, None)
    assert second["connect_us"] is not None
    assert second["intended_ns"] < second["sent_ns"] < second["first_byte_ns"]


def test_only_once() -> None:
    with serving(ANSWER, hang_up(), hang_up(), ANSWER) as server:
        client = client_of(server.port)
        drive(client, a_chat())
        record = drive(client, a_chat())
        client.close()
        assert len(server.requests) == 3
    assert (record["outcome"], record["attempts"]) == ("RESET", 2)
    assert record["error"] == "connection closed without an answer"


@pytest.mark.parametrize("hard", [False, True], ids=["FIN", "RST"])
def test_a_fresh_connection_is_not_tried_again(hard: bool) -> None:
    with serving(hang_up(hard=hard), ANSWER) as server:
        record = drive(client_of(server.port), a_chat())
        assert len(server.requests) == 1
    assert (record["outcome"], record["attempts"]) == ("RESET", 1)


@pytest.mark.parametrize("ending", [send(b"HTTP/1.1 2", keep=False), reset(b"HTTP/1.1 2")], ids=["FIN", "RST"])
def test_nothing_is_sent_again_after_a_byte(ending: Script) -> None:
    with serving(ANSWER, ending, ANSWER) as server:
        client = client_of(server.port)
        drive(client, a_chat())
        record = drive(client, a_chat())
        assert len(server.requests) == 2
    assert record["outcome"] in ("TRUNCATED", "RESET")
    assert record["attempts"] == 1


def test_a_server_that_dies_at_work_is_not_one_that_closed_an_idle_connection() -> None:
    with serving(ANSWER, hang_up(after_s=1.1), ANSWER) as server:
        client = client_of(server.port)
        drive(client, a_chat())
        record = drive(client, a_chat())
        assert len(server.requests) == 2
    assert (record["outcome"], record["attempts"]) == ("RESET", 1)
