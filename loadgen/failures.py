"""The texts of failures: bounded in number, free of secrets, and one raw example of each kind.

A kind is an outcome and a normalised text: numbers, ids and quoted names are placeholders in it, and a worker has at
most MAX_KINDS of them and one "other" for each outcome. The first failure of a kind is written as it was, a JSON line
(docs/run-directory.md). A kind is written once, so the file is written on the event loop. No clock is read here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from loadgen.endpoints import Failure
from loadgen.option_values import HIDDEN, is_secret
from loadgen.options import Settings
from loadgen.rundir import append_line

MAX_KINDS = 100
MAX_TEXT = 200
_MAX_RAW = 4096
_MAX_READ = 1000  # of a text, so that normalising costs little whatever a server sends
_MIN_SECRET = 4
_SCHEMES = ("basic", "bearer", "token", "digest")  # of an Authorization header: no secrets

_PLACEHOLDERS = (
    # An apostrophe within a word opens no quotation.
    (re.compile(r"""(?<!\w)(?:'[^']*'|"[^"]*"|`[^`]*`|‘[^’]*’|“[^”]*”)(?!\w)"""), "<name>"),
    # A UUID, hex digits, or a long word of letters and digits.
    (re.compile(r"\b0x[0-9a-f]+\b|\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE), "<id>"),
    (re.compile(r"\b(?=[A-Za-z_-]{0,40}\d)(?=[\d_-]{0,40}[A-Za-z])[A-Za-z0-9_-]{8,}\b"), "<id>"),
    (re.compile(r"(?<!\d)(?<!^HTTP )\d+(?:[.,:]\d+)*"), "<n>"),
)


def normalise(text: str) -> str:
    """One line of at most MAX_TEXT characters that can be stored anywhere, equal for failures that differ in names."""
    text = " ".join(text[:_MAX_READ].split())
    for pattern, placeholder in _PLACEHOLDERS:
        text = pattern.sub(placeholder, text)
    return storable(text)[:MAX_TEXT]


def storable(text: str) -> str:
    """JSON may hold halves of surrogate pairs, which no file takes."""
    return text.encode(errors="replace").decode()


def secrets_of(settings: Settings) -> tuple[str, ...]:
    """What must not be written down: values of the headers that hold secrets, and their parts; the longest first."""
    values = [value for name, value in settings.headers if is_secret(name)]
    if settings.api_key_env:
        values.append(os.environ.get(settings.api_key_env, ""))
    parts = {part for value in values for part in (value, *re.split(r"[\s;,]+", value), *re.split(r"[\s;,=]+", value))}
    secrets = [part for part in parts if len(part) >= _MIN_SECRET and part.lower() not in _SCHEMES]
    return tuple(sorted(secrets, key=len, reverse=True))


class FailureLog:
    """The kinds of one worker's failures, and the file of their examples; there is none before the first failure."""

    def __init__(self, path: Path, secrets: Iterable[str]) -> None:
        self._path = path
        self._secrets = tuple(secrets)
        self._kinds: set[tuple[str, str]] = set()

    def note(self, failure: Failure, facts: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
        """The failure's normalised text and, when it is the first of its kind, the example to write with `facts`."""
        outcome, text = failure.outcome.value, normalise(self._redact(failure.text))
        if (outcome, text) not in self._kinds:
            if len(self._kinds) >= MAX_KINDS:
                text = f"other ({outcome})"
            if (outcome, text) not in self._kinds:
                self._kinds.add((outcome, text))
                return text, {**facts, "outcome": outcome, "error": text, "raw": self._raw(failure)}
        return text, None

    def write(self, example: dict[str, Any]) -> None:
        """Raises OSError."""
        append_line(self._path, example)

    def _raw(self, failure: Failure) -> str:
        raw = failure.evidence[: 2 * _MAX_RAW].decode(errors="replace") or failure.text
        # Redacted before it is cut: half a secret would not be known again.
        return storable(self._redact(raw))[:_MAX_RAW]

    def _redact(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text
