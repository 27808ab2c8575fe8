"""Bytes of OpenAI's chat and completions: request body in, HTTP answers and SSE chunks out. No clock but `created`.

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

from loadgen.simulator.kvcache import block_keys
from loadgen.simulator.truth import Kind

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
        if self.status == HTTPStatus.UNAUTHORIZED:
            return json.dumps({"error": str(self)}).encode()  # so does vLLM
        kind = "NotFoundError" if self.status == HTTPStatus.NOT_FOUND else "BadRequestError"
        return json.dumps({"error": {"message": str(self), "type": kind, "param": None, "code": self.code}}).encode()


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks for. An item of /predict has neither prompt nor tokens: it is one pass."""

    kind: Kind
    stream: bool = False
    include_usage: bool = False
    prompt_tokens: int = 0
    max_tokens: int = 1
    text_at: int = 0  # where in the seeded text the answer starts
    keys: tuple[int, ...] = ()  # of the prompt's blocks, when asked for


def parse(kind: Kind, body: bytes, model: str, max_model_len: int, with_keys: bool) -> Ask:
    """Fields it does not know are accepted and ignored. Raises Refusal."""
    fields = parse_json(body)
    if not isinstance(fields, dict):
        raise Refusal(HTTPStatus.BAD_REQUEST, "the body is not a JSON object")
    if fields.get("model") != model:
        message = f"The model `{fields.get('model')}` does not exist; this simulator serves `{model}`."
        raise Refusal(HTTPStatus.NOT_FOUND, message, "model_not_found")
    prompt = _chat_prompt(fields.get("messages")) if kind is Kind.CHAT else _completion_prompt(fields.get("prompt"))
    words = prompt.split()
    max_tokens = _max_tokens(fields)
    if len(words) + max_tokens > max_model_len:
        raise Refusal(
            HTTPStatus.BAD_REQUEST,
            f"This model's maximum context length is {max_model_len} tokens. However, you requested "
            f"{len(words) + max_tokens} tokens ({len(words)} in the messages, {max_tokens} in the completion).",
            "context_length_exceeded",
        )
    options = fields.get("stream_options")
    return Ask(
        kind=kind,
        stream=fields.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        prompt_tokens=len(words),
        max_tokens=max_tokens,
        text_at=zlib.crc32(prompt.encode("utf-8", "surrogatepass")) % _TEXT_WORDS,
        keys=block_keys(words) if with_keys else (),
    )


def parse_json(body: bytes) -> Any:
    """Raises Refusal."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(HTTPStatus.BAD_REQUEST, "the body is not valid JSON") from None


def _chat_prompt(messages: Any) -> str:
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


def _completion_prompt(prompt: Any) -> str:
    """Text, or the numbers of tokens, each of which is a word to us; or a list of one such."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return " ".join(map(str, prompt))
    raise Refusal(HTTPStatus.BAD_REQUEST, "`prompt` is not one text or one list of token numbers")


def _max_tokens(fields: dict[str, Any]) -> int:
    for name in ("max_completion_tokens", "max_tokens"):
        value = fields.get(name)
        if value is not None:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise Refusal(HTTPStatus.BAD_REQUEST, f"`{name}` is not a whole number of at least 1")
            return value
    return DEFAULT_MAX_TOKENS


