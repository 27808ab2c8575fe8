"""Agents on three hosts over real SSH: deployed, joined, gone again, whatever the network does meanwhile."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from collector_process import Collector, whole_table
from conftest import running, until
from relay import Relay
from sshd import Sshd, keygen, public, ssh_hosts
from stub import nvml_stub

from loadgen import rundir
from loadgen.shards import read_shard
from remote_agents.agent.kernel_clock import boot_id
from remote_agents.clock import bound_at, fit_clocks, to_controller

NAMES = ("gpu1", "gpu2", "gpu3")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Sshd]]:
    with ssh_hosts(tmp_path_factory.mktemp("hosts")) as servers:
        yield [server for server, _ in servers]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return rundir.create(tmp_path / "runs", "chat", None)


@pytest.fixture
def collectors() -> Iterator[list[Collector]]:
    started: list[Collector] = []
    yield started
    for collector in started:
        collector.close()


def ssh_config(hosts: list[Sshd], folder: Path) -> str:
    config = folder / "ssh_config"
    for name, host in zip(NAMES, hosts, strict=False):
        host.client_config(config, name)
    return str(config)


def relayed(host: Sshd, relay: Relay, folder: Path) -> Path:
    """An ssh_config by which gpu1 is reached through the relay."""
    config = host.client_config(folder / "ssh_config", HostName="127.0.0.1", Port=relay.port, HostKeyAlias="gpu1")
    Path(f"{config}-gpu1-known_hosts").write_text(f"gpu1 {public(host.host_key)}\n")
    return config


def pids(collector: Collector, names: tuple[str, ...] = NAMES) -> list[int]:
    """Of the agents, once each has said hello."""
    until(lambda: collector.kinds().count("agent_started") >= len(names))
    return [collector.hello(name)["pid"] for name in names]


def host_stamps(run: Path, name: str) -> np.ndarray:
    """Of the rows so far."""
    table, _ = read_shard(run / "telemetry" / name / "host.arrow")
    return np.asarray(table.column("t0_mono_ns") if table is not None else [], dtype=np.int64)


def agents_left(hosts: list[Sshd]) -> list[str]:
    """Processes that came through these servers, and sockets that agents listen on there."""
    places = [f" {host.address} {host.port}\0".encode() for host in hosts]
    environments = {path: read(path) for path in Path("/proc").glob("[0-9]*/environ")}
    came = [str(path) for path, text in environments.items() if any(place in text for place in places)]
    return came + [host.address for host in hosts if b"@gpu-agent" in read(Path(f"/proc/{host.pid}/net/unix"))]


def test_three_hosts_are_watched_and_nothing_is_left_on_them(
    hosts: list[Sshd], run: Path, tmp_path: Path, collectors: list[Collector]
) -> None:
    began = time.monotonic()
    collector = Collector(run, agents=NAMES, ssh_config=ssh_config(hosts, tmp_path), lease_s=60)
    collectors.append(collector)
    agents = pids(collector)
    assert time.monotonic() - began < 10
    live = until(lambda: len((line := collector.live())["hosts"]) == 3 and line)
    assert live["agents"] == dict.fromkeys(NAMES, "ok")
    until(lambda: all(host_stamps(run, name).size >= 2 for name in NAMES))
    assert collector.stop() == 0

    assert not any(running(agent) for agent in agents)
    until(lambda: not any(host.sessions() for host in hosts))
    assert agents_left(hosts) == []
    fits = fit_clocks(rundir.read_lines(run / rundir.CLOCKS))
    for name in NAMES:
        stamps = host_stamps(run, name)
        assert stamps.size >= 2
        hello = collector.hello(name)
        assert (hello["host"], hello["agent_host"], hello["simulated"]) == (name, name, False)
        assert "token" not in hello
        # One machine: the true offset is 0, and what is stated must hold.
        fit = fits[name]
        assert abs(fit.offset_ns) <= fit.bound_ns
        assert int(np.max(bound_at(fit, stamps))) < 5_000_000
    assert collector.kinds() == ["agent_started"] * 3


def test_through_a_jump_host(hosts: list[Sshd], run: Path, tmp_path: Path, collectors: list[Collector]) -> None:
    config = tmp_path / "ssh_config"
    hosts[0].client_config(config, "gpu1")
    hosts[1].client_config(config, "gpu2", ProxyJump="gpu1")
    collector = Collector(run, agents=["gpu2"], ssh_config=str(config))
    collectors.append(collector)
    (agent,) = pids(collector, ("gpu2",))
    assert hosts[0].sessions() == 1
    assert collector.stop() == 0
    assert not running(agent)
    until(lambda: not any(host.sessions() for host in hosts))


def test_a_bad_host_is_named_and_the_others_are_watched(
    hosts: list[Sshd], run: Path, tmp_path: Path, collectors: list[Collector]
) -> None:
    config = Path(ssh_config(hosts[:1], tmp_path))
    hosts[1].client_config(config, "stranger", UserKnownHostsFile="/dev/null")
    names = ["gpu1", "stranger", "127.0.0.1:1", "no.such.host.invalid"]
    collector = Collector(run, agents=names, ssh_config=str(config))
    collectors.append(collector)
    live = until(lambda: "ok" in (line := collector.live())["agents"].values() and line)
    assert live["agents"]["gpu1"] == "ok"
    assert live["agents"]["stranger"].startswith("failed: ")
    assert "SHA256:" in live["agents"]["stranger"]
    assert live["agents"]["127.0.0.1:1"].startswith("not reached: ")
    failed = {event["agent"]: event["text"] for event in collector.events() if event["kind"] == "agent_failed"}
    assert set(failed) == set(names[1:])
    assert failed["stranger"].startswith("agent stranger is not there, the run goes on without it: ")
    assert collector.stop() == 0


@pytest.mark.parametrize("lease_s", [60, 0])
def test_a_link_that_is_reset_is_made_again(
    hosts: list[Sshd], run: Path, tmp_path: Path, collectors: list[Collector], lease_s: float
) -> None:
    with Relay(hosts[0].address, hosts[0].port) as relay:
        config = str(relayed(hosts[0], relay, tmp_path))
        collector = Collector(run, agents=["gpu1"], ssh_config=config, lease_s=lease_s)
        collectors.append(collector)
        (agent,) = pids(collector, ("gpu1",))
        time.sleep(1.5)
        relay.reset()
        end = "agent_back" if lease_s else "agent_restarted"
        until(lambda: end in collector.kinds())
        time.sleep(1.5)
        assert running(agent) == bool(lease_s)
        assert collector.stop() == 0
    gaps = np.diff(host_stamps(run, "gpu1")) / 1e9
    if lease_s:  # nothing lost, nothing doubled
        assert gaps.min() > 0.5
        assert gaps.max() < 1.5
        assert "it kept its samples" in collector.events()[-1]["text"]
    assert collector.kinds() == ["agent_started", "agent_lost", end]
    until(lambda: hosts[0].sessions() == 0)
    assert agents_left(hosts) == []


def test_a_silent_network_costs_nothing_while_the_spool_holds(
    hosts: list[Sshd], run: Path, tmp_path: Path, collectors: list[Collector]
) -> None:
    with Relay(hosts[0].address, hosts[0].port) as relay:
        config = str(relayed(hosts[0], relay, tmp_path))
        collector = Collector(run, agents=["gpu1"], ssh_config=config, lease_s=60)
        collectors.append(collector)
        pids(collector, ("gpu1",))
        relay.blackhole()
        until(lambda: "agent_lost" in collector.kinds(), 20)  # nothing was heard for 10 s
        time.sleep(2)
        relay.restore()
        until(lambda: "agent_back" in collector.kinds(), 20)
        time.sleep(1.2)
        assert collector.stop() == 0
    gaps = np.diff(host_stamps(run, "gpu1")) / 1e9
    assert gaps.size > 12
    assert (gaps.min() > 0.5, gaps.max() < 1.5) == (True, True)
    kinds = collector.kinds()
    assert kinds[:3] == ["agent_started", "agent_silent", "agent_lost"]
    assert "nothing was heard of it for 10 s" in collector.events()[2]["text"]
    until(lambda: hosts[0].sessions() == 0)


def test_a_lopsided_network_is_within_the_stated_bound(
    hosts: list[Sshd], run: Path, tmp_path: Path, collectors: list[Collector]
) -> None:
    with Relay(hosts[0].address, hosts[0].port) as relay:
        relay.delay(up_s=0.04, down_s=0.005, jitter_s=0.005)
        collector = Collector(run, agents=["gpu1"], ssh_config=str(relayed(hosts[0], relay, tmp_path)))
        collectors.append(collector)
        until(lambda: len(rundir.read_lines(run / rundir.CLOCKS)) >= 16)
        assert collector.stop() == 0
    fit = fit_clocks(rundir.read_lines(run / rundir.CLOCKS))["gpu1"]
    # One machine: the true offset is 0.
    assert 10e6 < abs(fit.offset_ns) <= fit.bound_ns < 40e6


def test_a_host_whose_clock_is_hours_off_is_known_to_less_than_a_millisecond(
    run: Path, tmp_path: Path, collectors: list[Collector]
) -> None:
    """A time namespace: the agent's CLOCK_MONOTONIC truly differs, by an amount that is known. Without root by none."""
    true_ns, inside = (7_200_000_000_000, ("unshare", "-T", "--monotonic", "7200")) if os.geteuid() == 0 else (0, ())
    began_ns = time.monotonic_ns()
    with Sshd(tmp_path / "sshd", inside=inside) as host:
        collector = Collector(run, agents=["gpu1"], ssh_config=str(host.client_config(tmp_path / "ssh_config")))
        collectors.append(collector)
        pids(collector, ("gpu1",))
        until(lambda: host_stamps(run, "gpu1").size >= 2)
        assert collector.stop() == 0
    fit = fit_clocks(rundir.read_lines(run / rundir.CLOCKS))["gpu1"]
    stamps = host_stamps(run, "gpu1")
    assert abs(fit.offset_ns - true_ns) <= fit.bound_ns
    assert int(np.max(bound_at(fit, stamps))) < 1_000_000
    assert (collector.hello("gpu1")["boot_id"] == boot_id()) == (not true_ns)
    on_ours = to_controller(fit, stamps)
    assert began_ns < on_ours[0] < on_ours[-1] < time.monotonic_ns()


