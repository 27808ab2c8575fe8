"""Plain inference over HTTP: one request of any method and path, one answer, mostly JSON; no tokens, no stream.

An answer is well with a 2xx and a whole body of at least one byte; what the body says is not judged. Nothing of it is a
token: the columns of tokens stay null, TTFT among them, and `first_byte_ns` is when the server began to answer.

A template is JSON text in which {{prompt}}, {{id}}, {{seed}} and {{n}} are replaced: texts stand in the quotes of a
JSON string, numbers in it or bare. `{"inputs": "{{prompt}}", "parameters": {"seed": {{seed}}}}`. No clock.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from loadgen.endpoints import Answer, Call, Failure, Reader
from loadgen.record import Outcome

METHODS = ("GET", "POST", "PUT")
DEFAULT_TEMPLATE = '{"prompt": "{{prompt}}"}'
_EXAMPLES: dict[str, str | int] = {"prompt": "a", "id": "a", "seed": 1, "n": 1}
PLACEHOLDERS = tuple(_EXAMPLES)

_WITHOUT_BODY = (("Accept", "*/*"),)
_WITH_BODY = (("Content-Type", "application/json"), *_WITHOUT_BODY)
_PLACEHOLDER = re.compile(r"\{\{ *(\w*) *\}\}")
# A longer answer is not kept, so fields of it are not found.
_KEPT_BYTES = 1 << 20


def call(method: str, path: str, body: bytes = b"", *, name: str = "predict") -> Call:
    """A call of `path` below the endpoint; without a body it has no Content-Type either."""
    return Call(name, method, path, _WITH_BODY if body else _WITHOUT_BODY, body, _Body())


def render(template: str, value_of: Callable[[str], str | int]) -> bytes:
    """The template with a value for each placeholder in it, asked for by its name, as it is written in JSON."""
    literals, names = _parts(template)
    pieces = [literals[0]]
    for name, literal in zip(names, literals[1:], strict=True):
        value = value_of(name)
        text = json.dumps(value, ensure_ascii=False)[1:-1] if isinstance(value, str) else str(value)
        pieces += [text.encode(), literal]
    return b"".join(pieces)


def check_template(template: str) -> None:
    """Raises ValueError with one sentence."""
    if unknown := [name for name in _parts(template)[1] if name not in PLACEHOLDERS]:
        known = ", ".join(f"{{{{{name}}}}}" for name in PLACEHOLDERS)
        raise ValueError(f"{{{{{unknown[0]}}}}} is no placeholder: give {known}")
    try:
        json.loads(render(template, _EXAMPLES.__getitem__))
    except ValueError as error:
        raise ValueError(
            f"no JSON when it is filled in ({error}): put {{{{prompt}}}} and {{{{id}}}} in quotes"
        ) from None


@functools.lru_cache(maxsize=64)
def _parts(template: str) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    """The text around the placeholders, encoded, and their names."""
    pieces = _PLACEHOLDER.split(template)
    return tuple(piece.encode() for piece in pieces[::2]), tuple(pieces[1::2])


_NO_TOKENS = Answer(has_tokens=False)


class _Body(Reader):
    def __init__(self) -> None:
        self.answer = _NO_TOKENS
        self._size = 0
        self._body = b""

    def feed(self, pieces: list[bytes], stamps_ns: list[int]) -> bool:
        for piece in pieces:
            self._size += len(piece)
            if self._size <= _KEPT_BYTES:
                self._body += piece
        return True

    def finish(self) -> Failure | None:
        return None if self._size else Failure(Outcome.EMPTY, "an empty answer")

    def messages(self) -> Sequence[Any]:
        try:
            return [json.loads(self._body)] if 0 < self._size <= _KEPT_BYTES else []
        except (ValueError, RecursionError):
            return []
