"""What load, when: `Step` and `LoadPlan`, and their validation, which reports every problem at once.

Closed model: a number of users, each sends when its last answer has ended. Open model: requests arrive at a rate,
whatever becomes of the earlier ones (schedule.py says when). Pure: no clock, no Locust, only the standard library.
Durations are seconds; levels are users (closed model) or requests a second (open model).
"""

from __future__ import annotations

import math
import re
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from loadgen.errors import UsageError

# The share of a step's hold time that is left out of its figures.
WARMUP_SHARE = 0.25
# The longest wait for answers still due after the last step.
MAX_DRAIN_S = 60.0
# Requests in flight in the open model, unless the options say otherwise.
DEFAULT_MAX_IN_FLIGHT = 5000

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


def parse_duration(text: str) -> float:
    """Seconds of "90", "1.5s", "500ms", "2m", "1h30m"; a bare number is seconds.

    Raises UsageError.
    """
    total, position = 0.0, 0
    for match in _DURATION.finditer(text.strip()):
        if match.start() != position:
            break
        total += float(match[1]) * _UNIT_S[match[2]]
        position = match.end()
    if position == 0 or position != len(text.strip()):
        raise UsageError(f"{text!r} is no duration: give seconds, or a number with ms, s, m or h, such as 90 or 1h30m")
    return total


def parse_levels(text: str) -> tuple[int, ...]:
    """Levels of "100,1000,5000".

    Raises UsageError.
    """
    try:
        levels = tuple(int(part) for part in text.split(","))
    except ValueError:
        levels = ()
    if not levels or min(levels) < 1:
        raise UsageError(f"{text!r} are no steps: give whole numbers above 0 and commas, such as 100,1000,5000")
    return levels


def parse_rates(text: str) -> tuple[float, ...]:
    """Requests a second of "0.5,100,1000".

    Raises UsageError.
    """
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = ()
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise UsageError(f"{text!r} are no rates: give numbers above 0 and commas, such as 0.5,100,1000")
    return rates


class Arrival(NamedTuple):
    """The process by which requests arrive. `kind` is constant, poisson, gamma or trace."""

    kind: str
    cv: float | None = None  # of the gaps of gamma: standard deviation / mean; 1 is Poisson, more is burstier
    trace: str | None = None  # file of arrival times


def parse_arrival(text: str) -> Arrival:
    """Of "constant", "poisson", "gamma:2.5", or the path of a file that `read_trace` can read.

    Raises UsageError.
    """
    if text in ("constant", "poisson"):
        return Arrival(text)
    kind, _, cv = text.partition(":")
    if kind == "gamma":
        try:
            number = float(cv)
        except ValueError:
            number = 0.0
        if not 0 < number < math.inf:
            raise UsageError(f"{text!r} lacks the coefficient of variation of the gaps: give one above 0, as gamma:2.5")
        return Arrival("gamma", cv=number)
    if not Path(text).is_file():
        raise UsageError(f"{text!r} is neither constant, poisson nor gamma:CV, and no such file is there")
    read_trace(text)
    return Arrival("trace", trace=str(Path(text).resolve()))


def read_trace(path: str) -> array[float]:
    """Arrival times of a file, in seconds since its first: one a line, in order. Empty lines and # lines do not count.

    Raises UsageError.
    """
    times, number = array("d"), 1
    try:
        with Path(path).open() as lines:
            for number, line in enumerate(lines, 1):
                if line.strip() and not line.startswith("#"):
                    times.append(float(line))
                    if not math.isfinite(times[-1]) or times[-1] < times[max(len(times) - 2, 0)]:
                        raise UsageError(f"{path} line {number}: times must be finite, and not go back")
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({(error.strerror or '').lower()})") from error
    except ValueError as error:
        raise UsageError(f"{path} line {number}: not a number of seconds") from error
    if not times or times[-1] == times[0]:
        raise UsageError(f"{path} needs two different times at least")
    return array("d", (time - times[0] for time in times))