@dataclass(frozen=True, slots=True)
class Usage:
    """`cached_tokens` is None without a prefix cache."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None

    def fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.prompt_tokens + self.output_tokens,
        }
        if self.cached_tokens is not None:
            fields["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        return fields


def texts(seed: int) -> list[str]:
    """The seeded text that all answers are taken from, word by word."""
    source = random.Random(seed)
    syllables = [consonant + vowel for consonant in "bdfgklmnprstv" for vowel in "aeiou"]
    words = [" " + "".join(source.choices(syllables, k=source.randint(1, 4))) for _ in range(512)]
    return source.choices(words, k=_TEXT_WORDS)


class Wording:
    """The bytes of the answers of one API. A `head` opens every event of an answer.

    As in vLLM: a chat opens with an event that has the role alone; a completion's last token carries the finish reason.
    Ours is that a chat's finish reason has an event of its own.
    """

    def __init__(self, kind: Kind, model: str, text: list[str]) -> None:
        self._chat = kind is Kind.CHAT
        self._model = model
        self._text = text
        head_size = len(self.head(0))
        choices = map(self._token, text)
        self._pieces = [(b"%x\r\n" % (head_size + len(choice)), choice + b"\r\n") for choice in choices]

    def head(self, ordinal: int) -> bytes:
        """Of the same length for every ordinal."""
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        head = f'data: {{"id":"{self._answer_id(ordinal)}","object":"{kind}","created":{int(time.time())}'
        return f'{head},"model":"{self._model}","choices":'.encode()

    def token_chunk(self, head: bytes, at: int) -> bytes:
        """The HTTP chunk that carries word `at` of the text."""
        size, choice = self._pieces[at % _TEXT_WORDS]
        return b"%b%b%b" % (size, head, choice)

    def first_chunk(self, head: bytes) -> bytes:
        """What comes before the first token."""
        return _http_chunk(head + _chat_choices('{"role":"assistant","content":""}')) if self._chat else b""

    def last_chunks(self, head: bytes, at: int, usage: Usage | None) -> bytes:
        """The last token, the finish reason, the usage when asked for, `[DONE]` and the end of the message."""
        if self._chat:
            return self.token_chunk(head, at) + self.end_chunks(head, usage)
        return _http_chunk(head + self._token(self._text[at % _TEXT_WORDS], '"length"')) + _tail_chunks(head, usage)

    def end_chunks(self, head: bytes, usage: Usage | None) -> bytes:
        """The same when the last token is written already."""
        finish = _chat_choices("{}", '"length"') if self._chat else self._token("", '"length"')
        return _http_chunk(head + finish) + _tail_chunks(head, usage)

    def whole(self, ordinal: int, at: int, usage: Usage) -> bytes:
        """The body of an answer that is not streamed."""
        text = "".join(self._text[(at + index) % _TEXT_WORDS] for index in range(usage.output_tokens))
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": "length"}
        choice |= {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        return json.dumps(
            {
                "id": self._answer_id(ordinal),
                "object": "chat.completion" if self._chat else "text_completion",
                "created": int(time.time()),
                "model": self._model,
                "choices": [choice | ({} if self._chat else {"stop_reason": None, "prompt_logprobs": None})],
                "usage": usage.fields(),
            }
        ).encode()

    def _token(self, word: str, finish_reason: str = "null") -> bytes:
        if self._chat:
            return _chat_choices(f'{{"content":"{word}"}}', finish_reason)
        choice = f'"index":0,"text":"{word}","logprobs":null,"finish_reason":{finish_reason},"stop_reason":null'
        return f"[{{{choice}}}]}}\n\n".encode()

    def _answer_id(self, ordinal: int) -> str:
        return f"{'chatcmpl' if self._chat else 'cmpl'}-sim{ordinal:012x}"


def _chat_choices(delta: str, finish_reason: str = "null") -> bytes:
    return f'[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish_reason}}}]}}\n\n'.encode()


def _tail_chunks(head: bytes, usage: Usage | None) -> bytes:
    asked = b"" if usage is None else _http_chunk(head + f'[],"usage":{json.dumps(usage.fields())}}}\n\n'.encode())
    return asked + _DONE


def error_body(message: str, code: int) -> bytes:
    return json.dumps(
        {"error": {"message": message, "type": "InternalServerError", "param": None, "code": code}}
    ).encode()


def error_chunks(message: str) -> bytes:
    """An error event in a stream, and its end."""
    return _http_chunk(b"data: %b\n\n" % error_body(message, 500)) + _DONE


def _http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_DONE = _http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


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
