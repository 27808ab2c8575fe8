"""Means of samples over windows, by how much of each window every sample speaks for.

Pure: arrays in seconds on one clock in, arrays out. A window with too little data has no mean, and nothing is ever
interpolated. Not here: how times got onto that clock (join.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.stats import Floats

# A window with fewer samples than this share of its length has no figure.
MIN_COVERAGE = 0.5
# Nor has one whose samples may be off by more than this share of it.
MAX_BLUR = 0.5


class Spans(NamedTuple):
    """Each value with the time that it speaks for, ascending and disjoint; without those that were not measured."""

    begin_s: Floats
    end_s: Floats
    values: Floats

    def during(self, begin_s: float, end_s: float) -> Spans:
        """Those that reach into [begin, end]."""
        part = slice(np.searchsorted(self.end_s, begin_s), np.searchsorted(self.begin_s, end_s, side="right"))
        return Spans(self.begin_s[part], self.end_s[part], self.values[part])


def around(t_s: Floats, values: Floats) -> Spans:
    """Samples of an instant, `t_s` ascending.

    A sample speaks for the time half-way to its neighbours, but at most one period to either side: a gap in the data is
    not covered. The period is the median of all gaps, or of five around where that is longer: a server that is asked
    less often has no gaps. A single sample speaks for nothing.
    """
    known = ~(np.isnan(values) | np.isnan(t_s))
    t, v = t_s[known], values[known]
    if t.size < 2:
        return Spans(t[:0], t[:0], v[:0])
    gaps = np.diff(t)
    reach = np.minimum(gaps / 2, _periods(gaps))
    return Spans(t - np.concatenate((reach[:1], reach)), t + np.concatenate((reach, reach[-1:])), v)


def within(begin_s: Floats, end_s: Floats, values: Floats) -> Spans:
    """Samples that say themselves which time they are means of; where two overlap the later one counts."""
    known = ~(np.isnan(values) | np.isnan(begin_s) | np.isnan(end_s)) & (begin_s < end_s)
    begin, end, v = begin_s[known], end_s[known], values[known]
    order = np.argsort(end, kind="stable")
    begin, end, v = begin[order], end[order], v[order]
    later = np.append(np.minimum.accumulate(begin[::-1])[::-1], np.inf)[1:]
    end = np.minimum(end, later)
    left = begin < end
    return Spans(begin[left], end[left], v[left])


def _periods(gaps: Floats) -> Floats:
    """How far apart samples are meant to be at each gap."""
    periods = np.full(gaps.size, np.median(gaps))
    long = np.flatnonzero(gaps > 2 * periods)
    padded = np.pad(gaps, 2, constant_values=np.nan)[long[:, None] + np.arange(5)]
    periods[long] = np.maximum(periods[long], np.nanmedian(padded, axis=1))
    return periods


def mean(spans: Spans, edges: Floats) -> tuple[Floats, Floats]:
    """Time-weighted mean in each bin between `edges`, NaN where coverage is below MIN_COVERAGE; and that coverage."""
    width = np.diff(edges)
    spans = spans.during(edges[0], edges[-1])
    if not spans.values.size:
        return np.full(width.size, np.nan), np.zeros(width.size)
    knots = np.column_stack((spans.begin_s, spans.end_s)).ravel()
    lengths = spans.end_s - spans.begin_s
    covered = _integral(knots, lengths, edges)
    with np.errstate(invalid="ignore", divide="ignore"):
        coverage = np.where(width > 0, covered / width, 0.0)
        means = _integral(knots, lengths * spans.values, edges) / covered
    means = np.clip(means, spans.values.min(), spans.values.max())  # rounding must not leave them
    return np.where(coverage >= MIN_COVERAGE, means, np.nan), coverage


def overlap_mean(t_s: Floats, values: Floats, edges: Floats) -> tuple[Floats, Floats]:
    """`mean` of samples of an instant."""
    return mean(around(t_s, values), edges)


def rate(t_s: Floats, counter: Floats, begin_s: float, end_s: float, wraps_at: float = np.inf) -> float | None:
    """By how much a counter grew a second, from its first to its last sample in the window.

    None where these are less than MIN_COVERAGE of it apart, and where the counter went back: it was reset. One that
    `wraps_at` a number starts again there; how often it did between two samples cannot be told, and once is assumed.
    """
    inside = between(t_s, begin_s, end_s) & ~np.isnan(counter)
    t, values = t_s[inside], counter[inside]
    if t.size < 2 or t[-1] - t[0] < MIN_COVERAGE * (end_s - begin_s):
        return None
    grown = np.diff(values)
    if np.nanmax(counter) < wraps_at < np.inf:
        grown = np.where(grown < 0, grown + wraps_at, grown)
    return float(grown.sum() / (t[-1] - t[0])) if (grown >= 0).all() else None


def _integral(knots: Floats, areas: Floats, edges: Floats) -> Floats:
    """Area between edges of a function that is constant from knot 2i to knot 2i + 1 and 0 elsewhere."""
    cumulated = np.cumsum(np.column_stack((np.zeros(areas.size), areas)).ravel())
    return np.asarray(np.diff(np.interp(edges, knots, cumulated)))


def quality(sources: Sequence[pd.DataFrame], edges: Floats) -> tuple[Floats, Floats]:
    """How far the time of each source's samples may be off, and how much they cover, in each bin between `edges`.

    A source has t_s, ascending, and bound_s. In a bin without samples the next one's bound counts; NaN without any.
    """
    times = [rows["t_s"].to_numpy() for rows in sources]
    bounds = [_worst(t, rows["bound_s"].to_numpy(), edges) for t, rows in zip(times, sources, strict=True)]
    return np.array(bounds), np.array([overlap_mean(t, np.zeros(t.size), edges)[1] for t in times])


def _worst(t_s: Floats, values: Floats, edges: Floats) -> Floats:
    if not t_s.size:
        return np.full(edges.size - 1, np.nan)
    first, last = (np.searchsorted(t_s, at) for at in (edges[:-1], edges[1:]))
    largest = np.maximum.reduceat(np.append(values, -np.inf), np.column_stack((first, last)).ravel())[::2]
    return np.where(first < last, largest, values[first.clip(max=t_s.size - 1)])


def occupied(begin_s: Floats, end_s: Floats, edges: Floats, weights: Floats | None = None) -> Floats:
    """Mean number, or weight, of the intervals [begin, end] that are open in each bin between `edges`.

    NaN intervals do not count.
    """
    known = ~(np.isnan(begin_s) | np.isnan(end_s))
    each = np.ones(begin_s.size) if weights is None else weights
    area = _ramps(begin_s[known], each[known], edges) - _ramps(end_s[known], each[known], edges)
    width = np.diff(edges)
    return np.asarray(np.divide(np.diff(area), width, out=np.full(width.size, np.nan), where=width > 0))


def _ramps(starts: Floats, weights: Floats, at: Floats) -> Floats:
    """Sum over the starts of weight * max(0, at - start)."""
    slopes, heights = _powers(starts, weights, at, 1)
    return np.asarray(slopes * at - heights)


def _powers(starts: Floats, weights: Floats, at: Floats, most: int) -> list[Floats]:
    """Sums of weight * start^n over the starts that lie before each instant, for n from 0 to `most`."""
    before = np.searchsorted(at, starts, side="right")
    sums = [np.bincount(before, weights, at.size + 1)]
    for _ in range(most):
        weights = weights * starts
        sums.append(np.bincount(before, weights, at.size + 1))
    return [np.cumsum(each, dtype=np.float64)[: at.size] for each in sums]


def grown(begin_s: Floats, end_s: Floats, heights: Floats, edges: Floats) -> Floats:
    """Mean in each bin between `edges` of what grows evenly from 0 at begin to its height at end, and is gone then."""
    long = end_s > begin_s
    begin, end, height = begin_s[long] - edges[0], end_s[long] - edges[0], heights[long]
    at, slope = edges - edges[0], height / (end - begin)
    area = _parabolas(begin, slope, at) - _parabolas(end, slope, at) - _ramps(end, height, at)
    width = np.diff(edges)
    return np.asarray(np.divide(np.diff(area), width, out=np.full(width.size, np.nan), where=width > 0))


def _parabolas(starts: Floats, weights: Floats, at: Floats) -> Floats:
    """Sum over the starts of weight * max(0, at - start)^2 / 2."""
    none, once, twice = _powers(starts, weights, at, 2)
    return np.asarray((at * at * none - 2 * at * once + twice) / 2)


def between(t_s: Floats, begin_s: float, end_s: float) -> NDArray[np.bool_]:
    """Which instants lie in [begin, end)."""
    return (t_s >= begin_s) & (t_s < end_s)
