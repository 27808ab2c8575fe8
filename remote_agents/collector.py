"""The collector: starts the agents of a run and writes what they send into the run directory. Its own plain process.

    stdin    one JSON line of `Config`, then "stop" for an orderly end; its end means that the parent is gone
    stdout   a JSON line a second for the live table; may break
    files    telemetry/<host>/: hello.json and <table>.arrow; clocks.jsonl, events.jsonl, logs/agent-<name>.log

One thread, one loop over readiness. Samples keep the agent's CLOCK_MONOTONIC stamps; probes carry both clocks;
everything else is CLOCK_MONOTONIC ns of this host. What was received is on its way to the disk within a second.
"""

from __future__ import annotations

import json
import os
import re
import select
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadgen import rundir
from loadgen.errors import LoadgenError, RunDirError, UsageError
from loadgen.shards import ShardWriter, arrow_schema
from remote_agents.agent.protocol import (
    BYE,
    CONFIG,
    EVENT,
    HELLO,
    MAGIC,
    PING,
    PONG,
    SAMPLE,
    Decoder,
    Frame,
    ProtocolError,
    encode,
    write_all,
)
from remote_agents.agent.sample import SCHEMA, TABLES
from remote_agents.hosts import NONE, check_agents

SECOND_NS = 1_000_000_000
BURST = 8
BURST_AT_ENDS = 16
BURST_EVERY_NS = 10 * SECOND_NS
PROBE_LIMIT_NS = SECOND_NS
SILENT_NS = 5 * SECOND_NS
STALE_NS = 15 * SECOND_NS
LAST_BURST_S = 0.2
GOODBYE_S = 0.9
TERMINATE_S = 0.2


@dataclass(frozen=True)
class Config:
    """The first line of stdin. `gpus` are indices or UUIDs, None is all; the token is read from the named variable."""

    run_dir: Path
    agents: tuple[str, ...]
    gpus: tuple[int | str, ...] | None = None
    metrics_url: str | None = None
    metrics_token_env: str | None = None
    telemetry_url: str | None = None
    max_lifetime_s: float | None = None

    def metrics_token(self) -> str | None:
        return os.environ.get(self.metrics_token_env, "").strip() if self.metrics_token_env else None

    def for_agent(self) -> dict[str, Any]:
        return {
            "gpus": self.gpus,
            "metrics_url": self.metrics_url,
            "metrics_token": self.metrics_token(),
            "telemetry_url": self.telemetry_url,
            "max_lifetime_s": self.max_lifetime_s,
        }


def parse_config(line: str) -> Config:
    """Raises UsageError with every problem."""
    try:
        values = json.loads(line)
        config = Config(**values)
        gpus = None if config.gpus is None else tuple(config.gpus)
        config = Config(**values | {"run_dir": Path(config.run_dir), "agents": tuple(config.agents), "gpus": gpus})
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


