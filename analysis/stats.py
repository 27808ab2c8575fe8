"""Percentiles, and how many requests one needs.

Pure: arrays in, floats out; no clock. Not here: which requests count
(metrics.py), how well a figure is known (intervals.py).
The percentile is the inverted CDF (nearest rank, Hyndman & Fan type 1): the smallest value that at least p % of the
sample does not exceed. It is always a value that was measured, and it is defined when failures count as +infinity.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PERCENTILES = (50, 90, 95, 99)


def percentile(sample: Floats, p: float, weights: Floats | None = None) -> float | None:
    """The inverted CDF at p %; `weights` say how often each value counts. None for an empty sample."""
    return inverted_cdf(*sort(sample, weights), p) if sample.size else None


class Sorted(NamedTuple):
    """Ascending values and, with weights, how much is up to each."""

    values: Floats
    cumulated: Floats | None


def describe(sample: Floats, weights: Floats | None = None, ordered: Sorted | None = None) -> dict[str, float | None]:
    """p50, p90, p95, p99 and mean; all None for an empty sample, infinite where failures reach that far.

    `ordered` is the sorted sample, where there is one.
    """
    if not sample.size:
        return dict.fromkeys([*(f"p{p}" for p in PERCENTILES), "mean"])
    values, cumulated = ordered or sort(sample, weights)
    figures: dict[str, float | None] = {f"p{p}": inverted_cdf(values, cumulated, p) for p in PERCENTILES}
    figures["mean"] = float(np.average(sample, weights=weights))
    return figures


def sort(sample: Floats, weights: Floats | None) -> Sorted:
    """What `inverted_cdf` takes."""
    if weights is None:
        return Sorted(np.sort(sample), None)
    order = np.argsort(sample)
    return Sorted(sample[order], np.cumsum(weights[order]))


def inverted_cdf(values: Floats, cumulated: Floats | None, p: float) -> float:
    """`percentile` of what `sort` gave."""
    if cumulated is None:
        return float(values[rank_of(values.size, p)])
    rank = int(np.searchsorted(cumulated, cumulated[-1] * (p / 100 - 1e-12)))
    return float(values[min(max(rank, 0), values.size - 1)])


def rank_of(size: int, p: float) -> int:
    """Where the percentile is in a sorted sample of that size."""
    return min(max(math.ceil(round(p * size / 100, 9)) - 1, 0), size - 1)


@cache
def minimum_samples(p: float, confidence: float = 0.99) -> int:
    """Requests needed before a measured p-th percentile bounds the true one with `confidence`.

    The smallest n for which two or more of n requests exceed the true percentile with that probability
    (binomial; MLPerf LoadGen's early stopping with one spare): 662 for p99, 6636 for p99.9.
    """
    tail = 1 - p / 100
    n = 2
    while (1 - tail) ** n + n * tail * (1 - tail) ** (n - 1) > 1 - confidence:
        n += 1
    return n
