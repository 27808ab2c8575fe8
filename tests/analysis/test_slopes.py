"""Slopes and jumps of series that are known, and how often noise is taken for a trend."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from analysis.slopes import jumps, slope
from benchmarks.trend_study import study_of

N = 60
T = np.arange(N, dtype=np.float64)
SERIES = arrays(np.float64, N, elements=st.integers(-1000, 1000).map(float))


def noise(seed: int = 1, n: int = N) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n)


def test_a_line_is_its_own_slope() -> None:
    found = slope(T, 3 * T - 7, 100.0)
    assert found[:4] == pytest.approx((3, 3, 3, 293))
    assert found.p_value < 1e-9


def test_a_slope_under_noise_is_in_its_interval_and_one_outlier_does_not_move_it() -> None:
    values = 0.1 * T + noise()
    found = slope(T, values, 0.0)
    assert found.low < 0.1 < found.high and found.p_value < 0.001
    values[5] = 1e6
    assert slope(T, values, 0.0).value == pytest.approx(found.value, abs=0.01)


def test_what_is_not_known_is_left_out() -> None:
    values = 2 * T
    values[10:30] = np.nan
    assert slope(T, values, 0.0)[:4] == pytest.approx((2, 2, 2, 0))


def test_what_never_changes_has_no_trend() -> None:
    found = slope(T, np.full(N, 5.0), 9.0)
    assert found == (0, 0, 0, 5, 1)


@given(SERIES, st.integers(1, 50), st.integers(-50, 50))
def test_units_and_time_do_not_change_what_is_seen(values: np.ndarray, scale: int, shift: int) -> None:
    found = slope(T, values, 30.0)
    other = slope(T + shift, scale * values + shift, 30.0 + shift)
    assert other[:3] == pytest.approx([scale * each for each in found[:3]], abs=1e-6)
    assert other.level == pytest.approx(scale * found.level + shift, abs=1e-6)
    assert other.p_value == pytest.approx(found.p_value)


@given(SERIES)
def test_turned_round_it_is_the_same_with_the_other_sign(values: np.ndarray) -> None:
    found, turned = slope(T, values, 0.0), slope(T, values[::-1].copy(), 0.0)
    assert turned.value == pytest.approx(-found.value)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    assert found.low <= found.value <= found.high and 0 <= found.p_value <= 1


@pytest.mark.parametrize(("n", "phi"), [(60, 0.9), (200, 0.0), (200, 0.8)])
def test_noise_that_is_alike_is_no_trend_and_intervals_hold_the_truth(n: int, phi: float) -> None:
    """At small scale: benchmarks/trend_study.py has the figures of 1000 series each."""
    seen = study_of(150, n, phi, seed=1)
    assert seen.false_told <= 0.05 and seen.jumped == 0
    assert 0.90 <= seen.covered <= 1.0


def test_jumps_are_found_where_they_are() -> None:
    stepped = np.where(T < 25, 0.0, 10.0) + 0.5 * noise()
    assert jumps(stepped) == [25]
    saw_tooth = T % 20 + 0.2 * noise()
    assert jumps(saw_tooth) == [20, 40]
    stepped[20:24] = np.nan
    assert jumps(stepped) == [25]


@pytest.mark.parametrize(
    "values",
    [5 * T, np.floor(T / 6), noise(), T + noise(), 1 - np.exp(-T / 10), np.zeros(N), np.where(T == 30, 50.0, noise())],
    ids=["line", "stairs", "noise", "noisy line", "warm-up", "nothing", "one outlier"],
)
def test_what_changes_bit_by_bit_has_no_jump(values: np.ndarray) -> None:
    assert jumps(values) == []
