"""Whole reports of runs with known answers."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.analyse import analyse, summarise
from analysis.report.build import build
from analysis.tables import step_table
from loadgen import rundir
from tests.analysis import synthetic as syn

GIB = syn.GIB


def figures(run: Path) -> dict[str, Any]:
    """The only step's entry of the summary."""
    (step,) = summarise(run)["steps"]
    return dict(step)


def codes(entry: dict[str, Any]) -> list[str]:
    return [caveat["code"] for caveat in entry["caveats"]]


@pytest.fixture
def thousand(tmp_path: Path) -> Path:
    """1000 requests every 15 ms in the window [5, 20) s, TTFT 1 … 1000 ms, then 9 gaps of 1 … 9 ms."""
    run = syn.make(tmp_path / "run")
    gaps = [float(k) for k in range(1, 10)]
    rows = [syn.request(5 + 0.015 * k, ttft_ms=(k * 7) % 1000 + 1, gaps_ms=gaps) for k in range(1000)]
    syn.write_requests(run, rows[::2], 0)
    syn.write_requests(run, rows[1::2], 1)
    return run


def test_latencies_are_those_of_the_window(thousand: Path) -> None:
    step = figures(thousand)
    known = {"p50": 500.0, "p90": 900.0, "p95": 950.0, "p99": 990.0, "mean": 500.5}
    assert step["ttft_ms"] == pytest.approx(known)
    assert step["e2e_ms"] == pytest.approx({name: value + 45 for name, value in known.items()})
    assert step["tpot_ms"] == pytest.approx(dict.fromkeys(known, 5.0))
    assert step["itl_ms"] == {"p50": 5, "p90": 9, "p95": 9, "p99": 9, "mean": 5}
    assert (step["begin_s"], step["end_s"], step["window_s"]) == (5, 20, 15)
    assert (step["requests"], step["ok"], step["errors"], step["cancelled"]) == (1000, 1000, {}, 0)
    assert step["success_pct"] == 100
    assert step["client_lag_ms"] == {"p50": 0.2, "p99": 0.2} and step["client_lag_source"] == "read_lag"


