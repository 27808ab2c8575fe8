"""When a step has settled, and whether it stayed so: its window begins after the warm-up that its requests show.

    hold ──┬── warm-up of the plan ──┬── what MSER-5 leaves out ──┬── window ──┬── end
                                     (at most half of the hold)     steady?

MSER-5 (White, 1997) is run on requests a second, by when they ended, and on mean latency, by when they were intended;
of OK requests, and the later cut counts; failures are never left out, an outage is no warm-up. The window is steady
when neither of the two changes over it. Seconds since the run's start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.flow import histogram
from analysis.intervals import student
from analysis.overlap import between
from analysis.stats import Floats
from analysis.windows import Window

# With fewer requests in the window nothing is found.
LEAST_REQUESTS = 100
# No more than this share of a step is left out.
MOST_LEFT_OUT = 0.5
# MSER-5's batches: of 5 s, shorter where there would be too few of them, longer where too many.
BATCH_S = 5.0
BATCHES = (20, 2000)
# A cut that changes the mean by less is not made, nor one that is within so many standard errors.
MATERIAL = {"qps": 0.05, "e2e": 0.02}
STANDARD_ERRORS = 3.0
# Parts of the window that the change over it is fitted to, and how sure that is.
PARTS = 20
CONFIDENCE = 0.99
# Fewer parts with a value than this tell no change; one that lacks more of its requests than usual has no value.
LEAST_PARTS = 12
MISSING = 0.05
# Not steady: it changed by more than this. Not known: it may have changed by more than that.
CHANGED = 0.05
UNKNOWN = 0.25

NAMES = {"qps": "QPS", "e2e": "mean E2E latency"}


@dataclass(frozen=True)
class Steadiness:
    """`cut_by`: "plan", or the signal ("qps", "e2e") whose cut was the later one; `why` is the evidence in words.

    `drift` has the interval of each signal's change from the window's begin to its end, as a share of its mean.
    """

    warmup_s: float
    cut_by: str
    steady: bool | None
    why: str
    drift: dict[str, tuple[float, float] | None]

    def figures(self) -> dict[str, Any]:
        """The keys of a step in summary.json."""
        pct = {name: None if ends is None else [100 * end for end in ends] for name, ends in self.drift.items()}
        return {
            "warmup_s": self.warmup_s,
            "warmup_by": self.cut_by,
            "steady": self.steady,
            "steady_why": self.why,
            "drift_pct": pct,
        }


def settle(window: Window, frame: pd.DataFrame, every: int = 1) -> tuple[Window, Steadiness]:
    """The window without the warm-up that its requests show; `frame` is that of overview.look, of every so many."""
    requests = _Requests.of(window, frame)
    planned = window.begin_s - window.hold_s
    if requests.end_s.size < LEAST_REQUESTS:
        why = f"{requests.end_s.size} OK requests in the window are too few to tell: {LEAST_REQUESTS} are needed"
        return window, Steadiness(planned, "plan", None, why, dict.fromkeys(NAMES))
    cuts = {name: _cut(window, *series, MATERIAL[name]) for name, series in _series(window, requests)}
    cut_by = max(cuts, key=lambda name: cuts[name])
    hidden = _failures(frame, window.begin_s, cuts[cut_by])
    if cuts[cut_by] > window.begin_s and not hidden:
        window = replace(window, begin_s=cuts[cut_by])
    else:
        cut_by = "plan"
    drift = {name: _drift(values) for name, values in _parts(window, requests)}
    steady, why = _verdict(drift)
    if hidden:  # an outage is no warm-up
        seen = f" (of every {every}th request)" if every > 1 else ""
        why += f"; what looks like a warm-up has {hidden} failed requests in it{seen}, and is not left out"
    return window, Steadiness(window.begin_s - window.hold_s, cut_by, steady, why, drift)


def _failures(frame: pd.DataFrame, begin_s: float, end_s: float) -> int:
    """How many of the requests that were intended in that time failed."""
    failed = ~frame["ok"].to_numpy() & ~frame["cancelled"].to_numpy()
    return int((failed & between(frame["intended_s"].to_numpy(), begin_s, end_s)).sum())


class _Requests(NamedTuple):
    """When OK requests ended; when they were intended, and their latencies; when cancelled ones were intended."""

    end_s: Floats
    intended_s: Floats
    e2e: Floats
    cancelled_s: Floats

    @classmethod
    def of(cls, window: Window, frame: pd.DataFrame) -> _Requests:
        ok, end, intended = (frame[name].to_numpy() for name in ("ok", "end_s", "intended_s"))
        inside = between(intended, window.begin_s, window.end_s)
        mine = ok & inside
        return cls(
            end[ok & between(end, window.begin_s, window.end_s)],
            intended[mine],
            frame["e2e_ms"].to_numpy()[mine],
            intended[inside & frame["cancelled"].to_numpy()],
        )


def _series(window: Window, requests: _Requests) -> Iterator[tuple[str, tuple[Floats, Floats]]]:
    """Of each signal its batches: when they began, and their means."""
    count = int(np.clip(window.length_s // BATCH_S, *BATCHES))
    edges = np.linspace(window.begin_s, window.end_s, count + 1)
    for name, values in _binned(edges, requests):
        known = ~np.isnan(values)
        yield name, (edges[:-1][known], values[known])


def _parts(window: Window, requests: _Requests) -> Iterator[tuple[str, Floats]]:
    return _binned(np.linspace(window.begin_s, window.end_s, PARTS + 1), requests)


def _binned(edges: Floats, requests: _Requests) -> Iterator[tuple[str, Floats]]:
    """Requests a second; and mean latencies, NaN without any and where the run's end cut the slowest."""
    ended, intended, cut = (histogram(t, edges) for t in (requests.end_s, requests.intended_s, requests.cancelled_s))
    sums = histogram(requests.intended_s, edges, requests.e2e)
    yield "qps", ended / np.diff(edges)
    with np.errstate(invalid="ignore"):
        missing = cut / (cut + intended)
        partly = missing > np.nanmedian(missing) + MISSING if intended.any() else np.zeros(cut.size, bool)
        yield "e2e", np.where(partly, np.nan, sums / intended)


