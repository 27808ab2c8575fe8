"""The open model as a real run: what was due, whatever the server made of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadgen.options import parse_settings
from loadgen.schedule import Schedule
from loadgen.shards import read_shard
from tests.run.processes import Run, running

pytestmark = pytest.mark.run
LOADGEN = str(Path(sys.executable).with_name("loadgen"))
SHORT = ("--agents", "none", "--output-tokens", "8")


def finished(runs: Path, *arguments: str, scenario: str = "chat") -> Run:
    with running(LOADGEN, runs, *arguments, *SHORT, scenario=scenario) as run:
        assert run.end(90) == 0, run.output
    return run


def records(run: Run) -> list[dict[str, Any]]:
    rows = []
    for shard in sorted((run.directory / "requests").glob("*.arrow")):
        table, problem = read_shard(shard)
        assert problem is None
        assert table is not None
        rows += table.to_pylist()
    return rows


def due(run: Run) -> list[int]:
    """The schedule that the manifest's options make, from the instant of the first mark on."""
    settings = parse_settings(run.manifest["options"], simulated=True, steps_required=True)
    start = run.lines("steps.jsonl")[0]["t_ns"]
    return [start + offset for block in Schedule(settings.plan).arrivals() for offset in block.tolist()]


def test_what_is_recorded_was_due_and_what_was_due_is_recorded(tmp_path: Path) -> None:
    run = finished(
        tmp_path, "--rate", "10,40", "--step-time", "3", "--ramp", "1", "--workers", "2", "--max-in-flight", "300"
    )
    rows = records(run)
    assert sorted(row["intended_ns"] for row in rows) == due(run)
    assert {row["outcome"] for row in rows} == {"OK"}
    assert all(row["sent_ns"] >= row["intended_ns"] for row in rows)
    by_worker = [[row["intended_ns"] for row in rows if row["worker"] == worker] for worker in (0, 1)]
    assert sorted(by_worker[0]) == due(run)[::2]
    marks = [(line["what"], line["level"], line["unit"]) for line in run.lines("steps.jsonl")]
    assert marks == [(what, rate, "requests/s") for rate in (10.0, 40.0) for what in ("ramp", "begin", "end")]
    at_s = np.diff([line["t_ns"] for line in run.lines("steps.jsonl")]) / 1e9
    assert at_s == pytest.approx([1, 3, 0, 1, 3])
    counts = {"requests": len(rows), "failures": 0}
    assert run.manifest["locust"] == run.manifest["recorded"] == counts


def test_what_nobody_is_free_for_is_dropped_and_counted(tmp_path: Path) -> None:
    run = finished(tmp_path, "--rate", "40", "--step-time", "3", "--arrival", "constant", "--max-in-flight", "2")
    rows = records(run)
    outcomes = Counter(row["outcome"] for row in rows)
    assert len(rows) == 120
    assert sorted(row["intended_ns"] for row in rows) == due(run)
    assert set(outcomes) == {"OK", "DROPPED"}
    assert all(row["sent_ns"] is None for row in rows if row["outcome"] == "DROPPED")
    assert outcomes["DROPPED"] > 60
    counts = {"requests": 120, "failures": outcomes["DROPPED"]}
    assert run.manifest["locust"] == run.manifest["recorded"] == counts


HABITS = """
from locust import between
from scenarios.chat import ChatUser

class Slow(ChatUser):
    wait_time = between(5, 9)

    def on_start(self):
        pass
"""


def test_a_scenarios_own_waits_do_not_stand_in_the_way(tmp_path: Path) -> None:
    scenario = tmp_path / "habits.py"
    scenario.write_text(HABITS)
    run = finished(
        tmp_path / "runs", "--rate", "20", "--step-time", "3", "--max-in-flight", "80", scenario=str(scenario)
    )
    rows = records(run)
    assert sorted(row["intended_ns"] for row in rows) == due(run)
    assert {row["outcome"] for row in rows} == {"OK"}


def test_requests_are_hung_up_on(tmp_path: Path) -> None:
    run = finished(tmp_path, "--steps", "30", "--step-time", "6", "--cancel-rate", "0.5")
    rows = records(run)
    cut = [row for row in rows if row["error"] == "hung up on purpose"]
    assert {row["outcome"] for row in cut} == {"CANCELLED"}
    assert 0.2 * len(rows) < len(cut) < 0.7 * len(rows)
    assert run.manifest["locust"]["failures"] == 0


