"""The agent as a real process, its driver library replaced where a test needs GPUs."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Site, python, until

import remote_agents.agent
from remote_agents.agent.protocol import BYE, CONFIG, EVENT, HELLO, MAGIC, PING, PONG, SAMPLE, Frame, encode, frames
from remote_agents.agent.sample import TABLES

FOLDER = Path(remote_agents.agent.__file__).parent
CONFIGURATION = {
    "gpus": None,
    "metrics_url": None,
    "metrics_token": None,
    "telemetry_url": None,
    "max_lifetime_s": 20,
}
WITH_FAKE_GPUS = """
import runpy, fake_nvml
fake = fake_nvml.FakeNvml()
{setup}
fake_nvml.install(fake)
runpy.run_module("remote_agents.agent", run_name="__main__", alter_sys=True)
"""


class Agent:
    def __init__(self, code: str | None = None, **config: Any) -> None:
        arguments = ["-m", "remote_agents.agent"] if code is None else ["-c", WITH_FAKE_GPUS.format(setup=code)]
        path = os.pathsep.join([str(Path(__file__).parent), str(FOLDER.parents[1])])
        self.process = python(*arguments, env=os.environ | {"PYTHONPATH": path})
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.stdin, self.stderr = self.process.stdin, self.process.stderr
        self._seq = 0
        self.stdin.write(MAGIC)
        self.send(CONFIG, CONFIGURATION | config)
        self.received: Iterator[tuple[int, Frame]] = frames(self.process.stdout.fileno())

    def send(self, kind: int, body: Any) -> None:
        self.stdin.write(encode(kind, self._seq, body))
        self._seq += 1

    def next(self, kind: int, **wanted: Any) -> Any:
        """The body of the next frame of a kind that holds these values."""
        for _, frame in self.received:
            if frame.kind == kind and all(frame.body[name] == value for name, value in wanted.items()):
                return frame.body
        raise AssertionError(f"no such frame; {self.stderr.read().decode()}")

    def next_event(self, name: str) -> dict[str, Any]:
        while True:
            event: dict[str, Any] = self.next(EVENT)
            if event["kind"] == name:
                return event

    def ends_within(self, seconds: float) -> int:
        return self.process.wait(seconds)


@pytest.fixture
def agents() -> Iterator[list[Agent]]:
    started: list[Agent] = []
    yield started
    for agent in started:
        agent.process.kill()
        agent.process.wait()
        agent.stderr.close()


def test_frames_of_a_plain_host(agents: list[Agent]) -> None:
    agent = Agent(gpus=[], code="fake.gpus = 0")
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


@pytest.mark.parametrize("end", ["eof", "SIGTERM", "BYE", "lifetime"])
def test_every_way_to_end_shuts_nvml_down_within_a_second(agents: list[Agent], end: str) -> None:
    agent = Agent("", max_lifetime_s=0.3 if end == "lifetime" else 20)
    agents.append(agent)
    agent.next(SAMPLE)
    if end == "eof":
        agent.stdin.close()
    elif end == "SIGTERM":
        agent.process.send_signal(signal.SIGTERM)
    elif end == "BYE":
        agent.send(BYE, {})
    else:
        agent.next_event("agent_lifetime")
    start = time.monotonic()
    agent.next(BYE)
    assert agent.ends_within(1) == 0
    assert time.monotonic() - start < 1
    assert b"nvmlShutdown" in agent.stderr.read()


def test_a_reader_that_goes_away_ends_the_agent(agents: list[Agent]) -> None:
    agent = Agent("")
    agents.append(agent)
    agent.next(SAMPLE)
    assert agent.process.stdout
    agent.process.stdout.close()
    assert agent.ends_within(2) == 0


def test_gpus_are_sampled_ten_times_a_second(agents: list[Agent]) -> None:
    agent = Agent("", gpus=[0])
    agents.append(agent)
    hello = agent.next(HELLO, nvml={"state": "starting"})
    hello = agent.next(HELLO)
    assert [gpu["uuid"] for gpu in hello["gpus"]] == ["GPU-0"]
    stamps: list[int] = []
    slow = 0
    while len(stamps) < 12:
        table, _, rows = agent.next(SAMPLE)
        stamps += [row[0] for row in rows if table == "gpu_fast"]
        slow += table == "gpu_slow"
    assert 1.0e9 < stamps[-1] - stamps[0] < 1.4e9
    assert slow == 2


def test_nvml_that_hangs_is_said_and_costs_nothing_else(agents: list[Agent]) -> None:
    agent = Agent("fake.hang_in = 'nvmlDeviceGetUtilizationRates'; fake.hang_after = 15")
    agents.append(agent)
    event = agent.next_event("nvml_hang")
    assert "more than 2 s" in event["text"]
    _, _, (row,) = agent.next(SAMPLE)
    assert row[0] > event["t_mono_ns"]
    agent.stdin.close()
    assert agent.ends_within(1) == 0


def test_what_a_library_prints_does_not_harm_the_frames(agents: list[Agent]) -> None:
    setup = """
print('Welcome to host-a', flush=True)
fake.c_nvmlInitWithFlags = lambda flags: print('the driver says hello', flush=True)
"""
    agent = Agent(setup)
    agents.append(agent)
    agent.next(HELLO, nvml={"state": "starting"})
    assert len(agent.next(HELLO)["gpus"]) == 2
    agent.stdin.close()
    agent.next(BYE)
    assert b"the driver says hello" in agent.stderr.read()


def test_a_simulated_target_leaves_nvml_alone(agents: list[Agent], site: Site) -> None:
    setup = "import sys; sys.modules['remote_agents.agent.gpu'] = None"  # importing it would fail
    agent = Agent(setup, telemetry_url=site.url + "/telemetry")
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
            and not name.startswith("remote_agents.agent.")
            and name != "pynvml"
        }
        assert not foreign, path.name


OLD_PYTHON = shutil.which("python3.8")


@pytest.mark.skipif(
    OLD_PYTHON is None or subprocess.run([OLD_PYTHON, "-c", ""], capture_output=True).returncode != 0,
    reason="no python3.8 here",
)
def test_python_3_8_runs_it(site: Site) -> None:
    stream = MAGIC + encode(CONFIG, 0, CONFIGURATION | {"telemetry_url": site.url, "max_lifetime_s": 0.6})
    assert OLD_PYTHON
    agent = subprocess.Popen(
        [OLD_PYTHON, "-m", "remote_agents.agent"], cwd=FOLDER.parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert agent.stdin and agent.stdout
    agent.stdin.write(stream)
    agent.stdin.flush()
    got = [frame for _, frame in frames(agent.stdout.fileno())]
    assert got[0].body["python"].startswith("3.8.")
    assert {"host", "agent"} <= {frame.body[0] for frame in got if frame.kind == SAMPLE}
    assert agent.wait(2) == 0


def test_no_configuration_is_a_quiet_end() -> None:
    agent = python("-m", "remote_agents.agent")
    assert agent.stdin and agent.stderr
    agent.stdin.close()
    assert until(lambda: agent.poll() is not None)
    assert (agent.returncode, agent.stderr.read()) == (0, b"")
