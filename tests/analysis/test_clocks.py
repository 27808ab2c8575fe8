"""Clocks of other hosts: what workers wrote there, how well a clock is known, and what is said when it is not."""

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.analyse import summarise
from analysis.clocks import align
from analysis.damage import span
from analysis.load import load
from analysis.report.build import build
from analysis.shards import REQUESTS, read
from loadgen import rundir
from tests.analysis import synthetic as syn

HOURS_S = 5.3 * 3600


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = syn.make(tmp_path / "run")
    syn.write_requests(run, [syn.request(5 + 0.015 * k, ttft_ms=k % 100 + 1) for k in range(500)])
    syn.write_histograms(run, [])
    return run


def codes(entry: dict[str, Any]) -> list[str]:
    return [caveat["code"] for caveat in entry["caveats"]]


def text(entry: dict[str, Any], code: str) -> str:
    (found,) = [caveat["text"] for caveat in entry["caveats"] if caveat["code"] == code]
    return str(found)


def add(run: Path, **clock: Any) -> None:
    """More facts of the controller's clock."""
    manifest = json.loads((run / rundir.MANIFEST).read_text())
    manifest["clock"] |= clock
    rundir.write_manifest(run, manifest)


@pytest.mark.parametrize("offset_s", [HOURS_S, -HOURS_S, -syn.ZERO_NS / 2e9])
def test_a_worker_on_another_host_counts_as_one_here(run: Path, offset_s: float) -> None:
    rows = [syn.request(12.5 + 0.015 * k, ttft_ms=k % 100 + 1) for k in range(500)]
    seconds = [syn.health(float(t), cpu_share=0.5) for t in range(21)]
    reads = [syn.histogram(float(t), "read_lag", {0.1: 100}) for t in range(1, 21)]
    syn.write_requests(run, rows, 1)
    syn.write_health(run, seconds, 1)
    syn.write_histograms(run, reads, 1)
    (here,) = summarise(run)["steps"]
    for path in run.glob("*/worker-1.*"):
        path.unlink()
    far = syn.Far(run, offset_s)
    far.worker(1, rows, seconds, reads)
    far.probes(host="worker:far.example")
    summary = summarise(run)
    (step,) = summary["steps"]
    for name in ("qps", "ok", "in_flight_mean", "ttft_ms", "e2e_ms", "itl_ms", "output_tokens_per_s", "read_lag_ms"):
        assert step[name] == pytest.approx(here[name], rel=1e-3), name
    assert step["ttft_ms"] == here["ttft_ms"]  # a row is moved as a whole
    assert step["worker_cpu_pct"] == pytest.approx(50)
    (clock,) = summary["clocks"]
    assert clock["host"] == "worker:far.example" and 0.1 < clock["bound_median_ms"] <= clock["bound_ms"] < 1
    assert summary["damage"] == [] and clock["steps"] == []


def test_without_probes_it_is_left_out_and_said_so(run: Path) -> None:
    far = syn.Far(run, HOURS_S)
    far.worker(1, [syn.request(6.0)] * 10, [syn.health(6.0)])
    far.probes()  # of the agent on that host: a clock of its own, as far as one can tell
    summary = summarise(run)
    assert summary["steps"][0]["ok"] == 500
    damage = {finding["file"]: finding["text"] for finding in summary["damage"]}
    assert set(damage) == {"requests/worker-1.arrow", "workers/worker-1.arrow", "workers/worker-1.histograms.arrow"}
    assert "clock of worker:far.example, which no probes tie" in damage["requests/worker-1.arrow"]


def test_gaps_and_nulls_of_a_moved_shard_stay_with_their_rows(run: Path) -> None:
    failed = syn.request(7.0, ttft_ms=None, gaps_ms=(), outcome="TIMEOUT", end_s=8.0, chunk_gaps_us=None)
    none = syn.request(7.0) | {"intended_ns": None}
    wild = syn.request(7.0) | {"intended_ns": 5}
    far = syn.Far(run, HOURS_S)
    far.worker(1, [failed, none, wild, syn.request(9.0, gaps_ms=(1.0, 2.0))])
    far.probes(host="worker:far.example")
    aligned, _ = align(load(run))
    tables = [table for _, table in read(aligned.shards, REQUESTS, span(aligned.manifest), aligned.damage)]
    last = tables[-1].to_pylist()
    assert [(row["outcome"], row["first_token_ns"] is None) for row in last] == [("TIMEOUT", True), ("OK", False)]
    assert abs(last[0]["intended_ns"] - syn.at(7.0)) < 200_000
    assert last[0]["end_ns"] - last[0]["intended_ns"] == 1_000_000_000
    assert [row["chunk_gaps_us"] for row in last] == [None, [1000, 2000]]
    assert [finding.text for finding in aligned.damage] == ["2 of 4 rows are nonsense: they are left out"]


