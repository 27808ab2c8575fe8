"""Where a server works: a run's usable steps, the curve fitted to them, its knee, what it foretells. Pure, no clock.

Levels are users, or requests/s in the open model; the curve (scalability.py) is over requests in flight, and here the
two are turned into each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from analysis import scalability, tables
from analysis.ranges import UNKNOWN, Figures, Range
from analysis.scalability import Curve
from analysis.windows import RATE

# A step with fewer successful requests of what was counted says more of its failures than of its capacity.
LEAST_SUCCESS_PCT = 90.0
# A knee this near to the highest measured concurrency was not passed, so it was not seen.
_AT_THE_END = 0.999


class Step(NamedTuple):
    """A usable step: what was asked for, what was in flight, what came of it; `figures` is its entry in the summary."""

    level: float
    in_flight: float
    qps: float
    figures: dict[str, Any]

    @property
    def seconds(self) -> float:
        """R, the time a request was in flight, by Little's law."""
        return self.in_flight / self.qps


class Working(NamedTuple):
    """The steps by level, and what was made of them: `curve` is None when they are too few.

    `think_s` is Z: the time between an answer and the same user's next request; 0 in the open model. `apart` are the
    figures of the run's steps that tell no capacity.
    """

    steps: list[Step]
    unit: str
    think_s: float
    curve: Curve | None
    refused: str | None
    apart: list[dict[str, Any]]

    @property
    def last(self) -> Step:
        return self.steps[-1]


class Outlook(NamedTuple):
    """The curve at one level; that of a percentile of latency by its ratio to the mean at the steps beside it."""

    qps: Range
    mean_ms: Range
    p50_ms: Range


def usable_steps(summary: dict[str, Any]) -> tuple[list[Step], list[dict[str, Any]]]:
    """Steps that tell the capacity, by level, and what is left out with the reason."""
    steps, left_out = [], []
    for figures in summary["steps"]:
        reason = _useless(figures)
        if reason:
            left_out.append({"level": figures["level"], "reason": f"the step of {figures['level']:g} {reason}"})
            continue
        in_flight = figures["in_flight_mean"]
        steps.append(Step(figures["level"], in_flight or figures["level"], figures["qps"], figures))
    return sorted(steps, key=lambda step: (step.level, step.in_flight)), left_out


def _useless(figures: dict[str, Any]) -> str:
    in_flight, success_pct = figures["in_flight_mean"], figures["success_pct"]
    if figures["level"] <= 0:
        return "has no load"
    if not figures["qps"]:
        return "has no request that succeeded within its window"
    if in_flight is None and figures["unit"] == RATE:
        return "does not tell how many requests were in flight"
    if in_flight is not None and in_flight <= 0:
        return "has no request in flight"
    if success_pct is None or success_pct < LEAST_SUCCESS_PCT:
        return f"has {tables.text(success_pct)} % successful requests, less than {LEAST_SUCCESS_PCT:g} %"
    return ""


def working(steps: list[Step], unit: str, every: Sequence[dict[str, Any]] = ()) -> Working:
    """The steps with their curve; there is none, and a reason, when they are too few. `every`: all of the run."""
    apart = [figures for figures in every if _useless(figures)]
    if unit == RATE:
        think_s = 0.0
    else:
        think_s = float(np.median([max(step.level - step.in_flight, 0.0) / step.qps for step in steps]))
    try:
        curve = scalability.fit(np.array([step.in_flight for step in steps]), np.array([step.qps for step in steps]))
    except ValueError as error:
        return Working(steps, unit, think_s, None, str(error), apart)
    return Working(steps, unit, think_s, curve, None, apart)


def outlook(at: Working, level: float) -> Outlook | None:
    """What the curve says of one level; None without a curve, and above its limit: such a rate has no steady state."""
    in_flight = in_flight_at(at, level)
    if at.curve is None or in_flight is None:
        return None
    seconds = Range(*(float(figure[0]) for figure in at.curve.residence_s(np.array([in_flight]))))
    rate = Range(level, level, level)
    if at.unit != RATE:
        rate = seconds.falling(lambda value: level / (value + at.think_s))
    ratio = _median_to_mean(at.steps, in_flight)
    return Outlook(
        rate,
        seconds.rising(lambda value: 1000 * value),
        UNKNOWN if ratio is None else seconds.rising(lambda value: 1000 * ratio * value),
    )