def test_rates_count_what_ended_or_arrived_in_the_window(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    long = [1000.0] * 9  # ten tokens, one a second
    syn.write_requests(
        run,
        [
            syn.request(4.0, ttft_ms=500, gaps_ms=long),  # tokens at 4.5 … 13.5: nine in the window, ends in it
            syn.request(14.0, ttft_ms=500, gaps_ms=long),  # tokens at 14.5 … 23.5: six in the window, ends after it
            syn.request(1.0, ttft_ms=100, gaps_ms=()),  # before
        ],
    )
    step = figures(run)
    assert step["requests"] == 1 and step["ended_after_window"] == 1
    assert step["qps"] == pytest.approx(1 / 15)
    assert step["output_tokens_per_s"] == pytest.approx(15 / 15)
    assert step["in_flight_mean"] == pytest.approx((8.5 + 6) / 15)


def test_failures_are_infinite_and_the_survivors_are_beside(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    good = [syn.request(5 + 0.1 * k, ttft_ms=k + 1) for k in range(94)]
    bad = [
        syn.request(6 + k, ttft_ms=1, outcome=outcome, end_s=6.5 + k)
        for k, outcome in enumerate(["HTTP_ERROR"] * 4 + ["TIMEOUT"] * 2)
    ]
    syn.write_requests(run, good + bad)
    built = build(run)
    (step,) = built.summary["steps"]
    assert step["ttft_ms"] == {"p50": 50, "p90": 90, "p95": "inf", "p99": "inf", "mean": "inf"}
    assert step["ttft_ms_ok"] == pytest.approx({"p50": 47, "p90": 85, "p95": 90, "p99": 94, "mean": 47.5})
    assert step["errors"] == {"HTTP_ERROR": 4, "TIMEOUT": 2}
    assert step["success_pct"] == pytest.approx(94) and step["failed_qps"] == pytest.approx(6 / 15)
    assert step["attempted_qps"] == pytest.approx(100 / 15) and step["qps"] == pytest.approx(94 / 15)
    assert step["in_flight_http_error"] == pytest.approx(4 * 0.5 / 15)
    assert "failures" in codes(step)
    headers, rows = step_table(built.summary)
    assert dict(zip(headers, rows[0], strict=True))["TTFT p99 ms"] == "inf"
    assert built.steps["ttft_p99_ms"].tolist() == [float("inf")]
    assert "inf" in (run / "report" / "tables" / "steps.csv").read_text()


def test_cancelled_requests_are_counted_and_in_nothing_else(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    good = [syn.request(5 + 0.1 * k) for k in range(90)]
    cut = [syn.request(10 + 0.1 * k, ttft_ms=1, outcome="CANCELLED", end_s=19.0) for k in range(10)]
    syn.write_requests(run, good + cut)
    step = figures(run)
    assert (step["requests"], step["ok"], step["cancelled"], step["errors"]) == (100, 90, 10, {})
    assert step["success_pct"] == 100 and step["ttft_ms"]["p50"] == 100
    assert step["qps"] == step["attempted_qps"] == pytest.approx(90 / 15)
    assert step["in_flight_mean"] > 90 * 0.19 / 15 + 5  # but they were in flight
    assert "many_cancelled" in codes(step)


def test_chunks_of_several_tokens_spread_their_gap(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    rows = [syn.request(5 + 0.1 * k, gaps_ms=[30.0] * 9, output_tokens=30) for k in range(100)]
    syn.write_requests(run, rows)
    step = figures(run)
    assert step["itl_ms"]["p50"] == step["itl_ms"]["p99"] == 10
    assert step["tpot_ms"]["p50"] == pytest.approx(270 / 29)
    assert step["output_tokens_per_s"] == pytest.approx(3000 / 15)
    assert "tokens_per_event" in codes(step)


def test_plain_inference_with_a_failure_has_no_ttft(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    rows = [syn.request(5 + k / 20, ttft_ms=None, gaps_ms=(), end_s=5.1 + k / 20) for k in range(200)]
    rows[100]["outcome"] = "HTTP_ERROR"
    syn.write_requests(run, rows)
    step = figures(run)
    assert (step["ttft_ms"]["p50"], step["ttft_ms"]["p99"], step["tpot_ms"]["mean"]) == (None, None, None)
    assert step["e2e_ms"]["p50"] == pytest.approx(100) and step["e2e_ms"]["mean"] == "inf"
    assert analyse(run).timeline["ttft_p99_ms"].isna().all()


def test_a_second_of_failures_alone_is_infinite_in_the_timeline(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_requests(run, [syn.request(5.0), syn.request(6.0, ttft_ms=None, outcome="TIMEOUT", end_s=7.0)])
    assert analyse(run).timeline["ttft_p50_ms"][[5, 6]].tolist() == [100, np.inf]


@pytest.mark.parametrize(("gaps_ms", "reads", "share"), [([0] * 19, 1, 1.0), ([10] + [0] * 9 + [10] * 9, 1, 0.5)])
def test_events_that_share_a_read_are_counted(tmp_path: Path, gaps_ms: list[float], reads: int, share: float) -> None:
    run = syn.make(tmp_path / "run")
    rows = [syn.request(5 + 0.1 * k, gaps_ms=gaps_ms, coalesced_reads=reads) for k in range(100)]
    syn.write_requests(run, rows)
    step = figures(run)
    assert step["coalesced_share"] == pytest.approx(share) and "coalesced" in codes(step)


def test_a_step_without_the_servers_figures_is_said_so(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_table(run, "here", "server", [syn.server(t / 2) for t in range(8)])
    step = figures(run)
    assert {"running", "waiting", "kv_usage_ratio"} <= step["server"].keys()
    assert set(step["server"].values()) == {None}
    assert "server_gap" in codes(step)
    nothing = dict.fromkeys(("running", "waiting", "kv_usage_ratio"))
    syn.write_table(run, "here", "server", [syn.server(float(t), **nothing) for t in range(20)])
    step = figures(run)
    assert step["server"] is None and "server_gap" not in codes(step)


def test_tokens_counted_from_events_are_said_so(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    rows = [syn.request(5 + 0.1 * k, token_source="usage" if k else "events") for k in range(100)]
    syn.write_requests(run, rows)
    step = figures(run)
    assert step["tokens_from_events_share"] == 0.01 and "tokens_from_events" in codes(step)


def test_a_single_token_has_no_tpot(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_requests(run, [syn.request(6.0, gaps_ms=())])
    step = figures(run)
    assert step["tpot_ms"]["p50"] is None and step["itl_ms"]["p50"] is None and step["ttft_ms"]["p50"] == 100


def test_no_requests_at_all(tmp_path: Path) -> None:
    step = figures(syn.make(tmp_path / "run"))
    assert step["requests"] == 0 and step["qps"] == 0 and step["ttft_ms"]["p50"] is None
    assert step["success_pct"] is None and "no_requests" in codes(step)


def test_no_steps_at_all(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run", levels=())
    built = build(run)
    assert built.summary["steps"] == [] and built.html.exists()
    assert step_table(built.summary)[1] == []


def test_thirty_steps(tmp_path: Path) -> None:
    levels = list(range(1, 31))
    run = syn.make(tmp_path / "run", levels, step_s=2.0)
    syn.write_requests(run, [syn.request(k / 10, ttft_ms=k // 20 + 1) for k in range(600)])
    built = build(run, figures=False)
    assert [step["level"] for step in built.summary["steps"]] == levels
    assert [step["ttft_ms"]["p50"] for step in built.summary["steps"]] == levels


def test_a_killed_run_ends_with_its_last_record(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run", levels=(), status="running")
    syn.step(run, 0, 10, "ramp", 0.0)
    syn.step(run, 0, 10, "begin", 2.0)
    path = syn.write_requests(run, [syn.request(2 + k / 10, ttft_ms=100, gaps_ms=()) for k in range(100)], batch=10)
    path.write_bytes(path.read_bytes()[:-500])
    built = build(run, figures=False)
    (step,) = built.summary["steps"]
    assert step["end_s"] == pytest.approx(11.0)  # the last whole batch began its last request at 10.9 s
    assert step["begin_s"] == pytest.approx(2 + 0.25 * 9)
    assert "no_step_end" in codes(step)
    assert codes(built.summary) == ["not_finished", "damage"]


def test_an_interrupted_ramp_has_no_figures(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run", status="interrupted", reason="Ctrl-C")
    syn.step(run, 1, 5000, "ramp", 20.0)
    summary = summarise(run)
    assert [step["level"] for step in summary["steps"]] == [10]
    assert codes(summary) == ["interrupted", "step_not_reached"]
    assert "Ctrl-C" in summary["caveats"][0]["text"]


def test_gpu_figures_and_effective_vram(thousand: Path) -> None:
    rows = [syn.gpu(k / 10, util_pct=20.0 if k < 100 else 80.0, energy_mj=round(k / 10 * 250_000)) for k in range(201)]
    syn.write_table(thousand, "here", "gpu_fast", rows)
    syn.write_table(thousand, "here", "server", [syn.server(float(k)) for k in range(21)])
    built = build(thousand, figures=False)
    (step,) = built.summary["steps"]
    (gpu,) = step["gpus"]
    assert (gpu["host"], gpu["uuid"], gpu["index"], gpu["simulated"]) == ("here", "GPU-0", 0, False)
    assert gpu["coverage"] == pytest.approx(1)
    assert gpu["util_pct"] == pytest.approx({"mean": (4.95 * 20 + 10.05 * 80) / 15, "max": 80})
    assert gpu["vram_used_bytes"] == {"mean": 60 * GIB, "max": 60 * GIB}
    assert gpu["vram_effective_bytes"] == {"mean": 30 * GIB, "max": 30 * GIB}  # 60 - 40 + 0.25 * 40
    assert gpu["power_w"] == pytest.approx({"mean": 250, "max": 300})  # the counter; the samples' worst
    assert step["gpu_total"]["power_w"] == pytest.approx(250)
    figures = {name: step["server"][name] for name in ("running", "waiting", "kv_usage_ratio")}
    assert figures == pytest.approx({"running": 8, "waiting": 2, "kv_usage_ratio": 0.25})
    assert not built.summary["simulated_gpu"] and "simulated GPU" not in built.html.read_text()


def test_eight_gpus_and_their_engines(thousand: Path) -> None:
    gpus = [syn.gpu(k / 10, index, power_mw=100_000) for k in range(201) for index in range(8)]
    engines = [syn.server(float(k), str(rank), kv_usage_ratio=rank / 10) for k in range(21) for rank in range(8)]
    syn.write_table(thousand, "here", "gpu_fast", gpus)
    syn.write_table(thousand, "here", "server", engines)
    step = figures(thousand)
    effective = [gpu["vram_effective_bytes"]["mean"] / GIB for gpu in step["gpus"]]
    assert effective == pytest.approx([20 + 4 * rank for rank in range(8)])
    assert step["gpu_total"] == pytest.approx(
        {
            "util_pct": 50,
            "vram_used_bytes": 480 * GIB,
            "vram_effective_bytes": sum(effective) * GIB,
            "power_w": 800,
        }
    )
    assert step["server"]["running"] == pytest.approx(64)


def test_engines_that_are_not_one_a_gpu_share_their_mean(thousand: Path) -> None:
    syn.write_table(thousand, "here", "gpu_fast", [syn.gpu(k / 10, i) for k in range(201) for i in range(2)])
    syn.write_table(thousand, "here", "server", [syn.server(float(k)) for k in range(21)])
    step = figures(thousand)
    assert [gpu["vram_effective_bytes"]["mean"] / GIB for gpu in step["gpus"]] == pytest.approx([30, 30])


def test_a_pool_that_the_server_does_not_tell_gives_no_effective_vram(thousand: Path) -> None:
    syn.write_table(thousand, "here", "gpu_fast", [syn.gpu(k / 10) for k in range(201)])
    syn.write_table(thousand, "here", "server", [syn.server(float(k), kv_pool_b=None) for k in range(21)])
    step = figures(thousand)
    assert step["gpus"][0]["vram_effective_bytes"] is None and step["gpu_total"]["vram_effective_bytes"] is None


def test_telemetry_that_stops_is_no_figure(thousand: Path) -> None:
    syn.write_table(thousand, "here", "gpu_fast", [syn.gpu(k / 10) for k in range(100)])
    syn.event(thousand, "agent_lost", "agent local is lost", 9.9)
    step = figures(thousand)
    assert step["gpus"][0]["util_pct"] is None and step["gpu_total"]["power_w"] is None
    assert step["gpus"][0]["coverage"] == pytest.approx(5 / 15, abs=0.01)
    assert {"telemetry_gap", "agent_lost"} <= set(codes(step))


def test_simulated_gpus_are_called_so_wherever_they_are_shown(thousand: Path) -> None:
    manifest = json.loads((thousand / rundir.MANIFEST).read_text())
    manifest["target"] |= {"simulated": True}
    rundir.write_manifest(thousand, manifest)
    syn.write_table(thousand, "sim-0", "gpu_fast", [syn.gpu(k / 10) for k in range(201)], simulated="true")
    syn.write_table(thousand, "here", "server", [syn.server(float(k)) for k in range(21)])
    syn.write_table(thousand, "real", "gpu_fast", [syn.gpu(k / 10, 1) for k in range(201)])
    syn.truth(thousand, [(k / 10, 100, 0 if k % 2 else 3) for k in range(200)])
    built = build(thousand, figures=False)
    (step,) = built.summary["steps"]
    assert built.summary["simulated_gpu"] and codes(built.summary) == ["simulated_gpu"]
    assert [(gpu["host"], gpu["simulated"]) for gpu in step["gpus"]] == [("real", False), ("sim-0", True)]
    assert step["gpu_total"]["vram_used_bytes"] == 60 * GIB  # the real card beside it does not serve
    assert step["gpu_total"]["vram_effective_bytes"] == 30 * GIB  # its engine is scraped by the same machine's agent
    assert step["simulator_late_share"] == pytest.approx(0.015) and "simulator_late" in codes(step)
    assert sum("simulated GPU" in header for header in step_table(built.summary)[0]) == 4
    for table in ("steps", "timeline", "gpus"):
        assert "simulated GPU" in (thousand / "report" / "tables" / f"{table}.csv").read_text()
    assert "simulated GPU" in built.html.read_text()


def test_a_simulated_target_without_truth_is_said_so(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run", target={"url": "u", "model": None, "simulated": True, "simulator": {}})
    syn.write_requests(run, [syn.request(6.0)])
    assert "no_truth" in codes(figures(run))


def test_a_late_client_is_said_so(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_requests(run, [syn.request(5 + k / 10, read_lag_us=9600) for k in range(100)])
    syn.write_health(run, [syn.health(float(t), cpu_share=0.95) for t in range(1, 21)])
    step = figures(run)
    assert step["e2e_ms"]["p50"] == 190
    assert {"client_late", "worker_cpu"} <= set(codes(step))
    assert step["worker_cpu_pct"] == pytest.approx(95)


def test_a_lag_that_hardly_delays_the_next_request_is_no_caveat(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_requests(run, [syn.request(5 + k / 10, read_lag_us=9400) for k in range(100)])
    assert "client_late" not in codes(figures(run))


def test_without_kernel_stamps_the_event_loop_bears_witness(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_requests(run, [syn.request(5 + k / 10, read_lag_us=None, stamp_source="user") for k in range(100)])
    syn.write_health(run, [syn.health(float(t), lag_us=t * 100) for t in range(1, 21)])
    step = figures(run)
    assert step["client_lag_ms"] == {"p50": 1.3, "p99": 2.0}  # of the p99 of the seconds that ended at 6 … 20
    assert step["loop_stall_ms"] == 4.0 and step["kernel_stamp_share"] == 0
    assert step["read_lag_ms"] == {"p50": None, "p99": None, "max": None}
    assert step["client_lag_source"] == "loop_lag"


def test_load_that_was_not_delivered_is_said_so(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run", levels=(2,))
    syn.write_requests(run, [syn.request(t, ttft_ms=500, gaps_ms=(), end_s=t + 1.0) for t in range(20)])
    step = figures(run)
    assert step["in_flight_mean"] == pytest.approx(1) and "load_not_delivered" in codes(step)
    syn.write_requests(run, [syn.request(t, ttft_ms=500, gaps_ms=(), end_s=t + 1.0) for t in range(20)], worker=1)
    assert "load_not_delivered" not in codes(figures(run))


def test_a_lost_worker_and_a_count_that_differs_are_said_so(tmp_path: Path) -> None:
    counts = {"locust": {"requests": 10, "failures": 0}, "recorded": {"requests": 9, "failures": 0}}
    run = syn.make(tmp_path / "run", levels=(10, 20), **counts)
    syn.write_requests(run, [syn.request(6.0 + k) for k in range(9)])
    syn.event(run, "worker_lost", "worker 1 was lost", 25.0)
    summary = summarise(run)
    assert [("worker_lost" in codes(step)) for step in summary["steps"]] == [False, True]
    assert codes(summary) == ["locust_mismatch"]


def test_few_requests_name_the_percentiles_that_they_do_not_bound(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_requests(run, [syn.request(5 + k / 10) for k in range(140)])
    (caveat,) = [caveat for caveat in figures(run)["caveats"] if caveat["code"] == "few_requests"]
    assert "p99 needs 662" in caveat["text"] and "p95" not in caveat["text"]


def test_the_report_is_whole_self_contained_and_replaced(thousand: Path) -> None:
    syn.write_table(thousand, "here", "gpu_fast", [syn.gpu(k / 10) for k in range(201)])
    syn.write_table(thousand, "here", "server", [syn.server(float(k)) for k in range(21)])
    syn.write_table(thousand, "here", "host", [syn.host(float(k)) for k in range(21)])
    stale = thousand / "report" / "figures" / "stale.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    built = build(thousand)
    assert not stale.exists()
    html = built.html.read_text()
    names = sorted(str(path.relative_to(thousand / "report")) for path in (thousand / "report").rglob("*.*"))
    pictures = re.findall(r'<figure id="(\w+)">', html)
    assert {"qps_vs_concurrency", "latency_vs_concurrency", "throughput_latency", "timeline"} <= set(pictures)
    tables = (
        "gpus",
        "hosts",
        "latency_cdf",
        "latency_heat",
        "prompt_surface",
        "requests_by_outcome",
        "steps",
        "timeline",
    )
    assert names == [
        *sorted(f"figures/{name}.{kind}" for name in pictures for kind in ("png", "svg")),
        "report.html",
        "summary.json",
        *(f"tables/{name}.csv" for name in tables),
    ]
    assert len(html) < 5_000_000
    assert built.summary == syn.summary_of(thousand)


def check_page(html: str) -> list[str]:
    """The sections in their order. The page needs nothing from elsewhere, and each of its links leads to a place."""
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html)
    assert not re.search(
        r"@import|<script|<link|url\(|https?://(?!127\.0\.0\.1)", re.sub(r'src="data:[^"]*"', "", html)
    )
    places = re.findall(r' id="([^"]+)"', html)
    assert len(places) == len(set(places))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(places)
    return re.findall(r'<section id="([^"]+)"', html)


def test_the_page_has_its_sections_in_the_order_in_which_they_are_read(tmp_path: Path) -> None:
    run = syn.whole(tmp_path / "run")
    (run / rundir.WORKERS / "worker-1.arrow").unlink()
    sections = check_page(build(run, figures=False, ttft_protocol=True).html.read_text())
    assert [name for name in sections if name not in ("trends", "server")] == [
        *("verdict", "caveats", "curves", "steps", "step-caveats", "intervals", "ttft-protocol", "certificate"),
        *("failures", "gpus", "hosts", "telemetry", "bottleneck", "vram", "damage", "events", "definitions"),
        *("reconciliation", "environment"),
    ]


def test_a_recordings_page_has_no_figure_of_requests(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run", (), plan={"arrival": "none", "steps": []}, workers=0)
    syn.write_table(run, "here", "host", [syn.host(float(k)) for k in range(21)])
    syn.write_table(run, "here", "gpu_fast", [syn.gpu(k / 10) for k in range(201)])
    html = build(run).html.read_text()
    sections = check_page(html)
    assert {"verdict", "curves", "gpus", "hosts", "telemetry", "definitions", "environment"} <= set(sections)
    assert not {"steps", "intervals", "certificate", "failures", "reconciliation"} & set(sections)
    words = re.sub(r"<style>.*?</style>|<[^>]*>", " ", html, flags=re.DOTALL)
    assert not re.findall(r"TTFT|ITL|QPS|TPOT|E2E", words)


def test_text_of_the_run_is_escaped(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run", label="<script>alert(1)</script>")
    assert "<script>" not in build(run, figures=False).html.read_text()


def test_the_servers_own_times(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run", options={"server_time": "header:x-queue-ms,field:compute"})
    plain = {"ttft_ms": None, "token_source": None, "output_events": 0}
    times = [[1000 * k, 7000 if k % 2 else None] for k in range(1, 101)]
    syn.write_requests(
        run, [syn.request(5 + k / 10, end_s=5.1 + k / 10, server_times_us=t, **plain) for k, t in enumerate(times)]
    )
    step = figures(run)
    assert step["server_times_ms"]["header:x-queue-ms"]["p99"] == 99
    assert step["server_times_ms"]["field:compute"] == {"p50": 7, "p90": 7, "p95": 7, "p99": 7, "mean": 7}
    assert step["output_tokens_per_s"] is None
    assert "tokens_from_events" not in codes(step)
    page = build(run, figures=False).html.read_text()
    assert "x-queue-ms" in page and "Server's own times" in page


def test_the_timeline_has_a_row_a_second(thousand: Path) -> None:
    build(thousand, figures=False)
    lines = (thousand / "report" / "tables" / "timeline.csv").read_text().splitlines()
    assert lines[0].split(",") == [
        *(
            "t_s",
            "users",
            "in_flight",
            "due_qps",
            "qps",
            "failed_qps",
            "output_tokens_per_s",
            "resident_tokens",
            "ttft_p50_ms",
            "ttft_p99_ms",
            "e2e_p50_ms",
            "e2e_p99_ms",
        ),
        *("gpu_util_pct", "gpu_sm_pct", "gpu_tensor_pct", "gpu_dram_pct", "vram_used_b", "vram_effective_b", "power_w"),
        *("gpu_coverage", "gpu_bound_ms", "running", "waiting", "kv_usage_ratio", "server_coverage", "server_bound_ms"),
        "busiest_cpu_pct",
        "gpu_source",
    ]
    seconds = [float(line.split(",")[0]) for line in lines[1:]]
    assert seconds == [float(k) for k in range(len(seconds))] and len(seconds) == 22  # the last answer ends at 21.0


SUMMARY = {
    *("schema", "run_id", "status", "reason", "target", "simulated_gpu", "steps", "clocks", "caveats"),
    *("agents", "failures", "damage", "sensor_lag_ms"),
    *("gpu_facts", "vram", "bottleneck"),
    *("slo", "trends", "verdict"),
}
STEP = {
    *("level", "unit", "begin_s", "end_s", "window_s", "requests", "ok", "errors", "cancelled", "ended_after_window"),
    *("success_pct", "qps", "attempted_qps", "failed_qps", "output_tokens_per_s", "in_flight_mean"),
    *("ttft_ms", "ttft_ms_ok", "itl_ms", "tpot_ms", "tpot_ms_ok", "e2e_ms", "e2e_ms_ok"),
    *("client_lag_ms", "client_lag_source", "worker_cpu_pct", "coalesced_share", "tokens_per_event"),
    *("tokens_from_events_share", "simulator_late_share", "gpus", "gpu_total", "server", "caveats"),
    *("client_lag_limit_ms", "loop_lag_ms", "hosts", "server_times_ms"),
    *("rate", "dropped", "service_ms", "service_ms_ok", "itl_share", "read_lag_ms", "send_lag_ms", "send_lag_limit_ms"),
    *("kept_every", "loop_stall_ms", "gc_pause_ms", "kernel_stamp_share", "client_on_time"),
    *("qps_ci95", "attempted_qps_ci95", "failed_qps_ci95", "output_tokens_per_s_ci95", "success_pct_ci95"),
    *("warmup_s", "warmup_by", "steady", "steady_why", "drift_pct", "little", "ttft_protocol"),
    *("vram_predicted_bytes", "roofline", "bottleneck", "in_flight_http_error"),
    *("goodput_qps", "goodput_qps_ci95", "good_pct", "tokens", "resident_tokens_mean", "energy"),
}
DESCRIBED = {
    *("ttft_ms", "tpot_ms", "e2e_ms", "service_ms", "itl_ms"),
    *("ttft_ms_ok", "tpot_ms_ok", "e2e_ms_ok", "service_ms_ok"),
}
GPU = {
    *("host", "uuid", "index", "simulated", "coverage", "util_pct", "vram_used_bytes", "vram_effective_bytes"),
    *("vram_total_bytes", "power_w", "gi_id", "bound_ms", "sm_pct", "occ_pct", "tensor_pct", "dram_pct", "sm_mhz"),
    *("temp_c", "throttled_share", "pcie_bytes_per_s", "nvlink_bytes_per_s"),
    "power_limit_w",
}
HOST = {
    *("host", "simulated", "coverage", "bound_ms", "cpu_pct", "busiest_cpu_pct", "iowait_pct", "steal_pct"),
    *("psi_cpu_some_pct", "psi_io_some_pct", "psi_mem_some_pct", "mem_available_bytes", "mem_total_bytes", "server"),
    *("net_rx_bytes_per_s", "net_tx_bytes_per_s", "net_drops_per_s", "tcp_retrans_pct", "disk_busy_pct"),
    *("procs_running", "procs_blocked"),
}
CLOCK = {
    *("host", "bound_ms", "bound_median_ms", "drift_ppm", "steps", "synchronised"),
    *("time_of_day_ms", "time_of_day_limit_ms"),
}
AGENT = {"host", "cpu_pct", "ticks", "skipped", "skipped_share", "rss_bytes", "dropped", "suspended_s"}


def test_the_summary_has_these_keys_and_no_others(thousand: Path) -> None:
    """Others read summary.json: a key that is renamed or dropped needs a new SCHEMA."""
    syn.write_table(thousand, "here", "gpu_fast", [syn.gpu(k / 10) for k in range(201)])
    for table, row in (("server", syn.server), ("host", syn.host), ("agent", syn.agent)):
        syn.write_table(thousand, "here", table, [row(float(k)) for k in range(21)])
    build(thousand, figures=False)
    summary = syn.summary_of(thousand)
    (step,) = summary["steps"]
    assert summary["schema"] == 1
    assert summary.keys() == SUMMARY
    assert step.keys() == STEP | {f"{name}_{kind}" for name in DESCRIBED for kind in ("ci95", "effective")}
    assert all(step[f"{name}_ci95"].keys() == step[name].keys() for name in DESCRIBED)
    assert all(step[f"{name}_effective"].keys() == {"p50", "p90", "p95", "p99"} for name in DESCRIBED)
    assert step["drift_pct"].keys() == {"qps", "e2e"}
    assert step["little"].keys() == {"requests", "residence_ms", "in_flight", "difference"}
    assert step["ttft_protocol"].keys() == {"requests", "left_out", "p50_ms", "p90_ms", "reason"}
    documented = (Path(__file__).resolve().parents[2] / "docs" / "run-directory.md").read_text()
    keys = {*SUMMARY, *STEP, *GPU, *HOST, *CLOCK, *AGENT}
    assert [key for key in keys if f"`{key}`" not in documented] == []
    assert step["gpus"][0].keys() == GPU
    for name in ("ttft_ms", "tpot_ms", "e2e_ms", "service_ms"):
        assert step[name].keys() == step[f"{name}_ok"].keys() == {"p50", "p90", "p95", "p99", "mean"}
    assert step["itl_ms"].keys() == {"p50", "p90", "p95", "p99", "mean"}
    assert step["client_lag_ms"].keys() == step["loop_lag_ms"].keys() == {"p50", "p99"}
    assert step["read_lag_ms"].keys() == step["send_lag_ms"].keys() == {"p50", "p99", "max"}
    assert step["gpus"][0]["power_w"].keys() == {"mean", "max"}
    assert step["gpu_total"].keys() == {"util_pct", "vram_used_bytes", "vram_effective_bytes", "power_w"}
    assert {"running", "waiting", "kv_usage_ratio"} <= step["server"].keys()
    assert summary["clocks"][0].keys() == CLOCK
    assert step["hosts"][0].keys() == HOST and summary["agents"][0].keys() == AGENT
    assert summary["sensor_lag_ms"][0].keys() == {"host", "signal", "lag_ms", "peak"}
    assert step["tokens"].keys() == {"prompt_mean", "output_mean", "prompt_per_s"}
    assert all(entry.keys() == {"topic", "state", "text", "link"} for entry in summary["verdict"])
    assert all(caveat.keys() == {"code", "text", "remedy"} for caveat in step["caveats"])
