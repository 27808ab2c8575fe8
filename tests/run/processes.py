"""A run as a real process, and what it leaves behind: for tests that kill its parts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Run:
    """`loadgen run …` under `runs`; its processes are found by an environment variable that they inherit."""

    def __init__(
        self, loadgen: str, runs: Path, arguments: Sequence[str], env: dict[str, str] | None, scenario: str
    ) -> None:
        self.runs = runs
        self._mark = f"LOAD_TEST_MARK={runs}"
        runs.mkdir(parents=True, exist_ok=True)
        self._output = (runs / "output").open("wb")
        self.process = subprocess.Popen(
            [loadgen, "run", scenario, "--runs-dir", str(runs), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(env or {}), "LOAD_TEST_MARK": str(runs)},
        )

    @property
    def output(self) -> str:
        return (self.runs / "output").read_text()

    @property
    def directory(self) -> Path:
        return (self.runs / "latest").resolve()

    @property
    def manifest(self) -> dict[str, Any]:
        return dict(json.loads((self.directory / "run.json").read_text()))

    def lines(self, name: str) -> list[dict[str, Any]]:
        path = self.directory / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def processes(self) -> dict[int, str]:
        """Pid and command line of every living process of this run."""
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                try:
                    if self._mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                        found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                except OSError:
                    continue
        return found

    def pid_of(self, *words: str) -> int:
        return next(pid for pid, line in self.processes().items() if all(word in line for word in words))

    def listening(self) -> set[tuple[str, int]]:
        """Addresses (as the kernel writes them, in hex) and ports where the run's processes listen."""
        inodes = set()
        for pid in self.processes():
            try:
                for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                    inodes.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue
        ports = set()
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes:
                    address, port = fields[1].split(":")
                    ports.add((address, int(port, 16)))
        return ports

    def wait_for(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """Seconds until `condition` held."""
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < seconds, f"{what}: not within {seconds} s\n{self.output}"
            time.sleep(0.1)
        return time.monotonic() - started

    def wait_for_hold(self, step: int = 0) -> None:
        """Until a step's hold has lasted for a second and a half."""

        def begun() -> bool:
            assert self.process.poll() is None, self.output
            return (self.runs / "latest").exists() and any(
                line["step"] == step and line["what"] == "begin" for line in self.lines("steps.jsonl")
            )

        self.wait_for(begun, 40, f"step {step}")
        time.sleep(1.5)

    def end(self, seconds: float) -> int:
        code = self.process.wait(timeout=seconds)
        self._output.close()
        return code

    def kill_all(self) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._output.close()


@contextmanager
def running(
    loadgen: str, runs: Path, *arguments: str, env: dict[str, str] | None = None, scenario: str = "chat"
) -> Iterator[Run]:
    """A run that is surely gone at the end."""
    run = Run(loadgen, runs, arguments, env, scenario)
    try:
        yield run
    finally:
        run.kill_all()
