"""The collector: starts the agents of a run and writes what they send into the run directory. Its own plain process.

    stdin    one JSON line of `Config`, then "stop" for an orderly end; its end means that the parent is gone
    stdout   a JSON line a second for the live table, the first when every agent has started or failed to; may break
    files    telemetry/<host>/: hello.json and <table>.arrow; clocks.jsonl, events.jsonl, logs/agent-<name>.log

A thread an agent (watch.py); this one keeps the time and the files. What was received is on its way to the disk within
a second, and only then acknowledged.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadgen import rundir
from loadgen.errors import LoadgenError, RunDirError, UsageError
from remote_agents import deploy
from remote_agents.hosts import LOCAL, NONE, Agent, check_agents, metrics_urls, parse_agent, server_port
from remote_agents.ssh import SshOptions, connect
from remote_agents.store import Live, Store
from remote_agents.turns import Turns
from remote_agents.watch import SECOND_NS, Watch
from remote_agents.wire import Wire

# Lines that open the user's encrypted keys; kept out of the environment of what we start.
PASSPHRASES = "LOADGEN_SSH_PASSPHRASE"
FLEET_S = 10.0
LAUNCH_S = 20.0
STOP_S = 4.0
_AT_ONCE = 16  # connections being made, but for those that take longer than _PATIENCE_S
_PATIENCE_S = 1.0


@dataclass(frozen=True)
class Config:
    """The first line of stdin. `gpus` are indices or UUIDs, None is all; secrets are read from the environment.

    `endpoint` is the URL of what is tested, `metrics_url` what was given for its metrics. An agent with `lease_s` lives
    on for that long after its link broke; `agent_dir` is where it is put on a host that forbids code from memory.
    """

    run_dir: Path
    agents: tuple[str, ...]
    gpus: tuple[int | str, ...] | None = None
    endpoint: str | None = None
    metrics_url: str | None = None
    metrics_token_env: str | None = None
    metrics_map: tuple[Any, ...] = ()
    dcgm_url: str | None = None
    telemetry_url: str | None = None
    ssh_config: str | None = None
    accept_new_host_keys: bool = False
    lease_s: float = 0
    agent_dir: str | None = None
    max_lifetime_s: float | None = None

    def metrics_token(self) -> str | None:
        return os.environ.get(self.metrics_token_env, "").strip() if self.metrics_token_env else None

    def start(self, name: str) -> dict[str, Any]:
        """What an agent is told at its start."""
        is_local = name == LOCAL
        url = metrics_urls(self.agents, self.endpoint, self.metrics_url)[name]
        dcgm_url = metrics_urls(self.agents, None, self.dcgm_url)[name]
        return {
            "name": self._host_name() if is_local else name,
            "gpus": self.gpus,
            "metrics_url": url,
            "metrics_token": self.metrics_token() if url else None,
            "metrics_map": self.metrics_map,
            "dcgm_url": dcgm_url,
            "telemetry_url": self.telemetry_url if is_local else None,
            "server_port": server_port(self.endpoint) if self.endpoint else None,
            "lease_s": 0 if is_local else self.lease_s,
            "max_lifetime_s": self.max_lifetime_s,
        }

    def _host_name(self) -> str:
        """Of this host in the files; another host may be called the same."""
        name = socket.gethostname()
        return LOCAL if name in self.agents else name

    def ssh_options(self) -> SshOptions:
        """Takes the passphrases out of the environment, which local agents inherit."""
        return SshOptions(
            config_file=Path(self.ssh_config) if self.ssh_config else None,
            accept_new_host_keys=self.accept_new_host_keys,
            passphrases=tuple(os.environ.pop(PASSPHRASES, "").splitlines()),
        )


def parse_config(line: str) -> Config:
    """Raises UsageError with every problem."""
    try:
        values = json.loads(line)
        config = Config(**values)
        gpus = None if config.gpus is None else tuple(config.gpus)
        agents = tuple(dict.fromkeys(name for name in config.agents if name != NONE))
        config = Config(**values | {"run_dir": Path(config.run_dir), "agents": agents, "gpus": gpus})
    except (ValueError, TypeError) as error:
        raise UsageError(f"the collector's first line is no configuration: {error}") from error
    problems = check_agents(config.agents)
    if not config.run_dir.is_dir():
        problems.append(f"the run directory {config.run_dir} does not exist")
    token = config.metrics_token()
    if token == "":
        problems.append(f"the environment has no {config.metrics_token_env}, which should hold the metrics token")
    elif token and not (token.isascii() and token.isprintable()):
        problems.append(f"the metrics token in {config.metrics_token_env} has characters that HTTP cannot carry")
    if problems:
        raise UsageError("\n".join(problems))
    return config


class Fleet:
    """The agents of a run."""

    def __init__(self, config: Config) -> None:
        self.live = Live()
        self.store = Store(config.run_dir, self.live)
        self._config = config
        self._ssh = config.ssh_options()
        self._turns = Turns(_AT_ONCE, _PATIENCE_S)
        self.watches = [self._watch(parse_agent(name)) for name in config.agents]

    def start(self) -> None:
        for watch in self.watches:
            watch.start()

    @property
    def settled(self) -> bool:
        """Whether each agent has started, or failed to."""
        return all(watch.settled.is_set() for watch in self.watches)

    def states(self) -> dict[str, str]:
        return {watch.agent: watch.state for watch in self.watches}

    def flush(self) -> None:
        """Bring to the disk what has come. Raises OSError."""
        for watch in self.watches:
            if watch.fault is not None:
                raise watch.fault
        taken = [watch.taken for watch in self.watches]
        self.store.flush()
        for watch, number in zip(self.watches, taken, strict=True):
            watch.durable = number

    def end(self) -> None:
        """Say goodbye to all, wait for them, close the files."""
        for watch in self.watches:
            watch.stopping.set()
        self._turns.end()
        end = time.monotonic() + STOP_S
        for watch in self.watches:
            if watch.is_alive():
                watch.join(max(end - time.monotonic(), 0))
        self.store.close()

    def _watch(self, agent: Agent) -> Watch:
        log = self._config.run_dir / rundir.LOGS / f"agent-{self.store.file_name(agent.name)}.log"
        log.parent.mkdir(exist_ok=True)
        launch = self._launch_local if agent.name == LOCAL else functools.partial(self._launch_remote, agent)
        return Watch(agent.name, self._config.start(agent.name), functools.partial(launch, log=log), self.store)

    def _launch_local(self, start: dict[str, Any], *, log: Path) -> Wire:
        return deploy.start_local(start, log, time.monotonic() + LAUNCH_S)

    def _launch_remote(self, agent: Agent, start: dict[str, Any], *, log: Path) -> Wire:
        with self._turns.turn():
            deadline = time.monotonic() + LAUNCH_S
            connection = connect(agent, self._ssh, deadline)
            for text in connection.pinned:
                self.store.event("host_key_pinned", text, agent=agent.name)
            return deploy.start_remote(connection, start, log, self._config.agent_dir, deadline)


class Collector:
    """The main thread: commands in, live lines out, a flush a second."""

    def __init__(self, config: Config, stdin: int, stdout: int) -> None:
        self.stopping = False
        self.fleet = Fleet(config)
        self._simulated = config.telemetry_url is not None
        self._stdin, self._stdout = stdin, stdout
        self._commands = b""
        self._unsent = b""  # of the live line: a reader that is slow costs lines, never time
        self._started_ns = self._next_second_ns = time.monotonic_ns()

    def run(self) -> None:
        """Collect until stopped; files are closed and agents gone when it returns or raises. Raises OSError."""
        try:
            self.fleet.start()
            while not self.stopping:
                self._turn(0.1)
            self.fleet.flush()
        finally:
            self.fleet.end()

    def _turn(self, wait_s: float) -> None:
        writes = [self._stdout] if self._unsent else []
        readable, writable, _ = select.select([self._stdin], writes, [], wait_s)
        if readable:
            self._read_stdin()
        if writable:
            self._write_stdout()
        now_ns = time.monotonic_ns()
        if now_ns >= self._next_second_ns:
            self._next_second_ns += SECOND_NS * (1 + (now_ns - self._next_second_ns) // SECOND_NS)
            self.fleet.flush()
            if self.fleet.settled or now_ns - self._started_ns > FLEET_S * SECOND_NS:
                self._say()

    def _read_stdin(self) -> None:
        data = os.read(self._stdin, 65536)
        self._commands += data
        lines = self._commands.split(b"\n")
        self._commands = lines.pop()
        self.stopping |= not data or b"stop" in lines

    def _say(self) -> None:
        if not self._unsent and self._stdout >= 0:
            self._unsent = json.dumps(self.fleet.live.line(self._simulated, self.fleet.states())).encode() + b"\n"

    def _write_stdout(self) -> None:
        try:  # a pipe that is ready takes PIPE_BUF bytes without blocking
            self._unsent = self._unsent[os.write(self._stdout, self._unsent[: select.PIPE_BUF]) :]
        except OSError:
            self._unsent = b""
            self._stdout = -1


def main() -> int:
    try:
        config = parse_config(_first_line(0))
        collector = Collector(config, 0, 1)

        def stop(*_: Any) -> None:
            collector.stopping = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        try:
            collector.run()
        except OSError as error:
            raise RunDirError(f"the collector cannot write to {config.run_dir}: {error}") from error
    except LoadgenError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _first_line(descriptor: int) -> str:
    """Byte by byte, so that what follows stays in the pipe."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            break
        line += byte
    return line.decode(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
