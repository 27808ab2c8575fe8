"""The agent as a real process, its driver library replaced where a test needs GPUs."""

from __future__ import annotations

import os
import secrets
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conftest import python

import remote_agents.agent
from remote_agents.agent.protocol import ACK, EVENT, MAGIC, START, WELCOME, Decoder, Frame, encode

FOLDER = Path(remote_agents.agent.__file__).parent
DEFAULTS: dict[str, Any] = {
    "name": os.uname().nodename,
    "token": None,
    "agent": "",
    "received": 0,
    "gpus": None,
    "metrics_url": None,
    "metrics_token": None,
    "metrics_map": [],
    "dcgm_url": None,
    "telemetry_url": None,
    "server_port": None,
    "lease_s": 0,
    "max_lifetime_s": 20,
}
WITH_FAKE_GPUS = """
import runpy, fake_nvml
fake = fake_nvml.FakeNvml()
{setup}
fake_nvml.install(fake)
runpy.run_module("remote_agents.agent", run_name="__main__", alter_sys=True)
"""


def new_token() -> str:
    return secrets.token_hex(32)


class AgentProcess:
    """Started over a link of pipes. `code` runs before the agent, with `fake` as its driver."""

    def __init__(self, code: str | None = None, **start: Any) -> None:
        arguments = ["-m", "remote_agents.agent"] if code is None else ["-c", WITH_FAKE_GPUS.format(setup=code)]
        path = os.pathsep.join([str(Path(__file__).parent), str(FOLDER.parents[1])])
        self.process: subprocess.Popen[bytes] = python(*arguments, env=os.environ | {"PYTHONPATH": path})
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.stdin, self.stdout, self.stderr = self.process.stdin, self.process.stdout, self.process.stderr
        self._decoder = Decoder(start.get("received", 0))
        self._frames: Iterator[Frame] = self._read()
        self._known = start.get("agent", "")
        self.id = ""
        self.stdin.write(MAGIC + encode(START, DEFAULTS | start))

    @property
    def received(self) -> int:
        return self._decoder.received

    def send(self, kind: int, body: Any) -> None:
        self.stdin.write(encode(kind, body))

    def acknowledge(self) -> None:
        self.send(ACK, {"received": self.received})

    def frames(self) -> Iterator[Frame]:
        return self._frames

    def next(self, kind: int, **wanted: Any) -> Any:
        """The body of the next frame of a kind that holds these values."""
        for frame in self._frames:
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

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.stdin, self.stdout, self.stderr):
            pipe.close()

    def _read(self, silence_s: float = 15.0) -> Iterator[Frame]:
        end = time.monotonic() + silence_s
        while select.select([self.stdout], [], [], max(end - time.monotonic(), 0))[0]:
            data = os.read(self.stdout.fileno(), 1 << 16)
            if not data:
                return
            end = time.monotonic() + silence_s
            for frame in self._decoder.feed(data):
                if frame.kind == WELCOME and frame.body["agent"] != self.id:
                    self.id = frame.body["agent"]
                    if self.id != self._known:
                        self._decoder.received = 0
                yield frame
