"""The OpenAI chat and completions APIs, streamed and not, with the habits of the servers that imitate them.

An answer is well only with a complete message, no error inside, at least one output event and a finish reason.
Stamps are handed in; no clock is read here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from loadgen.endpoints import MAX_BODY_BYTES, Answer, Call, Failure, Malformed, Reader
from loadgen.endpoints.errors import is_error, message_words
from loadgen.record import Outcome
from loadgen.sse import SseDecoder

# Of a message (delta) beside its content.
_OTHER_OUTPUT = ("reasoning_content", "reasoning", "tool_calls", "function_call", "refusal", "audio")
_FAILED = ("error", "abort")  # finish reasons
_MAX_COUNT = 2**31  # what a record holds
_KEPT_MESSAGES = 4
_KEPT_BYTES = 4096
_FIELDS = (b":", b"event:", b"id:", b"retry:")  # of an event stream, without data


def chat(
    messages: Sequence[Mapping[str, Any]],
    *,
    model: str | None,
    max_tokens: int,
    stream: bool = True,
    extra: Mapping[str, Any] | None = None,
    name: str = "chat",
) -> Call:
    """A call of /v1/chat/completions. `extra` fields are added to the body and win over ours; null removes one."""
    body = {"model": model, "messages": messages, "max_tokens": max_tokens, "stream": stream}
    return _call("/v1/chat/completions", body, extra or {}, name)


def completion(
    prompt: str | Sequence[int],
    *,
    model: str | None,
    max_tokens: int,
    stream: bool = True,
    extra: Mapping[str, Any] | None = None,
    name: str = "completions",
) -> Call:
    """A call of /v1/completions; the prompt is text or token ids. `extra` as for `chat`."""
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "stream": stream}
    return _call("/v1/completions", body, extra or {}, name)


def _call(path: str, body: dict[str, Any], extra: Mapping[str, Any], name: str) -> Call:
    if body["stream"]:
        body["stream_options"] = {"include_usage": True}
    body = {key: value for key, value in {**body, **extra}.items() if value is not None}
    streamed = bool(body.get("stream"))
    return Call(
        name=name,
        method="POST",
        path=path,
        headers=(
            ("Content-Type", "application/json"),
            ("Accept", "text/event-stream" if streamed else "application/json"),
        ),
        body=json.dumps(body, ensure_ascii=False).encode(),
        reader=_Stream() if streamed else _Whole(),
    )


class _Stream(Reader):
    def __init__(self) -> None:
        self.answer = Answer()
        self._events = SseDecoder()
        self._error: Failure | None = None
        self._messages: list[Any] = []
        self._stamp_ns = 0
        self._seen = False  # an event
        self._head = b""  # of the body, until the first event

    def feed(self, body: bytes, stamp_ns: int) -> None:
        answer = self.answer
        outputs = len(answer.stamps_ns)
        self._stamp_ns = stamp_ns
        if not self._seen:
            self._head = (self._head + body)[:_KEPT_BYTES]
        try:
            events = self._events.feed(body)
        except ValueError as error:
            raise Malformed(str(error), body[:_KEPT_BYTES]) from error
        for event in events:
            self._take_event(event, stamp_ns)
        if len(answer.stamps_ns) - outputs > 1:
            answer.coalesced_reads += 1

    def _take_event(self, event: bytes, stamp_ns: int) -> None:
        self._seen = True
        if event.strip() == b"[DONE]":
            return
        try:
            message = json.loads(event)
        except (ValueError, RecursionError) as error:
            raise Malformed("an event is no JSON", event) from error
        try:
            self._take_message(message, event, stamp_ns)
        except (TypeError, AttributeError) as error:
            raise Malformed("an event of an unknown shape", event) from error

    def _take_message(self, message: Any, event: bytes, stamp_ns: int) -> None:
        if is_error(message):
            self._error = self._error or Failure(Outcome.STREAM_ERROR, message_words(message), event)
            return
        answer = self.answer
        output = ended = False
        for choice in message.get("choices") or ():
            if _take_output(answer, choice, "delta"):
                output = True
            if reason := choice.get("finish_reason"):
                ended = True
                answer.finish_reason = reason
        if output:
            answer.stamps_ns.append(stamp_ns)
        if ended or not output:
            self._messages = [*self._messages[1 - _KEPT_MESSAGES :], message]
        if "usage" in message:
            _take_usage(answer, message["usage"])

    def finish(self) -> Failure | None:
        for event in self._events.flush():
            self._take_event(event, self._stamp_ns)
        if not self._seen:
            return _judge_without_events(self._head)
        return self._error or _judge(self.answer)

    def messages(self) -> Sequence[Any]:
        return self._messages


class _Whole(Reader):
    def __init__(self) -> None:
        self.answer = Answer()
        self._body = bytearray()
        self._message: Any = None
        self._stamp_ns = 0

    def feed(self, body: bytes, stamp_ns: int) -> None:
        self._body += body
        self._stamp_ns = stamp_ns
        if len(self._body) > MAX_BODY_BYTES:
            raise Malformed(f"an answer larger than {MAX_BODY_BYTES} bytes")

    def finish(self) -> Failure | None:
        if not self._body:
            return Failure(Outcome.EMPTY, "an empty answer")
        evidence = bytes(self._body[:_KEPT_BYTES])
        try:
            self._message = json.loads(self._body)
        except (ValueError, RecursionError) as error:
            raise Malformed("an answer that is no JSON", evidence) from error
        try:
            return self._judge(self._message, evidence)
        except (TypeError, AttributeError) as error:
            raise Malformed("an answer of an unknown shape", evidence) from error

    def _judge(self, message: Any, evidence: bytes) -> Failure | None:
        if is_error(message):
            return Failure(Outcome.STREAM_ERROR, message_words(message), evidence)
        answer = self.answer
        for choice in message.get("choices") or ():
            if _take_output(answer, choice, "message"):
                answer.stamps_ns = [self._stamp_ns]
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        _take_usage(answer, message.get("usage"))
        return _judge(answer)

    def messages(self) -> Sequence[Any]:
        return [self._message]


def _take_output(answer: Answer, choice: Mapping[str, Any], key: str) -> bool:
    """Whether a choice carries output; its text goes to the answer. A choice of /v1/completions has only `text`."""
    message: Any = choice.get(key)
    text = message.get("content") if message else choice.get("text")
    if text:
        if isinstance(text, str):
            answer.text.append(text)
        return True
    return bool(message) and any(map(message.get, _OTHER_OUTPUT))


def _take_usage(answer: Answer, usage: Any) -> None:
    if isinstance(usage, dict):
        prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
        answer.prompt_tokens = prompt if _is_count(prompt) else answer.prompt_tokens
        answer.output_tokens = output if _is_count(output) else answer.output_tokens


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MAX_COUNT


def _judge(answer: Answer) -> Failure | None:
    reason = answer.finish_reason
    if reason in _FAILED:
        return Failure(Outcome.STREAM_ERROR, f"finish reason {reason}")
    if not answer.stamps_ns:
        return Failure(Outcome.EMPTY, f"no token, finish reason {reason}" if reason else "no token, no finish reason")
    return None if reason else Failure(Outcome.TRUNCATED, "no finish reason")


def _judge_without_events(head: bytes) -> Failure:
    """A body without any event: nothing, an error that is not in the stream's format, or something else."""
    lines = [line for line in head.splitlines() if line.strip() and not line.startswith(_FIELDS)]
    if not lines:
        return Failure(Outcome.EMPTY, "an empty stream")
    try:
        message = json.loads(head)
        if is_error(message):
            return Failure(Outcome.STREAM_ERROR, message_words(message), head)
    except (ValueError, RecursionError, AttributeError):
        pass
    raise Malformed("a body that is no event stream", head)