def test_no_token_in_time_is_a_timeout(tmp_path: Path) -> None:
    """The simulator needs longer for a first token than that."""
    with running(LOADGEN, tmp_path, "--steps", "2", "--step-time", "3", "--first-token-timeout", "30ms", *SHORT) as run:
        assert run.end(60) == 3, run.output
    ended = [row for row in records(run) if row["outcome"] != "CANCELLED"]
    assert {row["outcome"] for row in ended} == {"TIMEOUT"}
    assert "no output within <n> s" in {row["error"] for row in ended}


def test_an_interrupted_run_drops_nothing(tmp_path: Path) -> None:
    with running(LOADGEN, tmp_path, "--rate", "30", "--step-time", "60", "--max-in-flight", "200", *SHORT) as run:
        run.wait_for_hold()
        os.kill(run.process.pid, signal.SIGINT)
        assert run.end(40) == 130, run.output
    rows, schedule = records(run), due(run)
    assert sorted(row["intended_ns"] for row in rows) == schedule[: len(rows)]
    assert {row["outcome"] for row in rows} <= {"OK", "CANCELLED"}
    assert [line["what"] for line in run.lines("steps.jsonl")] == ["ramp", "begin", "end"]


def test_the_share_of_a_lost_worker_is_gone_and_the_rest_is_on_time(tmp_path: Path) -> None:
    steps = ("--rate", "30,60", "--step-time", "8", "--max-in-flight", "200", "--workers", "2")
    with running(LOADGEN, tmp_path, *steps, *SHORT) as run:
        run.wait_for_hold()
        os.kill(run.pid_of("loadgen.locust", "--worker"), signal.SIGKILL)
        run.end(90)
    rows, schedule = records(run), due(run)
    lost = {event["worker"] for event in run.lines("events.jsonl") if event["kind"] == "worker_lost"}
    (kept,) = {0, 1} - lost
    assert sorted(row["intended_ns"] for row in rows if row["worker"] == kept) == schedule[kept::2]
    assert [line["what"] for line in run.lines("steps.jsonl")] == ["ramp", "begin", "end"] * 2


def test_the_same_run_again(tmp_path: Path) -> None:
    trace = tmp_path / "times.txt"
    trace.write_text("".join(f"{17.0 + 0.1 * k + 0.05 * (k % 2)}\n" for k in range(20)))
    first = finished(tmp_path / "runs", "--arrival", str(trace), "--max-in-flight", "50")
    offsets = np.diff([row["intended_ns"] for row in sorted(records(first), key=lambda row: row["intended_ns"])])
    assert offsets / 1e9 == pytest.approx([0.15, 0.05] * 9 + [0.15], abs=1e-6)
    shown = subprocess.run(
        [LOADGEN, "run", "--from", str(first.directory), "--dry-run"], capture_output=True, text=True, check=True
    ).stdout
    assert "for 20 requests" in shown
    assert f"arrivals  {trace}, seed 0; what is due while 50 are in flight is dropped" in shown
    shown = subprocess.run(
        [LOADGEN, "run", "--from", str(first.directory), "--concurrency", "4", "--dry-run"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "step      4 users for 20 requests" in shown


def test_users_of_the_closed_model_ramp_and_think(tmp_path: Path) -> None:
    run = finished(tmp_path, "--steps", "4,12", "--step-time", "4", "--ramp", "2s", "--think-time", "400ms-600ms")
    marks = {(line["step"], line["what"]): line for line in run.lines("steps.jsonl")}
    for step in (0, 1):
        assert marks[step, "begin"]["t_ns"] - marks[step, "ramp"]["t_ns"] >= 2e9
    assert marks[1, "begin"]["users"] == 12
    held = [row for row in records(run) if marks[1, "begin"]["t_ns"] <= row["intended_ns"] < marks[1, "end"]["t_ns"]]
    assert 12 <= len(held) <= 12 * 4 / 0.4
    assert all(row["outcome"] in ("OK", "CANCELLED") for row in held)
