"""The client's certificate, and what is known of tokens whose gaps were not kept: known answers."""

from pathlib import Path
from typing import Any

import pytest

from analysis.analyse import summarise
from analysis.report.build import build
from analysis.tables import certificate_table
from loadgen import record
from tests.analysis import synthetic as syn

NEW = ("gap_p50_us", "gap_p99_us", "gap_max_us", "gc_pause_us", "gc_pause_max_us")


def figures(run: Path) -> dict[str, Any]:
    (step,) = summarise(run)["steps"]
    return dict(step)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """100 answers of 190 ms whose worst read came 0.2 ms late, in the window [5, 20) s."""
    run = syn.make(tmp_path / "run", workers=2)
    syn.write_requests(run, [syn.request(5 + k / 10) for k in range(100)])
    return run


def test_reads_of_all_workers_in_the_seconds_of_the_window_are_merged(run: Path) -> None:
    late = syn.histogram(5.0, "read_lag", {5000.0: 9999})  # it ended when the window began
    gaps = syn.histogram(10.0, "chunk_gap", {5000.0: 9999})
    syn.write_histograms(run, [late, gaps, *(syn.histogram(t, "read_lag", {0.1: 900}) for t in range(6, 21))], 0)
    syn.write_histograms(
        run, [syn.histogram(t + 0.4, "read_lag", {0.1: 80, 10.0: 19, 100.0: 1}) for t in range(6, 21)], 1
    )
    step = figures(run)
    # Of 1000 a second 980 were 0.1 ms late, 19 were 10 ms late and one was 100 ms late.
    assert step["read_lag_ms"] == pytest.approx({"p50": 0.1, "p99": 10, "max": 100}, rel=0.01)
    assert step["client_lag_ms"] == {name: step["read_lag_ms"][name] for name in ("p50", "p99")}
    assert step["client_lag_source"] == "read_lag" and step["client_lag_limit_ms"] == 9.5
    assert step["client_on_time"] is False and "client_late" in [caveat["code"] for caveat in step["caveats"]]


def test_without_histograms_there_is_the_worst_of_each_request(run: Path) -> None:
    syn.write_requests(run, [syn.request(5 + k / 10, read_lag_us=10 * (k + 1)) for k in range(100)])
    step = figures(run)
    assert step["read_lag_ms"] == pytest.approx({"p50": 0.5, "p99": 0.99, "max": 1.0})
    assert step["send_lag_ms"] == {"p50": 0, "p99": 0, "max": 0} and step["send_lag_limit_ms"] is None
    assert step["client_on_time"] is True and step["rate"] is None and step["dropped"] == 0


def test_stalls_and_pauses_are_the_longest_of_the_window(run: Path) -> None:
    for worker in (0, 1):
        rows = [syn.health(float(t), lag_us=100 * (worker + 1)) for t in range(1, 21)]
        rows[4] |= {"loop_lag_max_us": 900_000, "gc_pause_max_us": 900_000}  # the second before it
        rows[10] |= {"loop_lag_max_us": 7_000 * (worker + 1), "gc_pause_max_us": 4_000 * (worker + 1)}
        syn.write_health(run, rows, worker)
    step = figures(run)
    assert (step["loop_stall_ms"], step["gc_pause_ms"], step["worker_cpu_pct"]) == (14, 8, pytest.approx(30))


def test_stamps_of_the_kernel_are_counted(run: Path) -> None:
    rows = [syn.request(5 + k / 10, stamp_source="user" if k % 4 else "kernel") for k in range(100)]
    rows.append(syn.request(6.0, None, (), "CONNECT_ERROR", end_s=6.1, sent_ns=None, stamp_source=None))
    syn.write_requests(run, rows)
    assert figures(run)["kernel_stamp_share"] == 0.25


