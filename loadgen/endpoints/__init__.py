"""One file an API: request bytes out, events in. `Call` and `Reader` are what an API gives to `users.ModelUser`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from loadgen.record import Outcome


class Failure(NamedTuple):
    """Why a request did not end well; `text` is normalised, so that the number of different texts is bounded."""

    outcome: Outcome
    text: str


@dataclass
class Answer:
    """What an answer's events said, as far as it has been read. Stamps are CLOCK_MONOTONIC ns."""

    text: list[str] = field(default_factory=list)
    stamps_ns: list[int] = field(default_factory=list)  # of each event that carried output
    coalesced_reads: int = 0
    prompt_tokens: int | None = None
    output_tokens: int | None = None  # as the server's usage says
    finish_reason: str | None = None


class Reader(Protocol):
    """Reads one answer's body, piece by piece, and judges it at its end."""

    answer: Answer

    def feed(self, body: bytes, stamp_ns: int) -> None:
        """Decode bytes that were received at `stamp_ns`. Raises ValueError when they are malformed."""

    def finish(self) -> Failure | None:
        """Judge the complete body of a 2xx answer; None when it is well. Raises ValueError when it is malformed."""

    def error_text(self, body: bytes) -> str:
        """What the body of another status says, in a few words."""


class Call(NamedTuple):
    """One request: `path` is relative to the endpoint, `reader` is fresh."""

    name: str
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    reader: Reader
