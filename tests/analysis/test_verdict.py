"""What a run says first: one sentence a topic, in the right state, with figures that are those of the summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.analyse import Asked, summarise
from analysis.reconciliation import DEFINITIONS, reconciliation_table
from analysis.report.page import STATES, TOPICS
from analysis.verdict import verdict
from loadgen import rundir
from loadgen.slo import parse_slo
from tests.analysis import synthetic as syn

Said = dict[str, tuple[str, str]]


def said(summary: dict[str, Any]) -> Said:
    """Topic -> state and text; each topic is told once, with a name and a state that the page knows."""
    lines = {entry["topic"]: (entry["state"], entry["text"]) for entry in summary["verdict"]}
    assert len(lines) == len(summary["verdict"])
    assert lines.keys() <= TOPICS.keys() and {state for state, _ in lines.values()} <= STATES.keys()
    assert all(text.endswith(".") and "None" not in text.split() for _, text in lines.values()), lines
    return lines


def of(run: Path, slo: str | None = None) -> Said:
    return said(summarise(run, Asked(slo=parse_slo(slo) if slo else None)))


@pytest.fixture
def steady(tmp_path: Path) -> Path:
    """Two steps of 10 and 20 users: TTFT 100 ms and 300 ms, E2E 1 s and 1.2 s, all in flight all the time."""
    counts = {"requests": 1080, "failures": 0}
    run = syn.make(tmp_path / "run", (10, 20), 40.0, locust=counts, recorded=counts)
    rows = [syn.request(k / 10, 100, [100] * 9) for k in range(400)]
    rows += [syn.request(40 + k / 17, 300, [100] * 9) for k in range(680)]
    syn.write_requests(run, rows)
    syn.write_health(run, [syn.health(float(t)) for t in range(81)])
    return run


def test_a_good_run_says_so(steady: Path) -> None:
    found = of(steady, "ttft_p99<1s,error_rate<1%")
    assert {topic: state for topic, (state, _) in found.items() if state == "bad"} == {}
    assert {topic for topic, (state, _) in found.items() if state == "unknown"} == {"time", "bottleneck", "trends"}
    assert found["slo"][0] == "good" and "met at every step, up to 20 users" in found["slo"][1]
    assert found["failures"] == ("good", "All 810 requests in the measuring windows succeeded.")
    assert "Locust's own count agrees" in found["record"][1]
    assert "No GPU, host or server was watched" in found["time"][1]


def test_the_slo_that_breaks_is_named_with_its_figure_and_where(steady: Path) -> None:
    found = of(steady, "e2e_p50<10s,ttft_p99<200ms")
    assert found["slo"][0] == "warn"
    assert "met up to 10 users" in found["slo"][1] and "at 20 users TTFT p99 is 300 ms" in found["slo"][1]
    assert found["capacity"][0] == "good"
    assert found["capacity"][1].startswith("Holds 1") and "within e2e_p50<10s, ttft_p99<200ms" in found["capacity"][1]
    assert of(steady, "ttft_p99<50ms")["slo"][0] == "bad"
    assert of(steady, "ttft_p99<50ms")["capacity"][0] == "bad"
    assert of(steady)["slo"][0] == "unknown"


def test_what_was_not_measured_meets_no_objective(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    plain = {"ttft_ms": None, "token_source": None, "output_events": 0}
    syn.write_requests(run, [syn.request(5 + k / 10, end_s=5.1 + k / 10, **plain) for k in range(100)])
    found = of(run, "ttft_p99<1s")
    assert found["slo"][0] == "unknown" and "ttft_p99 was not measured" in found["slo"][1]
    assert found["capacity"][0] == "unknown"


def test_where_nothing_was_answered_an_objective_breaks_whatever_else_was_not_measured(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run", (10, 20, 40), 20.0)
    plain = {"ttft_ms": None, "token_source": None, "output_events": 0}
    rows = [syn.request(k / 10, end_s=0.1 + k / 10, **plain) for k in range(200)]
    rows += [syn.request(20 + k / 10) for k in range(200)]
    rows += [syn.request(40 + k / 10, None, (), "HTTP_ERROR", end_s=40.1 + k / 10) for k in range(200)]
    syn.write_requests(run, rows)
    state, text = of(run, "itl_p99<1s")["slo"]
    assert state == "warn" and text.startswith("itl_p99<1s: met up to 20 users (")
    assert text.endswith("; at 40 users ITL p99 is infinite, as failures reach it.")
    state, text = of(run, "e2e_p99<1s,itl_p99<1s")["slo"]
    assert state == "warn" and text.endswith("at 40 users E2E p99 is infinite, as failures reach it.")
    state, text = of(run, "e2e_p99<150ms,itl_p99<1s")["slo"]
    assert state == "bad" and "at 20 users E2E p99 is 190 ms" in text


def hanging(run: Path, begin_s: float, **changes: Any) -> Path:
    """10 users are answered, 100 are not: their requests begin at `begin_s` of the step, and its end cuts them."""
    counts = {"requests": 300, "failures": 0}
    made = syn.make(run, (10, 100), 20.0, locust=counts, recorded=counts)
    cut = {"outcome": "CANCELLED", "end_s": 40.0, "prompt_tokens": 8} | changes
    rows = [syn.request(k / 10, 100, [100] * 9, prompt_tokens=8) for k in range(200)]
    syn.write_requests(made, rows + [syn.request(20 + begin_s + k / 1000, None, (), **cut) for k in range(100)])
    syn.write_health(made, [syn.health(float(t)) for t in range(41)])
    return made


@pytest.mark.parametrize("begin_s", [0.0, 5.0])
def test_a_step_at_which_the_server_hung_is_bad_though_no_request_failed(tmp_path: Path, begin_s: float) -> None:
    found = of(hanging(tmp_path / "run", begin_s), "ttft_p95<1s,error_rate<2%")
    at = "no request was answered at 100 users."
    assert found["failures"] == ("bad", f"All 150 requests in the measuring windows succeeded; {at}")
    assert found["load"] == ("bad", f"{at[0].upper()}{at[1:]}")
    assert found["bottleneck"][0] == "bad" and "no request succeeded within the window at 100" in found["bottleneck"][1]
    assert found["slo"][0] == "warn" and "met up to 10 users" in found["slo"][1]
    assert found["slo"][1].endswith("at 100 users no request was answered.")
    assert found["capacity"][0] == "good" and "maybe more" not in found["capacity"][1]


def test_answers_longer_than_the_step_are_no_hung_server_but_meet_nothing(tmp_path: Path) -> None:
    """Their first tokens came, and they were cut before the last."""
    first = {"first_token_ns": syn.at(25.0), "last_token_ns": syn.at(39.0), "output_tokens": 100, "output_events": 100}
    for prompt in (8, None):
        found = of(hanging(tmp_path / f"run-{prompt}", 0.0, **first, prompt_tokens=prompt), "ttft_p95<1s")
        assert found["failures"][0] == "good" and found["load"][0] == "good"
        assert found["sample"][0] != "good" and "no request ended at 100 users" in found["sample"][1].lower()
    assert found["slo"][0] == "unknown" and "met up to 10 users" in found["slo"][1]
    assert found["slo"][1].endswith("at 100 users ttft_p95 was not measured.")


def test_what_spoils_a_run_is_bad_and_named(tmp_path: Path) -> None:
    counts = {"locust": {"requests": 300, "failures": 60}, "recorded": {"requests": 200, "failures": 60}}
    run = syn.make(tmp_path / "run", (10, 20), 20.0, **counts)
    late = [syn.request(k / 10, read_lag_us=90_000) for k in range(200)]
    failed = [
        syn.request(20 + k / 10, None, (), "HTTP_ERROR", end_s=20.1 + k / 10, error="HTTP 503: full", status=503)
        for k in range(200)
    ]
    syn.write_requests(run, [*late, *failed])
    syn.write_health(run, [syn.health(float(t)) for t in range(41)])
    found = of(run)
    assert {topic for topic, (state, _) in found.items() if state == "bad"} >= {"client", "load", "failures", "record"}
    assert "late at 10 users" in found["client"][1]
    assert "less load was delivered than asked for at 10, 20 users" in found["load"][1].lower()
    assert "of 300 requests (50.0 %)" in found["failures"][1] and "HTTP_ERROR: HTTP 503: full" in found["failures"][1]
    assert "the records hold 200 requests" in found["record"][1]


@pytest.mark.parametrize("status", [rundir.RUNNING, rundir.INTERRUPTED, rundir.ABORTED])
def test_a_run_that_did_not_end_well_is_no_complete_record(tmp_path: Path, status: str) -> None:
    run = syn.make(tmp_path / "run", status=status, reason="the master was lost")
    state, text = of(run)["record"]
    assert state in ("warn", "bad") and "not complete" in text and "the master was lost" in text


def test_a_recording_says_nothing_of_requests(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run", (), plan={"arrival": "none", "steps": []}, workers=0)
    syn.write_table(run, "here", "host", [syn.host(float(k)) for k in range(21)])
    found = of(run)
    assert not found.keys() & {"capacity", "slo", "failures", "client", "load", "sample"}
    assert found["time"][0] == "good" and "Locust" not in found["record"][1]


def test_what_binds_comes_with_its_evidence_and_the_next_thing_to_try(steady: Path) -> None:
    summary = summarise(steady)
    for step in summary["steps"]:
        step["bottleneck"] = {"verdict": "none", "confidence": 0.9, "runner_up": None, "evidence": [], "next": ""}
    summary["bottleneck"] = None
    (free,) = [entry for entry in verdict(summary) if entry["topic"] == "bottleneck"]
    assert free["state"] == "good" and "up to 20 users" in free["text"]
    first = {"level": 20, "unit": "users", "verdict": "kv_capacity", "confidence": 0.8, "text": "T", "next": "N"}
    summary["bottleneck"] = first
    (binds,) = [entry for entry in verdict(summary) if entry["topic"] == "bottleneck"]
    assert binds["text"] == "From 20 users on KV cache binds (confidence 80 %): T. Next: N."


@pytest.mark.parametrize(("outcome", "later_s"), [("HTTP_ERROR", 0.01), ("OK", 45.0)])
def test_a_heavier_step_that_served_nothing_is_no_room(tmp_path: Path, outcome: str, later_s: float) -> None:
    run = syn.make(tmp_path / "run", (10, 100))
    rows = [syn.request(k / 10, seq=k) for k in range(200)]
    rows += [syn.request(20 + k / 20, None, (), outcome, end_s=20 + later_s + k / 20) for k in range(400)]
    syn.write_requests(run, rows)
    state, text = of(run)["bottleneck"]
    assert state == "bad" and "up to 10 users (" in text
    assert text.endswith("but no request succeeded within the window at 100 users.")


@pytest.mark.parametrize("table", ["server", "gpu_fast"])
@pytest.mark.parametrize("levels", [(), (10,)])
def test_what_was_watched_is_said_whether_or_not_a_step_was_reached(
    tmp_path: Path, table: str, levels: tuple[int, ...]
) -> None:
    run = syn.make(tmp_path / "run", levels)
    row = {"server": syn.server, "gpu_fast": syn.gpu}[table]
    syn.write_table(run, "here", table, [row(float(t)) for t in range(21)])
    state, text = of(run)["time"]
    assert state in ("good", "warn") and "No GPU" not in text and "0 hosts" not in text
    if state == "good":
        assert text.startswith("Samples of here " if table == "gpu_fast" else "Samples of the server's metrics ")


@pytest.mark.parametrize(
    ("seconds", "state", "told"), [(15, "unknown", "over 15 s: too short"), (900, "good", "over 15 minutes.")]
)
def test_no_trend_is_said_with_how_long_nothing_was_seen(steady: Path, seconds: int, state: str, told: str) -> None:
    summary = summarise(steady)
    quiet = {"where": "GPU 0", "verdict": "none", "begin_s": 5, "text": ""}
    summary["trends"] = [
        quiet | {"signal": "vram_used", "end_s": 5 + seconds},
        quiet | {"signal": "vram_used", "end_s": 10},
        quiet | {"signal": "vram_used", "end_s": 5000, "verdict": "unknown"},
        quiet | {"signal": "waiting", "end_s": 5000},
    ]
    (found,) = [entry for entry in verdict(summary) if entry["topic"] == "trends"]
    assert found["state"] == state and told in found["text"]
    assert found["text"].startswith("No trend in VRAM (2), requests waiting over ")


def test_locusts_count_agrees_only_where_it_is_there(tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run")
    syn.write_requests(run, [syn.request(k / 10, seq=k) for k in range(200)])
    assert of(run)["record"] == ("good", "The run is complete, nothing of it is missing.")


def test_other_tools_figures_follow_from_ours_by_their_definitions(steady: Path) -> None:
    """Ten tokens 100 ms apart after 300 ms: 1.2 s in all."""
    summary = summarise(steady)
    headers, rows, where = reconciliation_table(summary)
    assert where == "20 users" and len(rows) == len(DEFINITIONS) and {len(row) for row in rows} == {len(headers)}
    values = {(row[0], row[1]): (row[-2], row[-1]) for row in rows}
    assert values["GuideLLM", "time per output token mean"] == ("100", "120")  # 1200 / 10: with the first token
    assert values["inference-perf", "normalized time per output token mean"] == ("100", "120")
    assert values["vLLM bench serve", "ITL mean"] == ("100", "100")
    assert values["vLLM bench serve", "request throughput"][1] == "–"
    summary["steps"][1]["tokens_per_event"] = 4.0
    chunks = {row[1]: row[-1] for row in reconciliation_table(summary)[1]}
    assert chunks["ITL mean"] == "400"  # a chunk of four tokens is one gap
    summary["steps"][1] |= {"unit": "requests/s"}
    assert {row[1]: row[-1] for row in reconciliation_table(summary)[1]}["TTFT p99"] == "–"  # it may have waited