def sampled(run: Path, far: syn.Far) -> None:
    far.table("gpu_fast", [syn.gpu(k / 10) for k in range(-10, 210)])
    far.table("host", [syn.host(float(t)) for t in range(21)])
    far.table("server", [syn.server(float(t)) for t in range(21)])


def test_the_section_of_the_report_lists_every_host(run: Path) -> None:
    far = syn.Far(run, HOURS_S)
    sampled(run, far)
    far.probes()
    syn.write_table(run, "here", "agent", [syn.agent(float(t)) for t in range(21)])
    built = build(run, figures=False)
    assert [clock["host"] for clock in built.summary["clocks"]] == ["far", "here"]
    page = built.html.read_text()
    section = page[page.index("<h2>Telemetry</h2>") :].partition("</section>")[0]
    assert "fitted by probes" in section and "the controller&#39;s" in section
    assert "1.00 % of a core, 0 of 200 ticks skipped, 20 MiB" in section


def test_a_clock_that_is_known_too_badly_gives_no_figures_and_says_so(run: Path) -> None:
    far = syn.Far(run, HOURS_S)
    sampled(run, far)
    far.probes(rtt_ms=20_000)
    built = build(run, figures=False)
    (step,) = built.summary["steps"]
    (gpu,), (host,) = step["gpus"], step["hosts"]
    assert gpu["coverage"] == pytest.approx(1) and gpu["bound_ms"] == pytest.approx(10_000, rel=0.01)
    figures = set(gpu) - {"host", "uuid", "index", "gi_id", "simulated", "coverage", "bound_ms", "vram_total_bytes"}
    assert {name: gpu[name] for name in figures if gpu[name]} == {"throttled_share": {"power": None, "heat": None}}
    assert host["cpu_pct"] is None and host["mem_available_bytes"] is None and host["busiest_cpu_pct"] is None
    assert "far's samples is known to 10.0 s only" in text(step, "telemetry_blurred")
    assert "known to 10.0 s only" in text(built.summary, "clock_blurred")
    assert set(step["server"].values()) == {None}
    timeline = (run / "report" / "tables" / "timeline.csv").read_text().splitlines()
    row = dict(zip(timeline[0].split(","), timeline[11].split(","), strict=True))
    assert row["gpu_util_pct"] == row["running"] == "" and float(row["gpu_coverage"]) == pytest.approx(1)
    assert float(row["gpu_bound_ms"]) == pytest.approx(10_000, rel=0.01)


def test_a_bound_may_be_good_enough_for_a_window_and_not_for_a_second(run: Path) -> None:
    far = syn.Far(run, HOURS_S)
    sampled(run, far)
    far.probes(rtt_ms=2000)
    built = build(run, figures=False)
    (step,) = built.summary["steps"]
    assert step["gpus"][0]["util_pct"]["mean"] == 50 and "telemetry_blurred" not in codes(step)
    assert "clock_blurred" in codes(built.summary)
    timeline = (run / "report" / "tables" / "timeline.csv").read_text().splitlines()
    row = dict(zip(timeline[0].split(","), timeline[11].split(","), strict=True))
    assert row["gpu_util_pct"] == "" and row["qps"] != ""