@pytest.mark.parametrize(("lease_s", "gone_s"), [(0, 1.5), (2, 4.0)])
def test_a_killed_controller_leaves_nothing(
    hosts: list[Sshd], run: Path, tmp_path: Path, collectors: list[Collector], lease_s: float, gone_s: float
) -> None:
    collector = Collector(run, agents=NAMES, ssh_config=ssh_config(hosts, tmp_path), lease_s=lease_s)
    collectors.append(collector)
    agents = pids(collector)
    os.killpg(collector.process.pid, signal.SIGKILL)
    until(lambda: not any(running(agent) for agent in agents), gone_s)
    until(lambda: not any(host.sessions() for host in hosts))
    assert agents_left(hosts) == []


def test_no_secret_reaches_a_file_or_a_command_line(
    hosts: list[Sshd], run: Path, tmp_path: Path, collectors: list[Collector]
) -> None:
    secret = "correct-horse-battery"
    locked = keygen(tmp_path / "locked", passphrase=secret)
    with hosts[0].authorized_keys.open("a") as file:
        file.write(public(locked) + "\n")
    config = hosts[0].client_config(tmp_path / "ssh_config", IdentityFile=locked)
    collector = Collector(
        run,
        {"LOADGEN_SSH_PASSPHRASE": f"wrong\n{secret}", "METRICS_KEY": "t0ken-of-the-server"},
        agents=["gpu1"],
        ssh_config=str(config),
        metrics_url="http://127.0.0.1:1/metrics",
        metrics_token_env="METRICS_KEY",
    )
    collectors.append(collector)
    pids(collector, ("gpu1",))
    command_lines = b"".join(read(path) for path in Path("/proc").glob("[0-9]*/cmdline"))
    assert collector.stop() == 0
    written = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    for planted in (secret.encode(), b"t0ken-of-the-server"):
        assert planted not in written + command_lines + hosts[0].log.read_bytes()


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_gpus_of_another_host_are_sampled_ten_times_a_second(
    run: Path, tmp_path: Path, collectors: list[Collector]
) -> None:
    library = nvml_stub(tmp_path)
    environment = f"LD_LIBRARY_PATH={library} STUB_GPUS=8 STUB_FAULT=xid"
    with Sshd(tmp_path / "sshd", SetEnv=environment) as host:
        collector = Collector(run, agents=["gpu1"], ssh_config=str(host.client_config(tmp_path / "ssh_config")))
        collectors.append(collector)
        live = until(lambda: len((line := collector.live())["gpus"]) == 8 and line)
        assert {gpu["host"] for gpu in live["gpus"]} == {"gpu1"}
        until(lambda: "xid" in collector.kinds())
        time.sleep(2)
        assert collector.stop() == 0
    table = whole_table(run / "telemetry" / "gpu1" / "gpu_fast.arrow").to_pandas()
    (xid, *_) = [event for event in collector.events() if event["kind"] == "xid"]
    assert xid["host"] == "gpu1"
    assert xid["gpu_uuid"] in set(table["gpu_uuid"])
    for _, rows in table.groupby("gpu_uuid"):
        period_s = np.diff(rows["t0_mono_ns"]) / 1e9
        assert 0.09 < np.median(period_s) < 0.12
        assert rows["energy_mj"].is_monotonic_increasing
        windows = rows.dropna(subset=["gpm_sm_pct"])
        assert len(windows) > 0.5 * len(rows)
        assert ((windows["t0_mono_ns"] - windows["win_start_mono_ns"]) >= 100_000_000).all()
    for name in ("gpu_slow", "gpu_util", "agent", "host"):
        assert whole_table(run / "telemetry" / "gpu1" / f"{name}.arrow").num_rows >= 2
