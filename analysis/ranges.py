"""A figure with its interval, and what can be done to both. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

Figures = dict[str, float | None]


class Range(NamedTuple):
    """A figure and the ends of its interval. None: not known; infinite: without a bound."""

    value: float | None
    low: float | None
    high: float | None

    def under(self, name: str) -> Figures:
        """As summaries have it: by name, and with _low and _high; what is not finite is None."""
        return {name + end: _finite(figure) for end, figure in zip(("", "_low", "_high"), self, strict=True)}

    def rising(self, rule: Callable[[float], float]) -> Range:
        """What a rule that keeps the order makes of it."""
        return Range(*(None if figure is None else rule(figure) for figure in self))

    def falling(self, rule: Callable[[float], float]) -> Range:
        """What a rule that turns the order round makes of it."""
        value, high, low = self.rising(rule)
        return Range(value, low, high)


UNKNOWN = Range(None, None, None)


def read(figures: dict[str, float | None], name: str) -> Range:
    """What `under` wrote."""
    return Range(*(figures[name + end] for end in ("", "_low", "_high")))


def over(above: Range, below: Range) -> Range:
    """The quotient of figures above 0; its ends are the worst that both allow."""
    return Range(_ratio(above.value, below.value), _ratio(above.low, below.high), _ratio(above.high, below.low))


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