def default_levels(concurrency: int) -> tuple[int, ...]:
    """1/50, 1/10, 1/5, 1/2 and 1 of `concurrency`, rounded, without zeros and doubles."""
    levels = (round(concurrency / share) for share in (50, 10, 5, 2, 1))
    return tuple(dict.fromkeys(level for level in levels if level > 0))


@dataclass(frozen=True)
class Step:
    """One level of load. It ends after `duration_s` or after `requests`, whichever comes first.

    `requests` counts those that ended in the closed model, and those that arrived in the open one.
    """

    level: float  # a whole number of users, or requests a second
    unit: str  # users, requests/s
    duration_s: float | None
    requests: int | None


@dataclass(frozen=True)
class LoadPlan:
    """`ramp_s` precedes every step: the level goes evenly from that of the step before (at first 0) to its own."""

    steps: tuple[Step, ...]
    arrival: str  # closed, constant, poisson, gamma, trace
    cv: float | None  # of gamma
    trace: str | None  # path of trace
    ramp_s: float
    max_in_flight: int | None  # open model: what is due above it is dropped
    timeout_s: float
    drain_s: float
    warmup_share: float
    seed: int

    @property
    def is_open(self) -> bool:
        return self.arrival != "closed"

    @property
    def peak(self) -> int:
        """The most requests that are in flight at once, which is also the number of users that are needed."""
        if self.max_in_flight is not None:
            return self.max_in_flight
        return max((int(step.level) for step in self.steps), default=0)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def closed_plan(
    levels: tuple[int, ...],
    duration_s: float | None,
    requests: int | None,
    timeout_s: float,
    seed: int,
    *,
    ramp_s: float = 0.0,
) -> LoadPlan:
    """Closed-model plan of user levels.

    Raises UsageError with every problem, one a line.
    """
    steps = tuple(Step(level, "users", duration_s, requests) for level in levels)
    _check(duration_s, requests, timeout_s)
    return _plan(steps, Arrival("closed"), ramp_s, None, timeout_s, seed)


def open_plan(
    rates: tuple[float, ...],
    duration_s: float | None,
    requests: int | None,
    timeout_s: float,
    seed: int,
    *,
    arrival: Arrival,
    ramp_s: float = 0.0,
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
) -> LoadPlan:
    """Open-model plan of rates in requests/s. A trace without rates keeps its own, in one step as long as it is,
    unless `duration_s` or `requests` says otherwise.

    Raises UsageError with every problem, one a line.
    """
    if not rates and arrival.trace is not None:
        times = read_trace(arrival.trace)
        rates = (trace_rate(times),)
        if duration_s is None and requests is None:
            requests = len(times)
    steps = tuple(Step(rate, "requests/s", duration_s, requests) for rate in rates)
    _check(duration_s, requests, timeout_s)
    return _plan(steps, arrival, ramp_s, max_in_flight, timeout_s, seed)


def trace_rate(times: array[float]) -> float:
    """Mean rate of arrival times in requests/s: what is between the first and the last has one gap less than times."""
    return (len(times) - 1) / times[-1]


def _check(duration_s: float | None, requests: int | None, timeout_s: float) -> None:
    problems = []
    if duration_s is not None and duration_s <= 0:
        problems.append(f"step time {duration_s:g} s: must be above 0")
    if requests is not None and requests < 1:
        problems.append(f"step requests {requests}: must be 1 or more")
    if duration_s is None and requests is None:
        problems.append("a step needs an end: give a step time or a number of requests")
    if timeout_s <= 0:
        problems.append(f"timeout {timeout_s:g} s: must be above 0")
    if problems:
        raise UsageError("\n".join(problems))


def _plan(
    steps: tuple[Step, ...], arrival: Arrival, ramp_s: float, max_in_flight: int | None, timeout_s: float, seed: int
) -> LoadPlan:
    return LoadPlan(
        steps=steps,
        arrival=arrival.kind,
        cv=arrival.cv,
        trace=arrival.trace,
        ramp_s=ramp_s,
        max_in_flight=max_in_flight,
        timeout_s=timeout_s,
        drain_s=min(timeout_s, MAX_DRAIN_S),
        warmup_share=WARMUP_SHARE,
        seed=seed,
    )
