"""What a reader must know before believing a number, and what to do about it."""

from __future__ import annotations

Caveat = dict[str, str]


def caveat(code: str, text: str, remedy: str) -> Caveat:
    """`code` is for programs, the rest for people."""
    return {"code": code, "text": text, "remedy": remedy}