def _median_to_mean(steps: Sequence[Step], in_flight: float) -> float | None:
    """E2E p50 / R of the steps, between two of them in proportion, beyond the last that of the last."""
    known = [
        (step.in_flight, step.figures["e2e_ms"]["p50"] / 1000 / step.seconds)
        for step in sorted(steps, key=lambda step: step.in_flight)
        if isinstance(step.figures["e2e_ms"]["p50"], int | float)
    ]
    if not known:
        return None
    places, ratios = np.array(known).T
    return float(np.interp(in_flight, places, ratios))


def in_flight_at(at: Working, level: float) -> float | None:
    """The n of a level: n + Z X(n) users, or X(n) requests/s while more n brings more. None above the highest rate."""
    curve = at.curve
    if curve is None or (at.unit != RATE and not at.think_s):
        return level

    def level_of(in_flight: float) -> float:
        rate = curve.rate(in_flight)
        return rate if at.unit == RATE else in_flight + at.think_s * rate

    low, high = 1e-6, 1e-6
    while level_of(high) < level:
        low, high = high, 1.05 * high
        if at.unit == RATE and level_of(high) <= level_of(low) * (1 + 1e-9):
            return None
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if level_of(middle) < level else (low, middle)
    return high


def forecast(steps: list[Step], measured: Step, unit: str) -> dict[str, Any] | None:
    """One step predicted from others, beside what it was; errors in % of what was measured. None without a curve.

    Of the open model the rate is given, so what the measured concurrency brings is predicted.
    """
    at = working(steps, unit)
    if unit == RATE:
        at = at._replace(unit="in flight")
    expected = outlook(at, measured.in_flight if unit == RATE else measured.level)
    if expected is None or at.curve is None:
        return None
    p50 = measured.figures["e2e_ms"]["p50"]
    return {
        "level": measured.level,
        "fitted_up_to": at.last.level,
        "fitted_steps": len(steps),
        "law": at.curve.law.name,
        "qps_measured": measured.qps,
        **expected.qps.under("qps"),
        "qps_error_pct": _error_pct(expected.qps.value, measured.qps),
        "e2e_p50_measured_ms": p50,
        **expected.p50_ms.under("e2e_p50_ms"),
        "e2e_p50_error_pct": _error_pct(expected.p50_ms.value, p50),
    }


def _error_pct(predicted: float | None, measured: Any) -> float | None:
    if predicted is None or not isinstance(measured, int | float) or not measured:
        return None
    return 100 * (predicted / float(measured) - 1)


def knee(at: Working, warnings: list[str]) -> Figures:
    """Where power X / R is highest: in the unit of the levels, as concurrency, and its rate.

    One beyond the measured steps was not seen: then only a low end is known.
    """
    names = ("knee", "knee_in_flight", "knee_qps")
    curve = at.curve
    if curve is None:
        return {key: value for name in names for key, value in UNKNOWN.under(name).items()}
    most = max(step.in_flight for step in at.steps)
    value, low, high = curve.figure(curve.law.knee)
    if value >= _AT_THE_END * most:
        warnings.append(
            f"the knee was not reached: at {at.last.level:g} {at.unit} more load still brought more than it cost; "
            "measure higher levels to see where that ends"
        )
        found = Range(None, min(low, most), None)
    else:
        found = Range(value, low, high if high < _AT_THE_END * most else None)

    if found.value is None:
        rates = found.rising(curve.rate)
    else:
        rates = Range(*(float(figure[0]) for figure in curve.qps(np.array([found.value]))))
    levels = found.rising(lambda n: curve.rate(n) if at.unit == RATE else n + at.think_s * curve.rate(n))
    return levels.under("knee") | found.under("knee_in_flight") | rates.under("knee_qps")
