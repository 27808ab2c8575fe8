"""Means over windows by what each sample speaks for, concurrency by integration, and rates of counters."""

import numpy as np
import pandas as pd
import pytest

from analysis.overlap import mean, occupied, overlap_mean, quality, rate, within


def test_samples_speak_for_the_time_around_them() -> None:
    t = np.arange(0.5, 10.0)  # a sample in the middle of each second: its value is that second's
    mean, coverage = overlap_mean(t, np.arange(10.0), np.array([0.0, 2.0, 2.5, 10.0]))
    assert mean == pytest.approx([0.5, 2.0, (0.5 * 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9) / 7.5])
    assert coverage == pytest.approx([1, 1, 1])


def test_a_gap_is_not_covered_and_half_a_window_is_needed() -> None:
    t = np.array([0.5, 1.5, 2.5, 10.5, 11.5, 12.5])
    mean, coverage = overlap_mean(t, np.array([1.0, 1, 1, 5, 5, 5]), np.array([0.0, 3.5, 9.5, 13.0]))
    assert coverage == pytest.approx([1, 0, 1])  # one period reaches to 3.5 and back to 9.5
    assert mean[[0, 2]] == pytest.approx([1, 5])
    assert np.isnan(mean[1])


def test_a_sampler_that_slows_down_leaves_no_gaps() -> None:
    t = np.concatenate((np.arange(0.0, 60.0), np.arange(60.0, 121.0, 5)))
    mean, coverage = overlap_mean(t, np.where(t < 60, 1.0, 3.0), np.array([0.0, 55.0, 65.0, 120.0]))
    assert coverage == pytest.approx([1, 1, 1])
    assert mean[[0, 2]] == pytest.approx([1, 3])


@pytest.mark.parametrize("samples", [0, 1])
def test_too_few_samples_cover_nothing(samples: int) -> None:
    mean, coverage = overlap_mean(np.arange(samples) + 0.5, np.ones(samples), np.array([0.0, 1.0]))
    assert np.isnan(mean[0]) and coverage[0] == 0


def test_a_value_that_was_not_measured_is_a_gap_not_a_zero() -> None:
    values = np.where(np.arange(40) < 25, np.nan, 7.0)
    mean, coverage = overlap_mean(np.arange(40) + 0.5, values, np.array([0.0, 20.0, 40.0]))
    assert np.isnan(mean[0]) and coverage[0] == 0
    assert mean[1] == 7 and coverage[1] == pytest.approx(0.75)


def test_occupied_is_the_integral_of_what_is_open() -> None:
    begin, end = np.array([0.0, 1.0, 1.0, np.nan]), np.array([4.0, 2.0, 1.5, 3.0])
    assert occupied(begin, end, np.array([0.0, 1.0, 2.0, 4.0])) == pytest.approx([1.0, 2.5, 1.0])


def test_a_sample_that_names_its_window_speaks_for_that_alone() -> None:
    begin, end = np.array([0.0, 1.0, 4.0]), np.array([1.0, 2.0, 5.0])
    means, coverage = mean(within(begin, end, np.array([10.0, 20.0, 50.0])), np.array([0.0, 2.0, 4.5, 5.0]))
    assert coverage == pytest.approx([1, 0.2, 1])
    assert means[[0, 2]] == pytest.approx([15, 50]) and np.isnan(means[1])
    means, _ = mean(within(begin, end, np.array([10.0, 20.0, 50.0])), np.array([0.5, 1.25]))
    assert means == pytest.approx([(0.5 * 10 + 0.25 * 20) / 0.75])


def test_of_windows_that_overlap_the_later_one_counts() -> None:
    begin, end = np.array([0.0, 1.0, 0.5, np.nan]), np.array([2.0, 2.5, 3.0, 4.0])
    spans = within(begin, end, np.array([1.0, 2.0, 3.0, 4.0]))
    assert (spans.begin_s.tolist(), spans.end_s.tolist()) == ([0, 0.5], [0.5, 3])  # the second is all in the third
    assert spans.values.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("values", "wraps_at", "expected"),
    [
        ([0, 5, 10, 15], np.inf, 5.0),
        ([0, 5, 2, 7], np.inf, None),  # it was reset
        ([2**32 - 6, 2**32 - 1, 4, 9], 2.0**32, 5.0),
        ([2**33, 2**33 + 5, 3, 8], 2.0**32, None),  # it has been above: it has more bits
        ([0, np.nan, np.nan, 15], np.inf, 5.0),
        ([0, 5, np.nan, np.nan], np.inf, None),  # too short a time
    ],
)
def test_a_counter_that_goes_back_has_no_rate_unless_it_wraps(
    values: list[float], wraps_at: float, expected: float | None
) -> None:
    got = rate(np.arange(4.0), np.array(values, dtype=float), 0.0, 4.0, wraps_at)
    assert got == (None if expected is None else pytest.approx(expected))


def test_the_quality_of_a_bin_is_its_worst_samples() -> None:
    rows = pd.DataFrame({"t_s": [0.5, 0.6, 1.5, 4.5], "bound_s": [0.1, 0.3, 0.2, 0.7]})
    bounds, coverage = quality([rows], np.arange(6.0))
    assert bounds[0] == pytest.approx([0.3, 0.2, 0.7, 0.7, 0.7])  # of an empty bin: the next sample's
    assert coverage.shape == (1, 5) and coverage[0, 2] == pytest.approx(0.4)  # 0.9 s after the sample at 1.5
    nothing, none = quality([rows[:0]], np.arange(3.0))
    assert np.isnan(nothing).all() and (none == 0).all()
