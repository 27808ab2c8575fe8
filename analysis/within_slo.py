"""The largest load of a run within its objectives (loadgen/slo.py), with its interval. Pure, no clock.

Measured steps decide: between the last that holds and the first that breaks a figure is taken to grow in proportion of
logarithms, and both are the ends of the interval. A step that tells no capacity (operating.py) can break an objective,
but holds none. When no step breaks, the curve is followed to BEYOND times the last level at most, and that is said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from analysis import tables
from analysis.answers import error_pct, latency_ms
from analysis.operating import Working, in_flight_at, outlook
from analysis.ranges import Range
from loadgen.errors import UsageError
from loadgen.slo import Objective

BEYOND = 2.0
_PLACES = 60
# Standard deviations of a 95 % interval.
_NORMAL = 1.96
# What gets longer by what a request waits.
_WAITING = frozenset({"ttft", "e2e", "service"})


class Limit(NamedTuple):
    """The highest level within an objective, whose value is None when not even the lowest step held.

    `beyond`: no step broke it.
    """

    objective: Objective
    level: Range
    beyond: bool = False

    @property
    def place(self) -> float:
        return 0.0 if self.level.value is None else self.level.value


class Measured(NamedTuple):
    """An objective's figure at a level, with its interval."""

    level: float
    value: float
    low: float
    high: float


def value_of(figures: dict[str, Any], objective: Objective) -> Measured | None:
    """An objective's figure of one step; None when it was not measured."""
    level = float(figures["level"])
    if not objective.stat:
        failed = error_pct(figures)
        if failed is None:
            return None
        high, low = (100 - end for end in interval(figures, ("success_pct",), 100 - failed))
        return Measured(level, failed, low, high)
    value = latency_ms(figures, objective.metric, objective.stat)
    if value is None:
        return None
    return Measured(level, value, *interval(figures, (f"{objective.metric}_ms", objective.stat), value))


def interval(figures: dict[str, Any], path: tuple[str, ...], value: float) -> tuple[float, float]:
    """The 95 % interval of a figure where the summary has one (`…_ci95`); an end that it has not is the figure."""
    ends = tables.at(figures, (f"{path[0]}_ci95", *path[1:])) or (None, None)
    low, high = (value if end is None else float(end) for end in ends)
    return min(low, value), max(high, value)


def limits(at: Working, slo: Sequence[Objective], warnings: list[str]) -> list[Limit]:
    """The highest level within each objective, the one that is broken first before the others.

    Raises UsageError when an objective's figure was not measured.
    """
    return sorted((_limit(at, objective, warnings) for objective in slo), key=lambda limit: limit.place)


def largest_load(at: Working, found: Sequence[Limit], warnings: list[str]) -> tuple[Range, Range]:
    """The largest level and the largest rate of successful requests within all objectives."""
    first, last = found[0], at.last.level
    if first.level.value is None:
        lowest = first.level.high or 0.0
        warnings.append(
            f"{first.objective} does not hold at the lowest step of {lowest:g} {at.unit}: no load within the SLO "
            "was found; measure lower levels, or loosen the objective"
        )
        return first.level, Range(None, 0.0, _rate(at, lowest, 1))
    level = Range(
        first.level.value,
        min(limit.level.low or 0.0 for limit in found),
        min(math.inf if limit.level.high is None else limit.level.high for limit in found),
    )
    if first.beyond:
        warnings.append(
            f"extrapolated: no step breaks the SLO, so the largest load lies above the measured {last:g} {at.unit}; "
            "the low end was measured, the rest follows the curve; measure higher levels"
        )

    def rate(of: float | None, end: int) -> float:
        top = BEYOND * last if of is None else min(of, BEYOND * last)
        measured = _rate(at, min(top, last), end) if top else 0.0
        in_flight = in_flight_at(at, top) if top > last else None
        if at.curve is None or in_flight is None:
            return measured
        fitted, low, high = (float(figure[0]) for figure in at.curve.qps(np.array([in_flight])))
        return max(measured, (fitted, high, low)[end])

    value, low, high = rate(level.value, 0), rate(level.low, -1), rate(level.high, 1)
    return level, Range(value, min(low, value), max(high, value))


