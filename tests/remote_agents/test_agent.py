"""The agent as a real process, its driver library replaced where a test needs GPUs."""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_process import DEFAULTS, FOLDER, AgentProcess
from conftest import Site, python, until

from remote_agents.agent.protocol import BYE, HELLO, MAGIC, PING, PONG, SAMPLE, START, STOP, Decoder, encode
from remote_agents.agent.sample import TABLES
from remote_agents.deploy import bootstrapped


@pytest.fixture
def agents() -> Iterator[list[AgentProcess]]:
    started: list[AgentProcess] = []
    yield started
    for agent in started:
        agent.close()


def test_frames_of_a_plain_host(agents: list[AgentProcess]) -> None:
    agent = AgentProcess(gpus=[], code="fake.gpus = 0")
    agents.append(agent)
    hello = agent.next(HELLO)
    assert hello["host"] == hello["agent_host"] == os.uname().nodename
    assert hello["pid"] == agent.process.pid
    assert hello["tables"] == {name: [column.name for column in columns] for name, columns in TABLES.items()}
    assert os.getpriority(os.PRIO_PROCESS, agent.process.pid) == os.getpriority(os.PRIO_PROCESS, 0) + 5
    before_ns = time.monotonic_ns()
    agent.send(PING, {"id": 3})
    pong = agent.next(PONG)
    assert pong["id"] == 3
    assert before_ns <= pong["t1_ns"] <= pong["t2_ns"] <= time.monotonic_ns()
    rows = {}
    while set(rows) < {"host", "agent"}:
        table, host, (row,) = agent.next(SAMPLE)
        rows[table] = row
        assert host == hello["host"]
        assert len(row) == len(TABLES[table])
    agent.stdin.close()
    assert agent.next(BYE) == {}
    assert agent.ends_within(1) == 0


@pytest.mark.parametrize("end", ["eof", "SIGTERM", "STOP", "lifetime"])
def test_every_way_to_end_shuts_nvml_down_within_a_second(agents: list[AgentProcess], end: str) -> None:
    agent = AgentProcess("", max_lifetime_s=0.3 if end == "lifetime" else 20)
    agents.append(agent)
    agent.next(SAMPLE)
    if end == "eof":
        agent.stdin.close()
    elif end == "SIGTERM":
        agent.process.send_signal(signal.SIGTERM)
    elif end == "STOP":
        agent.send(STOP, {})
    else:
        agent.next_event("agent_lifetime")
    start = time.monotonic()
    agent.next(BYE)
    assert agent.ends_within(1) == 0
    assert time.monotonic() - start < 1
    assert b"nvmlShutdown" in agent.stderr.read()


def test_a_reader_that_goes_away_ends_the_agent(agents: list[AgentProcess]) -> None:
    agent = AgentProcess("")
    agents.append(agent)
    agent.next(SAMPLE)
    assert agent.process.stdout
    agent.process.stdout.close()
    assert agent.ends_within(2) == 0


def test_gpus_are_sampled_ten_times_a_second(agents: list[AgentProcess]) -> None:
    agent = AgentProcess("", gpus=[0])
    agents.append(agent)
    hello = agent.next(HELLO, nvml={"state": "starting"})
    hello = agent.next(HELLO)
    assert [gpu["uuid"] for gpu in hello["gpus"]] == ["GPU-0"]
    stamps: list[int] = []
    slow = 0
    while len(stamps) < 12 or slow < 2:
        table, _, rows = agent.next(SAMPLE)
        stamps += [row[0] for row in rows if table == "gpu_fast"]
        slow += len(rows) * (table == "gpu_slow")
    assert 1.0e9 < stamps[11] - stamps[0] < 1.4e9
    assert slow == 2


def test_nvml_that_hangs_is_said_and_costs_nothing_else(agents: list[AgentProcess]) -> None:
    agent = AgentProcess("fake.hang_in = 'nvmlDeviceGetUtilizationRates'; fake.hang_after = 15")
    agents.append(agent)
    event = agent.next_event("nvml_hang")
    assert "more than 2 s" in event["text"]
    _, _, (row,) = agent.next(SAMPLE)
    assert row[0] > event["t_mono_ns"]
    agent.stdin.close()
    assert agent.ends_within(1) == 0


