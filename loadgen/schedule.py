"""When requests arrive in the open model: a pure function of the plan and its seed. No clock, no Locust.

The process (constant, Poisson, gamma or a trace) is made at a rate of 1; the inverse of the plan's cumulative rate then
stretches it to the rates of the steps and of the ramps between them, which leaves a Poisson process one. It runs on
across steps. Offsets are ns from the start of the load. Arrival k belongs to worker k mod W, so that workers share one
schedule without a word between them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadgen.plan import LoadPlan, read_trace, trace_rate

# Arrivals that are made at once: a fraction of a millisecond's work.
_BLOCK = 4096


class Mark(NamedTuple):
    """An instant of the time line: `what` is ramp, begin or end of a step."""

    step: int
    what: str
    offset_ns: int


class _Segment(NamedTuple):
    """A stretch in which the rate goes evenly from one to another: a ramp, or the hold of a step.

    `first` and `last` are the cumulative rate at its borders, in arrivals; the last instant is the next segment's.
    """

    start_s: float
    duration_s: float
    from_rate: float
    to_rate: float
    first: float
    last: float


class Schedule:
    """The time line of an open plan, and the arrivals in it."""

    def __init__(self, plan: LoadPlan) -> None:
        """With steps that end after a number of requests, all of the process is gone through once.

        Raises UsageError when the trace cannot be read any more.
        """
        self._plan = plan
        self._segments: list[_Segment] = []
        self.marks: list[Mark] = []
        counter = _Counter(_process(plan))
        rate = end_s = 0.0
        for index, step in enumerate(plan.steps):
            self._note(index, "ramp", end_s)
            if plan.ramp_s:
                end_s = self._append(plan.ramp_s, rate, step.level, (rate + step.level) / 2 * plan.ramp_s)
            self._note(index, "begin", end_s)
            arrivals = math.inf if step.duration_s is None else step.level * step.duration_s
            if step.requests is not None:
                first = self._segments[-1].last if self._segments else 0.0
                arrivals = counter.instant(first, step.requests, first + arrivals) - first
            end_s = self._append(arrivals / step.level, step.level, step.level, arrivals)
            self._note(index, "end", end_s)
            rate = step.level

    def _note(self, step: int, what: str, at_s: float) -> None:
        self.marks.append(Mark(step, what, int(at_s * 1e9)))

    def _append(self, duration_s: float, from_rate: float, to_rate: float, arrivals: float) -> float:
        """One more segment; returns its end in seconds."""
        before = self._segments[-1] if self._segments else None
        start_s, first = (before.start_s + before.duration_s, before.last) if before else (0.0, 0.0)
        self._segments.append(_Segment(start_s, duration_s, from_rate, to_rate, first, first + arrivals))
        return start_s + duration_s

    def arrivals(self, worker: int = 0, workers: int = 1) -> Iterator[NDArray[np.int64]]:
        """A worker's share of the arrivals, in order, a block at a time."""
        lasts = np.array([segment.last for segment in self._segments])
        columns = np.array([segment[:5] for segment in self._segments]).T
        index = 0
        for block in _process(self._plan):
            mine = block[(worker - index) % workers :: workers]
            mine = mine[: np.searchsorted(mine, lasts[-1])]
            start_s, duration_s, from_rate, to_rate, first = columns[:, np.searchsorted(lasts, mine, side="right")]
            # The time in a segment after which its cumulative rate is `area`: the root of a quadratic equation, in the
            # form that loses no digits and is the simple quotient where the rate does not change.
            area = mine - first
            root = np.sqrt(from_rate**2 + 2 * (to_rate - from_rate) / duration_s * area)
            # A ramp from 0 may begin with an arrival: 0/0.
            inside_s = np.divide(2 * area, from_rate + root, out=np.zeros_like(area), where=area > 0)
            yield ((start_s + inside_s) * 1e9).astype(np.int64)
            index += len(block)
            if block[-1] >= lasts[-1]:
                return


class _Counter:
    """Goes through a process once, counting."""

    def __init__(self, blocks: Iterator[NDArray[np.float64]]) -> None:
        self._blocks = blocks
        self._block = np.empty(0)

    def instant(self, start: float, count: int, limit: float) -> float:
        """Of the arrival that comes `count` after the first one from `start` on, or `limit` if that comes before.

        Later calls begin at what earlier ones returned, or after it.
        """
        while not len(self._block) or self._block[-1] < start:
            self._block = next(self._blocks)
        position = int(np.searchsorted(self._block, start)) + count
        while position >= len(self._block) and self._block[-1] < limit:
            position -= len(self._block)
            self._block = next(self._blocks)
        return limit if position >= len(self._block) else min(float(self._block[position]), limit)


def _process(plan: LoadPlan) -> Iterator[NDArray[np.float64]]:
    """The instants of the plan's process at a rate of 1, without end; a trace begins again after its last gap."""
    if plan.trace is not None:
        trace = read_trace(plan.trace)
        times = np.array(trace) * trace_rate(trace)
        for lap in itertools.count():
            for first in range(0, len(times), _BLOCK):
                yield times[first : first + _BLOCK] + lap * len(times)
    if plan.arrival == "constant":
        for first in itertools.count(0, _BLOCK):
            yield np.arange(first, first + _BLOCK, dtype=np.float64)
    random = np.random.default_rng(plan.seed)
    variance = 1.0 if plan.cv is None else plan.cv**2  # of gaps whose mean is 1; that of a Poisson process is 1
    now = 0.0
    while True:
        times = now + np.cumsum(random.standard_gamma(1 / variance, _BLOCK) * variance)
        yield times
        now = float(times[-1])
