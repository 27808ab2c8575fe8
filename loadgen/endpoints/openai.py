"""The OpenAI chat and completions APIs, streamed and not, with the habits of the servers that imitate them.

An answer is well only with a complete message, no error inside, at least one output event and a finish reason.
Stamps are handed in; no clock is read here.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from loadgen.endpoints import MAX_BODY_BYTES, Answer, Call, Failure, Malformed, Reader, is_count, judge_tokens
from loadgen.endpoints.errors import is_error, message_words
from loadgen.record import Outcome
from loadgen.sse import SseDecoder

# Of a message (delta) beside its content.
_OTHER_OUTPUT = ("reasoning_content", "reasoning", "tool_calls", "function_call", "refusal", "audio")
_KEPT_MESSAGES = 4
_KEPT_BYTES = 4096
_RUN = 32  # pieces that are looked at together
# What is between the quotes of a JSON string; possessive, so that what does not match takes no longer.
_STRING = rb'(?:[ !#-\[\]-~\x80-\xff]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))++'
_TEXT = re.compile(rb'"(?:content|text)": ?"(' + _STRING + rb')"')
_are_strings = re.compile(_STRING + rb"(?:\n" + _STRING + rb")*+").fullmatch
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
        self._others = 0  # events that said anything else than a text
        self._frame: tuple[bytes, bytes] | None = None

    def feed(self, pieces: list[bytes], stamps_ns: list[int]) -> bool:
        taken = 0
        while taken < len(pieces):
            alike = self._take_alike(pieces[taken : taken + _RUN], stamps_ns[taken : taken + _RUN])
            taken += alike
            if not alike:
                self._take_piece(pieces[taken], stamps_ns[taken])
                taken += 1
        return bool(self.answer.stamps_ns)

    def _take_alike(self, pieces: list[bytes], stamps_ns: list[int]) -> int:
        """Nearly every piece is an event like the one before but for its text: a run of such needs no parser.

        Returns how many there were at the start.
        """
        if self._frame is None or self._events.pending:
            return 0
        prefix, suffix = self._frame
        texts = _texts(pieces, prefix, suffix)
        if texts is None:
            alike = itertools.takewhile(lambda piece: _texts([piece], prefix, suffix) is not None, pieces)
            texts = _texts(list(alike), prefix, suffix) or []
        self.answer.text += texts
        self.answer.stamps_ns += stamps_ns[: len(texts)]
        return len(texts)

    def _take_piece(self, piece: bytes, stamp_ns: int) -> None:
        self._stamp_ns = stamp_ns
        if not self._seen:
            self._head = (self._head + piece)[:_KEPT_BYTES]
        whole = not self._events.pending
        try:
            events = self._events.feed(piece)
        except ValueError as error:
            raise Malformed(str(error), piece[:_KEPT_BYTES]) from error
        texts, others = len(self.answer.text), self._others
        for event in events:
            self._take_event(event, stamp_ns)
        alone = whole and len(events) == 1 and not self._events.pending
        if alone and len(self.answer.text) == texts + 1 and self._others == others:
            self._frame = _frame(piece, self.answer.text[-1]) or self._frame

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
        if ended or not output or message.get("usage"):
            self._others += 1
            self._messages = [*self._messages[1 - _KEPT_MESSAGES :], message]
        if "usage" in message:
            _take_usage(answer, message["usage"])

    def finish(self) -> Failure | None:
        for event in self._events.flush():
            self._take_event(event, self._stamp_ns)
        if not self._seen:
            return _judge_without_events(self._head)
        return self._error or judge_tokens(self.answer)

    def messages(self) -> Sequence[Any]:
        return self._messages


def _frame(piece: bytes, text: str) -> tuple[bytes, bytes] | None:
    """What surrounds the text in a piece that is one event with one text; None when that cannot be told for sure.

    With another string in the place of the text it is the same JSON but for that string.
    """
    found = list(_TEXT.finditer(piece))
    if len(found) != 1 or json.loads(b'"' + found[0][1] + b'"') != text:
        return None
    return bytes(piece[: found[0].start(1)]), bytes(piece[found[0].end(1) :])


def _texts(pieces: list[bytes], prefix: bytes, suffix: bytes) -> list[str] | None:
    """The text of each piece, when every piece is a text that is not empty between `prefix` and `suffix`."""
    joined = b"".join(pieces)
    if not (pieces and joined.startswith(prefix) and joined.endswith(suffix)):
        return None
    texts = joined[len(prefix) : -len(suffix)].split(suffix + prefix)
    around = len(prefix) + len(suffix)
    # These lengths agree for pieces that are so, because all of them together are.
    if [len(text) + around for text in texts] != list(map(len, pieces)) or not all(texts):
        return None
    lines = b"\n".join(texts)
    if _are_strings(lines) is None:
        return None
    try:
        if b"\\" in lines:
            strings: list[str] = json.loads('["' + lines.decode().replace("\n", '","') + '"]')
            return strings
        return lines.decode().split("\n")
    except UnicodeDecodeError:
        return None


class _Whole(Reader):
    def __init__(self) -> None:
        self.answer = Answer()
        self._body = bytearray()
        self._message: Any = None
        self._stamp_ns = 0

    def feed(self, pieces: list[bytes], stamps_ns: list[int]) -> bool:
        self._body += b"".join(pieces)
        self._stamp_ns = stamps_ns[-1]
        if len(self._body) > MAX_BODY_BYTES:
            raise Malformed(f"an answer larger than {MAX_BODY_BYTES} bytes")
        return True

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
        return judge_tokens(answer)

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
        answer.prompt_tokens = prompt if is_count(prompt) else answer.prompt_tokens
        answer.output_tokens = output if is_count(output) else answer.output_tokens


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
