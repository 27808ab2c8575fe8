"""How far two sides of a comparison differ, and how surely: estimates, tests against limits, many of them at once.

    repeats on both sides    Welch's t on run-level figures (the run is the unit of replication)
    one run on a side        the interval within the run, as a standard error to either side (MOVER)
    infinite in some runs    Fisher's exact test on their number, unless all runs of a side are so for sure

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

from analysis.intervals import CONFIDENCE

ALPHA = 1 - CONFIDENCE
Floats = NDArray[np.float64]
Ends = tuple[float | None, float | None]
# Of the quadrature of Student's t; with more degrees of freedom than these it is the normal distribution.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_NORMAL_FROM = 1e6


class Side(NamedTuple):
    """One side's figure: a value a run, and the least standard error that their mean is taken to have.

    `within` has the interval of each run by itself; an end that is not known is None. It may be left out.
    """

    values: tuple[float, ...]
    least_error: float = 0.0
    within: tuple[Ends, ...] = ()

    def only(self) -> Ends:
        """The interval of the only run, where there is but one."""
        return self.within[0] if len(self.within) == len(self.values) == 1 else (None, None)

    def surely(self, infinite: float) -> bool:
        """All runs are infinite, each of them even at that end of its own interval which is less so."""
        nearer = 0 if infinite > 0 else 1
        return len(self.within) == len(self.values) and all(ends[nearer] == infinite for ends in self.within)


class Estimate(NamedTuple):
    """A difference, its standard errors downwards and upwards, and their degrees of freedom.

    `infinite` is set instead where it has no size, because figures of some runs are infinite: `value` is infinite too,
    and `infinite` is the probability of as many by chance; 0 where that is certain.
    """

    value: float
    below: float
    above: float
    freedom: float
    infinite: float | None = None

    def p_above(self, limit: float) -> float:
        """One-sided p-value against "it is `limit` or less"."""
        if self.infinite is not None:
            return self.infinite if self.value > 0 else 1.0
        return _p(self.value - limit, self.below if self.value > limit else self.above, self.freedom)

    def p_below(self, limit: float) -> float:
        """One-sided p-value against "it is `limit` or more"."""
        if self.infinite is not None:
            return self.infinite if self.value < 0 else 1.0
        return _p(limit - self.value, self.above if self.value < limit else self.below, self.freedom)

    def p_differs(self) -> float:
        return min(1.0, 2 * min(self.p_above(0.0), self.p_below(0.0)))

    def interval(self) -> Ends:
        """At 95 %, two-sided; None for an end that is not known."""
        if self.infinite is not None:
            return None, None
        quantile = student_quantile(self.freedom)
        low, high = self.value - quantile * self.below, self.value + quantile * self.above
        return low if math.isfinite(low) else None, high if math.isfinite(high) else None


def difference(base: Side, new: Side) -> Estimate | None:
    """NEW less BASE. None where nothing can be said: there are no figures, or as many are infinite on both sides."""
    if not base.values or not new.values:
        return None
    if infinite := {value for value in base.values + new.values if math.isinf(value)}:
        return _infinite(base, new, infinite.pop()) if len(infinite) == 1 else None
    if min(len(base.values), len(new.values)) > 1:
        return welch(np.array(base.values), np.array(new.values), (base.least_error, new.least_error))
    (b, b_below, b_above, b_freedom), (n, n_below, n_above, n_freedom) = _alone(base), _alone(new)
    freedom = _pooled(((b_below + b_above) / 2) ** 2, b_freedom, ((n_below + n_above) / 2) ** 2, n_freedom)
    return Estimate(n - b, math.hypot(n_below, b_above), math.hypot(n_above, b_below), freedom)


def mean_interval(side: Side) -> Ends:
    """Of the mean of a side's finite values, at 95 %: between runs, or within the only one."""
    return Estimate(*_alone(side)).interval()


def level(new: Side, limit: float) -> Estimate | None:
    """NEW's own figure, to be held against `limit`; infinite in some runs, a sign test does that. None without any."""
    if not new.values:
        return None
    if math.inf not in new.values:
        return Estimate(*_alone(new))
    runs, beyond = len(new.values), sum(value > limit for value in new.values)
    p = sum(math.comb(runs, k) for k in range(beyond, runs + 1)) / 2**runs
    return Estimate(math.inf, 0.0, 0.0, 1.0, 0.0 if new.surely(math.inf) else p)


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
def student_quantile(freedom: float) -> float:
    """What |T| exceeds with 5 %, by bisection."""
    low, high = 1.0, 20.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, freedom) > ALPHA / 2 else (low, middle)
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


def _infinite(base: Side, new: Side, infinite: float) -> Estimate | None:
    """Fisher's exact test, one-sided, on how many runs of a side are infinite; None where the shares are equal.

    All runs of one side surely so and none of the other is no matter of counting runs: that is certain.
    """
    shares = [side.values.count(infinite) / len(side.values) for side in (base, new)]
    if shares[0] == shares[1]:
        return None
    more, less = (new, base) if shares[1] > shares[0] else (base, new)
    mine, size = more.values.count(infinite), len(more.values)
    others, whole = less.values.count(infinite), len(more.values) + len(less.values)
    ways = sum(math.comb(size, k) * math.comb(whole - size, mine + others - k) for k in range(mine, mine + others + 1))
    p = 0.0 if not others and more.surely(infinite) else ways / math.comb(whole, mine + others)
    return Estimate(infinite if more is new else -infinite, 0.0, 0.0, 1.0, p)


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
