"""The collector as a real process."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
from conftest import python, until

from loadgen import rundir
from loadgen.shards import read_shard

HOST = os.uname().nodename


class Collector:
    def __init__(self, run: Path, env: dict[str, str] | None = None, **config: Any) -> None:
        self.run = run
        self.process = python("-m", "remote_agents.collector", env=os.environ | (env or {}))
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.stdin, self.stdout, self.stderr = self.process.stdin, self.process.stdout, self.process.stderr
        self.say({"run_dir": str(run), "agents": ["local"], "max_lifetime_s": 30} | config)

    def say(self, line: Any) -> None:
        self.stdin.write((line if isinstance(line, str) else json.dumps(line)).encode() + b"\n")

    def lines(self, count: int) -> list[dict[str, Any]]:
        return [json.loads(self.stdout.readline()) for _ in range(count)]

    def agent_pid(self) -> int:
        """Of the agent, once it has said hello and its first clock probes are done."""
        until(lambda: len(rundir.read_lines(self.run / rundir.CLOCKS)) == 16)
        return int(json.loads((self.run / "telemetry" / HOST / "hello.json").read_text())["pid"])

    def live(self) -> dict[str, Any]:
        """The next live line."""
        return self.lines(1)[0]

    def stop(self, wait_s: float = 5.0) -> int:
        self.say("stop")
        return self.process.wait(wait_s)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.stdin, self.stdout, self.stderr):
            pipe.close()

    def hello(self, host: str) -> dict[str, Any]:
        hello: dict[str, Any] = json.loads((self.run / "telemetry" / host / "hello.json").read_text())
        return hello

    def events(self) -> list[dict[str, Any]]:
        return rundir.read_lines(self.run / rundir.EVENTS)

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events()]


def whole_table(path: Path) -> pa.Table:
    table, problem = read_shard(path)
    assert problem is None
    assert table is not None
    return table


def flushed_rows(run: Path) -> int:
    table, _ = read_shard(run / "telemetry" / HOST / "host.arrow")
    return table.num_rows if table is not None else 0
