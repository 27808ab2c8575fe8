"""Leaks and drift of known size in run directories, and what must not be taken for one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.analyse import Analysed, analyse
from analysis.plots import canvas
from analysis.plots.trends import MOST, trends
from analysis.trend_words import trend_table, without_trend
from analysis.trends import find
from analysis.windows import Window
from tests.analysis import synthetic as syn

GIB = syn.GIB
SOAK_S = 100.0
Level = Callable[[float], float]


def soak(run: Path, levels: tuple[int, ...] = (10,), step_s: float = SOAK_S, **rows: Any) -> Analysed:
    """Four requests a second, and telemetry of the rows given; the last three quarters of a step are measured."""
    syn.make(run, levels, step_s)
    end = round(len(levels) * step_s)
    requests = rows.pop("requests", lambda t: {})
    syn.write_requests(run, [syn.request(k / 4, seq=k, **requests(k / 4)) for k in range(4 * end)], batch=500)
    for table, of in rows.items():
        syn.write_table(run, "here", table, [row for t in range(end + 1) for row in of(float(t))])
    return analyse(run)


def of(analysed: Analysed, signal: str) -> dict[str, Any]:
    (found,) = [trend for trend in analysed.summary["trends"] if trend["signal"] == signal]
    return dict(found)


def vram(level: Level, index: int = 0) -> Callable[[float], list[dict[str, Any]]]:
    return lambda t: [syn.gpu(t, index, mem_used_b=int(60 * GIB + level(t)))]


def test_a_leak_of_vram_has_its_rate_and_says_when_the_card_is_full(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    analysed = soak(tmp_path / "run", gpu_fast=vram(lambda t: 5e6 * t + 2e6 * rng.standard_normal()))
    leak = of(analysed, "vram_used")
    low, high = leak["slope_per_h_ci95"]
    assert leak["verdict"] == "rising" and low <= 3600 * 5e6 <= high
    assert leak["slope_per_h"] == pytest.approx(3600 * 5e6, rel=0.05)
    left_h = (20 * GIB - 5e6 * SOAK_S) / 5e6 / 3600
    soonest, latest = leak["exhausted_in_h_ci95"]
    assert leak["exhausted_in_h"] == pytest.approx(left_h, rel=0.05) and soonest <= left_h <= latest
    assert leak["text"].startswith("VRAM of GPU 0 on here grows by 16.") and "GiB/h" in leak["text"]
    assert ": full in 1.1" in leak["text"] and "seen over 75 s only" in leak["text"]
    (caveat,) = [caveat for caveat in analysed.summary["caveats"] if caveat["code"] == "leak"]
    assert caveat["text"] == leak["text"]


def test_without_a_leak_there_is_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    analysed = soak(
        tmp_path / "run",
        gpu_fast=vram(lambda t: 20e6 * rng.standard_normal()),
        process=lambda t: [syn.process(t)],
        host=lambda t: [syn.host(t)],
    )
    assert {trend["verdict"] for trend in analysed.summary["trends"]} == {"none"}
    assert trend_table(analysed.summary)[1] == [] and trends(analysed.trends, "NVML") is None
    assert "VRAM" in without_trend(analysed.summary) and "QPS" in without_trend(analysed.summary)
    assert not [caveat for caveat in analysed.summary["caveats"] if caveat["code"] == "leak"]


def test_a_restart_of_the_server_is_no_leak(tmp_path: Path) -> None:
    """Its memory grows, falls when another process takes over, and grows again."""

    def server(t: float) -> list[dict[str, Any]]:
        return [syn.process(t, pid=7 if t < 60 else 9, rss_b=int(3 * GIB + (t % 60) * 2e7))]

    analysed = soak(tmp_path / "run", process=server)
    rss = of(analysed, "rss")
    assert rss["verdict"] == "unknown" and rss["jumps_s"] == pytest.approx([60], abs=2)
    assert "RSS of the server on here: unknown, level jumps at 6" in rss["text"]
    (row,) = trend_table(analysed.summary)[1]
    assert row[1:3] == ["RSS of the server on here", "unknown"] and row[-1].startswith("level jumps")


def test_memory_of_the_host_that_runs_out_is_told_with_its_time(tmp_path: Path) -> None:
    analysed = soak(tmp_path / "run", host=lambda t: [syn.host(t, mem_available_b=int(10 * GIB - 1e7 * t))])
    found = of(analysed, "host_available")
    assert found["verdict"] == "falling" and found["limit"] == 0
    assert found["exhausted_in_h"] == pytest.approx((10 * GIB - 1e7 * SOAK_S) / 1e7 / 3600, rel=0.01)
    assert "available memory of here falls by 33.5 GiB/h" in found["text"] and "none left in" in found["text"]


def test_latency_that_drifts_is_told_in_per_cent(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)

    def slower(t: float) -> dict[str, Any]:
        return {"ttft_ms": 100 + 0.5 * t + rng.standard_normal()}

    drift = of(soak(tmp_path / "run", requests=slower), "ttft_p50")
    low, high = drift["slope_per_h_ci95"]
    assert drift["verdict"] == "rising" and low <= 1800 <= high and drift["exhausted_in_h"] is None
    assert drift["text"].startswith("TTFT p50 grows by 33.")  # from 112.5 to 150 ms
    assert "% in 75 s" in drift["text"]


def test_answers_that_take_longer_and_longer_are_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)

    def longer(t: float) -> dict[str, Any]:
        return {"gaps_ms": (10.0 + 0.2 * t + rng.standard_normal(),) * 9}

    analysed = soak(tmp_path / "run", requests=longer)
    for signal in ("e2e_p50", "e2e_p99"):
        drift = of(analysed, signal)
        low, high = drift["slope_per_h_ci95"]
        assert drift["verdict"] == "rising" and low <= 3600 * 9 * 0.2 <= high, drift["text"]
    assert of(analysed, "ttft_p50")["verdict"] == "none"


def test_seconds_without_a_request_or_with_failures_alone_hide_no_drift_of_a_long_soak(tmp_path: Path) -> None:
    """A day: 1 % of its seconds have no request, and in 11 of them nothing succeeds."""
    rng = np.random.default_rng(2)
    t_s = np.arange(86_400.0)
    ttft_ms = 100 + 60 * t_s / t_s[-1] + 5 * rng.standard_normal(t_s.size)
    ttft_ms[rng.random(t_s.size) < 0.01] = np.nan
    ttft_ms[:: t_s.size // 10] = np.inf
    qps = np.where(np.isnan(ttft_ms), 0.0, 2.0)
    timeline = pd.DataFrame({"t_s": t_s, "ttft_p50_ms": ttft_ms, "ttft_p99_ms": np.nan, "qps": qps})
    timeline.loc[:9, "ttft_p99_ms"] = 100.0
    nothing = analyse(syn.make(tmp_path / "run")).telemetry
    window = Window(0, 10, "users", 0.0, 0.0, 100.0, t_s.size, True)
    found = {one.figures["signal"]: one.figures for one in find(nothing, (), timeline, [window])}
    assert found["ttft_p50"]["verdict"] == "rising" and "60." in found["ttft_p50"]["text"]
    assert found["qps"]["verdict"] == "none"
    assert found["ttft_p99"]["verdict"] == "unknown" and "0 of 199 parts" in found["ttft_p99"]["text"]


def test_failures_that_reach_a_percentile_leave_it_unknown(tmp_path: Path) -> None:
    def failing(t: float) -> dict[str, Any]:
        return {"outcome": "HTTP_ERROR", "status": 503} if t % 1 else {}

    p99 = of(soak(tmp_path / "run", requests=failing), "ttft_p99")
    assert p99["verdict"] == "unknown" and "failures reach it" in p99["text"]


def test_a_change_from_step_to_step_is_the_loads_doing(tmp_path: Path) -> None:
    analysed = soak(tmp_path / "run", (10, 20), 40.0, gpu_fast=vram(lambda t: 1e9 if t >= 40 else 0.0))
    found = [trend for trend in analysed.summary["trends"] if trend["signal"] == "vram_used"]
    assert [(trend["step"], trend["level"], trend["verdict"]) for trend in found] == [(0, 10, "none"), (1, 20, "none")]
    assert "at 20 users" in found[1]["text"]


def test_a_step_that_is_too_short_has_no_trend(tmp_path: Path) -> None:
    assert soak(tmp_path / "run", (10,), 12.0, gpu_fast=vram(lambda t: 1e8 * t)).summary["trends"] == []


@pytest.mark.parametrize("leaking", [1, 3, 12])
def test_the_figure_has_a_panel_for_each_change_that_fits(tmp_path: Path, leaking: int) -> None:
    analysed = soak(
        tmp_path / "run",
        step_s=40.0,
        gpu_fast=lambda t: [row for k in range(leaking) for row in vram(lambda t: 1e7 * t, k)(t)],
    )
    with canvas.styled():
        figure = trends(analysed.trends, "NVML")
        assert figure is not None
        figure.draw_without_rendering()
        assert len(figure.axes) == min(leaking, MOST)
        for axes in figure.axes:
            assert axes.get_title(loc="left").startswith("VRAM of GPU")
            assert [line.get_label() for line in axes.get_lines()] == ["measured", "trend (Theil-Sen)"]
