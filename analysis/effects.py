"""How far two sides of a comparison differ, and how surely: estimates, tests against limits, many of them at once.

    repeats on both sides    Welch's t on run-level figures (the run is the unit of replication)
    one run on a side        the interval within the run, as a standard error to either side (MOVER)
    infinite in some runs    the order of the runs alone (ranks.py), unless all runs of a side are so for sure

Figures that are compared as a ratio come here as logarithms, so that 0 is minus infinity, others as they are. Pure:
numbers in, numbers out.
Not here: which figures there are (compared.py), what becomes of a gate (compare.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis import ranks
from analysis.intervals import CONFIDENCE

ALPHA = 1 - CONFIDENCE
Floats = NDArray[np.float64]
Ends = tuple[float | None, float | None]
# Of the quadrature of Student's t; with more degrees of freedom than these it is the normal distribution.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_NORMAL_FROM = 1e6


class Side(NamedTuple):
    """One side's figure: a value a run, and the least standard error that their mean is taken to have.

    `within` has the interval of each run by itself; an end that is not known is None. It may be left out. `silent`: no
    run answered anything.
    """

    values: tuple[float, ...]
    least_error: float = 0.0
    within: tuple[Ends, ...] = ()
    silent: bool = False

    def only(self) -> Ends:
        """The interval of the only run, where there is but one."""
        return self.within[0] if len(self.within) == len(self.values) == 1 else (None, None)

    def ends(self, which: int) -> tuple[float, ...]:
        """The lower (0) or upper (1) end of each run; where it is not known the value, of an infinite one anything."""
        within = self.within or ((None, None),) * len(self.values)
        anything = (-math.inf, math.inf)[which]
        known = zip(self.values, (ends[which] for ends in within), strict=True)
        return tuple(end if end is not None else value if math.isfinite(value) else anything for value, end in known)


class Estimate(NamedTuple):
    """A difference, its standard errors downwards and upwards, and their degrees of freedom."""

    value: float
    below: float
    above: float
    freedom: float

    def p_above(self, limit: float) -> float:
        """One-sided p-value against "it is `limit` or less"."""
        return _p(self.value - limit, self.below if self.value > limit else self.above, self.freedom)

    def p_below(self, limit: float) -> float:
        """One-sided p-value against "it is `limit` or more"."""
        return _p(limit - self.value, self.above if self.value < limit else self.below, self.freedom)

    def interval(self, tail: float = ALPHA / 2) -> Ends:
        """At 95 %, two-sided, or with another probability beyond each end; None for an end that is not known."""
        quantile = student_quantile(self.freedom, tail)
        low, high = self.value - quantile * self.below, self.value + quantile * self.above
        return low if math.isfinite(low) else None, high if math.isfinite(high) else None


class Ranked(NamedTuple):
    """A difference of sides of which some runs are infinite: their order is known, and not how far they are apart.

    Where each run of a side is infinite at the nearer end of its interval too, or 0, none of the other near: p is 0.
    """

    base: Side
    new: Side

    @property
    def value(self) -> float:
        """Of the medians, where one is infinite; NaN where both are."""
        return ranks.centre(self.new.values) - ranks.centre(self.base.values)

    def p_above(self, limit: float) -> float:
        if self.value < limit:  # sides that cross lie apart either way
            return 1.0
        none_ends = min(self.new.ends(0)) == math.inf or set(self.base.values) == {-math.inf}
        if none_ends and min(self.new.ends(0)) > max(self.base.ends(1)) + limit:
            return 0.0
        return ranks.smirnov_p([value + limit for value in self.base.values], self.new.values)

    def p_below(self, limit: float) -> float:
        return Ranked(self.new, self.base).p_above(-limit)


class Level(NamedTuple):
    """A side by itself of which some runs are infinite: how many lie beyond a limit; all surely infinite: p is 0."""

    new: Side

    @property
    def value(self) -> float:
        return ranks.centre(self.new.values)

    def p_above(self, limit: float) -> float:
        if min(self.new.ends(0)) == math.inf:
            return 0.0
        return ranks.sign_p(sum(value > limit for value in self.new.values), len(self.new.values))

    def p_below(self, limit: float) -> float:
        return ranks.sign_p(sum(value < limit for value in self.new.values), len(self.new.values))


# What may be held against a limit.
Found = Estimate | Ranked | Level


def p_differs(found: Estimate | Ranked) -> float | None:
    """Two-sided; None where no end of an interval is known."""
    if isinstance(found, Estimate) and found.interval() == (None, None):
        return None
    return min(1.0, 2 * min(found.p_above(0.0), found.p_below(0.0)))


def interval(found: Found | None, tail: float = ALPHA / 2) -> Ends:
    """That of an estimate; where the order alone is known there is none."""
    return found.interval(tail) if isinstance(found, Estimate) else (None, None)


def difference(base: Side, new: Side) -> Estimate | Ranked | None:
    """NEW less BASE. None where nothing can be said: there are no figures, or all are infinite alike."""
    values = {*base.values, *new.values}
    if not base.values or not new.values or values in ({math.inf}, {-math.inf}):
        return None
    if not all(map(math.isfinite, values)):
        return Ranked(base, new)
    if min(len(base.values), len(new.values)) > 1:
        return welch(np.array(base.values), np.array(new.values), (base.least_error, new.least_error))
    (b, b_below, b_above, b_freedom), (n, n_below, n_above, n_freedom) = _alone(base), _alone(new)
    freedom = _pooled(((b_below + b_above) / 2) ** 2, b_freedom, ((n_below + n_above) / 2) ** 2, n_freedom)
    return Estimate(n - b, math.hypot(n_below, b_above), math.hypot(n_above, b_below), freedom)


def mean_interval(side: Side) -> Ends:
    """Of the mean of a side's finite values, at 95 %: between runs, or within the only one."""
    return Estimate(*_alone(side)).interval()


