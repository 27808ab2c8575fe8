"""The judgement of chat answers: what counts as a token, as an end, as a failure."""

from __future__ import annotations

import json

import pytest

from loadgen.endpoints import Reader
from loadgen.endpoints.openai import chat
from loadgen.record import Outcome


def _reader(stream: bool = True) -> Reader:
    return chat([{"role": "user", "content": "hi"}], model="m", max_tokens=4, stream=stream).reader


def _event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def _delta(delta: object, finish: str | None = None) -> bytes:
    return _event(choices=[{"index": 0, "delta": delta, "finish_reason": finish}])


ROLE = _delta({"role": "assistant", "content": ""})
FINISH = _delta({}, "length")
USAGE = _event(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 3})
DONE = b"data: [DONE]\n\n"


def test_only_events_with_output_are_tokens() -> None:
    reader = _reader()
    for stamp, data in enumerate([ROLE, b": ping\n\n", _delta({"content": None}), _delta({"content": "a"})], start=1):
        reader.feed(data, stamp)
    reader.feed(_delta({"reasoning_content": "b"}), 10)
    reader.feed(_delta({"tool_calls": [{"index": 0}]}), 11)
    reader.feed(FINISH + USAGE + DONE, 12)
    assert reader.finish() is None
    answer = reader.answer
    assert answer.stamps_ns == [4, 10, 11]
    assert (answer.prompt_tokens, answer.output_tokens, answer.finish_reason) == (9, 3, "length")
    assert answer.text == ["a"]
    assert answer.coalesced_reads == 0


def test_several_tokens_in_one_read_are_a_coalesced_read() -> None:
    reader = _reader()
    reader.feed(_delta({"content": "a"}) + _delta({"content": "b"}, "stop"), 5)
    assert reader.finish() is None
    assert (reader.answer.stamps_ns, reader.answer.coalesced_reads) == ([5, 5], 1)


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (DONE, Outcome.EMPTY),
        (ROLE + FINISH + USAGE + DONE, Outcome.EMPTY),
        (_delta({"content": "a"}) + DONE, Outcome.TRUNCATED),
        (_delta({"content": "a"}) + _event(error="boom"), Outcome.STREAM_ERROR),
        (_event(error={"message": "boom", "type": "x"}) + DONE, Outcome.STREAM_ERROR),
    ],
)
def test_a_200_is_not_a_success(data: bytes, outcome: Outcome) -> None:
    reader = _reader()
    reader.feed(data, 1)
    failure = reader.finish()
    assert failure is not None
    assert failure.outcome is outcome
    if outcome is Outcome.STREAM_ERROR:
        assert failure.text == "boom"


@pytest.mark.parametrize("data", [b"data: {oops\n\n", b"data: 5\n\n", b'data: {"choices": ["x"]}\n\n'])
def test_malformed_events_are_value_errors(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        _reader().feed(data, 1)


def test_whole_answer() -> None:
    reader = _reader(stream=False)
    body = json.dumps(
        {
            "choices": [{"message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 2, "completion_tokens": 1},
        }
    ).encode()
    reader.feed(body[:10], 1)
    reader.feed(body[10:], 2)
    assert reader.finish() is None
    assert reader.answer.stamps_ns == [2]
    assert reader.answer.output_tokens == 1


def test_extra_fields_win_and_null_removes() -> None:
    call = chat([], model=None, max_tokens=4, extra={"max_tokens": 9, "stream_options": None, "ignore_eos": True})
    assert json.loads(call.body) == {"messages": [], "max_tokens": 9, "stream": True, "ignore_eos": True}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": {"message": "no such model"}}', "no such model"),
        (b'{"detail": "field required"}', "field required"),
        (b"<html>\n bad  gateway", "<html> bad gateway"),
    ],
)
def test_error_bodies(body: bytes, text: str) -> None:
    assert _reader().error_text(body) == text
