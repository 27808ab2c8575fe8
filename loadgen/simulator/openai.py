"""Bytes of the OpenAI chat API: request body in, HTTP answers and SSE chunks out. No sockets, no clock but `created`.

The simulator's tokenizer counts words between white space. Its answers are words of a seeded text: where an answer
starts depends on its prompt alone, so the same prompt gets the same answer. A token's chunk is joined from three
ready-made pieces (size, head of the answer, choice with the word), so that it costs no JSON.
"""

from __future__ import annotations

import json
import random
import time
import zlib
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

JSON = "application/json"
DEFAULT_MAX_TOKENS = 16  # as in the completions API
_TEXT_WORDS = 4096


class Refusal(Exception):
    """An answer other than 200, with OpenAI's error object."""

    def __init__(self, status: HTTPStatus, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    def body(self) -> bytes:
        kind = "NotFoundError" if self.status == HTTPStatus.NOT_FOUND else "BadRequestError"
        return json.dumps({"error": {"message": str(self), "type": kind, "param": None, "code": self.code}}).encode()


@dataclass(frozen=True)
class ChatRequest:
    stream: bool
    include_usage: bool
    prompt_tokens: int
    max_tokens: int
    text_at: int  # where in the seeded text the answer starts


def parse_chat(body: bytes, model: str, max_model_len: int) -> ChatRequest:
    """Fields it does not know are accepted and ignored. Raises Refusal."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(HTTPStatus.BAD_REQUEST, "the body is not valid JSON") from None
    if not isinstance(fields, dict):
        raise Refusal(HTTPStatus.BAD_REQUEST, "the body is not a JSON object")
    if fields.get("model") != model:
        message = f"The model `{fields.get('model')}` does not exist; this simulator serves `{model}`."
        raise Refusal(HTTPStatus.NOT_FOUND, message, "model_not_found")
    prompt = _prompt(fields.get("messages"))
    prompt_tokens = len(prompt.split())
    max_tokens = _max_tokens(fields)
    if prompt_tokens + max_tokens > max_model_len:
        raise Refusal(
            HTTPStatus.BAD_REQUEST,
            f"This model's maximum context length is {max_model_len} tokens. However, you requested "
            f"{prompt_tokens + max_tokens} tokens ({prompt_tokens} in the messages, {max_tokens} in the completion).",
            "context_length_exceeded",
        )
    options = fields.get("stream_options")
    return ChatRequest(
        stream=fields.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        text_at=zlib.crc32(prompt.encode("utf-8", "surrogatepass")) % _TEXT_WORDS,
    )


def _prompt(messages: Any) -> str:
    if not isinstance(messages, list) or not messages:
        raise Refusal(HTTPStatus.BAD_REQUEST, "`messages` is not a list of at least one message")
    texts = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [{"text": content}]
        for part in parts:
            text = part.get("text") if isinstance(part, dict) else None
            if not isinstance(text, str):
                raise Refusal(HTTPStatus.BAD_REQUEST, "a message has no `content` that is text or a list of text parts")
            texts.append(text)
    return "\n".join(texts)


def _max_tokens(fields: dict[str, Any]) -> int:
    for name in ("max_completion_tokens", "max_tokens"):
        value = fields.get(name)
        if value is not None:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise Refusal(HTTPStatus.BAD_REQUEST, f"`{name}` is not a whole number of at least 1")
            return value
    return DEFAULT_MAX_TOKENS


class Wording:
    """The seeded text, and the bytes of answers made of it. A `head` opens every event of an answer."""

    def __init__(self, model: str, seed: int) -> None:
        source = random.Random(seed)
        syllables = [consonant + vowel for consonant in "bdfgklmnprstv" for vowel in "aeiou"]
        words = [" " + "".join(source.choices(syllables, k=source.randint(1, 4))) for _ in range(512)]
        self._text = source.choices(words, k=_TEXT_WORDS)
        self._model = model
        head_size = len(self.head(0))
        choices = (_choices(f'{{"content":"{word}"}}') for word in self._text)
        self._pieces = [(b"%x\r\n" % (head_size + len(choice)), choice + b"\r\n") for choice in choices]

    def head(self, ordinal: int) -> bytes:
        """Of the same length for every ordinal."""
        head = f'data: {{"id":"{_answer_id(ordinal)}","object":"chat.completion.chunk","created":{int(time.time())}'
        return f'{head},"model":"{self._model}","choices":'.encode()

    def token_chunk(self, head: bytes, at: int) -> bytes:
        """The HTTP chunk that carries word `at` of the text."""
        size, choice = self._pieces[at % _TEXT_WORDS]
        return b"%b%b%b" % (size, head, choice)

    def role_chunk(self, head: bytes) -> bytes:
        return _http_chunk(head + _choices('{"role":"assistant","content":""}'))

    def last_chunks(self, head: bytes, usage: tuple[int, int] | None) -> bytes:
        """The finish reason, the usage when asked for, `[DONE]` and the end of the message."""
        events = [head + _choices("{}", '"length"'), b"data: [DONE]\n\n"]
        if usage is not None:
            events.insert(1, head + f'[],"usage":{json.dumps(_usage(*usage))}}}\n\n'.encode())
        return b"".join(map(_http_chunk, events)) + b"0\r\n\r\n"

    def whole(self, ordinal: int, at: int, prompt_tokens: int, output_tokens: int) -> bytes:
        """The body of an answer that is not streamed."""
        content = "".join(self._text[(at + index) % _TEXT_WORDS] for index in range(output_tokens))
        message = {"role": "assistant", "content": content}
        return json.dumps(
            {
                "id": _answer_id(ordinal),
                "object": "chat.completion",
                "created": int(time.time()),
                "model": self._model,
                "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}],
                "usage": _usage(prompt_tokens, output_tokens),
            }
        ).encode()


def _choices(delta: str, finish_reason: str = "null") -> bytes:
    return f'[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish_reason}}}]}}\n\n'.encode()


def _answer_id(ordinal: int) -> str:
    return f"chatcmpl-sim{ordinal:012x}"


def _usage(prompt_tokens: int, output_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": prompt_tokens + output_tokens,
    }


def _http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def models_body(model: str, max_model_len: int) -> bytes:
    entry = {"id": model, "object": "model", "created": 0, "owned_by": "simulator", "max_model_len": max_model_len}
    return json.dumps({"object": "list", "data": [entry]}).encode()


def http_response(status: HTTPStatus, body: bytes, close: bool, headers: str = "", content_type: str = JSON) -> bytes:
    """A whole answer of known length; `headers` is more header lines, each with its line end."""
    closing = "connection: close\r\n" if close else ""
    head = f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n"
    return f"{head}{headers}{closing}\r\n".encode() + body


def stream_head(request_id: str, close: bool) -> bytes:
    closing = "connection: close\r\n" if close else ""
    head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n"
    return f"{head}cache-control: no-cache\r\nx-request-id: {request_id}\r\n{closing}\r\n".encode()
