"""`--repeat`: runs of one configuration, one after the other, that know of each other, and what is compared of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.run.processes import running

pytestmark = pytest.mark.run
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
