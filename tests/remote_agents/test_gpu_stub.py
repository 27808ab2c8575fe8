"""The sampler in a process of its own, against a compiled stand-in for the driver's library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from stub import COMPILER, nvml_stub

import remote_agents
from remote_agents.agent.sample import TABLES

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")

SECONDS = 1.8
ROOT = Path(remote_agents.__file__).parents[1]
# What is sent, a line each: events are objects, rows are lists.
PROGRAM = """
import json, sys, threading, time
from remote_agents.agent.gpu import GpuSampler
from remote_agents.agent.pace import Meter

class Lines:
    host = "here"
    def sample(self, table, rows):
        print(json.dumps([table, rows, sorted(sampler.pids)]))
    def event(self, kind, text, **facts):
        print(json.dumps({"kind": kind, "text": text, **facts}))

sampler = GpuSampler(None, Lines(), Meter())
thread = threading.Thread(target=sampler.run, args=(lambda **facts: print(json.dumps({"kind": "announced", **facts})),))
thread.start()
thread.join(float(sys.argv[1]))
sampler.stopping = True
start = time.monotonic()
thread.join(1)
print(json.dumps({"kind": "ended", "alive": thread.is_alive(), "after_s": time.monotonic() - start}))
"""
FAULTS = ("", "slow", "lost", "xid", "storm", "mismatch")


class Run:
    """What one process sent."""

    def __init__(self, text: str) -> None:
        lines = [json.loads(line) for line in text.splitlines()]
        self.events = [line for line in lines if isinstance(line, dict)]
        self.pids = [line[2] for line in lines if isinstance(line, list)]
        self._rows = [(line[0], row) for line in lines if isinstance(line, list) for row in line[1]]

    def rows(self, table: str, gpu: int | None = None) -> list[dict[str, Any]]:
        names = [column.name for column in TABLES[table]]
        rows = [dict(zip(names, row, strict=True)) for name, row in self._rows if name == table]
        return [row for row in rows if gpu in (None, row["gpu_index"])]

    def event(self, kind: str) -> dict[str, Any]:
        return next(event for event in self.events if event["kind"] == kind)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """The run of a fault; all are under way at once."""
    folder = nvml_stub(tmp_path_factory.mktemp("nvml"))
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(ROOT), "STUB_PIDS": "4711,4712,4713"}
    processes = {
        fault: subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(SECONDS)],
            env=environment | {"STUB_FAULT": fault},
            stdout=subprocess.PIPE,
            text=True,
        )
        for fault in FAULTS
    }
    runs = {fault: Run(process.communicate(timeout=20)[0]) for fault, process in processes.items()}
    return lambda fault: runs[fault]


def test_nothing_is_lacking_and_nothing_is_wrong(run: Callable[[str], Run]) -> None:
    said = run("").event("announced")
    assert [event["kind"] for event in run("").events] == ["announced", "ended"]
    assert said["nvml"]["driver"] == "580.00.stub"
    assert [gpu["absent"] for gpu in said["gpus"]] == [{}, {}]
    facts = said["gpus"][1]
    assert (facts["name"], facts["architecture"], facts["compute_capability"]) == ("Stub H100", "Hopper", "9.0")
    assert (facts["pci_bus_id"], facts["pcie_gen"], facts["pcie_width"], facts["cores"]) == (
        "ffff:01:00.0",
        5,
        16,
        16896,
    )
    rows = run("").rows("gpu_slow")
    assert rows
    assert {name for row in rows for name, value in row.items() if value is None} == {"gi_id"}


def test_power_adds_up_to_energy(run: Callable[[str], Run]) -> None:
    for gpu in (0, 1):
        rows = run("").rows("gpu_fast", gpu)
        assert len(rows) > 10
        seconds = [(after["t0_mono_ns"] - before["t0_mono_ns"]) / 1e9 for before, after in pairwise(rows)]
        steps = zip(pairwise(rows), seconds, strict=True)
        power_mj = sum((before["power_mw"] + after["power_mw"]) / 2 * step_s for (before, after), step_s in steps)
        assert power_mj == pytest.approx(rows[-1]["energy_mj"] - rows[0]["energy_mj"], rel=0.01)


def test_gpm_is_the_mean_of_its_window(run: Callable[[str], Run]) -> None:
    rows = [row for row in run("").rows("gpu_fast", 1) if row["win_start_mono_ns"] is not None]
    assert len(rows) > 10
    energy_mj = {row["t0_mono_ns"]: row["energy_mj"] for row in run("").rows("gpu_fast", 1)}
    for before, row in pairwise(rows):
        window_s = (row["t0_mono_ns"] - row["win_start_mono_ns"]) / 1e9
        assert window_s >= 0.1
        assert row["win_start_mono_ns"] == pytest.approx(before["t0_mono_ns"], abs=1_000_000)
        busy = ((row["energy_mj"] - energy_mj[before["t0_mono_ns"]]) / 1000 / window_s - 100) / 500
        assert row["gpm_sm_pct"] == pytest.approx(100 * busy, abs=1)
        assert row["gpm_dram_pct"] == pytest.approx(80 * busy, abs=1)


def test_the_drivers_samples_come_once_each_sixth_of_a_second(run: Callable[[str], Run]) -> None:
    rows = run("").rows("gpu_util", 0)
    stamps = [row["t1_mono_ns"] for row in rows]
    assert len(stamps) >= 6
    for before, after in pairwise(stamps):
        assert after - before == pytest.approx(1e9 / 6, abs=2e6)
    assert all(row["util_pct"] / 2 == pytest.approx(row["memutil_pct"], abs=1) for row in rows)
    assert rows[-1]["t0_mono_ns"] == pytest.approx(stamps[-2], abs=2e6)


def test_processes_and_their_pids(run: Callable[[str], Run]) -> None:
    rows = run("").rows("gpu_process")
    assert {(row["gpu_index"], row["pid"], row["used_b"]) for row in rows} == {
        (0, 4711, 5 << 30),
        (1, 4712, 5 << 30),
        (0, 4713, 5 << 30),
    }
    assert run("").pids[-1] == [4711, 4712, 4713]


@pytest.mark.parametrize("fault", FAULTS)
def test_it_ends_at_once(run: Callable[[str], Run], fault: str) -> None:
    ended = run(fault).event("ended")
    assert not ended["alive"]
    assert ended["after_s"] < 0.5


def test_a_slow_driver_is_read_less_often(run: Callable[[str], Run]) -> None:
    assert run("slow").event("gpu_rate")["period_ms"] == 200
    rows = run("slow").rows("gpu_fast", 0)
    assert rows[-1]["t0_mono_ns"] - rows[-2]["t0_mono_ns"] == pytest.approx(2e8, abs=5e7)


def test_a_lost_gpu_is_left_out_and_the_other_goes_on(run: Callable[[str], Run]) -> None:
    lost = run("lost")
    assert lost.event("gpu_lost")["gpu_uuid"].endswith("01")
    assert len(lost.rows("gpu_fast", 1)) < len(lost.rows("gpu_fast", 0))
    last, other = lost.rows("gpu_fast", 1)[-1], lost.rows("gpu_fast", 0)[-1]
    assert other["t0_mono_ns"] - last["t0_mono_ns"] > 3e8


def test_xids_and_their_storms(run: Callable[[str], Run]) -> None:
    xids = [event for event in run("xid").events if event["kind"] == "xid"]
    assert [(xid["code"], xid["text"]) for xid in xids] == [(31, "GPU 0: XID 31 (GPU memory page fault)")]
    kinds = [event["kind"] for event in run("storm").events]
    assert (kinds.count("xid"), kinds.count("xid_storm")) == (10, 1)
    assert run("storm").event("xid_storm")["count"] > 100


def test_a_driver_of_another_version_is_said_in_nvmls_words(run: Callable[[str], Run]) -> None:
    said = run("mismatch").event("announced")
    assert said["nvml"] == {"state": "absent", "reason": "RM has detected an NVML/RM version mismatch."}
