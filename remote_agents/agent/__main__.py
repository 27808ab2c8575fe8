"""The agent: START on stdin, then frames on stdout until its link or lease, its lifetime or a signal ends it.

    main thread   signals, links, watchdog, lifetime   link      two threads for each link to the collector (link.py)
    samplers      NVML or simulator, /proc, server metrics, dcgm-exporter: one thread each

Attached, it ends when its stdin does. With a lease it outlives a link that breaks, and is handed the next (lease.py);
the lease begins when the collector is first heard: what it never knew of does not stay behind.
Every thread but main is a daemon: one that hangs in a driver call cannot keep the agent alive. Speaks CLOCK_MONOTONIC.
"""

import contextlib
import ctypes
import os
import resource
import secrets
import select
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, Optional

from remote_agents.agent import lease
from remote_agents.agent.host import HostSampler
from remote_agents.agent.kernel_clock import boot_id, kernel_clock, suspended_ns
from remote_agents.agent.link import SILENT, STOPPED, Link
from remote_agents.agent.outbox import Outbox
from remote_agents.agent.pace import SLOW_NS, Meter, Pace
from remote_agents.agent.process import ProcessSampler
from remote_agents.agent.protocol import BYE, HELLO, read_start
from remote_agents.agent.sample import SCHEMA, TABLES

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ATTACHED_SILENT_NS = 30_000_000_000
LEASED_SILENT_NS = 10_000_000_000
_TURN_S = 0.2


def main(archive: Optional[str] = None) -> None:
    """`archive` is the file that this was started from, if any: it goes with the agent."""
    start = read_start(0)
    if start is None:
        _remove(archive)
        return
    listening = None
    if start["lease_s"]:
        listening, holder, is_new = lease.enter(start["token"])
        if holder is not None:
            if not is_new:
                _remove(archive)  # the agent that is there has its own
            lease.hand_over(holder, start["token"], start["agent"], start["received"])
            return
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # here and in every thread: main waits for them
    agent = Agent(start, listening)
    in_order = False
    try:
        in_order = agent.run()
    except Exception as error:  # whatever it is, the collector hears of it
        agent.say_error(error)
        traceback.print_exc()
    finally:
        agent.end(in_order)
        _remove(archive)
        os._exit(0 if in_order else 1)  # no finalisers: a thread may hang in the driver


