"""The OpenAI chat completions API, streamed and not, with the habits of the servers that imitate it.

An answer is well only with a complete message, no error inside, at least one output event and a finish reason.
Stamps are handed in; no clock is read here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from loadgen.endpoints import Answer, Call, Failure, Reader
from loadgen.record import Outcome
from loadgen.sse import SseDecoder

_OUTPUT_FIELDS = ("content", "reasoning_content", "reasoning", "tool_calls", "function_call", "refusal", "audio")


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
    body: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": max_tokens, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    body = {key: value for key, value in {**body, **(extra or {})}.items() if value is not None}
    streamed = bool(body.get("stream"))
    return Call(
        name=name,
        method="POST",
        path="/v1/chat/completions",
        headers=(
            ("Content-Type", "application/json"),
            ("Accept", "text/event-stream" if streamed else "application/json"),
        ),
        body=json.dumps(body, ensure_ascii=False).encode(),
        reader=_Stream() if streamed else _Whole(),
    )


class _Chat(Reader):
    def error_text(self, body: bytes) -> str:
        try:
            message = json.loads(body)
        except ValueError:
            message = None
        if isinstance(message, dict):
            return _error_text(message)
        return " ".join(body.decode(errors="replace").split())[:120]


class _Stream(_Chat):
    def __init__(self) -> None:
        self.answer = Answer()
        self._events = SseDecoder()
        self._error: str | None = None

    def feed(self, body: bytes, stamp_ns: int) -> None:
        outputs = len(self.answer.stamps_ns)
        for event in self._events.feed(body):
            self._take_event(event, stamp_ns)
        if len(self.answer.stamps_ns) - outputs > 1:
            self.answer.coalesced_reads += 1

    def _take_event(self, event: bytes, stamp_ns: int) -> None:
        if event.strip() == b"[DONE]":
            return
        try:
            self._take_message(json.loads(event), stamp_ns)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"an event of an unknown shape: {error}") from error

    def _take_message(self, message: Any, stamp_ns: int) -> None:
        if not isinstance(message, dict):
            raise ValueError("an event is no JSON object")
        if message.get("error"):
            self._error = _error_text(message)
            return
        answer = self.answer
        output = False
        for choice in message.get("choices") or ():
            delta = choice.get("delta") or {}
            for field in _OUTPUT_FIELDS:
                if value := delta.get(field):
                    output = True
                    if field == "content":
                        answer.text.append(value)
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        if output:
            answer.stamps_ns.append(stamp_ns)
        _take_usage(answer, message)

    def finish(self) -> Failure | None:
        # What a missing last blank line held back has arrived with the last output at the latest.
        for event in self._events.flush():
            self._take_event(event, self.answer.stamps_ns[-1] if self.answer.stamps_ns else 0)
        if self._error is not None:
            return Failure(Outcome.STREAM_ERROR, self._error)
        if not self.answer.stamps_ns:
            return Failure(Outcome.EMPTY, "complete, but without a token")
        if self.answer.finish_reason is None:
            return Failure(Outcome.TRUNCATED, "no finish reason")
        return None


class _Whole(_Chat):
    def __init__(self) -> None:
        self.answer = Answer()
        self._body = bytearray()
        self._stamp_ns = 0

    def feed(self, body: bytes, stamp_ns: int) -> None:
        self._body += body
        self._stamp_ns = stamp_ns

    def finish(self) -> Failure | None:
        try:
            return self._judge(json.loads(self._body))
        except (TypeError, AttributeError) as error:
            raise ValueError(f"an answer of an unknown shape: {error}") from error

    def _judge(self, message: Any) -> Failure | None:
        if not isinstance(message, dict):
            raise ValueError("the answer is no JSON object")
        if message.get("error"):
            return Failure(Outcome.STREAM_ERROR, _error_text(message))
        answer = self.answer
        for choice in message.get("choices") or ():
            reply = choice.get("message") or {}
            if any(reply.get(field) for field in _OUTPUT_FIELDS):
                answer.stamps_ns = [self._stamp_ns]
            if isinstance(reply.get("content"), str):
                answer.text.append(reply["content"])
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        _take_usage(answer, message)
        if not answer.stamps_ns:
            return Failure(Outcome.EMPTY, "complete, but without a token")
        return None if answer.finish_reason else Failure(Outcome.TRUNCATED, "no finish reason")


def _take_usage(answer: Answer, message: Mapping[str, Any]) -> None:
    usage = message.get("usage")
    if isinstance(usage, dict):
        prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
        answer.prompt_tokens = prompt if isinstance(prompt, int) else answer.prompt_tokens
        answer.output_tokens = output if isinstance(output, int) else answer.output_tokens


def _error_text(message: Mapping[str, Any]) -> str:
    """The text of an error body: under `error` (a string or an object), `message` or `detail`."""
    error = message.get("error") or message.get("message") or message.get("detail")
    if isinstance(error, dict):
        error = error.get("message") or error.get("type") or error.get("code")
    return str(error)
