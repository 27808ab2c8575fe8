"""The server's own split of a request's time, where an answer reports one: in headers or in fields of its JSON.

    header:x-queue-ms          a header of the answer
    field:timings.prompt_ms    a field of the answer's JSON, by its path; of a stream, of an event without output

The unit is the last word of the name (ns, us, ms, s or seconds), else ms. Durations only; no clock.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_SYNTAX = re.compile(r"(header|field):([\w.-]+)", re.ASCII)
_US = {"ns": 1e-3, "us": 1.0, "ms": 1e3, "s": 1e6, "seconds": 1e6}
_MAX_US = 2**31


class ServerTime(NamedTuple):
    """`header` is lower case and None for a field; `path` is empty for a header."""

    header: str | None
    path: tuple[str, ...]
    us: float


def parse(text: str) -> ServerTime:
    """Raises ValueError."""
    match = _SYNTAX.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} names no time of the server: write header:NAME or field:PATH")
    kind, name = match.groups()
    us = _US.get(re.split(r"[^a-z]", name.lower())[-1], 1e3)
    return ServerTime(name.lower(), (), us) if kind == "header" else ServerTime(None, tuple(name.split(".")), us)


def read(times: Sequence[ServerTime], headers: Mapping[str, str], messages: Sequence[Any]) -> list[int | None]:
    """Each time in us, in the order of `times`; None where the answer does not have it."""
    return [
        _us(headers.get(time.header) if time.header is not None else _field(messages, time.path), time.us)
        for time in times
    ]


def _field(messages: Sequence[Any], path: tuple[str, ...]) -> Any:
    for message in reversed(messages):
        value = message
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def _us(value: Any, factor: float) -> int | None:
    try:
        us = float(value) * factor
    except (TypeError, ValueError, OverflowError):
        return None
    return round(us) if math.isfinite(us) and 0 <= us < _MAX_US - 1 else None