def test_what_a_library_prints_does_not_harm_the_frames(agents: list[AgentProcess]) -> None:
    setup = """
print('Welcome to host-a', flush=True)
fake.c_nvmlInitWithFlags = lambda flags: print('the driver says hello', flush=True)
"""
    agent = AgentProcess(setup)
    agents.append(agent)
    agent.next(HELLO, nvml={"state": "starting"})
    assert len(agent.next(HELLO)["gpus"]) == 2
    agent.stdin.close()
    agent.next(BYE)
    assert b"the driver says hello" in agent.stderr.read()


def test_a_simulated_target_leaves_nvml_alone(agents: list[AgentProcess], site: Site) -> None:
    setup = "import sys; sys.modules['remote_agents.agent.gpu'] = None"  # importing it would fail
    agent = AgentProcess(setup, telemetry_url=site.url + "/telemetry")
    agents.append(agent)
    assert agent.next(HELLO)["nvml"]["state"].startswith("not used")
    assert "status 404" in agent.next_event("simulator_lost")["text"]


def test_every_file_is_python_3_8_and_imports_nothing_of_ours_outside_its_folder() -> None:
    for path in FOLDER.glob("*.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 8))
        imported = {
            name
            for node in ast.walk(tree)
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        foreign = {
            name
            for name in imported
            if name.partition(".")[0] not in sys.stdlib_module_names
            and not (name + ".").startswith("remote_agents.agent.")
            and name != "pynvml"
        }
        assert not foreign, path.name


def test_nothing_is_used_that_python_3_8_lacks() -> None:
    lacking = {"removeprefix", "removesuffix", "__excepthook__", "pairwise", "is_relative_to", "send_fds", "recv_fds"}
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                of_os = isinstance(node.value, ast.Name) and node.value.id == "os"
                assert node.attr not in lacking, path.name
                assert node.attr != "readlink" or of_os, path.name  # Path's is younger
                assert (node.attr, ast.unparse(node.value)) != ("cache", "functools"), path.name


@pytest.mark.parametrize("version", ["3.8", "3.9"])
def test_an_old_python_runs_it(version: str) -> None:
    candidates = [f"python{version}", *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
    old = next((name for name in candidates if is_python(name, version)), None)
    if old is None:
        pytest.skip(f"there is no Python {version} here")
    _, fed = bootstrapped()
    size = len((FOLDER / "bootstrap.py").read_bytes())
    code = f"import os;exec(bytes().join(os.read(0,1)for i in range({size})))"
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([old, "-uIB", "-c", code], **pipes) as agent:
        assert agent.stdin and agent.stdout and agent.stderr
        agent.stdin.write(fed + MAGIC + encode(START, DEFAULTS))
        agent.stdin.flush()
        decoder, kinds = Decoder(), set()
        while not {HELLO, SAMPLE} <= kinds and (data := os.read(agent.stdout.fileno(), 1 << 16)):
            kinds |= {frame.kind for frame in decoder.feed(data)}
        agent.stdin.close()
        assert {HELLO, SAMPLE} <= kinds
        assert agent.stderr.read() == b""


def is_python(name: str, version: str) -> bool:
    with contextlib.suppress(OSError):
        said = subprocess.run([name, "--version"], capture_output=True, text=True)
        return said.returncode == 0 and f" {version}." in said.stdout
    return False


def test_an_agent_that_fails_says_so_and_is_not_taken_for_one_that_was_told_to_end(agents: list[AgentProcess]) -> None:
    agent = AgentProcess("import signal; signal.sigtimedwait = lambda *_: 1 / 0")
    agents.append(agent)
    assert "ZeroDivisionError" in agent.next_event("agent_error")["text"]
    assert BYE not in {frame.kind for frame in agent.frames()}
    assert agent.ends_within(2) == 1
    assert b"ZeroDivisionError" in agent.stderr.read()


@pytest.mark.parametrize("forbidden", ["os.nice", "resource.setrlimit"])
def test_a_sandbox_that_forbids_modesty_is_put_up_with(agents: list[AgentProcess], forbidden: str) -> None:
    code = f"""
import os, resource
def forbid(*_): raise PermissionError(1, "not permitted")
{forbidden} = forbid"""
    agent = AgentProcess(code)
    agents.append(agent)
    agent.next(SAMPLE)


def test_no_start_is_a_quiet_end() -> None:
    agent = python("-m", "remote_agents.agent")
    assert agent.stdin and agent.stderr
    agent.stdin.close()
    assert until(lambda: agent.poll() is not None)
    assert (agent.returncode, agent.stderr.read()) == (0, b"")
