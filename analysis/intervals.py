"""95 % intervals of means, rates and percentiles of what one step measured, in the order in which it was measured.

Values that follow each other are alike, so n of them tell less than n independent ones. How much less is seen in
batches: their means vary more than independence would have it. Pure: arrays in, pairs (low, high) out; no clock.

    mean         batch means (Law & Kelton), fewer batches where the autocorrelation is longer, Student's t
    percentile   binomial bounds on ranks (order statistics) of the effective sample size n / inflation
    rate         that of a mean; of few counts Poisson's, of as many independent ones

They are intervals of this step as it was: what differs from run to run is not in them.
"""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from analysis.stats import PERCENTILES, Floats, Sorted, inverted_cdf, sort

Interval = tuple[float, float]

CONFIDENCE = 0.95
# With fewer independent values than this nothing is said of a mean, and of a percentile.
LEAST_FOR_MEAN = 30.0
LEAST_FOR_PERCENTILE = 8.0
# A batch is to be as long as this many independent values; there are this many batches.
BATCH_EFFECTIVE = 10
BATCHES = (6, 20)
# The autocorrelation of batch means that is corrected for, at most.
MOST_BATCH_CORRELATION = 0.6
# Correlation in a tail is judged where at least this many values lie beyond.
TAIL = 50
# An autocorrelation function has no more points than this.
MOST_LAGS = 4096


class Bounds(NamedTuple):
    """`effective` is how many independent values would tell as much."""

    low: float | None
    high: float | None
    effective: float


def mean_interval(values: Floats) -> Interval | None:
    """Of the mean of equally weighted values in their order. None where they are too few, or some are infinite."""
    if values.size < LEAST_FOR_MEAN or not np.isfinite(values).all():
        return None
    mean = float(values.mean())
    variance, batches, effective = _of_mean(values - mean)
    if effective < LEAST_FOR_MEAN:
        return None
    reach = student(batches - 1) * math.sqrt(variance)
    return mean - reach, mean + reach


def rate_interval(counts: Floats, length_s: float, together: float = 1.0) -> Interval | None:
    """Of a rate, from what was counted in equal parts of `length_s` seconds together; None where nothing could be.

    At least so many counts come `together`, such as the tokens of an answer.
    """
    if not counts.size or not length_s > 0:
        return None
    if counts.sum() >= LEAST_FOR_MEAN and (interval := mean_interval(counts * (counts.size / length_s))) is not None:
        return max(interval[0], 0.0), interval[1]
    mean, deviations = float(counts.mean()), counts - counts.mean()
    varies = float(deviations @ deviations) / counts.size * correlation_time(deviations)
    alike = max(varies / mean if mean > 0 else 0.0, together)
    low, high = _poisson(float(counts.sum()) / alike)
    return low * alike / length_s, high * alike / length_s


def _poisson(number: float) -> Interval:
    """Of the mean of a Poisson number (Wilson and Hilferty)."""
    z, above = student(math.inf), number + 1
    low = number * max(1 - 1 / (9 * number) - z / (3 * math.sqrt(number)), 0.0) ** 3 if number > 0 else 0.0
    return low, above * (1 - 1 / (9 * above) + z / (3 * math.sqrt(above))) ** 3


def share_interval(indicator: Floats) -> Interval | None:
    """Of the share of ones among zeros and ones in their order (Wilson's, of the effective number); None for none."""
    if not indicator.size:
        return None
    n, share, z = indicator.size / _inflation(indicator, None), float(indicator.mean()), student(math.inf)
    middle, reach = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    whole = 1 + z * z / n
    return min((middle - reach) / whole, share), max((middle + reach) / whole, share)


def percentile_bounds(
    sample: Floats, weights: Floats | None = None, ordered: Sorted | None = None
) -> dict[str, Bounds]:
    """Of p50, p90, p95 and p99 of values in their order, +infinity among them; empty for an empty sample.

    A bound that would lie beyond the sample is None, and both are where too few of the values are independent.
    `ordered` is the sorted sample, where there is one.
    """
    if not sample.size:
        return {}
    values, cumulated = ordered or sort(sample, weights)
    return {f"p{p}": _percentile(sample, weights, values, cumulated, p) for p in PERCENTILES}


def _percentile(sample: Floats, weights: Floats | None, values: Floats, cumulated: Floats | None, p: float) -> Bounds:
    n = sample.size if weights is None else float(weights.sum() ** 2 / (weights @ weights))
    judged = min(p, 100 * max(1 - TAIL / n, 0.5))
    quantile = inverted_cdf(values, cumulated, judged)
    # Of many equal values the split counts that is nearest to the percentile.
    splits = [split.astype(np.float64) for split in (sample <= quantile, sample < quantile)]
    within = min(splits, key=lambda split: abs(100 * np.average(split, weights=weights) - judged))
    effective = n / _inflation(within, weights)
    if effective < LEAST_FOR_PERCENTILE:
        return Bounds(None, None, effective)
    first, last = ranks(round(effective), p)
    low = inverted_cdf(values, cumulated, 100 * first) if first > 0 else None
    high = inverted_cdf(values, cumulated, 100 * last) if last <= 1 else low if low == math.inf else None
    return Bounds(low, high, effective)


