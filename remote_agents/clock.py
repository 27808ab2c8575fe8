"""Four-stamp clock probes -> the offset of an agent's clock against the controller's at any instant, and its bound.

    controller   t0 ------------------> t3        t2 - t3 <= offset <= t1 - t0        agent minus controller
    agent              t1 ---> t2                 certain, however long each way took

Of each burst the probe with the least rtt is kept: an anchor, and an interval that holds the offset there. Between
anchors the offset moves by at most MAX_DRIFT_PPM, and once they span a minute by what the ends allow and WANDER_PPM:

    anchor  \\      /  anchor      each interval, widened by these rates, also holds at the others and in between:
    [low,    ><><><    [low,      what all of them leave is certain;
     high]  /      \\   high]      its middle is the estimate, half its width the bound

Intervals that leave nothing show that a clock was slewed fast, or asleep: the fit is cut there, and what is in between
is only known to lie between both sides. Pure. Both clocks are CLOCK_MONOTONIC ns, each of its own host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

BURST_GAP_NS = 1_000_000_000
MIN_DRIFT_SPAN_NS = 60_000_000_000
MAX_DRIFT_PPM = 100  # of two oscillators at their worst
WANDER_PPM = 30  # of good ones against their own mean: Huygens, NSDI 2018
# Reading two clocks of one host one after the other takes less.
PAIR_NS = 1_000_000

_MAX_RATE = MAX_DRIFT_PPM / 1e6
_WANDER = WANDER_PPM / 1e6

Instants = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Stamps = tuple[int, int, int, int]


class Step(NamedTuple):
    """The offset moved by `size_ns` around `t_agent_ns`, faster than an oscillator can."""

    t_agent_ns: int
    size_ns: int


class Anchors(NamedTuple):
    """Offsets lie in [low, high] at each agent time; from there to the next they change at rates in [slow, fast].

    `joined`: both ends of that gap hold within it; else the offset is anywhere between them.
    """

    t_ns: Instants
    low_ns: Instants
    high_ns: Instants
    slow: Floats
    fast: Floats
    joined: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ClockFit:
    """`offset_ns` is that of the tightest anchor, agent minus controller; `bound_ns` the worst bound at an anchor.

    `drift_ppm` is that of the longest stretch without a step, 0 when it is shorter than a minute. `causal`: an
    instant is placed by earlier probes alone.
    """

    host: str
    offset_ns: int
    drift_ppm: float
    bound_ns: int
    probes: int
    steps: tuple[Step, ...]
    causal: bool
    anchors: Anchors


def fit_clocks(probes: Iterable[Mapping[str, Any]], causal: bool = False) -> dict[str, ClockFit]:
    """Host -> fit, from the lines of clocks.jsonl; a host without a probe that can be true has none."""
    stamps: dict[str, list[Stamps]] = {}
    for probe in probes:
        stamps.setdefault(probe["host"], []).append((probe["t0_ns"], probe["t1_ns"], probe["t2_ns"], probe["t3_ns"]))
    fits = {host: fit_clock(host, of_host, causal) for host, of_host in stamps.items()}
    return {host: fit for host, fit in fits.items() if fit is not None}


def fit_clock(host: str, probes: Sequence[Stamps], causal: bool = False) -> ClockFit | None:
    """Fit (t0, t1, t2, t3) probes; None without one that can be true. Stamps are not negative."""
    t_ns, low_ns, high_ns = _tightest(probes)
    if not t_ns.size:
        return None
    breaks = _breaks(t_ns.tolist(), low_ns.tolist(), high_ns.tolist())
    # A slew may have begun before it was seen, and ended after: the anchors beside a break stand alone.
    reach = (0, 1) if causal else (-1, 0, 1)
    cuts = sorted({0, t_ns.size} | {min(max(k + n, 0), t_ns.size) for k in breaks for n in reach})
    slow, fast = np.full(t_ns.size, -_MAX_RATE), np.full(t_ns.size, _MAX_RATE)
    joined = np.zeros(t_ns.size, bool)
    low, high = low_ns.copy(), high_ns.copy()
    for begin, end in pairwise(cuts):
        part = slice(begin, end)
        t, lowest, highest = (values[part] - values[begin] for values in (t_ns, low_ns, high_ns))
        width = float(high_ns[begin] - low_ns[begin])
        fitted = _stretch(t.astype(np.float64), lowest.astype(np.float64), highest + width, causal)
        low[part] = low_ns[begin] + np.floor(fitted[0]).astype(np.int64)
        high[part] = low_ns[begin] + np.ceil(fitted[1]).astype(np.int64)
        inside = slice(begin, end - 1)
        slow[inside], fast[inside], joined[inside] = fitted[2][:-1], fitted[3][:-1], True
        if end == t_ns.size:
            slow[-1], fast[-1] = fitted[2][-1], fitted[3][-1]
    best = int(np.argmin(high - low))
    longest = max(pairwise(cuts), key=lambda ends: t_ns[ends[1] - 1] - t_ns[ends[0]])
    middle_ns = low + (high - low) // 2
    return ClockFit(
        host=host,
        offset_ns=int(middle_ns[best]),
        drift_ppm=1e6 * _slope(t_ns[slice(*longest)], low[slice(*longest)], high[slice(*longest)]),
        bound_ns=int((high - low).max()) // 2 + 1,
        probes=len(probes),
        steps=tuple(_steps(breaks, t_ns, middle_ns)),
        causal=causal,
        anchors=Anchors(t_ns, low, high, slow, fast, joined),
    )


def _tightest(probes: Sequence[Stamps]) -> tuple[Instants, Instants, Instants]:
    """Agent time, lowest and highest offset of the probe with the least rtt of each burst, in order of agent time."""
    stamps = np.array(probes, dtype=np.int64).reshape(-1, 4)
    t0, t1, t2, t3 = stamps[np.argsort(stamps[:, 0], kind="stable")].T
    held = (t2 - t1) * MAX_DRIFT_PPM // 2_000_000 + 1  # clocks drift while the agent answers, and stamps are cut to ns
    t, low, high = t1 + (t2 - t1) // 2, t2 - t3 - held, t1 - t0 + held
    burst = np.concatenate(([0], np.cumsum(np.diff(t0) > BURST_GAP_NS)))[: t.size]
    possible = np.flatnonzero((low <= high) & (t0 <= t3) & (t1 <= t2))
    order = possible[np.lexsort(((high - low)[possible], burst[possible]))]
    kept = order[np.unique(burst[order], return_index=True)[1]]
    kept = kept[np.argsort(t[kept], kind="stable")]
    return t[kept], low[kept], high[kept]


def _breaks(t_ns: list[int], low_ns: list[int], high_ns: list[int]) -> list[int]:
    """Anchors that no drift of two oscillators leads to from those before."""
    breaks = []
    lowest, highest = low_ns[0], high_ns[0]
    for k in range(1, len(t_ns)):
        drifted = (t_ns[k] - t_ns[k - 1]) * MAX_DRIFT_PPM // 1_000_000 + 1
        lowest, highest = max(low_ns[k], lowest - drifted), min(high_ns[k], highest + drifted)
        if lowest > highest:
            breaks.append(k)
            lowest, highest = low_ns[k], high_ns[k]
    return breaks


def _stretch(t: Floats, low: Floats, high: Floats, causal: bool) -> tuple[Floats, Floats, Floats, Floats]:
    """What is left of the intervals of anchors without a break, and the rates in use from each on.

    The mean rate is known from the ends' intervals; in a causal fit, at each anchor from those up to it.
    """
    limit = np.full(t.size, _MAX_RATE)
    low_s, high_s = _propagated(t, low, high, -limit, limit, causal=True)
    first = int(np.argmin(np.where(t - t[0] <= MIN_DRIFT_SPAN_NS / 2, high - low, np.inf)))
    known = t - t[0] >= MIN_DRIFT_SPAN_NS
    time = np.where(known, t - t[first], 1.0)
    slow = np.where(known, np.maximum((low_s - high[first]) / time - _WANDER, -limit), -limit)
    fast = np.where(known, np.minimum((high_s - low[first]) / time + _WANDER, limit), limit)
    if not causal:
        slow, fast = np.full(t.size, slow[-1]), np.full(t.size, fast[-1])
    low_f, high_f = _propagated(t, low, high, slow, fast, causal)
    steady = low_f <= high_f + 1.0
    if causal:
        steady = np.logical_and.accumulate(steady)
    elif not steady.all():  # the rate has changed by more than oscillators wander: their limit alone holds
        steady[:] = False
        low_s, high_s = _propagated(t, low, high, -limit, limit, causal)
    low, high = np.where(steady, low_f, low_s), np.where(steady, high_f, high_s)
    return low, high, np.where(steady, slow, -limit), np.where(steady, fast, limit)


def _propagated(
    t: Floats, low: Floats, high: Floats, slow: Floats, fast: Floats, causal: bool
) -> tuple[Floats, Floats]:
    """What of each interval the earlier ones leave, and unless `causal` the later ones, widened by the rates."""
    least, most = (np.concatenate(([0.0], np.cumsum(rate[:-1] * np.diff(t)))) for rate in (slow, fast))
    lowest = np.maximum.accumulate(low - least) + least
    highest = np.minimum.accumulate(high - most) + most
    if causal:
        return lowest, highest
    lowest_back = np.maximum.accumulate((low - most)[::-1])[::-1] + most
    highest_back = np.minimum.accumulate((high - least)[::-1])[::-1] + least
    return np.maximum(lowest, lowest_back), np.minimum(highest, highest_back)


def _slope(t_ns: Instants, low_ns: Instants, high_ns: Instants) -> float:
    """Least squares through the middles, weighted by 1 / width²; 0 when they span less than a minute."""
    if t_ns[-1] - t_ns[0] < MIN_DRIFT_SPAN_NS:
        return 0.0
    t, low, high = ((values - values[0]).astype(np.float64) for values in (t_ns, low_ns, high_ns))
    middle, weight = (low + high) / 2, 1 / (high_ns - low_ns + 1.0) ** 2
    t, middle = t - np.average(t, weights=weight), middle - np.average(middle, weights=weight)
    return float(np.clip(np.sum(weight * t * middle) / np.sum(weight * t * t), -_MAX_RATE, _MAX_RATE))


def _steps(breaks: list[int], t_ns: Instants, middle_ns: Instants) -> Iterable[Step]:
    """Breaks at anchors beside each other are one step."""
    runs: list[list[int]] = []
    for k in breaks:
        if runs and k - runs[-1][-1] <= 2:
            runs[-1].append(k)
        else:
            runs.append([k])
    for run in runs:
        before, after = max(run[0] - 2, 0), min(run[-1] + 1, t_ns.size - 1)
        around = t_ns[run[0] - 1] + (t_ns[run[-1]] - t_ns[run[0] - 1]) // 2
        yield Step(int(around), int(middle_ns[after] - middle_ns[before]))


def to_controller(fit: ClockFit, t_agent_ns: Instants) -> Instants:
    """Agent instants on the controller's clock."""
    low, high = _interval(fit, t_agent_ns)
    controller: Instants = t_agent_ns - (low + (high - low) // 2)
    return controller


def bound_at(fit: ClockFit, t_agent_ns: Instants) -> Instants:
    """How far `to_controller` may be off, in ns."""
    low, high = _interval(fit, t_agent_ns)
    bound: Instants = (high - low) // 2 + 1
    return bound


def _interval(fit: ClockFit, t_agent_ns: Instants) -> tuple[Instants, Instants]:
    """Lowest and highest offset at each instant, from the anchors before and after it."""
    anchors = fit.anchors
    index = np.searchsorted(anchors.t_ns, t_agent_ns, side="right") - 1
    before = index.clip(min=0)

    def from_anchor(which: npt.NDArray[np.intp]) -> tuple[Instants, Instants]:
        time = t_agent_ns - anchors.t_ns[which]
        slow, fast = time * anchors.slow[before], time * anchors.fast[before]
        low = anchors.low_ns[which] + np.floor(np.minimum(slow, fast)).astype(np.int64)
        high = anchors.high_ns[which] + np.ceil(np.maximum(slow, fast)).astype(np.int64)
        return low, high

    low, high = from_anchor(before)
    if fit.causal:
        return low, high
    low_after, high_after = from_anchor((index + 1).clip(max=anchors.t_ns.size - 1))
    joined = anchors.joined[before]
    lowest = np.where(joined, np.maximum(low, low_after), np.minimum(low, low_after))
    highest = np.where(joined, np.minimum(high, high_after), np.maximum(high, high_after))
    return lowest, np.maximum(lowest, highest)


class TimeOfDay(NamedTuple):
    """A host's time of day: CLOCK_REALTIME and CLOCK_MONOTONIC at one instant, and by how much it may be off.

    `maxerror_ns` is the kernel's own limit; None when it is not synchronised, or does not tell.
    """

    realtime_ns: int
    monotonic_ns: int
    maxerror_ns: int | None


def clock_check(fit: ClockFit, controller: TimeOfDay, agent: TimeOfDay) -> tuple[int, int] | None:
    """By how much two times of day differ when the probes have placed them, and by how much they may, in ns.

    The probes do without synchronised hosts; when both kernels claim to be, this tests them all. None: they do not.
    """
    if controller.maxerror_ns is None or agent.maxerror_ns is None:
        return None
    at = np.array([agent.monotonic_ns], dtype=np.int64)
    elapsed_ns = int(to_controller(fit, at)[0]) - controller.monotonic_ns
    differ_ns = agent.realtime_ns - (controller.realtime_ns + elapsed_ns)
    return differ_ns, controller.maxerror_ns + agent.maxerror_ns + int(bound_at(fit, at)[0]) + PAIR_NS
