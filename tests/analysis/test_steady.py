"""Warm-up, steadiness and Little's law of steps whose truth is known by construction, alone and in whole reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.analyse import summarise
from analysis.interval_tables import interval, protocol_table, window_table
from analysis.report.build import build
from analysis.stats import Floats
from analysis.steady import mser, settle
from analysis.windows import Window
from tests.analysis import synthetic as syn

HELD = Window(0, 10, "users", 0.0, 0.0, 15.0, 60.0, True)


def frame(t: Floats, e2e_ms: Floats, cancelled: Floats | None = None) -> pd.DataFrame:
    cut = np.zeros(t.size, bool) if cancelled is None else cancelled.astype(bool)
    return pd.DataFrame({"ok": ~cut, "cancelled": cut, "intended_s": t, "end_s": t + e2e_ms / 1e3, "e2e_ms": e2e_ms})


def arrivals(seed: int, rate: float = 100.0) -> tuple[Floats, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return np.sort(rng.uniform(0, 60, round(60 * rate))), rng


def step(run: Path) -> dict[str, Any]:
    (only,) = summarise(run)["steps"]
    return dict(only)


def codes(entry: dict[str, Any]) -> list[str]:
    return [caveat["code"] for caveat in entry["caveats"]]


def test_mser_leaves_out_what_is_not_like_the_rest() -> None:
    assert mser(np.array([9.0, 8.0, 7.0, *[1.0, 2.0] * 10]), 10) == 3
    assert mser(np.array([1.0, 2.0] * 10), 10) == 0
    assert mser(np.array([9.0] * 5 + [1.0] * 10), 3) == 3  # no more than half


def test_latency_that_is_doubled_at_first_is_left_out() -> None:
    t, rng = arrivals(1)
    window, settled = settle(HELD, frame(t, 100 * rng.lognormal(0, 0.3, t.size) * np.where(t < 24, 2, 1)))
    assert window.begin_s == settled.warmup_s == pytest.approx(24, abs=2.5)
    assert settled.cut_by == "e2e" and settled.steady


def test_an_outage_is_no_warm_up() -> None:
    t, rng = arrivals(1)
    requests = frame(t, 100 * rng.lognormal(0, 0.3, t.size) * np.where(t < 24, 2, 1))
    requests.loc[(t > 16) & (t < 17), "ok"] = False
    failed = int((~requests["ok"]).sum())
    window, settled = settle(HELD, requests)
    assert (window.begin_s, settled.cut_by, settled.warmup_s) == (15.0, "plan", 15.0)
    assert settled.why.endswith(f"has {failed} failed requests in it, and is not left out")


def test_a_burst_at_the_start_is_left_out() -> None:
    t, rng = arrivals(2)
    burst = np.sort(np.concatenate((t, rng.uniform(14, 21, 1400))))
    window, settled = settle(HELD, frame(burst, np.full(burst.size, 50.0)))
    assert window.begin_s == pytest.approx(21, abs=2.5) and settled.cut_by == "qps"


def test_no_more_than_half_of_a_step_is_left_out() -> None:
    t, rng = arrivals(3)
    window, settled = settle(HELD, frame(t, 100 * rng.lognormal(0, 0.3, t.size) * np.where(t < 40, 2, 1)))
    assert window.begin_s <= 30 and settled.steady is False


def test_a_stationary_step_keeps_its_window_and_is_steady() -> None:
    settled = [settle(HELD, frame(t, 100 * rng.lognormal(0, 0.3, t.size))) for t, rng in map(arrivals, range(40))]
    assert sum(window.begin_s == 15 for window, _ in settled) >= 38
    assert all(each.steady is not False for _, each in settled)
    assert sum(each.steady is True for _, each in settled) >= 30


@pytest.mark.parametrize("growth", [1.5, 0.6])
def test_latency_that_goes_on_changing_is_no_steady_state(growth: float) -> None:
    t, rng = arrivals(4)
    _, settled = settle(HELD, frame(t, 100 * growth ** (t / 30) * rng.lognormal(0, 0.2, t.size)))
    assert settled.steady is False and "mean E2E latency changed by" in settled.why
    low, high = settled.drift["e2e"] or (0.0, 0.0)
    assert low * high > 0 and (low > 0) == (growth > 1)


def test_few_requests_tell_nothing() -> None:
    t, _ = arrivals(5, rate=1)
    window, settled = settle(HELD, frame(t, np.full(t.size, 50.0)))
    assert window == HELD and settled.steady is None and "too few" in settled.why


def test_the_slowest_that_the_end_cut_are_no_change() -> None:
    """At the run's end the long answers of the last seconds are cut, and only the short ones are OK."""
    t, rng = arrivals(6)
    long = rng.random(t.size) < 0.5
    _, settled = settle(HELD, frame(t, np.where(long, 4000.0, 400.0), long & (t > 56)))
    low, high = settled.drift["e2e"] or (0.0, 0.0)
    assert low < 0 < high