def test_the_report_has_a_row_a_step_with_the_verdict(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run", (10, 20, 30))
    rows = [syn.request(5 + k / 10, read_lag_us=200 if k < 150 else 50_000) for k in range(300)]
    syn.write_requests(run, rows)
    syn.write_health(run, [syn.health(float(t)) for t in range(1, 41)])
    built = build(run, figures=False)
    headers, cells = certificate_table(built.summary)
    table = [dict(zip(headers, row, strict=True)) for row in cells]
    assert [(row["users"], row["client"]) for row in table] == [("10", "on time"), ("20", "late"), ("30", "–")]
    assert (table[1]["read lag p99 ms"], table[1]["longest GC pause ms"]) == ("50.0", "0.20")
    page = built.html.read_text()
    assert "The client's certificate" in page and '<td class="mark">late</td>' in page
    assert built.steps["client_on_time"].tolist()[:2] == [True, False]


def unkept(intended_s: float, **changes: Any) -> dict[str, Any]:
    """Its gaps of 30 ms are known by their summary only."""
    summary = dict.fromkeys(("gap_p50_us", "gap_p99_us", "gap_max_us"), 30_000)
    return syn.request(intended_s, gaps_ms=(30.0,) * 9, chunk_gaps_us=None, **summary, **changes)


def test_gaps_come_from_the_requests_that_kept_them(run: Path) -> None:
    rows = [syn.request(5 + k / 10) if k % 4 == 0 else unkept(5 + k / 10) for k in range(100)]
    syn.write_requests(run, [*rows, syn.request(6.0, gaps_ms=()), syn.request(6.0, None, (), end_s=6.1)])
    built = build(run, figures=False)
    (step,) = built.summary["steps"]
    assert step["itl_share"] == 0.25 and set(step["itl_ms"].values()) == {10}
    assert step["tpot_ms"]["p50"] == pytest.approx(30) and step["tokens_per_event"] == 1
    assert step["output_tokens_per_s"] == pytest.approx(1001 / 15)
    assert "at least 25 % of them" in built.html.read_text()


def test_tokens_without_gaps_are_spread_evenly_after_the_first(run: Path) -> None:
    """First token at 4.5 s, before the window, the other nine up to 13.5 s; and an answer that came at once."""
    gaps = {"chunk_gaps_us": None, "gap_max_us": 1_000_000}
    long = syn.request(4.0, ttft_ms=500, gaps_ms=[1000.0] * 9, **gaps)
    at_once = syn.request(14.0, gaps_ms=[0.0] * 4, **gaps)
    syn.write_requests(run, [long, at_once])
    assert figures(run)["output_tokens_per_s"] == pytest.approx((8.5 + 5) / 15)


def test_a_run_from_before_there_were_histograms_and_summaries(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        for name in ("REQUEST_COLUMNS", "HEALTH_COLUMNS"):
            patch.setattr(record, name, tuple(c for c in getattr(record, name) if c.name not in NEW))
        for worker in (0, 1):
            syn.write_requests(run, [syn.request(5 + k / 10) for k in range(100)], worker)
            syn.write_health(run, [syn.health(float(t)) for t in range(1, 21)], worker)
    assert summarise(run)["damage"] == []
    step = figures(run)
    assert step["itl_ms"]["p50"] == 10 and step["itl_share"] == 1
    assert step["read_lag_ms"]["p99"] == 0.2 and step["gc_pause_ms"] is None and step["client_on_time"] is True


def test_a_histogram_that_is_none_is_damage(run: Path) -> None:
    rows = [syn.histogram(6.0, "read_lag", {0.1: 10}) for _ in range(5)]
    rows[1]["counts"] = [1, 2]
    rows[2]["counts"] = [-1]
    rows[3]["buckets"] = [2**31 - 1]
    syn.write_histograms(run, rows, 0)
    syn.write_histograms(run, [], 1)
    summary = summarise(run)
    texts = {finding["file"]: finding["text"] for finding in summary["damage"]}
    assert texts["workers/worker-0.histograms.arrow"] == "3 buckets are nonsense: they are left out"
    assert summary["steps"][0]["read_lag_ms"]["max"] == pytest.approx(0.1, rel=0.01)