def _rate(at: Working, level: float, end: int) -> float:
    """The rate of successful requests that up to a level was reached, in proportion between two steps.

    `end` is 0 for what was measured, -1 and 1 for the ends of its interval: that of the step, or, where the summary has
    none, what steps lie off the curve. Steps are made a rising line, so the luckiest one of a plateau does not count;
    one that surely brings less than one before it, and those above it, are past the top and no part of the line.
    """
    wide = 0.0 if at.curve is None else _NORMAL * at.curve.error
    merged: dict[float, list[float]] = {}
    surely = 0.0
    for step in at.steps:
        low, high = interval(step.figures, ("qps",), step.qps)
        if low == high:
            low, high = step.qps * math.exp(-wide), step.qps * math.exp(wide)
        if high < surely and step.level not in merged:
            break
        surely = max(surely, low)
        merged.setdefault(step.level, []).append((step.qps, high, low)[end])
    rates = _rising([float(np.mean(values)) for values in merged.values()])
    return float(np.interp(math.log(level), np.log(np.array(list(merged))), rates))


def _rising(values: Sequence[float]) -> list[float]:
    """The nearest values that never fall (isotonic regression): neighbours that do are replaced by their mean."""
    pools: list[list[float]] = []
    for value in values:
        pools.append([value])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    return [float(np.mean(pool)) for pool in pools for _ in pool]


def measured(at: Working, objective: Objective) -> list[Measured]:
    """An objective's figure over the levels; of several steps of one level the worst. Raises UsageError without any."""
    holding = [figure for step in at.steps if (figure := value_of(step.figures, objective))]
    if not holding:
        raise UsageError(f"--slo: {objective.name} was not measured in this run: name a figure that its report has")
    apart = [figure for figures in at.apart if (figure := value_of(figures, objective))]
    worst: dict[float, Measured] = {}
    for figure in (*holding, *(each for each in apart if each.value >= objective.limit)):
        if figure.level not in worst or figure.value >= worst[figure.level].value:
            worst[figure.level] = figure
    return [worst[level] for level in sorted(worst)]


def _limit(at: Working, objective: Objective, warnings: list[str]) -> Limit:
    """Its interval is from the last level that surely holds to the first that surely breaks.

    Below a level that surely holds, steps too short to tell do not count: a lighter load is served no worse.
    """
    points = measured(at, objective)
    first = next((k for k, point in enumerate(points) if point.value >= objective.limit), None)
    surely = next((k for k, point in enumerate(points) if point.low >= objective.limit), None)
    low = max((point.level for point in points[:first] if point.high < objective.limit), default=0.0)
    if first is None:
        return Limit(objective, _beyond(at, points[-1], objective)._replace(low=low), beyond=True)
    again = [f"{point.level:g}" for point in points[first:] if point.value < objective.limit]
    if again:
        warnings.append(
            f"{objective} breaks at {points[first].level:g} {at.unit} and holds again at {', '.join(again)}: the lower "
            "level counts; repeat the run to see which is chance"
        )
    if first == 0:
        return Limit(objective, Range(None, 0.0, points[0].level))
    value = _crossing(points[first - 1], points[first], objective.limit)
    return Limit(objective, Range(value, min(low, value), None if surely is None else points[surely].level))


def _crossing(holds: Measured, breaks: Measured, limit: float) -> float:
    """The level where the figure is at its limit; that of the last step that holds when the next is infinite."""
    if math.isinf(breaks.value):
        return holds.level
    if holds.value <= 0:
        share = limit / breaks.value
    else:
        share = math.log(limit / holds.value) / math.log(breaks.value / holds.value)
    return holds.level * float((breaks.level / holds.level) ** share)


def _beyond(at: Working, last: Measured, objective: Objective) -> Range:
    """The level up to BEYOND times the last where the last figure and what the curve adds to the mean reach the limit.

    All that is added is taken to be waiting: it counts for TTFT as for E2E. The error rate and the time between tokens
    have no law, and above a step that tells no capacity the curve has none: the last level it is, without an upper end.
    """
    now = outlook(at, last.level)
    ends = any(figures["level"] > last.level for figures in at.apart)
    if now is None or ends or objective.metric not in _WAITING:
        return Range(last.level, last.level, None)
    reached = {"value": last.level, "low": last.level}
    broken: set[str] = set()
    for level in np.geomspace(last.level, BEYOND * last.level, _PLACES).tolist():
        then = outlook(at, level)
        for name in reached:
            before, after = getattr(now.mean_ms, name), None if then is None else getattr(then.mean_ms, name)
            if after is None or last.value + max(after - before, 0.0) >= objective.limit:
                broken.add(name)
            if name not in broken:
                reached[name] = level
    # A shorter time is the better case: how far that holds is the high end, unless it holds all the way.
    return Range(reached["value"], last.level, reached["low"] if "low" in broken else None)
