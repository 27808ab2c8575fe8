"""A client under measurement: a process on its core, and the CPU time that it and its children take.

CPU time is read from /proc/PID/stat (user and system, all threads) twice a second; the kernel counts it in ticks of
10 ms, which is 0.1 % of a window of ten seconds. Times are CLOCK_REALTIME ns, as the reference server's log has them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

_PERIOD_S = 0.5
_TICKS = os.sysconf("SC_CLK_TCK")
_GRACE_S = 10.0


class Client:
    """A running client; at the end of the `with` block it and its descendants are gone."""

    def __init__(
        self,
        command: Sequence[str | Path],
        core: int,
        output: Path,
        *,
        env: Mapping[str, str] | None = None,
        elsewhere: Callable[[str], int | None] = lambda _: None,
    ) -> None:
        """Starts it on `core`; its output goes to a file. `elsewhere` may name another core by a command line."""
        self._elsewhere = elsewhere
        self._cpu: dict[int, list[tuple[int, float]]] = {}
        self._lines: dict[int, str] = {}
        self._ended = threading.Event()
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                ["taskset", "--cpu-list", str(core), *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._output = output
        self._watch = threading.Thread(target=self._follow)
        self._watch.start()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watch.join()
        family = set(self._family())  # once: a parent that is gone no longer says who its children were
        deadline = time.monotonic() + _GRACE_S
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in family:
                _kill(pid, number)
            while family and (number is signal.SIGKILL or time.monotonic() < deadline):
                self._process.poll()
                family &= set(dict(_stats()))
                time.sleep(0.02)

    def wait(self, seconds: float) -> str:
        """Its output, once it has ended by itself. Raises RuntimeError when it failed, or did not end."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{self._command()} did not end within {seconds:g} s: {self._tail()}") from None
        if code:
            raise RuntimeError(f"{self._command()} failed (exit status {code}): {self._tail()}")
        return self._output.read_text(errors="replace")

    def cpu_s(self, begin_ns: int, end_ns: int, of: Callable[[str], bool] = lambda _: True) -> float:
        """CPU time of the processes whose command line `of` accepts, between two instants."""
        return sum(
            _between(series, begin_ns, end_ns) for pid, series in self._cpu.items() if of(self._lines.get(pid, ""))
        )

    def _command(self) -> str:
        return " ".join(map(str, self._process.args))[:80] if isinstance(self._process.args, list) else ""

    def _tail(self) -> str:
        return self._output.read_text(errors="replace")[-2000:]

    def _follow(self) -> None:
        while not self._ended.wait(_PERIOD_S):
            for pid, cpu_s in self._family().items():
                self._cpu.setdefault(pid, []).append((time.time_ns(), cpu_s))
                try:
                    self._name_and_place(pid)
                except OSError:
                    pass  # it ended meanwhile

    def _name_and_place(self, pid: int) -> None:
        """Again and again: between its fork and its exec a child has its parent's command line; a zombie has none."""
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        if line and line != self._lines.get(pid):
            self._lines[pid] = line
            core = self._elsewhere(line)
            if core is not None:
                for task in Path(f"/proc/{pid}/task").iterdir():
                    os.sched_setaffinity(int(task.name), {core})

    def _family(self) -> dict[int, float]:
        """CPU seconds of the process and of its living descendants."""
        stats = dict(_stats())
        children: dict[int, list[int]] = {}
        for pid, (parent, _) in stats.items():
            children.setdefault(parent, []).append(pid)
        family, waiting = {}, [self.pid]
        while waiting:
            pid = waiting.pop()
            if pid in stats:
                family[pid] = stats[pid][1]
                waiting += children.get(pid, [])
        return family


def _stats() -> Iterable[tuple[int, tuple[int, float]]]:
    """Pid, parent and CPU seconds of every process."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(") ")[2].split()
            except OSError:
                continue
            yield int(folder.name), (int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICKS)


def _between(series: Sequence[tuple[int, float]], begin_ns: int, end_ns: int) -> float:
    times, values = zip(*series, strict=True)
    first, last = np.interp([begin_ns, end_ns], times, values)
    return float(last - first)


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
