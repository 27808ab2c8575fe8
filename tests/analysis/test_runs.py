"""The list of runs: what each row says, and what becomes of runs that cannot be read."""

import json
import subprocess
from pathlib import Path

import pytest

from analysis.report.build import build
from analysis.runs import list_runs, runs_table
from loadgen import rundir
from loadgen.errors import RunDirError
from tests.analysis import synthetic as syn


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From old to new: one with a report, one of the simulator without, and two that are damaged."""
    runs = tmp_path_factory.mktemp("runs")
    first = syn.make(runs / "20260101T000000Z-chat", (10, 20), label="[a] label", ended_ns=syn.at(85.0))
    syn.write_requests(first, [syn.request(5 + 0.05 * k, ttft_ms=k + 1, gaps_ms=()) for k in range(700)])
    build(first, figures=False)
    target = {"url": "http://127.0.0.1:1", "model": None, "simulated": True, "simulator": {}}
    created = "2026-01-02T00:00:00+00:00"
    syn.make(runs / "20260102T000000Z-chat", range(1, 31), 1.0, target=target, created=created, status="running")
    (syn.make(runs / "20260103T000000Z-chat") / rundir.MANIFEST).write_text("{")
    (runs / "20260104T000000Z-chat" / "requests").mkdir(parents=True)
    (runs / "notes").mkdir()
    (runs / "latest").symlink_to("20260104T000000Z-chat")
    return runs


def test_newest_first_and_nothing_twice(runs: Path) -> None:
    rows = list_runs(runs)
    assert [row.run_id[:8] for row in rows] == ["20260104", "20260103", "20260102", "20260101"]
    assert [row.status for row in rows] == ["damaged", "damaged", "running", "complete"]
    assert [row.report for row in rows] == [False, False, False, True]


def test_a_run_with_a_report_has_the_figures_of_its_peak(runs: Path) -> None:
    row = list_runs(runs)[-1]
    assert (row.target, row.scenario, row.levels, row.label) == ("127.0.0.1:8000", "chat", (10, 20), "[a] label")
    assert row.duration_s == 90 and row.success_pct == 100 and row.problem is None
    best = max(syn.summary_of(runs / row.run_id)["steps"], key=lambda step: step["qps"])
    assert (row.peak_qps, row.ttft_p50_ms, row.ttft_p99_ms) == (
        best["qps"],
        best["ttft_ms"]["p50"],
        best["ttft_ms"]["p99"],
    )


def test_damaged_runs_say_why(runs: Path) -> None:
    problems = [row.problem or "" for row in list_runs(runs)]
    assert "has no run.json" in problems[0] and "is damaged" in problems[1]
    assert problems[2:] == ["", ""]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"steps": 3}', '{"steps": [{"qps": 1, "ttft_ms": 7}]}'])
def test_a_damaged_report_costs_the_figures_only(tmp_path: Path, text: str) -> None:
    run = syn.make(tmp_path / "20260101T000000Z-chat")
    (run / "report").mkdir()
    (run / "report" / "summary.json").write_text(text)
    (row,) = list_runs(tmp_path)
    assert row.status == "complete" and row.peak_qps is None and not row.report
    assert "build the report again" in (row.problem or "")


def test_no_directory_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="give --runs-dir"):
        list_runs(tmp_path / "none")
    assert list_runs(tmp_path) == []


def test_many_steps_are_one_short_cell(runs: Path) -> None:
    headers, table = runs_table(list_runs(runs))
    cells = dict(zip(headers, table[2], strict=True))
    assert (cells["load"], cells["target"], cells["duration"]) == ("1 … 30 users (30 steps)", "simulator", "–")
    assert dict(zip(headers, table[3], strict=True))["duration"] == "1:30"


def test_the_command_prints_text_and_json(runs: Path, loadgen: str) -> None:
    command = [loadgen, "runs", "--runs-dir", str(runs)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "[a] label" in text and "has no run.json" in text and "latest" not in text
    form = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=True).stdout
    assert [row["run_id"] for row in json.loads(form)] == [row.run_id for row in list_runs(runs)]
    missing = subprocess.run([loadgen, "runs", "--runs-dir", "none"], capture_output=True, text=True, cwd=runs)
    assert missing.returncode == 4 and missing.stderr.count("\n") == 1
