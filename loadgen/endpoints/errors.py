"""The words of an error, whatever shape a server gave it: JSON, a page of HTML, a traceback, plain text.

The Content-Type is not asked: servers send JSON as text/plain. Nothing is normalised here (failures.py). No clock.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_MAX_WORDS = 1000
_MAX_ITEMS = 3
_KEYS = ("message", "msg", "error", "detail", "details", "reason", "type", "code")
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_HIDDEN = re.compile(r"<(script|style)\b.*?</\1>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^>]*>")


def body_words(body: bytes) -> str:
    """What the body of an error says, on one line; empty when it says nothing."""
    try:
        return message_words(json.loads(body))
    except (ValueError, RecursionError):
        return _text_words(body.decode(errors="replace"))


def message_words(message: Any) -> str:
    """The words of a decoded error: a string, an object with one of the usual keys, or a list of such."""
    if isinstance(message, str):
        return _text_words(message)
    if isinstance(message, Mapping):
        words = next((message_words(message[key]) for key in _KEYS if message.get(key)), "")
        place = message.get("loc")  # of FastAPI: which field of the request is wrong
        if isinstance(place, list) and words:
            return f"{'.'.join(map(str, place))}: {words}"[:_MAX_WORDS]
        return words or _text_words(json.dumps(message))
    if isinstance(message, list):
        return "; ".join(message_words(item) for item in message[:_MAX_ITEMS])[:_MAX_WORDS]
    return "" if message is None else str(message)[:_MAX_WORDS]


def is_error(message: Mapping[str, Any]) -> bool:
    """Whether an event tells of an error: in an `error` field, or as a bare error object without any choice."""
    if message.get("error"):
        return True
    bare = message.get("object") == "error" or "detail" in message or "message" in message
    return bare and "choices" not in message


def _text_words(text: str) -> str:
    if "Traceback (most recent call last)" in text:
        text = next(line for line in reversed(text.splitlines()) if line.strip())
    elif "<html" in text[:500].lower():
        title = _TITLE.search(text)
        text = title[1] if title and title[1].strip() else _TAG.sub(" ", _HIDDEN.sub(" ", text))
    return " ".join(text.split())[:_MAX_WORDS]
