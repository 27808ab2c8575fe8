"""However a part of a run dies, no load, process or port stays, and what was recorded can be read."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from loadgen.shards import read_shard
from tests.run.processes import Run, running

pytestmark = pytest.mark.run
STEPS = ("--steps", "20,40", "--step-time", "30")
GONE_S = 10.0


def _recorded(run: Run) -> int:
    """Rows of all request shards."""
    tables = [read_shard(path)[0] for path in (run.directory / "requests").glob("*.arrow")]
    return sum(table.num_rows for table in tables if table is not None)


def _wait_for_records(run: Run) -> None:
    """Until a step holds and something was recorded: what is killed now must leave it behind."""
    run.wait_for_hold()
    run.wait_for(lambda: _recorded(run) > 0, 30, "no request was recorded")


def _gone_within(run: Run, seconds: float) -> None:
    ports = run.listening()
    assert ports
    run.wait_for(lambda: not run.processes(), seconds, f"processes of the run are left: {run.processes()}")
    assert not run.listening()


def test_ctrl_c_once_reports_what_there_is(loadgen: str, tmp_path: Path) -> None:
    with running(loadgen, tmp_path, *STEPS) as run:
        _wait_for_records(run)
        os.kill(run.process.pid, signal.SIGINT)
        assert run.end(30) == 130
        assert run.processes() == {}
        assert (run.manifest["status"], run.manifest["reason"]) == ("interrupted", "interrupted by the user")
        assert run.manifest["locust"] == run.manifest["recorded"]
        assert _recorded(run) > 0
        assert [line["what"] for line in run.lines("steps.jsonl")] == ["ramp", "begin", "end"]
        assert (run.directory / "report" / "report.html").stat().st_size > 10_000
        assert "report.html" in run.output


def test_ctrl_c_while_it_starts(loadgen: str, tmp_path: Path) -> None:
    """Nothing listens yet when it is pressed: no load may follow."""
    with running(loadgen, tmp_path, *STEPS) as run:
        run.wait_for(lambda: any("--master" in line for line in run.processes().values()), 20, "the master")
        os.kill(run.process.pid, signal.SIGINT)
        assert run.end(40) == 130
        assert run.processes() == {}
        assert (run.manifest["status"], run.manifest["reason"]) == ("interrupted", "interrupted by the user")
        assert _recorded(run) == 0


def test_ctrl_c_twice_kills(loadgen: str, tmp_path: Path) -> None:
    with running(loadgen, tmp_path, *STEPS) as run:
        _wait_for_records(run)
        os.kill(run.process.pid, signal.SIGINT)
        run.wait_for(lambda: "press Ctrl-C again" in run.output, 5, "the hint")
        os.kill(run.process.pid, signal.SIGINT)
        assert run.end(15) == 130
        assert run.processes() == {}
        assert (run.manifest["status"], run.manifest["reason"]) == ("interrupted", "killed by the user")
        assert _recorded(run) > 0


def test_conductor_killed(loadgen: str, tmp_path: Path) -> None:
    with running(loadgen, tmp_path, *STEPS) as run:
        _wait_for_records(run)
        os.kill(run.process.pid, signal.SIGKILL)
        _gone_within(run, GONE_S)
        assert run.manifest["status"] == "aborted"
        assert "was lost" in run.manifest["reason"]
        assert _recorded(run) > 0


def test_master_killed(loadgen: str, tmp_path: Path) -> None:
    with running(loadgen, tmp_path, *STEPS) as run:
        _wait_for_records(run)
        os.kill(run.pid_of("loadgen.locust", "--master "), signal.SIGKILL)
        assert run.end(30) == 5
        assert run.processes() == {}
        assert run.manifest["status"] == "aborted"
        assert "master was lost" in run.output
        assert _recorded(run) > 0
        assert (run.directory / "report" / "report.html").exists()


def test_only_worker_killed(loadgen: str, tmp_path: Path) -> None:
    with running(loadgen, tmp_path, *STEPS, "--workers", "1") as run:
        _wait_for_records(run)
        os.kill(run.pid_of("loadgen.locust", "--worker"), signal.SIGKILL)
        assert run.end(30) == 5
        assert run.processes() == {}
        assert (run.manifest["status"], run.manifest["reason"]) == ("aborted", "every worker was lost")
        assert _recorded(run) > 0


def test_one_of_two_workers_killed(loadgen: str, tmp_path: Path) -> None:
    """It is marked, nothing ramps again, and the next step is carried by the one that is left."""
    with running(loadgen, tmp_path, "--steps", "20,40", "--step-time", "12", "--workers", "2") as run:
        _wait_for_records(run)
        os.kill(run.pid_of("loadgen.locust", "--worker"), signal.SIGKILL)
        assert run.end(60) == 0
        assert run.processes() == {}
        assert [event["kind"] for event in run.lines("events.jsonl")].count("worker_lost") == 1
        marks = [(line["step"], line["what"], line["users"]) for line in run.lines("steps.jsonl")]
        assert [mark[:2] for mark in marks] == [(s, w) for s in (0, 1) for w in ("ramp", "begin", "end")]
        assert marks[2][2] == 10, "the lost users do not come back within the step"
        assert marks[5][2] == 40
        assert _recorded(run) > 0


def test_collector_killed(loadgen: str, tmp_path: Path) -> None:
    with running(loadgen, tmp_path, "--steps", "10", "--step-time", "8") as run:
        run.wait_for_hold()
        os.kill(run.pid_of("remote_agents.collector"), signal.SIGKILL)
        run.wait_for(
            lambda: not any("remote_agents" in line for line in run.processes().values()), 5, "the agent is left"
        )
        assert run.end(60) == 0
        assert run.processes() == {}
        assert run.manifest["status"] == "complete"
        assert "collector_lost" in [event["kind"] for event in run.lines("events.jsonl")]
        telemetry, _ = read_shard(run.directory / "telemetry" / "sim-0" / "gpu_fast.arrow")
        assert telemetry is not None
        assert telemetry.num_rows > 0
