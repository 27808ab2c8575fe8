"""`--repeat`: runs of one configuration, one after the other, that know of each other, and what is compared of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from loadgen import rundir, series
from loadgen.errors import Interrupted, LoadgenError, RunAborted
from loadgen.options import parse_settings
from tests.analysis import synthetic as syn
from tests.run.processes import running

pytestmark = pytest.mark.run
ROOT = Path(__file__).parents[2]
LOAD = ("--steps", "4", "--step-time", "4", "--agents", "none", "--workers", "1", "--seed", "7", "--label", "again")


def _manifests(runs: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(runs.glob("*-again*/run.json"))]


def test_repeats_are_runs_that_know_their_group_and_ctrl_c_keeps_what_there_is(loadgen: str, tmp_path: Path) -> None:
    with running(loadgen, tmp_path, *LOAD, "--repeat", "4") as run:
        run.wait_for(lambda: len(_manifests(tmp_path)) == 3, 120, "the third run")
        run.wait_for_hold()
        os.kill(run.process.pid, signal.SIGINT)
        assert run.end(40) == 130
        assert run.processes() == {}
        assert "2 of 4 runs are complete" in run.output
    manifests = _manifests(tmp_path)
    assert [manifest["status"] for manifest in manifests] == ["complete", "complete", "interrupted"]
    group = manifests[0]["run_id"]
    assert [manifest["repeat"] for manifest in manifests] == [
        {"number": number, "of": 4, "group": group} for number in (1, 2, 3)
    ]
    assert [manifest["plan"]["seed"] for manifest in manifests] == [7, 8, 9]
    assert len({manifest["scenario"]["sha256"] for manifest in manifests}) == 1
    assert all((tmp_path / manifest["run_id"] / "report" / "report.html").exists() for manifest in manifests)

    def compare(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [loadgen, "compare", *arguments, "--runs-dir", str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    first, second, third = (manifest["run_id"] for manifest in manifests)
    alike = compare(first, second, "--gate", "ttft_p50<+1000%")
    assert alike.returncode == 0 and alike.stdout.startswith("INDICATIVE, "), alike.stdout + alike.stderr
    refused = compare(f"group:{first}", third)
    assert refused.returncode == 2 and "on both sides" in refused.stderr
    unfinished = compare(first, third)
    assert unfinished.returncode == 8 and f"NEW: {third} is interrupted" in unfinished.stderr
    again = [loadgen, "run", "--from", str(tmp_path / second), "--dry-run"]
    told = subprocess.run(again, capture_output=True, text=True, check=True).stdout
    assert "repeats   4 runs" in told


@pytest.mark.parametrize(
    ("raised", "expected", "says"),
    [
        (KeyboardInterrupt(), Interrupted, "is complete, but its report may be missing: make it with loadgen report"),
        (RunAborted("the endpoint was lost"), RunAborted, "the endpoint was lost"),
    ],
)
def test_however_a_series_ends_it_is_said_how_many_of_its_runs_are_complete(
    tmp_path: Path, raised: BaseException, expected: type[LoadgenError], says: str
) -> None:
    """What is raised comes while the first report is made, when the run is complete."""
    texts = {"steps": "2", "step_time": "1", "agents": "none", "workers": "1", "repeat": "2", "runs_dir": str(tmp_path)}
    settings = parse_settings(texts, simulated=True, steps_required=True)
    said: list[str] = []

    def report(run: Path) -> dict[str, Any]:
        raise raised

    with pytest.raises(expected, match=says):
        series.conduct(ROOT / "scenarios" / "chat.py", settings, said.append, report, lambda *_: None)
    assert rundir.read_manifest(tmp_path / "latest")["status"] == rundir.COMPLETE
    assert said[-1] == "1 of 2 runs are complete"


def test_a_manifest_whose_repeat_is_nonsense_can_be_repeated(loadgen: str, tmp_path: Path) -> None:
    run = syn.make(tmp_path / "run", options={"steps": "4", "seed": "7"}, repeat=7)
    again = [loadgen, "run", "--from", str(run), "chat", "--dry-run"]
    ended = subprocess.run(again, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0 and "Traceback" not in ended.stderr, ended.stderr
