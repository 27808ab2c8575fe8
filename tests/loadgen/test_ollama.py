"""Newline-delimited JSON, and Ollama's answers in it."""

from __future__ import annotations

import json

import pytest

from loadgen.endpoints.ollama import chat
from loadgen.ndjson import NdjsonDecoder
from tests.loadgen.driven import answered
from tests.loadgen.scripted import CHUNKED, END, chunk, send


def line(content: str = "", **fields: object) -> bytes:
    message = {"model": "m", "created_at": "2026-01-01T00:00:00Z", "message": {"role": "assistant", "content": content}}
    return json.dumps({**message, "done": False, **fields}).encode() + b"\n"


LAST = line(done=True, done_reason="length", prompt_eval_count=9, eval_count=3, total_duration=5_000_000)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_lines_are_whole_however_they_are_cut(size: int) -> None:
    data = b'{"a": 1}\r\n\n{"b": "\xc3\xa9"}\n{"c": 3}'
    decoder = NdjsonDecoder()
    lines = [line for first in range(0, len(data), size) for line in decoder.feed(data[first : first + size])]
    assert [json.loads(line) for line in [*lines, *decoder.flush()]] == [{"a": 1}, {"b": "é"}, {"c": 3}]
    assert decoder.flush() == []


def test_a_line_without_end_is_bounded() -> None:
    with pytest.raises(ValueError, match="larger than 100 bytes"):
        NdjsonDecoder(100).feed(b"x" * 101)


def test_an_answer_of_ollama() -> None:
    call = chat([{"role": "user", "content": "hi"}], model="m", max_tokens=3)
    assert json.loads(call.body)["options"] == {"num_predict": 3}
    pieces = [chunk(line("a")), chunk(line("b")), chunk(line(message={"thinking": "c"})), chunk(LAST) + END]
    record = answered(send(CHUNKED, *pieces, gap_s=0.03), call)
    assert (record["outcome"], record["error"], record["finish_reason"]) == ("OK", None, "length")
    assert (record["prompt_tokens"], record["output_tokens"], record["token_source"]) == (9, 3, "usage")
    assert (record["output_events"], record["coalesced_reads"]) == (3, 0)
    assert all(20_000 < gap < 60_000 for gap in record["chunk_gaps_us"])
    assert call.reader.answer.text == ["a", "b"]


@pytest.mark.parametrize(
    ("body", "outcome", "error"),
    [
        (line("a"), "TRUNCATED", "no finish reason"),
        (LAST, "EMPTY", "no token, finish reason length"),
        (line("a") + b'{"error": "model runner has stopped"}\n', "STREAM_ERROR", "model runner has stopped"),
        (b"not JSON\n", "MALFORMED", "a line is no JSON"),
        (b"[1]\n", "MALFORMED", "a line of an unknown shape"),
        (b"", "EMPTY", "no token, no finish reason"),
    ],
)
def test_answers_that_are_not_well(body: bytes, outcome: str, error: str) -> None:
    call = chat([{"role": "user", "content": "hi"}], model="m", max_tokens=3)
    pieces = [chunk(body)] if body else []
    record = answered(send(CHUNKED, *pieces, END), call)
    assert (record["outcome"], record["error"]) == (outcome, error)
