"""One file an API: request bytes out, events in. `Call` and `Reader` are what an API gives to `users.ModelUser`.

Here: what every API shares. Not here: how bytes travel (transport/) and how an answer is judged as a whole
(request.py). Free of Locust and gevent; stamps are CLOCK_MONOTONIC ns and handed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from loadgen.record import Outcome

# Of an answer that has to be held as a whole: more than any model answers with.
MAX_BODY_BYTES = 64 << 20
_MAX_COUNT = 2**31  # what a record holds
_FAILED = ("error", "abort")  # finish reasons


class Failure(NamedTuple):
    """Why a request did not end well.

    `text` says it in one line, in our words and the server's; failures.py bounds the number of different ones.
    `evidence` is what the server sent, as it was.
    """

    outcome: Outcome
    text: str
    evidence: bytes = b""


class Malformed(ValueError):
    """An answer that cannot be read; `evidence` is the part of it where that was seen."""

    def __init__(self, text: str, evidence: bytes = b"") -> None:
        super().__init__(text)
        self.evidence = evidence

    def failure(self) -> Failure:
        return Failure(Outcome.MALFORMED, str(self), self.evidence)


@dataclass(slots=True)
class Answer:
    """What an answer's events said, as far as it has been read.

    `has_tokens` is False for an API whose answers are no tokens: then nothing of them is measured.
    """

    text: list[str] = field(default_factory=list)
    stamps_ns: list[int] = field(default_factory=list)  # of each event that carried output
    prompt_tokens: int | None = None
    output_tokens: int | None = None  # as the server's usage says
    finish_reason: str | None = None
    has_tokens: bool = True


class Reader(Protocol):
    """Reads one answer's body, piece by piece, and judges it at its end."""

    answer: Answer

    def feed(self, pieces: list[bytes], stamps_ns: list[int]) -> bool:
        """Decode pieces of the body, each with the instant when it was received.

        True when output has been seen so far. Raises Malformed.
        """

    def finish(self) -> Failure | None:
        """Judge the body of a 2xx answer, all that there was of it; None when it is well. Raises Malformed."""

    def messages(self) -> Sequence[Any]:
        """The JSON in which the server may report its own times, the latest last."""


class Call(NamedTuple):
    """One request: `path` is relative to the endpoint, `reader` is fresh."""

    name: str
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    reader: Reader


def is_count(value: Any) -> bool:
    """Whether it is a number of tokens that a record can hold."""
    return type(value) is int and 0 <= value < _MAX_COUNT


def judge_tokens(answer: Answer) -> Failure | None:
    """An answer of tokens is well with at least one of them and a finish reason, unless that tells of an error."""
    reason = answer.finish_reason
    if reason in _FAILED:
        return Failure(Outcome.STREAM_ERROR, f"finish reason {reason}")
    if not answer.stamps_ns:
        return Failure(Outcome.EMPTY, f"no token, finish reason {reason}" if reason else "no token, no finish reason")
    return None if reason else Failure(Outcome.TRUNCATED, "no finish reason")