def level(new: Side) -> Estimate | Level | None:
    """NEW's own figure, to be held against a limit. None without any."""
    if not new.values:
        return None
    return Estimate(*_alone(new)) if all(map(math.isfinite, new.values)) else Level(new)


def welch(base: Floats, new: Floats, least_errors: tuple[float, float] = (0.0, 0.0)) -> Estimate:
    """The difference of the means of two samples of two values at least, whose variances may differ."""
    value, error, freedom = welch_of(base, new, least_errors)
    return Estimate(float(value), float(error), float(error), float(freedom))


def welch_of(
    base: Floats, new: Floats, least_errors: tuple[float, float] = (0.0, 0.0)
) -> tuple[Floats, Floats, Floats]:
    """Difference, standard error and degrees of freedom (Welch-Satterthwaite), along the last axis."""
    squares = [
        np.maximum(sample.var(axis=-1, ddof=1) / sample.shape[-1], least**2)
        for sample, least in zip((base, new), least_errors, strict=True)
    ]
    total = squares[0] + squares[1]
    parts = sum(square**2 / (sample.shape[-1] - 1) for square, sample in zip(squares, (base, new), strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = np.where(total > 0, total**2 / parts, base.shape[-1] + new.shape[-1] - 2)
    return new.mean(axis=-1) - base.mean(axis=-1), np.sqrt(total), freedom


def t_tail(t: ArrayLike, freedom: ArrayLike) -> Floats:
    """P(T > t) of Student's t, far out too: with t = sqrt(f) tan(a) the density is cos(a) ** (f - 1)."""
    t, f = np.broadcast_arrays(np.asarray(t, dtype=float), np.minimum(np.asarray(freedom, dtype=float), _NORMAL_FROM))
    beyond = _mass(np.arctan(np.abs(t) / np.sqrt(f)), f)
    upper = beyond / (2 * _mass(np.zeros_like(f), f))
    return np.where(t >= 0, upper, 1 - upper)


def _mass(begin: Floats, freedom: Floats) -> Floats:
    """The integral of cos(a) ** (f - 1) from `begin` to pi / 2, less what is below 1e-30 of it."""
    end = np.minimum(begin + 12 / np.sqrt(freedom), np.pi / 2)
    middle, reach = (begin + end) / 2, (end - begin) / 2
    places = middle[..., None] + reach[..., None] * _NODES
    return np.asarray(reach * (np.cos(places) ** (freedom[..., None] - 1) @ _WEIGHTS))


@cache
def student_quantile(freedom: float, tail: float = ALPHA / 2) -> float:
    """What T exceeds with this probability, by bisection."""
    low, high = 0.0, 20.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, freedom) > tail else (low, middle)
    return high


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted so that the chance of any false alarm among them is what one of them alone would have."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    highest = 0.0
    for place, index in enumerate(order.tolist()):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return [float(p) for p in adjusted]


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted so that of those called different a share of 5 % is expected to be none."""
    order = np.argsort(p_values, kind="stable")[::-1]
    adjusted = np.empty(len(p_values))
    lowest = 1.0
    for place, index in enumerate(order.tolist()):
        lowest = min(lowest, p_values[index] * len(p_values) / (len(p_values) - place))
        adjusted[index] = lowest
    return [float(p) for p in adjusted]


def _alone(side: Side) -> tuple[float, float, float, float]:
    """A side by itself: its mean, the standard errors downwards and upwards, and their degrees of freedom."""
    values = np.array(side.values)
    if values.size > 1:
        error = max(float(values.std(ddof=1)) / math.sqrt(values.size), side.least_error)
        return float(values.mean()), error, error, values.size - 1.0
    value, quantile = float(values[0]), student_quantile(math.inf)
    low, high = side.only()
    below = math.inf if low is None else (value - low) / quantile
    above = math.inf if high is None else (high - value) / quantile
    return value, max(below, side.least_error), max(above, side.least_error), math.inf


def _pooled(one: float, one_freedom: float, other: float, other_freedom: float) -> float:
    """Degrees of freedom of the sum of two squared errors (Welch-Satterthwaite)."""
    parts = one * one / one_freedom + other * other / other_freedom
    return (one + other) ** 2 / parts if 0 < parts < math.inf else math.inf


def _p(away: float, error: float, freedom: float) -> float:
    if error == 0:
        return 0.0 if away > 0 else 1.0
    return float(t_tail(away / error, freedom)) if math.isfinite(error) else 0.5
