"""`loadgen agents record`: a run directory of real agents without a load, read back and reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from analysis.runs import list_runs
from loadgen import rundir
from loadgen.shards import read_shard

LOADGEN = str(Path(sys.executable).with_name("loadgen"))
HOST = os.uname().nodename


def until(condition: Callable[[], Any], limit_s: float = 20.0) -> Any:
    end = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {limit_s} s"
        time.sleep(0.05)
    return value


class Recorded:
    def __init__(self, ended: subprocess.CompletedProcess[str], runs: Path) -> None:
        self.code, self.out, self.err = ended.returncode, ended.stdout, ended.stderr
        self.run = (runs / "latest").resolve()
        self.manifest = rundir.read_manifest(self.run)
        self.summary = json.loads((self.run / "report" / "summary.json").read_text())
        self.page = (self.run / "report" / "report.html").read_text()


def record(runs: Path, *arguments: str) -> Recorded:
    command = [LOADGEN, "agents", "record", *arguments, "--runs-dir", str(runs)]
    return Recorded(subprocess.run(command, capture_output=True, text=True, timeout=60), runs)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    options = ("--duration", "3s", "--label", "an idle host", "--notes", "n")
    return record(tmp_path_factory.mktemp("runs"), "local", "127.0.0.1:1", *options)


def test_it_is_a_run_directory_of_telemetry_alone(recorded: Recorded) -> None:
    assert recorded.code == 0, recorded.err
    assert recorded.run.name.endswith("-telemetry-an-idle-host")
    manifest = recorded.manifest
    assert (manifest["status"], manifest["reason"], manifest["workers"]) == ("complete", None, 0)
    assert manifest["scenario"] == {"name": "telemetry", "path": None}
    assert manifest["plan"] == {"arrival": "none", "steps": [], "duration_s": 3.0, "warmup_share": 0.0}
    assert manifest["options"] == {
        "agents": "local,127.0.0.1:1",
        "agent_lease": "120s",
        "label": "an idle host",
        "notes": "n",
        "runs_dir": str(recorded.run.parent),
        "duration": "3s",
    }
    assert not (recorded.run / rundir.RESERVE).exists()
    folder = recorded.run / "telemetry" / HOST
    assert {path.name for path in folder.iterdir()} >= {"hello.json", "host.arrow", "agent.arrow"}
    table, problem = read_shard(folder / "host.arrow")
    assert problem is None
    assert table is not None
    assert table.num_rows in (3, 4, 5)
    kinds = [event["kind"] for event in rundir.read_lines(recorded.run / rundir.EVENTS)]
    assert {"agent_started", "agent_failed"} <= set(kinds)
    assert len(rundir.read_lines(recorded.run / rundir.CLOCKS)) >= 32


def test_what_it_prints(recorded: Recorded) -> None:
    assert recorded.err.startswith(f"run directory: {recorded.run}\n")
    assert "local  ok  busiest CPU" in recorded.err
    assert "127.0.0.1:1  not reached: " in recorded.err
    assert HOST in recorded.out
    assert "QPS" not in recorded.out
    assert recorded.out.rstrip().endswith(f"report: {recorded.run / 'report' / 'report.html'}")


def test_its_report_has_the_hosts_over_the_whole_time_and_nothing_of_a_load(recorded: Recorded) -> None:
    summary = recorded.summary
    assert summary["damage"] == []
    assert [caveat["code"] for caveat in summary["caveats"]] == ["not_watched"]
    (step,) = summary["steps"]
    assert (step["level"], step["requests"], step["qps"]) == (0, 0, 0)
    assert 2 <= step["window_s"] <= 4.5
    (host,) = step["hosts"]
    assert host["host"] == HOST
    assert host["coverage"] > 0.9
    assert 0 <= host["cpu_pct"] <= 100
    assert [agent["host"] for agent in summary["agents"]] == [HOST]
    assert [clock["host"] for clock in summary["clocks"]] == [HOST]
    page = recorded.page
    assert "<h1>an idle host</h1>" in page
    assert "<h2>Hosts</h2>" in page
    assert "<h2>Events</h2>" in page
    assert 'id="timeline"' in page
    for of_a_load in ("<h2>Steps</h2>", "certificate", "peak QPS", "<th>users</th>", "None"):
        assert of_a_load not in page
    figures = {path.stem for path in (recorded.run / "report" / "figures").iterdir()}
    assert figures == {"timeline"}


def test_the_list_of_runs_has_it(recorded: Recorded) -> None:
    (row,) = list_runs(recorded.run.parent)
    assert (row.scenario, row.status, row.levels, row.problem, row.report) == ("telemetry", "complete", (), None, True)


def test_the_report_can_be_built_again(recorded: Recorded) -> None:
    command = [LOADGEN, "report", str(recorded.run)]
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (again.returncode, again.stdout) == (0, recorded.out)


@pytest.mark.parametrize(
    ("options", "status", "code"), [(("--duration", "60"), "interrupted", 130), ((), "complete", 0)]
)
def test_ctrl_c_keeps_what_was_recorded_and_reports(
    tmp_path: Path, options: tuple[str, ...], status: str, code: int
) -> None:
    command = [LOADGEN, "agents", "record", "local", *options, "--runs-dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        shard = tmp_path / "latest" / "telemetry" / HOST / "host.arrow"
        until(lambda: shard.exists() and (table := read_shard(shard)[0]) is not None and table.num_rows >= 2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert rundir.read_manifest(tmp_path / "latest")["status"] == status
    assert "report: " in out
    assert ("error: interrupted; the report shows what was recorded\n" in err) == (code == 130)
    assert "Traceback" not in err


def test_without_any_host_it_is_aborted_with_every_reason(tmp_path: Path) -> None:
    ended = record(tmp_path, "127.0.0.1:1", "no-such-host.invalid", "--duration", "60")
    assert ended.code == 6
    assert ended.manifest["status"] == "aborted"
    for reason in ("127.0.0.1:1: ", "no-such-host.invalid: "):
        assert f"error: {reason}" in ended.err
        assert reason in ended.manifest["reason"]
    assert "report: " in ended.out
