"""Ollama's own API, /api/chat, streamed as newline-delimited JSON.

Each line is a message with a piece of the output; the last has `done`, the reason and the counts. Stamps are handed in;
no clock is read here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from loadgen.endpoints import Answer, Call, Failure, Malformed, Reader, is_count, judge_tokens
from loadgen.endpoints.errors import message_words
from loadgen.ndjson import NdjsonDecoder
from loadgen.record import Outcome

_KEPT_BYTES = 4096
_HEADERS = (("Content-Type", "application/json"), ("Accept", "application/x-ndjson"))
_OUTPUT = ("content", "thinking", "tool_calls")


def chat(
    messages: Sequence[Mapping[str, Any]],
    *,
    model: str | None,
    max_tokens: int,
    extra: Mapping[str, Any] | None = None,
    name: str = "ollama",
) -> Call:
    """A call of /api/chat. `extra` fields are added to the body and win over ours; null removes one."""
    body = {"model": model, "messages": messages, "stream": True, "options": {"num_predict": max_tokens}}
    body = {key: value for key, value in {**body, **(extra or {})}.items() if value is not None}
    return Call(name, "POST", "/api/chat", _HEADERS, json.dumps(body, ensure_ascii=False).encode(), _Lines())


class _Lines(Reader):
    def __init__(self) -> None:
        self.answer = Answer()
        self._lines = NdjsonDecoder()
        self._error: Failure | None = None
        self._last: Any = None
        self._stamp_ns = 0

    def feed(self, pieces: list[bytes], stamps_ns: list[int]) -> bool:
        for piece, stamp in zip(pieces, stamps_ns, strict=True):
            self._stamp_ns = stamp
            try:
                lines = self._lines.feed(piece)
            except ValueError as error:
                raise Malformed(str(error), piece[:_KEPT_BYTES]) from error
            for line in lines:
                self._take(line)
        return bool(self.answer.stamps_ns)

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Malformed("a line is no JSON", line[:_KEPT_BYTES]) from error
        try:
            self._take_message(message, line)
        except (TypeError, AttributeError) as error:
            raise Malformed("a line of an unknown shape", line[:_KEPT_BYTES]) from error

    def _take_message(self, message: Any, line: bytes) -> None:
        if message.get("error"):
            self._error = self._error or Failure(Outcome.STREAM_ERROR, message_words(message), line)
            return
        answer = self.answer
        said = message.get("message") or {}
        if any(map(said.get, _OUTPUT)):
            answer.stamps_ns.append(self._stamp_ns)
            if isinstance(said.get("content"), str):
                answer.text.append(said["content"])
        if message.get("done"):
            self._last = message
            answer.finish_reason = message.get("done_reason") or "stop"
            prompt, output = message.get("prompt_eval_count"), message.get("eval_count")
            answer.prompt_tokens = prompt if is_count(prompt) else None
            answer.output_tokens = output if is_count(output) else None

    def finish(self) -> Failure | None:
        for line in self._lines.flush():
            self._take(line)
        return self._error or judge_tokens(self.answer)

    def messages(self) -> Sequence[Any]:
        return [self._last]
