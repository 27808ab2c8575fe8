"""Faults on purpose: which request gets one, and what its client must see. Seeded; at most one fault a request.

    error         another status instead of an answer           HTTP_ERROR
    stream_error  an error event in the middle of a 200         STREAM_ERROR
    reset         the connection is reset in the middle         RESET
    truncate      the connection is closed in the middle        TRUNCATED
    stall         silence in the middle, then the rest          OK, unless the client gives up
    delay         the request waits before the GPU's queue      OK, unless the client gives up

The middle of a stream is after one of its tokens, that of a whole answer is half its bytes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

from loadgen.record import Outcome
from loadgen.simulator.config import SimulatorConfig


class Kind(StrEnum):
    ERROR = "error"
    STREAM_ERROR = "stream_error"
    RESET = "reset"
    TRUNCATE = "truncate"
    STALL = "stall"
    DELAY = "delay"


OUTCOMES = {
    Kind.ERROR: Outcome.HTTP_ERROR,
    Kind.STREAM_ERROR: Outcome.STREAM_ERROR,
    Kind.RESET: Outcome.RESET,
    Kind.TRUNCATE: Outcome.TRUNCATED,
}


@dataclass(frozen=True, slots=True)
class Fault:
    kind: Kind
    at: int  # tokens of a stream that come before it
    lasts_ns: int | None  # of a stall or a delay


class Faults:
    """Draws for one request after the other: the n-th request gets the same with the same seed and rates."""

    def __init__(self, config: SimulatorConfig) -> None:
        self._rates = [(kind, rate) for kind in Kind if (rate := getattr(config, f"{kind}_rate"))]
        lasting_s = {Kind.STALL: config.stall_s, Kind.DELAY: config.delay_s}
        self._lasts_ns = {kind: round(1e9 * time_s / config.speedup) for kind, time_s in lasting_s.items()}
        self._random = random.Random(f"{config.seed}/faults")

    def draw(self, max_tokens: int) -> Fault | None:
        if not self._rates:
            return None
        drawn = self._random.random()
        at = self._random.randint(1, max(1, max_tokens - 1))
        for kind, rate in self._rates:
            drawn -= rate
            if drawn < 0:
                return Fault(kind, at, self._lasts_ns.get(kind))
        return None
