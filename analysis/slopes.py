"""The slope of a series over time, with its interval, whether there is one at all, and where its level jumps.

    slope          Theil-Sen: the median of the slopes between all pairs of values
    its interval   Sen's: pairs around the median, as many as Kendall's S may be off by
    p-value        Mann-Kendall: S against its standard deviation

Values that follow each other are alike, and both would take that for a trend. So neighbours are averaged until they are
little alike (as long as enough are left), and what is left of it, taken for an AR(1) of the deviations from the line,
makes the variance of S larger, and Student's degrees of freedom fewer. Pure: equal steps of time, NaN where there is no
value, at most a few hundred values; no clock.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from analysis.intervals import student
from analysis.stats import Floats

# Neighbours that are more alike than this are averaged, while at least so many values are left.
ALIKE = 0.4
LEAST_BLOCKS = 12
# The autocorrelation that is corrected for, at most, and the fewest degrees of freedom.
MOST_ALIKE = 0.95
LEAST_FREEDOM = 4.0
# A jump is a change between the medians of so many values before and after, by this share of the whole range; most of
# it happens between two neighbours, and is so many times what differences between neighbours usually are.
BESIDE = 5
OF_RANGE = 0.3
AT_ONCE = 0.6
UNUSUAL = 5.0
_SIGMA = 1.4826  # standard deviation of normal values / their median absolute deviation


class Slope(NamedTuple):
    """Change in a unit of time, with the ends of its 95 % interval (infinite where the values leave them open).

    `level` is the line's value at the asked instant; `p_value` is of the hypothesis that there is no trend.
    """

    value: float
    low: float
    high: float
    level: float
    p_value: float


def slope(t: Floats, values: Floats, at: float) -> Slope:
    """Of `values` at equidistant `t`, with the level at the instant `at`; NaN are left out.

    There are LEAST_BLOCKS values or more.
    """
    known = ~np.isnan(values)
    t, values = t[known], values[known]
    while True:
        first, second = np.triu_indices(t.size, 1)
        rises = values[second] - values[first]
        slopes = np.sort(rises / (t[second] - t[first]))
        middle = float(np.median(slopes))
        alike = _alike(values - middle * t)
        if alike <= ALIKE or t.size // 2 < LEAST_BLOCKS:
            break
        t, values = _halved(t), _halved(values)
    score = float(np.sign(rises).sum())
    freedom = max(t.size * (1 - alike) / (1 + alike) - 2, LEAST_FREEDOM)
    deviation = math.sqrt(score_variance(values) * _inflation(t, alike))
    reach = student(freedom) * deviation
    below, above = math.floor((slopes.size - reach) / 2), math.ceil((slopes.size + reach) / 2)
    return Slope(
        middle,
        float(slopes[below - 1]) if below >= 1 else -math.inf,
        float(slopes[above]) if above < slopes.size else math.inf,
        float(np.median(values - middle * t)) + middle * at,
        _p_value(max(abs(score) - 1, 0) / deviation if deviation else 0.0, freedom),
    )


def jumps(values: Floats) -> list[int]:
    """Where the level changes at once: the places of the first values after; NaN are left out.

    A steady climb has none, however steep, nor one in many small stairs.
    """
    places = np.flatnonzero(~np.isnan(values))
    known = values[places]
    if known.size < 2 * BESIDE:
        return []
    apart = np.diff(known)
    apart = apart - np.median(apart)
    usual = _SIGMA * float(np.median(np.abs(apart)))
    sides = np.median(np.lib.stride_tricks.sliding_window_view(known, BESIDE), axis=1)
    moved = sides[BESIDE:] - sides[:-BESIDE]  # at each place from BESIDE on
    found: list[int] = []
    size = np.abs(moved)
    while size.size and size.max() > OF_RANGE * np.ptp(known):
        at = int(np.argmax(size))
        beside = slice(max(at + BESIDE - 3, 0), at + BESIDE + 2)
        around = apart[beside] * np.sign(moved[at])
        at_once = float(around.max())
        if at_once > max(AT_ONCE * size[at], UNUSUAL * usual):
            found.append(int(places[beside.start + int(np.argmax(around)) + 1]))
        size[max(at - BESIDE, 0) : at + BESIDE + 1] = 0
    return sorted(set(found))


def _alike(deviations: Floats) -> float:
    """Autocorrelation from one to the next, without the bias that a fitted line gives it."""
    n = deviations.size
    deviations = deviations - deviations.mean()
    squares = float(deviations @ deviations)
    if squares <= 0:
        return 0.0
    seen = float(deviations[1:] @ deviations[:-1]) / squares
    return min(max((n * seen + 2) / (n - 4), 0.0), MOST_ALIKE)


def _halved(values: Floats) -> Floats:
    """Means of pairs; of an odd number the first is left out."""
    return np.asarray(values[values.size % 2 :].reshape(-1, 2).mean(axis=1))


def score_variance(values: Floats) -> float:
    """Of Kendall's S, were the values independent; equal values make it smaller."""
    n = values.size
    _, ties = np.unique(values, return_counts=True)
    return float((n * (n - 1) * (2 * n + 5) - (ties * (ties - 1) * (2 * ties + 5)).sum()) / 18)


def _inflation(t: Floats, alike: float) -> float:
    """The variance of a slope of an AR(1) / that of independent values."""
    middle = t - t.mean()
    lags = np.correlate(middle, middle, "full")[t.size :]
    return max(1.0, 1 + 2 * float(lags @ alike ** np.arange(1, t.size)) / float(middle @ middle))


def _p_value(deviate: float, freedom: float) -> float:
    """Two-sided, of Student's t (Wallace's approximation by a normal deviate)."""
    normal = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(deviate * deviate / freedom))
    return math.erfc(normal / math.sqrt(2))