class Agent:
    """What samples, and the links that it is sent over."""

    def __init__(self, start: Dict[str, Any], listening: Optional[socket.socket]) -> None:
        self._start = start
        self._listening = listening
        self._id = secrets.token_hex(8)
        self._outbox = Outbox(start["name"])
        self._meter = Meter()
        self._link: Optional[Link] = None
        self._holder: Optional[socket.socket] = None
        self._began_ns = time.monotonic_ns()
        self._is_known = False  # the collector was heard, over any link
        self._gpus: Any = None
        self._gpu_thread: Optional[threading.Thread] = None
        self._hung = False
        self._print_error = threading.excepthook

    def run(self) -> bool:
        """Sample until a signal, the end of the link or of the lease, or of the lifetime; whether that was in order."""
        _be_modest()
        threading.excepthook = self._thread_ended
        if self._listening is None:
            self._attach_standard_streams()
        self._sample()
        _give_memory_back()
        lifetime_s = self._start["max_lifetime_s"]
        end_ns = None if lifetime_s is None else time.monotonic_ns() + int(lifetime_s * 1e9)
        while signal.sigtimedwait(STOP_SIGNALS, 0 if self._listening else _TURN_S) is None:
            if self._listening and select.select([self._listening], [], [], _TURN_S)[0]:
                self._take_over(self._listening)
            now_ns = time.monotonic_ns()
            self._watch_nvml(now_ns)
            if end_ns is not None and now_ns > end_ns:
                self._outbox.event("agent_lifetime", f"the agent ends: its lifetime of {lifetime_s:g} s is over")
                return True
            if self._is_left(now_ns):
                return self._link is None or self._link.end != SILENT
        return True

    def end(self, in_order: bool) -> None:
        """Shut NVML down, send what waits, say goodbye if all is in order; takes a second at most."""
        if self._gpu_thread is not None:
            self._gpus.stopping = True
            self._gpu_thread.join(0.4)
        self._outbox.flush()
        if in_order:
            self._outbox.put(BYE, {})
        if self._link is not None:
            self._link.flush(self._outbox.last, 0.3)

    def _is_left(self, now_ns: int) -> bool:
        """Whether the collector has gone for good. A link that is no more is let go of."""
        link = self._link
        if link is None:  # whoever made this agent did not come back with a link
            return now_ns - self._began_ns > LEASED_SILENT_NS
        self._is_known |= link.is_heard
        if link.end is None:
            return False
        if link.end == SILENT and (self._listening is None or self._holder is not None):
            self._outbox.event("link_silent", "nothing was heard of the collector: the link is given up")
        if self._listening is None or link.end == STOPPED or not self._is_known:
            return True
        if self._holder is not None:
            link.close()
            self._holder.close()
            self._holder = None
        return bool(now_ns - link.heard_ns > self._start["lease_s"] * 1e9)

    def _attach_standard_streams(self) -> None:
        frames_out = os.dup(1)
        os.dup2(2, 1)  # what a library prints must not get between the frames
        self._link = Link(self._outbox, 0, frames_out, 0, ATTACHED_SILENT_NS)
        self._link.open(self._id)

    def _take_over(self, listening: socket.socket) -> None:
        handed = lease.accept(listening, self._start["token"])
        if handed is None:
            return
        if self._link is not None and self._holder is not None:
            self._link.close()
            self._holder.close()
        self._holder = handed.holder
        received = handed.received if handed.agent == self._id else 0  # numbers are of one agent
        self._link = Link(self._outbox, handed.reads, handed.writes, received, LEASED_SILENT_NS)
        self._link.open(self._id)

    def _sample(self) -> None:
        start, outbox = self._start, self._outbox
        announce = _announcer(outbox)
        if start["telemetry_url"]:
            from remote_agents.agent.simulated import poll

            announce(nvml={"state": "not used: the target is simulated"})
            _start(poll, start["telemetry_url"], outbox, self._meter, announce)
        else:
            from remote_agents.agent.gpu import GpuSampler  # loads pynvml: not when simulated

            announce(nvml={"state": "starting"})
            self._gpus = GpuSampler(start["gpus"], outbox, self._meter)
            self._gpu_thread = _start(self._gpus.run, announce)
        _start(self._sample_host)
        if start["metrics_url"]:
            from remote_agents.agent.server_metrics import scrape

            _start(scrape, start["metrics_url"], start["metrics_token"], start["metrics_map"] or [], outbox)
        if start["dcgm_url"]:
            from remote_agents.agent.dcgm import scrape as scrape_dcgm

            _start(scrape_dcgm, start["dcgm_url"], outbox)

    def _sample_host(self) -> None:
        host = HostSampler()
        processes = ProcessSampler(
            self._start["server_port"], lambda: self._gpus.pids if self._gpus else frozenset(), self._outbox
        )
        pace = Pace(SLOW_NS)
        while True:
            pace.wait()
            self._outbox.sample("host", [host.row()])
            self._outbox.sample("process", processes.rows())
            self._outbox.sample(
                "agent", [self._meter.row(self._outbox.spool_b, self._outbox.dropped, *kernel_clock(), suspended_ns())]
            )
            self._outbox.flush()

    def _watch_nvml(self, now_ns: int) -> None:
        """Report an NVML call that does not return."""
        if self._gpus is None or self._hung == self._gpus.hangs(now_ns):
            return
        self._hung = not self._hung
        if self._hung:
            seconds = self._gpus.limit_ns // 1_000_000_000
            self._outbox.event("nvml_hang", f"NVML has not returned from {self._gpus.doing} for more than {seconds} s")
        else:
            self._outbox.event("nvml_back", "NVML has returned")

    def say_error(self, error: BaseException) -> None:
        self._outbox.event("agent_error", f"a part of the agent has ended: {type(error).__name__}: {error}")

    def _thread_ended(self, ended: Any) -> None:
        self.say_error(ended.exc_value)
        self._print_error(ended)


def _be_modest() -> None:
    """The server comes first: less CPU for us, and our memory before its."""
    with contextlib.suppress(OSError):  # a sandbox may forbid any of it
        os.nice(5)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _announcer(outbox: Outbox) -> Callable[..., None]:
    """A function that sends HELLO: what every HELLO of this agent says, and what it is called with."""
    common: Dict[str, Any] = {
        "schema": SCHEMA,
        "tables": {name: [column.name for column in columns] for name, columns in TABLES.items()},
        "agent_host": outbox.host,
        "hostname": socket.gethostname(),
        "boot_id": boot_id(),
        "pid": os.getpid(),
        "python": sys.version.split()[0],
        "cpus": os.cpu_count(),
        "ticks_per_s": os.sysconf("SC_CLK_TCK"),
        "host": outbox.host,
        "simulated": False,
        "gpus": [],
        "warnings": [],
    }

    def announce(**facts: Any) -> None:
        clocks = {"realtime_ns": time.time_ns(), "monotonic_ns": time.monotonic_ns()}
        outbox.put(HELLO, {**common, **clocks, **facts})

    return announce


def _remove(archive: Optional[str]) -> None:
    if archive is not None:
        with contextlib.suppress(OSError):
            Path(archive).unlink()


def _give_memory_back() -> None:
    """Compiling our modules and pynvml took 12 MB that glibc would keep."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _start(body: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=body, args=arguments, daemon=True)
    thread.start()
    return thread


if __name__ == "__main__":
    main()
