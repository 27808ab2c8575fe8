"""Percentiles known by construction."""

import numpy as np
import pytest

from analysis.stats import describe, minimum_samples, percentile


@pytest.mark.parametrize(("p", "expected"), [(1, 1), (50, 50), (90, 90), (95, 95), (99, 99), (99.5, 100), (100, 100)])
def test_percentile_of_one_to_hundred_is_its_rank(p: float, expected: float) -> None:
    sample = np.random.default_rng(0).permutation(np.arange(1.0, 101.0))
    assert percentile(sample, p) == expected


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 20, 99, 101, 660, 1000])
@pytest.mark.parametrize("p", [1, 5, 10, 50, 90, 95, 99])
def test_percentile_is_the_smallest_value_that_p_per_cent_do_not_exceed(n: int, p: int) -> None:
    sample = np.arange(1.0, n + 1)
    by_hand = next(value for value in sample if 100 * int((sample <= value).sum()) >= p * n)
    assert percentile(sample, p) == by_hand
    assert percentile(sample, p, np.full(n, 3.0)) == by_hand


def test_failures_as_infinity_reach_only_the_percentiles_they_make_up() -> None:
    sample = np.concatenate((np.arange(1.0, 96.0), np.full(5, np.inf)))
    assert describe(sample) == {"p50": 50, "p90": 90, "p95": 95, "p99": np.inf, "mean": np.inf}


def test_weights_count_values_several_times() -> None:
    figures = describe(np.array([30.0, 10.0, 20.0]), np.array([1.0, 8.0, 1.0]))
    assert figures == {"p50": 10, "p90": 20, "p95": 30, "p99": 30, "mean": 13}


def test_nothing_measured_is_none() -> None:
    assert describe(np.zeros(0)) == dict.fromkeys(("p50", "p90", "p95", "p99", "mean"))
    assert percentile(np.zeros(0), 50) is None


def test_minimum_samples_are_those_of_mlperf() -> None:
    assert [minimum_samples(p) for p in (99, 99.9)] == [662, 6636]