def test_a_host_that_slept_is_said_so_and_its_samples_around_have_no_figures(run: Path) -> None:
    """Its clock stood still for 7 s from second 12 on: later stamps are 7 s behind."""
    before, after = syn.Far(run, HOURS_S), syn.Far(run, HOURS_S - 7)
    before.probes(times=(-1, 4, 9))
    after.probes(times=(20, 25, 30))
    rows = [syn.gpu(k / 10) for k in range(120)]
    late = [syn.gpu(k / 10 - 7) for k in range(190, 210)]  # as the clock of `before` has it
    before.table("gpu_fast", [*rows, *late])
    agent = [syn.agent(float(t), suspended_ns=10**12) for t in range(12)]
    slept = [syn.agent(t - 7.0, suspended_ns=10**12 + 7 * 10**9) for t in (19, 20)]
    before.table("agent", [*agent, *slept])
    summary = summarise(run)
    (clock,) = summary["clocks"]
    ((step_s, size_ms),) = [(step["at_s"], step["size_ms"]) for step in clock["steps"]]
    assert 9 < step_s < 20 and size_ms == pytest.approx(-7000, abs=2)
    assert "moved 7.0 s back" in text(summary, "clock_moved")
    assert "slept for 7.0 s" in text(summary, "suspended")
    assert "clock_blurred" in codes(summary)


@pytest.mark.parametrize(("ahead_s", "differs"), [(0.004, False), (2.5, True)])
@pytest.mark.parametrize("told_by", ["manifest", "agent"])
def test_times_of_day_that_disagree_are_a_caveat(run: Path, ahead_s: float, differs: bool, told_by: str) -> None:
    """Five milliseconds each is what the kernels grant themselves."""
    day = 1_700_000_000_000_000_000
    add(run, realtime_ns=day)
    far = syn.Far(run, HOURS_S)
    far.probes()
    stamps = {"realtime_ns": str(day + round((6 + ahead_s) * 1e9)), "monotonic_ns": str(syn.at(1.0 + HOURS_S))}
    sync = {"clock_unsync": 0, "clock_maxerror_us": 5000}
    far.table("agent", [syn.agent(float(t), **sync) for t in range(20)], **stamps)
    if told_by == "manifest":
        add(run, maxerror_us=5000)
    else:
        syn.write_table(run, "here", "agent", [syn.agent(float(t), **sync) for t in range(20)])
    summary = summarise(run)
    clock = summary["clocks"][0]
    assert clock["synchronised"] is True
    assert clock["time_of_day_ms"] == pytest.approx(1000 * ahead_s, abs=0.2)
    assert clock["time_of_day_limit_ms"] == pytest.approx(11.1, abs=0.3)
    assert ("time_of_day" in codes(summary)) == differs
    if differs:
        assert "time of day of far differs from the controller's by 2.5 s" in text(summary, "time_of_day")


def test_a_time_of_day_that_is_not_synchronised_is_not_compared(run: Path) -> None:
    add(run, realtime_ns=1, maxerror_us=5000)
    far = syn.Far(run, HOURS_S)
    far.probes()
    far.table("agent", [syn.agent(float(t), clock_unsync=int(t > 3), clock_maxerror_us=500) for t in range(20)])
    (clock,) = summarise(run)["clocks"]
    assert (clock["synchronised"], clock["time_of_day_ms"], clock["time_of_day_limit_ms"]) == (False, None, None)


def test_an_event_that_came_late_counts_when_it_happened(run: Path) -> None:
    """The link to the agent was down: what it had to say at second 7 was heard after the step."""
    far = syn.Far(run, HOURS_S)
    sampled(run, far)
    far.probes()
    stamp = {"host": "far.example", "agent_ns": syn.at(7.0 + HOURS_S)}
    syn.event(run, "gpu_lost", "GPU 0 is left out", 25.0, **stamp)
    syn.event(run, "gpu_lost", "GPU 1 is left out", 25.0, **stamp | {"host": "elsewhere"})
    syn.event(run, "gpu_lost", "GPU 2 is left out", 25.0, **stamp | {"agent_ns": 5})
    syn.write_table(run, "here", "host", [syn.host(float(t)) for t in range(21)])
    syn.event(run, "nvml_hang", "NVML hangs", 25.0, host="here", agent_ns=syn.at(8.0))
    (step,) = summarise(run)["steps"]
    told = [caveat["text"] for caveat in step["caveats"] if caveat["code"] in ("gpu_lost", "nvml_hang")]
    assert told == ["GPU 0 is left out (7.0 s)", "NVML hangs (8.0 s)"]