class Store:
    """The files under telemetry/: rows wait for the flush of the second, each table of each host has its shard."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._hellos: dict[str, dict[str, Any]] = {}
        self._rows: dict[tuple[str, str], list[list[Any]]] = {}
        self._shards: dict[tuple[str, str], ShardWriter] = {}

    def hello(self, facts: dict[str, Any]) -> None:
        """Keep and write what a host says of itself; a later one replaces an earlier one."""
        self._hellos[facts["host"]] = facts
        path = self._folder(facts["host"]) / "hello.json"
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        temporary.replace(path)

    def add(self, host: str, table: str, rows: list[list[Any]]) -> None:
        self._rows.setdefault((host, table), []).extend(rows)

    def flush(self) -> None:
        for (host, table), rows in self._rows.items():
            if rows:
                problems = self._append(host, table, rows)
                if problems:
                    text = f"{len(problems)} rows of {table} from {host} do not fit its columns: {problems[0]}"
                    rundir.log_event(self._run, "bad_rows", text, host=host)
                rows.clear()

    def _append(self, host: str, table: str, rows: list[list[Any]]) -> list[Exception]:
        """Write the rows at once, or else one by one; what was wrong with each that could not be written."""
        shard = self._shard(host, table)
        try:
            shard.append(list(zip(*rows, strict=True)))
        except (TypeError, ValueError, OverflowError) as error:  # pyarrow's own are of these; nothing was written
            return [error] if len(rows) == 1 else [bad for row in rows for bad in self._append(host, table, [row])]
        return []

    def close(self) -> None:
        self.flush()
        for shard in self._shards.values():
            shard.close()

    def _shard(self, host: str, table: str) -> ShardWriter:
        if (host, table) not in self._shards:
            hello = self._hellos[host]
            metadata = {
                "host": hello["agent_host"],  # whose clock the stamps are
                "boot_id": hello["boot_id"],
                "realtime_ns": str(hello["realtime_ns"]),
                "monotonic_ns": str(hello["monotonic_ns"]),
                "schema": str(SCHEMA),
                "table": table,
                "simulated": "true" if hello["simulated"] else "false",
            }
            schema = arrow_schema([(column.name, column.type) for column in TABLES[table]], metadata)
            self._shards[host, table] = ShardWriter(self._folder(host) / f"{table}.arrow", schema)
        return self._shards[host, table]

    def _folder(self, host: str) -> Path:
        folder = self._run / rundir.TELEMETRY / re.sub(r"[^A-Za-z0-9._-]+|^\.+", "-", host)
        folder.mkdir(parents=True, exist_ok=True)
        return folder


class Live:
    """The latest values of each GPU and engine, for the live line."""

    def __init__(self) -> None:
        self._gpus: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {}
        self._engines: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {}

    def add(self, host: str, table: str, rows: list[list[Any]]) -> None:
        names = [column.name for column in TABLES[table]]
        for values in rows:
            row = dict(zip(names, values, strict=True))
            if table == "gpu_fast":
                self._gpus[host, row["gpu_uuid"]] = (time.monotonic_ns(), row)
            elif table == "server":
                self._engines[host, row["engine"]] = (time.monotonic_ns(), row)

    def line(self, simulated: bool, agents: dict[str, str]) -> dict[str, Any]:
        now_ns = time.monotonic_ns()
        gpus = {key: row for key, (at_ns, row) in self._gpus.items() if now_ns - at_ns < SILENT_NS}
        engines = [row for at_ns, row in self._engines.values() if now_ns - at_ns < STALE_NS]
        return {
            "t_ns": now_ns,
            "gpus": [
                {
                    "host": host,
                    "uuid": uuid,
                    "util_pct": row["util_pct"],
                    "vram_used_b": row["mem_used_b"],
                    "vram_total_b": row["mem_total_b"],
                    "power_w": None if row["power_mw"] is None else row["power_mw"] / 1000,
                }
                for (host, uuid), row in sorted(gpus.items())
            ],
            "server": {
                "running": _over(sum, engines, "running"),
                "waiting": _over(sum, engines, "waiting"),
                "kv_usage_ratio_max": _over(max, engines, "kv_usage_ratio"),
            },
            "simulated": simulated,
            "agents": agents,
        }


def _over(combine: Callable[[list[float]], float], rows: list[dict[str, Any]], column: str) -> float | None:
    values = [row[column] for row in rows if row[column] is not None]
    return combine(values) if values else None


class Link:
    """One agent: its process, its state and the probe under way."""

    def __init__(self, name: str, run: Path, config: Config) -> None:
        self.name = name
        self.state = "starting"
        self.host = name
        self.alive = True
        self.decoder = Decoder()
        self.heard_ns = time.monotonic_ns()
        self.probes_left = 0
        self.next_burst_ns = 0
        self.asked_ns: int | None = None  # t0 of the probe that has no answer yet
        self._probe = 0
        self._seq = 0
        self._log = run / rundir.LOGS / f"agent-{name}.log"
        self._log.parent.mkdir(exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "remote_agents.agent"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the conductor
                bufsize=0,
            )
        assert self._process.stdin and self._process.stdout
        self._stdin = self._process.stdin
        self.stdout = self._process.stdout
        self._write(MAGIC)
        self.send(CONFIG, config.for_agent())

    def send(self, kind: int, body: Any) -> None:
        self._seq += 1
        self._write(encode(kind, self._seq - 1, body))

    def _write(self, data: bytes) -> None:
        try:
            write_all(self._stdin.fileno(), data)
        except BrokenPipeError:
            pass  # its stdout ends too, and that is where its death is seen

    def begin_burst(self, probes: int) -> None:
        self.probes_left = probes
        self.next_burst_ns = time.monotonic_ns() + BURST_EVERY_NS
        self._ask()

    def answered(self, pong: dict[str, Any], t3_ns: int) -> dict[str, Any] | None:
        """The probe that a pong completes; asks the next of the burst."""
        if self.asked_ns is None or pong["id"] != self._probe:
            return None
        stamps = {"t0_ns": self.asked_ns, "t1_ns": pong["t1_ns"], "t2_ns": pong["t2_ns"], "t3_ns": t3_ns}
        self.asked_ns = None
        self.probes_left -= 1
        if self.probes_left > 0:
            self._ask()
        return {"host": self.host, **stamps}

    def _ask(self) -> None:
        self._probe += 1
        self.asked_ns = time.monotonic_ns()
        self.send(PING, {"id": self._probe})

    def goodbye(self) -> None:
        self.probes_left, self.asked_ns = 0, None  # a late pong must not ask again
        self.send(BYE, {})
        self._stdin.close()

    def terminate(self) -> None:
        self._process.terminate()

    def reap(self, wait_s: float) -> str:
        """Wait for the end of the process, killing it at last; says how it ended."""
        try:
            code = self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self._process.kill()  # only now: a killed NVML client can leave a GPU in a bad state
            code = self._process.wait()
        self.alive = False
        last_words = self._log.read_text(errors="replace").strip().rpartition("\n")[2]
        return (f"killed by signal {-code}" if code < 0 else f"exit code {code}") + (last_words and f": {last_words}")


class Collector:
    """The loop and everything that lives as long as it."""

    def __init__(self, config: Config, stdin: int, stdout: int) -> None:
        self.stopping = False
        self._run = config.run_dir
        self._store = Store(config.run_dir)
        self._live = Live()
        self._simulated = config.telemetry_url is not None
        self._selector = selectors.PollSelector()  # unlike epoll it takes files, too
        self._stdin, self._stdout = stdin, stdout
        self._commands = b""
        self._unsent = b""  # of the live line: a reader that is slow costs lines, never time
        self._next_second_ns = time.monotonic_ns() + SECOND_NS
        self._links = [Link(name, config.run_dir, config) for name in dict.fromkeys(config.agents) if name != NONE]
        self._selector.register(stdin, selectors.EVENT_READ, self._read_stdin)
        for link in self._links:
            self._selector.register(link.stdout, selectors.EVENT_READ, link)

    def run(self) -> None:
        """Collect until stopped; files are closed and agents gone when it returns or raises."""
        try:
            while not self.stopping:
                self._turn(0.1)
            self._store.flush()
            for link in self._alive():
                link.begin_burst(BURST_AT_ENDS)
            self._turn_until(LAST_BURST_S, lambda link: link.asked_ns is None)
        finally:
            self._end()

    def _end(self) -> None:
        self.stopping = True  # after an error, too: no more bursts
        try:
            for link in self._alive():
                link.goodbye()
            self._turn_until(GOODBYE_S, lambda link: not link.alive)
            for link in self._alive():
                link.terminate()
            self._turn_until(TERMINATE_S, lambda link: not link.alive)
        finally:
            for link in self._alive():
                link.terminate()
            for link in self._alive():
                link.reap(TERMINATE_S)
            self._store.close()

    def _turn_until(self, limit_s: float, done: Callable[[Link], bool]) -> None:
        end_ns = time.monotonic_ns() + int(limit_s * SECOND_NS)
        while time.monotonic_ns() < end_ns and not all(done(link) for link in self._alive()):
            self._turn(0.05)

    def _alive(self) -> list[Link]:
        return [link for link in self._links if link.alive]

    def _turn(self, wait_s: float) -> None:
        for key, _ in self._selector.select(wait_s):
            if isinstance(key.data, Link):
                self._read_agent(key.data)
            else:
                key.data()
        now_ns = time.monotonic_ns()
        for link in self._alive():
            self._probe(link, now_ns)
        if now_ns >= self._next_second_ns:
            self._next_second_ns += SECOND_NS * (1 + (now_ns - self._next_second_ns) // SECOND_NS)
            self._store.flush()
            self._say({link.name: link.state for link in self._links})

    def _read_stdin(self) -> None:
        data = os.read(self._stdin, 65536)
        self._commands += data
        lines = self._commands.split(b"\n")
        self._commands = lines.pop()
        if not data or b"stop" in lines:
            self._selector.unregister(self._stdin)
            self.stopping = True

    def _read_agent(self, link: Link) -> None:
        data = os.read(link.stdout.fileno(), 1 << 16)
        t3_ns = time.monotonic_ns()
        if not data:
            self._lost(link)
            return
        link.heard_ns = t3_ns
        try:
            for frame in link.decoder.feed(data):
                self._take(link, frame, t3_ns)
        except ProtocolError as error:
            link.terminate()
            self._lost(link, str(error))

    def _take(self, link: Link, frame: Frame, t3_ns: int) -> None:
        body = frame.body
        if frame.kind == PONG:
            probe = link.answered(body, t3_ns)
            if probe is not None:
                rundir.append_line(self._run / rundir.CLOCKS, probe)
        elif frame.kind == SAMPLE:
            table, host, rows = body
            self._store.add(host, table, rows)
            self._live.add(host, table, rows)
        elif frame.kind == EVENT:
            facts = {key: value for key, value in body.items() if key not in ("kind", "text", "t_mono_ns")}
            stamp = {"agent": link.name, "host": link.host, "agent_ns": body["t_mono_ns"]}
            rundir.log_event(self._run, body["kind"], body["text"], **facts, **stamp)
        elif frame.kind == HELLO:
            self._greet(link, body)
        elif frame.kind == BYE:
            link.state = "ended"

    def _greet(self, link: Link, hello: dict[str, Any]) -> None:
        columns = {name: [column.name for column in table] for name, table in TABLES.items()}
        if hello["schema"] != SCHEMA or hello["tables"] != columns:
            raise ProtocolError(f"its tables are of schema {hello['schema']}, this collector knows {SCHEMA}")
        del hello["tables"]
        self._store.hello(hello)
        if link.state == "starting":
            link.state = "ok"
            link.host = hello["agent_host"]
            if not self.stopping:  # it may have been bidden farewell
                link.begin_burst(BURST_AT_ENDS)
            rundir.log_event(self._run, "agent_started", f"agent {link.name} samples {link.host}", agent=link.name)

    def _probe(self, link: Link, now_ns: int) -> None:
        if link.asked_ns is not None and now_ns - link.asked_ns > PROBE_LIMIT_NS:
            link.asked_ns = None  # the burst is given up
        if link.state == "ok" and not self.stopping and now_ns >= link.next_burst_ns:
            link.begin_burst(BURST)
        silent = now_ns - link.heard_ns > SILENT_NS
        if silent and link.state in ("ok", "starting"):
            link.state = "silent"
            text = f"agent {link.name} has said nothing for {SILENT_NS // SECOND_NS} s"
            rundir.log_event(self._run, "agent_silent", text, agent=link.name)
        elif not silent and link.state == "silent":
            link.state = "ok"
            rundir.log_event(self._run, "agent_back", f"agent {link.name} is heard again", agent=link.name)

    def _lost(self, link: Link, reason: str = "") -> None:
        self._selector.unregister(link.stdout)
        how = link.reap(GOODBYE_S)
        if link.state == "ended" and self.stopping:
            return
        link.state = reason or how
        text = f"agent {link.name} is lost, the run goes on without it: {link.state}"
        rundir.log_event(self._run, "agent_lost", text, agent=link.name, host=link.host)

    def _say(self, agents: dict[str, str]) -> None:
        if self._unsent or self._stdout < 0:
            return
        self._unsent = json.dumps(self._live.line(self._simulated, agents)).encode() + b"\n"
        self._selector.register(self._stdout, selectors.EVENT_WRITE, self._write_stdout)

    def _write_stdout(self) -> None:
        try:  # a pipe that is ready takes PIPE_BUF bytes without blocking
            self._unsent = self._unsent[os.write(self._stdout, self._unsent[: select.PIPE_BUF]) :]
        except OSError:
            self._unsent = b""
            self._selector.unregister(self._stdout)
            self._stdout = -1
            return
        if not self._unsent:
            self._selector.unregister(self._stdout)


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
