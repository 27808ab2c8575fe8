"""Overlap-weighted means, concurrency by integration, and telemetry on a foreign clock."""

from pathlib import Path

import numpy as np
import pytest

from analysis.join import occupied, overlap_mean, telemetry
from analysis.load import load
from loadgen import rundir
from tests.analysis import synthetic as syn


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


def _foreign(run: Path, offset_s: float) -> None:
    """GPU samples of a host whose clock reads `offset_s` more; its utilisation is the true second."""
    shift = round(offset_s * 1e9)
    rows = []
    for k in range(200):
        row = syn.gpu(k / 10, util_pct=k / 10)
        rows.append(row | {name: row[name] + shift for name in ("t0_mono_ns", "t1_mono_ns")})
    syn.write_table(run, "far", "gpu_fast", rows, host="far.example", boot_id="another boot")


def test_a_foreign_clock_is_moved_by_its_probes_with_their_bound(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    _foreign(run, 1234.5)
    for t in (0.0, 10.0):
        t0, there = syn.at(t), syn.at(t) + 1_234_500_000_000
        stamps = {"t0_ns": t0, "t1_ns": there + 100_000, "t2_ns": there + 150_000, "t3_ns": t0 + 250_000}
        rundir.append_line(run / rundir.CLOCKS, {"host": "far.example", **stamps})
    joined = telemetry(load(run))
    assert joined.problems == []
    assert joined.gpus["t_s"].to_numpy() == pytest.approx(joined.gpus["util_pct"].to_numpy(), abs=2e-4)
    assert joined.clocks[0].host == "far" and 100_000 <= joined.clocks[0].bound_ns < 1_000_000


def test_a_foreign_clock_without_probes_is_left_out_and_said_so(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    _foreign(run, 1234.5)
    joined = telemetry(load(run))
    assert joined.gpus.empty
    assert "no clock probes" in joined.problems[0]


def test_the_same_boot_needs_no_probes(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_table(run, "sim-0", "gpu_fast", [syn.gpu(k / 10, util_pct=k / 10) for k in range(200)], simulated="true")
    joined = telemetry(load(run))
    assert joined.gpus["t_s"].to_numpy() == pytest.approx(joined.gpus["util_pct"].to_numpy(), abs=1e-9)
    assert joined.clocks[0].bound_ns == 1000  # half the time of the read
    assert joined.simulated


def test_a_slow_scrape_does_not_blur_the_other_samples(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_table(run, "here", "gpu_fast", [syn.gpu(float(t)) for t in range(20)])
    slow = [syn.server(float(t), t1_mono_ns=syn.at(t + 3.0)) for t in range(20)]
    syn.write_table(run, "here", "server", slow)
    joined = telemetry(load(run))
    assert joined.clocks[0].bound_ns == 1000 and joined.problems == []
