"""Histograms of durations: a bucket is 2 % wide, and what is counted in parts adds up."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loadgen import histogram

RANDOM = np.random.default_rng(7)
DURATIONS_NS = np.exp(RANDOM.uniform(math.log(1_000), math.log(600e9), 20_000)).astype(np.int64)


def test_a_bucket_is_within_one_per_cent_of_what_it_counts() -> None:
    middles = np.array([histogram.bucket_ns(index) for index in histogram.buckets(DURATIONS_NS).tolist()])
    assert np.abs(middles / DURATIONS_NS - 1).max() < 0.01001
    edges = [histogram.bucket_ns(index) for index in (700, 701)]
    assert edges[1] / edges[0] == pytest.approx(1.02)


def test_one_duration_has_the_bucket_that_it_has_among_others() -> None:
    buckets = histogram.buckets(DURATIONS_NS[:500]).tolist()
    assert [histogram.bucket(ns) for ns in DURATIONS_NS[:500].tolist()] == buckets


@pytest.mark.parametrize("ns", [-5, 0, 1, 999])
def test_what_is_too_short_to_tell_counts_as_a_microsecond(ns: int) -> None:
    assert histogram.bucket(ns) == histogram.bucket(1000)


def test_parts_add_up() -> None:
    whole = histogram.count(DURATIONS_NS)
    assert histogram.count(DURATIONS_NS[:7000]) + histogram.count(DURATIONS_NS[7000:]) == whole
    assert whole.total() == len(DURATIONS_NS)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 0.999, 1.0])
def test_quantiles_are_those_of_the_durations(share: float) -> None:
    exact = np.sort(DURATIONS_NS)[math.ceil(share * len(DURATIONS_NS)) - 1]
    assert histogram.quantile(histogram.count(DURATIONS_NS), share) == pytest.approx(exact, rel=0.0101)


def test_nothing_has_no_quantile() -> None:
    assert histogram.quantile(histogram.count(np.empty(0, np.int64)), 0.5) is None