def _inflation(indicator: Floats, weights: Floats | None) -> float:
    """The variance of the mean of an indicator / what it would be were the values independent; at least 1.

    What is above 1 is widened as Student's t is: it is known from a few batches only.
    """
    if weights is None:
        share, deviations, n = float(indicator.mean()), indicator - indicator.mean(), float(indicator.size)
    else:
        share = float(np.average(indicator, weights=weights))
        deviations = (indicator - share) * (weights / weights.mean())
        n = float(weights.sum() ** 2 / (weights @ weights))
    independent = share * (1 - share) / n
    if independent <= 0 or indicator.size < 2 * BATCHES[0]:
        return 1.0
    variance, batches, _ = _of_mean(deviations)
    widened = (student(batches - 1) / student(math.inf)) ** 2
    return 1 + max(0.0, variance / independent - 1) * widened


def _of_mean(deviations: Floats) -> tuple[float, int, float]:
    """Variance of the mean of values, from batches; how many batches these were; the effective number of values.

    `deviations` are from the mean. Batch means that are still alike make the variance larger, as an AR(1) of them does.
    """
    effective = deviations.size / correlation_time(deviations)
    batches = int(np.clip(effective / BATCH_EFFECTIVE, *BATCHES))
    length = deviations.size // batches
    means = deviations[deviations.size - batches * length :].reshape(batches, length).mean(axis=1)
    means = means - means.mean()
    squares = float(means @ means)
    if squares <= 0:
        return 0.0, batches, effective
    alike = float(means[1:] @ means[:-1]) / squares + 1 / batches
    alike = min(max(alike, 0.0), MOST_BATCH_CORRELATION)
    return squares / (batches - 1) / batches * (1 + alike) / (1 - alike), batches, effective


def correlation_time(deviations: Floats) -> float:
    """How many values tell as much as one independent one: 1 + twice the sum of the autocorrelations, at least 1.

    The sum ends where that of two neighbours is no longer positive (Geyer's initial monotone sequence). Of long
    samples the means of equal parts are taken, MOST_LAGS of them at most.
    """
    variance = float(deviations @ deviations) / deviations.size
    length = -(-deviations.size // MOST_LAGS)
    parts = deviations.size // length
    means = deviations[deviations.size - parts * length :].reshape(parts, length).mean(axis=1)
    means = means - means.mean()
    squares = float(means @ means)
    if variance <= 0 or squares <= 0:
        return 1.0
    spectrum = np.fft.rfft(means, 2 << (parts - 1).bit_length())
    correlation = np.fft.irfft((spectrum * spectrum.conj()).real)[: parts - parts % 2] / squares
    pairs = correlation[::2] + correlation[1::2]
    ends = np.flatnonzero(pairs <= 0)
    summed = float(np.minimum.accumulate(pairs[: ends[0] if ends.size else pairs.size]).sum())
    return max(1.0, length * squares / parts / variance * (2 * summed - 1))


def student(freedom: float, confidence: float = CONFIDENCE) -> float:
    """The two-sided quantile of Student's t, from 4 degrees of freedom on within 0.1 % (Cornish-Fisher)."""
    z = _normal(confidence)
    if math.isinf(freedom):
        return z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))


@cache
def _normal(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


@cache
def ranks(n: int, p: float) -> tuple[float, float]:
    """Ranks, as shares of the sample, between which the true p-th percentile lies; 0 or > 1: beyond the sample.

    The number of n independent values below it is binomial: of X(low) too few, of X(high) too many are, each with
    2.5 % or less.
    """
    tail = (1 - CONFIDENCE) / 2
    first, cumulated = _binomial(n, p / 100)
    below = int(np.searchsorted(cumulated, tail, side="right")) + first  # P(K < below) <= tail
    above = int(np.searchsorted(cumulated, 1 - tail)) + first + 1  # P(K >= above) <= tail
    return below / n, above / n


def _binomial(n: int, share: float) -> tuple[int, Floats]:
    """P(K <= first), P(K <= first + 1), …: all that is not negligible."""
    middle, reach = n * share, 10 * math.sqrt(n * share * (1 - share)) + 20
    first, last = max(0, math.floor(middle - reach)), min(n, math.ceil(middle + reach))
    k = np.arange(first, last + 1, dtype=np.float64)
    steps = np.log((n - k[:-1]) / k[1:]) + math.log(share / (1 - share))
    logs = np.concatenate(([0.0], np.cumsum(steps)))
    masses = np.exp(logs - logs.max())
    return first, np.asarray(np.cumsum(masses / masses.sum()))
