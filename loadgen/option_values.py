"""Texts of options -> values: a function a kind of value. Each raises UsageError with what is wrong with its text."""

from __future__ import annotations

import ipaddress
import json
import math
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from loadgen.endpoints import plain, server_times
from loadgen.errors import UsageError
from loadgen.plan import parse_duration

HIDDEN = "(hidden)"
_SECRET = re.compile("auth|key|token|secret|cookie|password|credential|signature", re.IGNORECASE)


def is_secret(header: str) -> bool:
    """Whether a header of this name may hold a secret: its value is then never written down."""
    return _SECRET.search(header) is not None


def number_text(value: float) -> str:
    """The text that is this number again."""
    return str(int(value)) if value == int(value) else repr(value)


def time_text(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds:.12g}s"


def some_time(text: str) -> float:
    seconds = parse_duration(text)
    if seconds <= 0:
        raise UsageError(f"{text!r} must be above 0")
    return seconds


def time_range(text: str) -> tuple[float, float]:
    low, dash, high = text.partition("-")
    shortest, longest = parse_duration(low), parse_duration(high if dash else low)
    if longest < shortest:
        raise UsageError(f"{text!r} goes down: give the shorter time first")
    return shortest, longest


def share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise UsageError(f"{text!r} is no share: give a number from 0 to 1")
    return share


def switch(text: str | bool) -> bool:
    words = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}
    try:
        return words[str(text).lower()]
    except KeyError:
        raise UsageError(f"{text!r} is neither on nor off") from None


def addresses(text: str) -> tuple[str, ...]:
    problems, found = [], names(text)
    for name in found:
        try:
            ipaddress.ip_address(name)
        except ValueError:
            problems.append(f"{name!r} is no IP address")
    if problems:
        raise UsageError("\n".join(problems))
    return found


def certificates(text: str) -> str:
    try:
        ssl.create_default_context(cafile=text)
    except ssl.SSLError:
        raise UsageError(f"{text!r} holds no PEM certificate") from None
    except OSError as error:
        raise UsageError(f"{text!r} cannot be read ({(error.strerror or '').lower()})") from None
    return str(Path(text).resolve())


def json_file(text: str) -> str:
    try:
        is_object = isinstance(json.loads(Path(text).read_text()), dict)
    except OSError as error:
        raise UsageError(f"{text!r} cannot be read ({(error.strerror or '').lower()})") from None
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise UsageError(f"{text!r} holds no JSON object")
    return str(Path(text).resolve())


def count(text: str) -> int:
    number = natural(text)
    if number < 1:
        raise UsageError(f"{text!r} must be 1 or more")
    return number


def natural(text: str) -> int:
    if not str(text).isdecimal():
        raise UsageError(f"{text!r} is no whole number")
    return int(text)


def workers(text: str) -> int | None:
    return None if text == "auto" else count(text)


def url(text: str) -> str:
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"{text!r} is no URL: give http://host:port or https://host:port")
    if parts.username or parts.password:
        raise UsageError("a URL with a user name or password would end up in files: use --api-key-env")
    return text.rstrip("/")


def headers(lines: str | list[str] | tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    headers = []
    for line in lines.splitlines() if isinstance(lines, str) else lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip() or any(c in name for c in " \t\r\n") or any(c in value for c in "\r\n"):
            raise UsageError("a header is written Name: value, on one line")
        if value.strip() == HIDDEN:
            raise UsageError(f"the value of {name} was not written down: give it again with --header '{name}: …'")
        headers.append((name, value.strip()))
    return tuple(headers)


def json_object(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{text!r} is no JSON object: give one such as '{{\"ignore_eos\": true}}'")
    return value


def method(text: str) -> str:
    if text.upper() not in plain.METHODS:
        raise UsageError(f"{text!r} is none of {', '.join(plain.METHODS)}")
    return text.upper()


def url_path(text: str) -> str:
    if not re.fullmatch(r"/[!-~]*", text) or "#" in text:
        raise UsageError(f"{text!r} is no path: give one such as /predict, with other characters as %20")
    return text


def template(text: str) -> str:
    try:
        plain.check_template(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return text


def server_time_names(text: str) -> tuple[str, ...]:
    found = names(text)
    problems = []
    for name in found:
        try:
            server_times.parse(name)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))
    return found


def names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
