"""The judgement of chat and completions answers: what counts as a token, as an end, as a failure."""

from __future__ import annotations

import json
import random

import pytest

from loadgen.endpoints import Failure, Malformed, Reader
from loadgen.endpoints.errors import body_words
from loadgen.endpoints.openai import chat, completion
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
        reader.feed([data], [stamp])
    reader.feed([_delta({"reasoning_content": "b"})], [10])
    reader.feed([_delta({"tool_calls": [{"index": 0}]})], [11])
    reader.feed([FINISH + USAGE + DONE], [12])
    assert reader.finish() is None
    answer = reader.answer
    assert answer.stamps_ns == [4, 10, 11]
    assert (answer.prompt_tokens, answer.output_tokens, answer.finish_reason) == (9, 3, "length")
    assert answer.text == ["a"]


def test_several_tokens_in_one_read_have_one_stamp() -> None:
    reader = _reader()
    reader.feed([_delta({"content": "a"}) + _delta({"content": "b"}, "stop")], [5])
    assert reader.finish() is None
    assert reader.answer.stamps_ns == [5, 5]


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
    reader.feed([data], [1])
    failure = reader.finish()
    assert failure is not None
    assert failure.outcome is outcome
    if outcome is Outcome.STREAM_ERROR:
        assert failure.text == "boom"


