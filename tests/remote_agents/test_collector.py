"""The collector and its agent as real processes, against a real HTTP server where a test needs one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collector_process import HOST, Collector, flushed_rows, whole_table
from conftest import Site, running, until
from sshd import Sshd
from test_server_metrics import VLLM
from test_simulated import answer

from loadgen import rundir
from loadgen.errors import UsageError
from loadgen.shards import read_shard
from remote_agents.agent.kernel_clock import boot_id
from remote_agents.agent.sample import SCHEMA, TABLES
from remote_agents.clock import fit_clocks
from remote_agents.collector import FLEET_S, parse_config
from remote_agents.store import Live, Store


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return rundir.create(tmp_path / "runs", "chat", None)


@pytest.fixture
def started() -> Iterator[list[Collector]]:
    collectors: list[Collector] = []
    yield collectors
    for collector in collectors:
        collector.close()


def test_a_run_against_the_simulator(run: Path, site: Site, started: list[Collector]) -> None:
    site.pages = {"/telemetry": (200, answer(), 0), "/metrics": (200, VLLM, 0)}
    collector = Collector(
        run,
        {"METRICS_KEY": "s3cret"},
        telemetry_url=site.url + "/telemetry",
        metrics_url=site.url + "/metrics",
        metrics_token_env="METRICS_KEY",
    )
    started.append(collector)
    *_, live = collector.lines(2)
    collector.say("stop")
    assert collector.process.wait(2) == 0
    assert collector.stderr.read() == b""

    assert len(live["gpus"]) == 2
    assert live["gpus"][0]["host"] == "sim-0"
    assert live["gpus"][0]["power_w"] == 0.005
    assert {host["host"] for host in live["hosts"]} == {"sim-0", HOST}
    assert live["server"] == {"running": 12, "waiting": 2, "kv_usage_ratio_max": 0.4375}
    assert (live["simulated"], live["agents"]) == (True, {"local": "ok"})

    folder = run / "telemetry"
    assert {str(path.relative_to(folder)) for path in folder.glob("*/*")} == {
        "sim-0/hello.json",
        "sim-0/gpu_fast.arrow",
        "sim-0/gpu_slow.arrow",
        "sim-0/host.arrow",
        f"{HOST}/hello.json",
        f"{HOST}/host.arrow",
        f"{HOST}/agent.arrow",
        f"{HOST}/server.arrow",
    }
    fast = whole_table(folder / "sim-0/gpu_fast.arrow")
    assert fast.schema.names == [column.name for column in TABLES["gpu_fast"]]
    assert 20 <= fast.num_rows <= 60  # two GPUs, ten times a second, about two seconds
    metadata = {key.decode(): value.decode() for key, value in fast.schema.metadata.items()}
    assert (metadata["host"], metadata["boot_id"]) == (HOST, boot_id())  # the agent's clock
    assert (metadata["schema"], metadata["table"], metadata["simulated"]) == (str(SCHEMA), "gpu_fast", "true")
    real = whole_table(folder / HOST / "server.arrow")
    assert real.schema.metadata[b"simulated"] == b"false"
    assert set(real.column("engine").to_pylist()) == {"0", "1"}
    hello = json.loads((folder / "sim-0/hello.json").read_text())
    assert hello["simulated"] is True
    assert hello["gpus"][0] == {"index": 0, "uuid": "SIM-GPU-0", "name": "L4", "mem_total_b": 5}
    assert json.loads((folder / HOST / "hello.json").read_text())["simulated"] is False

    probes = rundir.read_lines(run / rundir.CLOCKS)
    assert len(probes) == 32  # a burst at each end
    fit = fit_clocks(probes)[HOST]
    assert abs(fit.offset_ns) < fit.bound_ns < 5_000_000  # one host: the two clocks are the same
    assert collector.kinds() == ["agent_started", "server_metrics"]
    assert ("/metrics", "Bearer s3cret") in site.asked
    written = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert b"s3cret" not in written


@pytest.mark.parametrize("end", ["stop", "eof", "SIGTERM"])
def test_every_end_is_orderly(run: Path, started: list[Collector], end: str) -> None:
    collector = Collector(run)
    started.append(collector)
    agent = collector.agent_pid()
    if end == "stop":
        collector.say("stop")
    elif end == "eof":
        collector.stdin.close()
    else:
        collector.process.send_signal(signal.SIGTERM)
    assert collector.process.wait(2) == 0
    assert not running(agent)
    for path in run.glob("telemetry/*/*.arrow"):
        assert whole_table(path).num_rows >= 1
    assert len(rundir.read_lines(run / rundir.CLOCKS)) == 32
    assert "agent_lost" not in collector.kinds()


def test_a_killed_collector_takes_its_agent_along_and_leaves_readable_files(
    run: Path, started: list[Collector]
) -> None:
    collector = Collector(run)
    started.append(collector)
    agent = collector.agent_pid()
    until(lambda: flushed_rows(run))
    collector.process.kill()
    until(lambda: not running(agent), 2)
    table, problem = read_shard(run / "telemetry" / HOST / "host.arrow")
    assert table is not None
    assert table.num_rows >= 1
    assert problem is None  # whole batches only; the end mark is missing, and is not needed


def test_a_killed_agent_is_an_event_and_is_started_again(run: Path, started: list[Collector]) -> None:
    collector = Collector(run)
    started.append(collector)
    killed = collector.agent_pid()
    os.kill(killed, signal.SIGKILL)
    until(lambda: "agent_restarted" in collector.kinds())
    assert collector.kinds() == ["agent_started", "agent_lost", "agent_restarted"]
    _, lost, restarted = collector.events()
    assert lost["text"] == "agent local is lost, the run goes on without it: killed by signal 9"
    assert restarted["text"].startswith("agent local is back after ")
    assert restarted["text"].endswith("as a new one: what was not received until then is lost")
    before = flushed_rows(run)
    until(lambda: flushed_rows(run) > before)
    collector.say("stop")
    assert collector.process.wait(3) == 0


def test_an_agent_that_somebody_ends_on_its_host_is_not_started_again(run: Path, started: list[Collector]) -> None:
    collector = Collector(run)
    started.append(collector)
    os.kill(collector.agent_pid(), signal.SIGTERM)
    until(lambda: "agent_lost" in collector.kinds())
    assert collector.events()[-1]["tried_again"] is False
    live = until(lambda: (line := collector.lines(1)[0])["agents"]["local"] != "ok" and line)
    assert live["agents"] == {"local": "it was told to end on its host"}
    collector.say("stop")
    assert collector.process.wait(3) == 0


def test_an_agent_that_stands_still_does_not_hold_up_the_end(run: Path, started: list[Collector]) -> None:
    collector = Collector(run)
    started.append(collector)
    agent = collector.agent_pid()
    os.kill(agent, signal.SIGSTOP)
    start = time.monotonic()
    collector.stdin.close()
    assert collector.process.wait(3) == 0
    assert time.monotonic() - start < 2.2
    assert not running(agent)


def test_many_silent_hosts_neither_hold_up_the_others_nor_the_end(
    run: Path, tmp_path: Path, started: list[Collector]
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent, Sshd(tmp_path / "sshd") as host:
        config = host.client_config(tmp_path / "config", "good")
        port = silent.getsockname()[1]
        names = [f"me{number}@127.0.0.1:{port}" for number in range(40)]
        began = time.monotonic()
        collector = Collector(run, agents=[*names, "good"], ssh_config=str(config))
        started.append(collector)
        until(lambda: "agent_started" in collector.kinds(), FLEET_S)
        assert time.monotonic() - began < FLEET_S
        ended = time.monotonic()
        assert collector.stop(6) == 0
        assert time.monotonic() - ended < 5
        assert collector.stderr.read() == b""
        until(lambda: host.sessions() == 0)


def test_this_host_and_another_of_its_name_are_told_apart(run: Path) -> None:
    alone, both = (
        parse_config(json.dumps({"run_dir": str(run), "agents": agents})) for agents in (["local"], ["local", HOST])
    )
    assert alone.start("local")["name"] == HOST
    assert (both.start("local")["name"], both.start(HOST)["name"]) == ("local", HOST)


def test_an_unread_or_broken_stdout_costs_nothing(run: Path, started: list[Collector]) -> None:
    collector = Collector(run)
    started.append(collector)
    collector.stdout.close()
    collector.agent_pid()
    collector.say("stop")
    assert collector.process.wait(2) == 0


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("nonsense", "the collector's first line is no configuration: "),
        ({"colour": "red"}, "unexpected keyword argument 'colour'"),
        ({"agents": ["gpu-7:nine"]}, "agent 'gpu-7:nine' has no port after the colon: 'nine'"),
        ({"run_dir": "/nowhere"}, "the run directory /nowhere does not exist"),
        ({"metrics_token_env": "NO_SUCH"}, "the environment has no NO_SUCH, which should hold the metrics token"),
    ],
)
def test_a_bad_configuration_is_one_clear_sentence(run: Path, config: Any, said: str) -> None:
    line = config if isinstance(config, str) else json.dumps({"run_dir": str(run), "agents": ["local"]} | config)
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        parse_config(line)


def test_a_token_that_http_cannot_carry_is_refused_without_showing_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METRICS_KEY", "s3cret\nX-Evil: 1")
    with pytest.raises(UsageError, match="has characters that HTTP cannot carry") as refused:
        parse_config(json.dumps({"run_dir": str(run), "agents": ["local"], "metrics_token_env": "METRICS_KEY"}))
    assert "s3cret" not in str(refused.value)


def test_a_bad_configuration_ends_with_its_exit_code(run: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "remote_agents.collector"], input=b"{}\n", capture_output=True)
    assert done.returncode == UsageError.exit_code
    assert done.stderr.count(b"\n") == 1
    assert b"Traceback" not in done.stderr


def test_a_second_collector_does_not_overwrite_the_first(run: Path, started: list[Collector]) -> None:
    (run / "telemetry" / HOST).mkdir()
    (run / "telemetry" / HOST / "host.arrow").write_bytes(b"precious")
    collector = Collector(run)
    started.append(collector)
    assert collector.process.wait(5) == 4
    assert f"the collector cannot write to {run}".encode() in collector.stderr.read()
    assert (run / "telemetry" / HOST / "host.arrow").read_bytes() == b"precious"


@pytest.mark.parametrize("bad", ["not a time", 2**64 - 1])
def test_rows_that_do_not_fit_are_an_event_and_cost_only_themselves(run: Path, bad: Any) -> None:
    hello = {"host": "../evil", "agent_host": "a", "boot_id": "b", "realtime_ns": 1, "monotonic_ns": 2}
    store = Store(run, Live())
    store.hello(hello | {"simulated": False})
    good = [0 if column.type != "string" else "" for column in TABLES["agent"]]
    store.add("../evil", "agent", [good])
    store.flush()
    store.add("../evil", "agent", [good, [bad, *good[1:]], good, good[1:]])
    store.flush()
    store.add("../evil", "agent", [good])
    store.close()
    (path,) = (run / "telemetry").glob("*/agent.arrow")
    assert path.parent.name == "--evil"
    assert whole_table(path).num_rows == 4
    events = rundir.read_lines(run / rundir.EVENTS)
    assert [event["kind"] for event in events] == ["bad_rows"]
    assert events[0]["text"].startswith("2 rows of agent from ../evil do not fit its columns: ")