def test_a_change_is_a_caveat_and_the_window_used_is_in_the_report(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    rows = [syn.request(k / 50, ttft_ms=(400 if k < 400 else 100) + k % 10) for k in range(1000)]
    syn.write_requests(run, rows)
    built = build(run, figures=False)
    (only,) = built.summary["steps"]
    assert (only["begin_s"], only["warmup_s"], only["warmup_by"]) == (pytest.approx(8, abs=0.8),) * 2 + ("e2e",)
    assert only["window_s"] == 20 - only["begin_s"] and only["ttft_ms"]["p90"] < 120
    headers, rows = window_table(built.summary)
    assert dict(zip(headers, rows[0], strict=True))["found by"] == "E2E latency"
    assert built.steps["warmup_by"].tolist() == ["e2e"]
    assert "How well they are known" in built.html.read_text()


def test_latency_that_grows_all_the_time_is_a_caveat(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_requests(run, [syn.request(k / 50, ttft_ms=100 + k) for k in range(1000)])
    only = step(run)
    assert only["steady"] is False and "not_steady" in codes(only)
    low, high = only["drift_pct"]["e2e"]
    assert 20 < low < high


def test_littles_law_holds_where_nothing_is_missing(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_requests(run, [syn.request(k / 50, ttft_ms=100, gaps_ms=[10.0] * 10) for k in range(1000)])
    only = step(run)
    assert only["little"] == pytest.approx(
        {"requests": 750, "residence_ms": 200, "in_flight": 10, "difference": 0}, abs=0.01
    )
    assert "littles_law" not in codes(only)


def test_requests_that_pile_up_break_littles_law(tmp_path: Path) -> None:
    """Ten a second that never end before the step does lie beside those that take 200 ms."""
    run = syn.make(tmp_path / "run")
    quick = [syn.request(k / 50, ttft_ms=100, gaps_ms=[10.0] * 10) for k in range(1000)]
    stuck = [syn.request(k / 10, ttft_ms=100, gaps_ms=(), outcome="TIMEOUT", end_s=25.0) for k in range(200)]
    syn.write_requests(run, quick + stuck)
    only = step(run)
    assert only["little"]["difference"] > 1 and "littles_law" in codes(only)


def test_the_trimmed_ttft_leaves_five_per_cent_off_each_end(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run", (1, 2))
    rows = [syn.request(6 + k / 10, ttft_ms=k + 1) for k in range(100)]
    rows += [syn.request(26 + k / 10, ttft_ms=50) for k in range(99)]
    syn.write_requests(run, rows)
    built = build(run, figures=False, ttft_protocol=True)
    first, second = (each["ttft_protocol"] for each in built.summary["steps"])
    assert first == {"requests": 100, "left_out": 5, "p50_ms": 50, "p90_ms": 86, "reason": None}
    assert second["p50_ms"] is None and "99 OK requests have a TTFT, 100 are needed" in second["reason"]
    assert protocol_table(built.summary)[1][0] == ["1", "100", "5", "50.0", "86.0", ""]
    assert "TTFT by the trimmed protocol" in built.html.read_text()
    assert "TTFT by the trimmed protocol" not in build(run, figures=False).html.read_text()


@pytest.mark.parametrize(
    ("ends", "shown"),
    [([1, 2], "1.00 – 2.00"), ([1, None], "≥ 1.00"), ([None, 2], "≤ 2.00"), ([None, None], "–"), (None, "–")],
)
def test_intervals_as_text(ends: Any, shown: str) -> None:
    assert interval(ends) == shown


def test_an_interval_that_failures_reach_is_infinite() -> None:
    assert interval(["inf", "inf"]) == "inf" and interval([5.0, "inf"]) == "5.00 – inf"
