"""Intervals that hold the truth as often as they say; the whole study is benchmarks/interval_coverage.py."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.intervals import (
    correlation_time,
    mean_interval,
    percentile_bounds,
    ranks,
    rate_interval,
    share_interval,
    student,
)
from benchmarks.interval_coverage import coverage, series


@pytest.mark.parametrize(("n", "phi"), [(1000, 0.0), (3000, 0.5), (3000, 0.9)])
def test_intervals_of_series_with_a_memory_hold_the_truth_95_times_in_100(n: int, phi: float) -> None:
    cells = coverage(400, n, phi, seed=7)
    assert {name: cell.covered for name, cell in cells.items() if not 0.90 <= cell.covered <= 0.99} == {}
    assert all(cell.given > 0.95 for cell in cells.values())


def test_failures_as_infinity_are_held_too() -> None:
    cells = coverage(400, 3000, 0.5, seed=7, failed=0.03)
    assert cells["p99"].covered == 1 and cells["p99"].open == 0
    assert all(0.90 <= cells[name].covered <= 0.99 for name in ("p50", "p90", "p95"))
    assert cells["mean"].given > 0.9  # of the series before its failures


def test_neglecting_the_memory_would_be_wrong() -> None:
    """What the correction is for: with independence taken for granted 95 % become 40."""
    sample = series(400, 3000, 0.9, 0.5, np.random.default_rng(7))
    reach = 1.96 * sample.std(axis=1) / math.sqrt(3000)
    held = abs(sample.mean(axis=1) - 100 * math.exp(0.125)) <= reach
    assert held.mean() < 0.6


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_the_correlation_time_of_an_ar1_is_known(phi: float) -> None:
    values = np.log(series(1, 40_000, phi, 1.0, np.random.default_rng(3))[0])
    assert correlation_time(values - values.mean()) == pytest.approx((1 + phi) / (1 - phi), rel=0.25)


@pytest.mark.parametrize(("freedom", "quantile"), [(5, 2.5706), (10, 2.2281), (19, 2.0930), (math.inf, 1.9600)])
def test_students_quantiles_are_those_of_the_tables(freedom: float, quantile: float) -> None:
    assert student(freedom) == pytest.approx(quantile, abs=5e-4)


def test_ranks_are_those_of_the_binomial_tables() -> None:
    assert ranks(20, 50) == (6 / 20, 15 / 20)  # the sign test's interval of a median: the 6th to the 15th of 20
    assert ranks(368, 99)[1] <= 1 < ranks(367, 99)[1]  # 0.99 ** 368 < 2.5 %


def test_a_bound_beyond_the_sample_is_none() -> None:
    bounds = percentile_bounds(np.random.default_rng(0).permutation(np.arange(1.0, 101.0)))
    assert bounds["p50"][:2] == (40, 61)
    assert bounds["p99"].low is not None and bounds["p99"].high is None


def test_a_percentile_that_surely_failed_is_infinite_at_both_ends() -> None:
    sample = np.where(np.random.default_rng(0).permutation(1000) < 300, np.inf, 5.0)
    bounds = percentile_bounds(sample)
    assert bounds["p50"][:2] == (5, 5) and bounds["p90"][:2] == (math.inf, math.inf)


def test_what_came_in_one_burst_counts_as_few() -> None:
    sample = np.full(3000, 5.0)
    sample[1000:1200] = 900.0
    assert percentile_bounds(sample)["p95"].effective < 30
    spread = np.random.default_rng(0).permutation(sample)
    assert percentile_bounds(spread)["p95"].effective > 1500


def test_weights_of_tokens_count_as_fewer_values_where_they_differ() -> None:
    sample = np.random.default_rng(0).exponential(10, 5000)
    even = percentile_bounds(sample, np.full(5000, 3.0))["p90"]
    assert even[:2] == percentile_bounds(sample)["p90"][:2]
    weights = np.where(np.arange(5000) % 10, 1.0, 50.0)
    assert percentile_bounds(sample, weights)["p90"].effective < 1200


def test_too_few_values_have_no_interval() -> None:
    assert mean_interval(np.arange(10.0)) is None
    assert percentile_bounds(np.zeros(0)) == {}
    assert share_interval(np.zeros(0)) is None
    assert rate_interval(np.zeros(0), 10.0) is None and rate_interval(np.zeros(1000), 0.0) is None
    assert mean_interval(np.append(np.arange(100.0), np.inf)) is None


def test_a_share_without_failures_is_not_known_to_be_one() -> None:
    low, high = share_interval(np.ones(100)) or (0.0, 0.0)
    assert (low, high) == (pytest.approx(100 / (100 + 1.96**2), abs=1e-4), 1.0)


def test_rates_of_a_poisson_process_are_held() -> None:
    rng = np.random.default_rng(5)
    ends = [rate_interval(rng.poisson(0.4, 1000).astype(float), 20.0) or (0.0, 0.0) for _ in range(400)]
    assert 0.90 <= np.mean([low <= 20 <= high for low, high in ends]) <= 0.99


@pytest.mark.parametrize(("number", "low", "high"), [(0, 0.0, 3.689), (3, 0.619, 8.767), (27, 17.79, 39.28)])
def test_rates_of_few_counts_have_the_interval_of_poissons_table(number: int, low: float, high: float) -> None:
    counts = np.zeros(1000)
    counts[np.linspace(0, 999, number).astype(int)] = 1
    assert rate_interval(counts, 20.0) == pytest.approx((low / 20, high / 20), rel=0.03)


def test_few_counts_that_come_together_tell_of_as_many_as_come_by_themselves() -> None:
    rng = np.random.default_rng(6)
    held = []
    for _ in range(300):
        counts = np.zeros(1000)
        for begin in rng.integers(0, 1000, rng.poisson(8)):
            np.add.at(counts, (begin + rng.integers(0, 10, 40)) % 1000, 1)
        low, high = rate_interval(counts, 20.0) or (0.0, 0.0)
        held.append(low <= 16 <= high)
    assert np.mean(held) >= 0.90


def test_the_tokens_of_one_slow_answer_are_no_dozen_independent_ones() -> None:
    counts = np.zeros(1000)
    counts[:120:10] = 1
    low, high = rate_interval(counts, 60.0, together=12) or (0.0, 0.0)
    assert low < 0.1 * 12 / 60 and high > 5 * 12 / 60
