"""What an option is, and how options are taken out of texts. Free of Locust and of click."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from loadgen.errors import UsageError

T = TypeVar("T")

ENV_PREFIX = "LOADGEN_"


class Option(NamedTuple):
    """`name` is the flag without its dashes; `default` is text, as the user would type it.

    One without a metavar is given or not: as an environment variable it is true or false.
    """

    name: str
    metavar: str | None
    default: str | None
    help: str
    many: bool = False

    @property
    def key(self) -> str:
        return self.name.replace("-", "_")

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.key.upper()


class Reader:
    """Takes options out of texts, and notes what is wrong with them."""

    def __init__(self, options: Iterable[Option], texts: Mapping[str, Any]) -> None:
        self._defaults = {option.key: option.default for option in options}
        self._texts = texts
        self.problems: list[str] = []

    def given(self, *keys: str) -> list[str]:
        """Those that are given, as flags."""
        return [flag(key) for key in keys if self._texts.get(key)]

    def take(self, key: str, convert: Callable[[Any], T], fallback: T) -> T:
        value = self._texts.get(key) or self._defaults.get(key)
        if value is None:
            return fallback
        try:
            return convert(value)
        except UsageError as error:
            self.problems.extend(f"{flag(key)}: {line}" for line in str(error).splitlines())
            return fallback


def flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"