@pytest.mark.parametrize("data", [b"data: {oops\n\n", b"data: 5\n\n", b'data: {"choices": ["x"]}\n\n'])
def test_malformed_events_are_value_errors(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        _reader().feed([data], [1])


def test_whole_answer() -> None:
    reader = _reader(stream=False)
    body = json.dumps(
        {
            "choices": [{"message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 2, "completion_tokens": 1},
        }
    ).encode()
    reader.feed([body[:10]], [1])
    reader.feed([body[10:]], [2])
    assert reader.finish() is None
    assert reader.answer.stamps_ns == [2]
    assert reader.answer.output_tokens == 1


def test_extra_fields_win_and_null_removes() -> None:
    call = chat([], model=None, max_tokens=4, extra={"max_tokens": 9, "stream_options": None, "ignore_eos": True})
    assert json.loads(call.body) == {"messages": [], "max_tokens": 9, "stream": True, "ignore_eos": True}


def _text(text: object, finish: str | None = None) -> bytes:
    return _event(object="text_completion", choices=[{"index": 0, "text": text, "finish_reason": finish}])


def test_completions_streamed() -> None:
    call = completion("once upon", model="m", max_tokens=4)
    assert (call.method, call.path, call.name) == ("POST", "/v1/completions", "completions")
    assert json.loads(call.body) == {
        "model": "m",
        "prompt": "once upon",
        "max_tokens": 4,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    for stamp, data in enumerate([_text(""), _text(" a"), _text(None), _text(" time"), _text("", "stop"), USAGE, DONE]):
        call.reader.feed([data], [stamp])
    assert call.reader.finish() is None
    answer = call.reader.answer
    assert (answer.stamps_ns, answer.text, answer.finish_reason) == ([1, 3], [" a", " time"], "stop")
    assert answer.output_tokens == 3


def test_completions_whole() -> None:
    call = completion([1, 2], model=None, max_tokens=4, stream=False)
    assert json.loads(call.body) == {"prompt": [1, 2], "max_tokens": 4, "stream": False}
    call.reader.feed([json.dumps({"choices": [{"text": "x", "finish_reason": "length"}]}).encode()], [7])
    assert call.reader.finish() is None
    assert (call.reader.answer.stamps_ns, call.reader.answer.text) == ([7], ["x"])
    empty = completion("a", model=None, max_tokens=4, stream=False).reader
    empty.feed([b'{"choices": [{"text": "", "finish_reason": "stop"}]}'], [7])
    assert empty.finish() == Failure(Outcome.EMPTY, "no token, finish reason stop")


@pytest.mark.parametrize(
    ("body", "outcome", "text"),
    [
        (b"", Outcome.EMPTY, "an empty answer"),
        (b'{"error": {"message": "boom"}}', Outcome.STREAM_ERROR, "boom"),
        (b'{"object": "error", "message": "boom"}', Outcome.STREAM_ERROR, "boom"),
        (b'{"choices": [{"message": {"content": "a"}}]}', Outcome.TRUNCATED, "no finish reason"),
    ],
)
def test_whole_answers_that_are_none(body: bytes, outcome: Outcome, text: str) -> None:
    reader = _reader(stream=False)
    reader.feed([body], [1])
    failure = reader.finish()
    assert failure is not None
    assert (failure.outcome, failure.text) == (outcome, text)


@pytest.mark.parametrize("body", [b"<html>", b"5", b'{"choices": [5]}', b"[" * 100_000])
def test_whole_answers_that_cannot_be_read(body: bytes) -> None:
    reader = _reader(stream=False)
    reader.feed([body], [1])
    with pytest.raises(Malformed) as caught:
        reader.finish()
    assert caught.value.evidence == body[:4096]


def test_the_only_event_without_its_blank_line_has_a_stamp() -> None:
    reader = _reader()
    reader.feed([_delta({"content": "a"}, "stop").rstrip()], [5])
    assert reader.finish() is None
    assert reader.answer.stamps_ns == [5]


ERROR_WORDS = [
    (b'{"error": {"message": "no such model", "code": 404}}', "no such model"),
    (b'{"error": {"type": "overloaded_error"}}', "overloaded_error"),
    (b'{"error": "text", "error_type": "validation"}', "text"),
    (b'{"detail": "field required"}', "field required"),
    (b'{"detail": [{"loc": ["body", 0], "msg": "bad"}, {"msg": "worse"}]}', "body.0: bad; worse"),
    (b'{"message": "no Route"}', "no Route"),
    (b'{"status": "down"}', '{"status": "down"}'),
    (b'"words"', "words"),
    (b"<html>\n bad  <b>gateway</b><script>x()</script>", "bad gateway"),
    (b"<!DOCTYPE html><html><title> 504\nTime-out</title>", "504 Time-out"),
    (b"Traceback (most recent call last):\n  File\nKeyError: 'x'\n", "KeyError: 'x'"),
    (b"[" * 4000, "[" * 1000),
    (b"", ""),
]


@pytest.mark.parametrize(("body", "words"), ERROR_WORDS)
def test_words_of_error_bodies(body: bytes, words: str) -> None:
    assert body_words(body) == words


TEXTS = [
    "a",
    " ",
    "",
    '"',
    "\\",
    "\n",
    "é",
    "日本",
    "\x7f",
    "\u2028",
    "data: ",
    '"},"finish_reason":"stop',
    "\ud83d\ude00",
    "0\r\n\r\n",
]


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("name", ["content", "text"])
def test_events_like_the_last_are_read_as_any_other(ascii_only: bool, name: str) -> None:
    """Each piece read beside its like gives what it gives to a reader that sees it first."""

    def piece(text: str, **more: object) -> bytes:
        choice = {"index": 0, "delta": {"content": text}} if name == "content" else {"index": 0, "text": text}
        fields = {"id": "x", "choices": [choice | {"finish_reason": None, **more}]}
        return b"data: " + json.dumps(fields, ensure_ascii=ascii_only).encode(errors="surrogatepass") + b"\n\n"

    draw = random.Random(1)
    for _ in range(300):
        pieces = [piece("".join(draw.choices(TEXTS, k=draw.randrange(3)))) for _ in range(8)]
        pieces[draw.randrange(8)] = piece("a", logprobs={"content": [{"token": "a"}]})
        pieces[draw.randrange(8)] = piece("a") + piece("b")
        if draw.random() < 0.3:
            pieces[draw.randrange(8)] = piece("a").replace(b"a", b"\xff")
        quick, slow = _reader(), _reader()
        outcomes = []
        for reader, size in ((quick, draw.randrange(1, 9)), (slow, 1)):
            problem = ""
            for first in range(0, len(pieces), size):
                if reader is slow:
                    reader._frame = None
                stamps = list(range(len(pieces)))[first : first + size]
                try:
                    reader.feed(pieces[first : first + size], stamps)
                except Malformed as error:
                    problem = str(error)
                    break
            outcomes.append((problem, reader.answer))
        assert outcomes[0] == outcomes[1]


def test_texts_that_are_no_strings_take_no_longer() -> None:
    reader = _reader()
    like = _delta({"content": "X"})
    reader.feed([like], [1])
    with pytest.raises(Malformed):
        reader.feed([like.replace(b"X", b"a" * 100_000 + b"\\x")], [2])
