"""A worker whose CLOCK_MONOTONIC is another: in a time namespace here, on another host with a shared folder in life."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.run.test_by_hand import BIN, SCENARIO, SHORT, _port, _process, _requests, _until

pytestmark = pytest.mark.run
OFF_BY_S = 7200 if os.geteuid() == 0 else 0


@contextmanager
def _simulator(folder: Path) -> Iterator[str]:
    with _process(folder, "simulator", str(BIN / "loadgen"), "simulator", "--port", "0"):
        log = folder / "simulator.out"
        yield _until(lambda: [word for word in log.read_text().split() if word.startswith("http://")])[0]


@pytest.mark.parametrize("load", [("--steps", "8"), ("--rate", "20")], ids=["closed", "open"])
def test_its_records_are_put_on_the_masters_clock(tmp_path: Path, load: tuple[str, ...]) -> None:
    rpc = str(_port())
    locust = (str(BIN / "locust"), "-f", str(SCENARIO), *SHORT)
    elsewhere = ("unshare", "-T", "--monotonic", str(OFF_BY_S)) if OFF_BY_S else ()
    master = ("--master", "--master-bind-port", rpc, "--expect-workers", "2", "--headless", "--agents", "none")
    with (
        _simulator(tmp_path) as target,
        _process(tmp_path, "here", *locust, "--worker", "--master-port", rpc),
        _process(tmp_path, "there", *elsewhere, *locust, "--worker", "--master-port", rpc),
        _process(tmp_path, "master", *locust, *master, "--host", target, *load, "--step-time", "6s") as process,
    ):
        assert process.wait(timeout=60) == 0, (tmp_path / "master.out").read_text()
    run = (tmp_path / "runs" / "latest").resolve()
    probes = [json.loads(line) for line in (run / "clocks.jsonl").read_text().splitlines()] if OFF_BY_S else []
    if OFF_BY_S:
        assert {probe["host"] for probe in probes} == {f"worker:{os.uname().nodename}"}
        assert all(abs(probe["t1_ns"] - probe["t0_ns"] - OFF_BY_S * 1e9) < 1e9 for probe in probes)
    report = subprocess.run(
        [sys.executable, "-m", "loadgen.cli", "report", str(run)], capture_output=True, text=True, cwd=ROOT
    )
    assert report.returncode == 0, report.stderr
    summary = json.loads((run / "report" / "summary.json").read_text())
    (step,) = summary["steps"]
    assert summary["damage"] == []
    # All that both workers sent in the step is there, and in its window.
    assert step["requests"] > 0.6 * _requests(run)
    if "--rate" in load:
        assert step["rate"]["delivered"] == pytest.approx(20, rel=0.2)
        assert step["send_lag_ms"]["p99"] < 100