def _cut(window: Window, begin_s: Floats, means: Floats, material: float) -> float:
    """When the warm-up has ended by one signal: the window's begin where there is nothing to leave out."""
    last = window.hold_s + MOST_LEFT_OUT * (window.end_s - window.hold_s)
    most = int(np.searchsorted(begin_s, last, side="right"))
    first = mser(means, most)
    if not first:
        return window.begin_s
    before, after = means[:first], means[first:]
    moved = abs(means.mean() - after.mean())
    error = _spread(after - after.mean()) * math.sqrt(1 / before.size + 1 / after.size)
    sure = abs(before.mean() - after.mean()) > STANDARD_ERRORS * error
    return float(begin_s[first]) if sure and moved > material * after.mean() else window.begin_s


def mser(means: Floats, most: int) -> int:
    """How many of the first `most` batches to leave out, so that the mean of the others has the least standard error.

    Its square is the sum of squared deviations from their mean / their number squared.
    """
    if means.size < 3 or most < 1:
        return 0
    left = np.arange(means.size, 0, -1, dtype=np.float64)
    values = means - means.mean()
    sums, squares = (np.cumsum(each[::-1])[::-1] for each in (values, values**2))
    errors = (squares - sums**2 / left) / left**2
    return int(np.argmin(errors[: min(most, means.size - 2) + 1].clip(min=0)))


def _drift(parts: Floats) -> tuple[float, float] | None:
    """Least and greatest change from begin to end, as shares of the mean; None where too few parts have a value."""
    known = ~np.isnan(parts)
    values, at = parts[known], np.flatnonzero(known) / parts.size
    if values.size < LEAST_PARTS or not values.mean() > 0:
        return None
    at = at - at.mean()
    mean = float(values.mean())
    slope = float(at @ values / (at @ at))
    error = _spread(values - mean - slope * at, fitted=2) / math.sqrt(at @ at)
    reach = student(values.size - 2, CONFIDENCE) * error
    return (slope - reach) / mean, (slope + reach) / mean


def _spread(deviations: Floats, fitted: int = 1) -> float:
    """Standard deviation, larger where neighbours are alike: as if they were independent."""
    squares = float(deviations @ deviations)
    if squares <= 0 or deviations.size <= fitted:
        return 0.0
    alike = float(deviations[1:] @ deviations[:-1]) / squares + 1 / deviations.size
    alike = min(max(alike, 0.0), 0.6)
    return math.sqrt(squares / (deviations.size - fitted) * (1 + alike) / (1 - alike))


def _verdict(drift: dict[str, tuple[float, float] | None]) -> tuple[bool | None, str]:
    known = {name: ends for name, ends in drift.items() if ends is not None}
    changed = {name: ends for name, ends in known.items() if ends[0] > CHANGED or ends[1] < -CHANGED}
    if changed:
        return False, _words(changed)
    if len(known) < len(drift):
        return None, "there are too many times without requests to tell"
    wide = {name: ends for name, ends in known.items() if max(map(abs, ends)) > UNKNOWN}
    return (None, f"not known: {_words(wide)}") if wide else (True, _words(known))


def _words(drift: dict[str, tuple[float, float]]) -> str:
    """ "QPS changed by +1 % (−2 to +4 %) over the window"."""
    parts = [
        f"{NAMES[name]} changed by {50 * (low + high):+.1f} % ({100 * low:+.1f} to {100 * high:+.1f} %)"
        for name, (low, high) in drift.items()
    ]
    return f"{' and '.join(parts)} from the window's begin to its end"
