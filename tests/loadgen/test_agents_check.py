"""`loadgen agents check`: real agents and hosts that cannot be reached; a GPU host by what its agent said."""

from __future__ import annotations

import http.server
import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadgen.agents.check import checks
from loadgen.doctor import Check, Verdict
from loadgen.errors import AgentError
from remote_agents.checkup import Findings
from remote_agents.clock import fit_clock
from remote_agents.collector import Config

PAGE = b'vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_waiting{engine="0"} 1\n'


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_all_hosts_are_looked_at_and_those_that_cannot_be_watched_are_an_error(loadgen: str, endpoint: str) -> None:
    names = ["local", "no-such-host.invalid", "127.0.0.1:1"]
    arguments = ["--host", endpoint, "--metrics-url", f"{endpoint}/metrics", "--format", "json"]
    ended = subprocess.run([loadgen, "agents", "check", *names, *arguments], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 6
    assert ended.stderr == (
        "error: 2 of 3 hosts cannot be watched as asked: no-such-host.invalid, 127.0.0.1:1; what is above says why\n"
    )
    told = json.loads(ended.stdout)
    assert (told["schema"], told["ok"]) == (1, False)
    assert [(host["agent"], host["ok"]) for host in told["hosts"]] == list(
        zip(names, [True, False, False], strict=True)
    )
    here, unnamed, closed = told["hosts"]
    assert "cannot be resolved" in unnamed["problem"]
    assert "connection refused" in closed["problem"]
    for host in (unnamed, closed):
        assert [(check["name"], check["verdict"]) for check in host["checks"]] == [("reached", "failed")]
        assert host["checks"][0]["remedy"].startswith("put that right, or leave the host out")

    found = {check["name"]: check for check in here["checks"]}
    assert found["reached"]["verdict"] == "ok"
    assert found["clock"]["found"] == "the same as that of this machine"
    assert "host 1.0" in found["rows a second"]["found"]
    assert found["server process"]["found"].endswith(f"it listens on port {endpoint.rpartition(':')[2]}")
    assert found["server metrics"]["found"].startswith(f"server metrics found at {endpoint}/metrics: running, waiting")
    assert found["dcgm-exporter"]["verdict"] == "not applicable"
    assert here["clock"]["probes"] >= 16
    assert here["rows"]["host"] >= 2
    assert here["hello"]["agent_host"]


def test_every_problem_with_the_options_is_said_at_once(loadgen: str, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("gpu1\ngpu2:none\n")
    arguments = ["--agents-file", str(tmp_path / "hosts"), "--metrics-url", "nothing"]
    ended = subprocess.run(
        [loadgen, "agents", "check", "ok", "a b", *arguments],
        env={"LOADGEN_GPUS": "", "LOADGEN_DCGM_URL": "x"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert [line.partition(": ")[2].split(" ")[0] for line in ended.stderr.splitlines()] == [
        *("--agents-file:", "agent", "--metrics-url:", "--dcgm-url:"),
    ]


def test_no_host_is_none(loadgen: str) -> None:
    ended = subprocess.run([loadgen, "agents", "check", "none"], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (2, "error: no host is named: give one, as local or gpu1\n")


GPU = {
    "index": 0,
    "uuid": "GPU-0",
    "gi_id": None,
    "name": "NVIDIA H100",
    "mem_total_b": 80 << 30,
    "mig_mode": 0,
    "persistence_mode": 1,
    "power_means": "instant (field 186)",
    "fallbacks": [],
    "absent": {},
}
HELLO: dict[str, Any] = {
    "agent_host": "gpu1",
    "host": "gpu1",
    "hostname": "node-17",
    "boot_id": "another",
    "python": "3.10.12",
    "cpus": 96,
    "gpus": [GPU],
    "warnings": [],
    "nvml": {
        "state": "ok",
        "driver": "550.54.15",
        "version": "12.550.54.15",
        "call_us": {
            "fields 186, 83": {"p50": 300, "p99": 400, "max": 500},
            "nvmlX": {"p50": 100, "p99": 200, "max": 900},
        },
    },
}
CONFIG = Config(run_dir=Path(), agents=("gpu1",), endpoint="http://gpu1:8000")
CLOCK = fit_clock("gpu1", [(1_000, 5_000_000, 5_001_000, 301_000)] * 16)
GOOD = Findings(
    agent="gpu1",
    problem=None,
    started_s=0.84,
    hello=HELLO,
    rows={"gpu_fast": 30, "host": 3, "process": 3, "agent": 3},
    hz={"gpu_fast": 9.52, "host": 1.0, "process": 1.0, "agent": 1.0},
    last={
        "host": {"mem_total_b": 1 << 40, "psi_cpu_some_us": 5, "cpu_max_busy_pct": None},
        "agent": {"clock_unsync": 0, "clock_maxerror_us": 1500},
    },
    events=[
        {"kind": "agent_started", "text": "agent gpu1 samples gpu1: root@gpu1:22", "peer": "root@gpu1:22"},
        {"kind": "server_process", "text": "process 7 (vllm) is watched: it uses a GPU", "pid": 7, "absent": {}},
    ],
    clock=CLOCK,
)


def checked(found: Findings, config: Config = CONFIG, gpu_required: bool = True) -> dict[str, Check]:
    return {check.name: check for check in checks(found, config, gpu_required)}


def hello(**facts: Any) -> Findings:
    return replace(GOOD, hello={**HELLO, **facts})


def gpu(**facts: Any) -> Findings:
    return hello(gpus=[{**GPU, **facts}])


def test_a_gpu_host_that_lacks_nothing() -> None:
    found = checked(GOOD)
    assert {check.verdict for check in found.values()} == {Verdict.OK, Verdict.WARNING, Verdict.NOT_APPLICABLE}
    assert [name for name, check in found.items() if check.verdict is Verdict.WARNING] == ["server metrics"]
    who = "root@gpu1:22, Python 3.10.12, 96 CPUs, named node-17"
    assert found["reached"].found == f"the agent spoke after 0.84 s ({who})"
    assert found["GPU driver"].found == "550.54.15, NVML 12.550.54.15, 1 GPU(s) or MIG devices"
    assert found["GPU 0"].found == (
        "NVIDIA H100, 80 GiB; GPU-0; MIG off; persistence mode on; power: instant (field 186)"
    )
    assert found["NVML calls"].found == (
        "all 2 of one GPU take 0.40 ms (p50), 0.60 ms (p99); the slowest is that of the fields, read by one call, "
        "0.30 ms; a turn of 1 fits into 20 ms: ten a second"
    )
    assert found["rows a second"].found == "gpu_fast 9.5, host 1.0, process 1.0, agent 1.0"
    assert found["host counters"].found == "1024 GiB of memory; pressure (PSI) is told"
    assert found["time of day"].found == "synchronised, error up to 1.5 ms"
    assert found["server process"].found == "process 7 (vllm) is watched: it uses a GPU"
    assert found["clock"].found == (
        "CLOCK_MONOTONIC there is +0.005 s from ours, known to ± 0.150 ms (round trip 0.299 ms, 16 probes)"
    )


def test_a_host_without_a_driver_is_fine_unless_a_gpu_is_required() -> None:
    found = hello(nvml={"state": "absent", "reason": "NVML Shared Library Not Found"}, gpus=[])
    assert checked(found, gpu_required=False)["GPU driver"].verdict is Verdict.NOT_APPLICABLE
    assert checked(found)["GPU driver"].verdict is Verdict.FAILED
    assert checked(found)["GPU driver"].remedy == "install the driver, or leave --require-gpu out"


def test_what_a_gpu_lacks_is_said_by_reason_and_what_it_may_not_tell_is_a_warning() -> None:
    reason = "GPM (Hopper and later): Not Supported"
    absent = {"gpm_sm_pct": reason, "gpm_occ_pct": reason, "temp_mem_c": "field 82: Not Supported"}
    lacks = checked(gpu(absent=absent))["GPU 0 lacks"]
    assert lacks.verdict is Verdict.NOT_APPLICABLE
    assert lacks.found == f"gpm_sm_pct, gpm_occ_pct ({reason}); temp_mem_c (field 82: Not Supported)"
    forbidden = checked(gpu(absent={"gpm_sm_pct": "GPM: Insufficient Permissions"}))["GPU 0 lacks"]
    assert forbidden.verdict is Verdict.WARNING


def test_every_problem_has_a_remedy() -> None:
    slow = {"state": "ok", "driver": "1", "version": "1", "call_us": {"x": {"p50": 30_000, "p99": 40_000, "max": 1}}}
    unsynchronised = {"clock_unsync": 1, "clock_maxerror_us": 16_000_000}
    events = [
        {"kind": kind, "text": kind} for kind in ("gpu_missing", "no_xids", "nvml_hang", "agent_error", "new_kind")
    ]
    cases = [
        replace(GOOD, problem=AgentError("no"), hello={}, clock=None),
        replace(GOOD, problem=AgentError("not now", passing=True), hello={}, clock=None),
        replace(GOOD, hello={}, started_s=None, clock=None),
        replace(GOOD, rows={}, hz={}, last={}, events=events, clock=None),
        replace(GOOD, last={"host": {"mem_total_b": None, "psi_cpu_some_us": None}, "agent": unsynchronised}),
        gpu(persistence_mode=0, absent={"power_mw": "Insufficient Permissions"}, gi_id=1),
        hello(nvml=slow),
        hello(nvml={"state": "starting"}, gpus=[]),
        hello(nvml={"state": "nvidia-smi", "reason": "read through nvidia-smi", "driver": "1"}, python=None),
        hello(nvml={"state": "ok", "driver": "1", "version": "1"}, gpus=[]),
    ]
    for found in cases:
        lines = checked(found)
        bad = [check for check in lines.values() if check.verdict in (Verdict.WARNING, Verdict.FAILED)]
        assert bad
        assert all(check.remedy for check in bad)
        assert all(check.remedy is None for check in lines.values() if check not in bad)
    assert "GPU 0 MIG 1" in checked(cases[5])
    assert "40 ms, 20 are allowed" in checked(cases[6])["NVML calls"].found
    assert checked(cases[3])["new kind"].verdict is Verdict.OK


def test_what_is_said_of_metrics() -> None:
    event = {"kind": "no_server_metrics", "text": "no server metrics at http://127.0.0.1:8000/metrics: status 404: on"}
    line = checked(replace(GOOD, events=[event]))["server metrics"]
    assert (line.verdict, line.found) == (Verdict.WARNING, event["text"])
    assert "http://127.0.0.1:8000/metrics" in checked(replace(GOOD, events=[]))["server metrics"].found
    silent = checked(GOOD, replace(CONFIG, endpoint=None))
    assert silent["server metrics"].verdict is silent["dcgm-exporter"].verdict is Verdict.NOT_APPLICABLE
