"""The agent: CONFIG on stdin, then frames on stdout until stdin closes, SIGTERM comes or the lifetime ends.

    main thread   signals, watchdog, lifetime          reader   stdin: pings are answered here
    writer        stdout                               samplers NVML or simulator, host, server metrics: one thread each

Every thread but main is a daemon: one that hangs in a driver call cannot keep the agent alive. Speaks CLOCK_MONOTONIC.
"""

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

from remote_agents.agent.host import HostSampler
from remote_agents.agent.outbox import Outbox
from remote_agents.agent.pace import SLOW_NS, Meter, Pace
from remote_agents.agent.protocol import BYE, CONFIG, HELLO, PING, Frame, ProtocolError, frames
from remote_agents.agent.sample import SCHEMA, TABLES

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main() -> None:
    received = frames(0)
    first = next(received, None)
    if first is None:
        return
    if first[1].kind != CONFIG:
        raise ProtocolError(f"the first frame is of kind {first[1].kind}, not CONFIG")
    config = first[1].body
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # here and in every thread: main waits for them
    frames_out = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not get between the frames
    os.nice(5)
    outbox = Outbox(frames_out, socket.gethostname(), _request_stop)
    meter = Meter()
    writer = _start(outbox.run)
    _start(_listen, received, outbox)
    announce = _announcer(outbox)
    gpus: Any = None
    gpu_thread: Optional[threading.Thread] = None
    if config["telemetry_url"]:
        from remote_agents.agent.simulated import poll

        announce(nvml={"state": "not used: the target is simulated"})
        _start(poll, config["telemetry_url"], outbox, meter, announce)
    else:
        from remote_agents.agent.gpu import GpuSampler  # loads pynvml: not when simulated

        announce(nvml={"state": "starting"})
        gpus = GpuSampler(config["gpus"], outbox, meter)
        gpu_thread = _start(gpus.run, announce)
    _start(_sample_host, outbox, meter)
    if config["metrics_url"]:
        from remote_agents.agent.server_metrics import scrape

        _start(scrape, config["metrics_url"], config["metrics_token"], outbox)

    _watch(outbox, gpus, config["max_lifetime_s"])

    if gpu_thread is not None:
        gpus.stopping = True
        gpu_thread.join(0.4)
    outbox.put(BYE, {})
    writer.join(0.3)
    os._exit(0)  # no finalisers: a thread may hang in the driver


def _watch(outbox: Outbox, gpus: Any, max_lifetime_s: Optional[float]) -> None:
    """Wait for a signal or the end of the lifetime; meanwhile report an NVML call that does not return."""
    start_ns = time.monotonic_ns()
    hung = False
    while signal.sigtimedwait(STOP_SIGNALS, 0.2) is None:
        now_ns = time.monotonic_ns()
        if max_lifetime_s is not None and now_ns - start_ns > max_lifetime_s * 1e9:
            outbox.event("agent_lifetime", f"the agent ends: its lifetime of {max_lifetime_s:g} s is over")
            return
        if gpus is not None and hung != gpus.hangs(now_ns):
            hung = not hung
            if hung:
                outbox.event("nvml_hang", f"NVML has not returned for more than {gpus.limit_ns // 1_000_000_000} s")
            else:
                outbox.event("nvml_back", "NVML has returned")


def _listen(received: Iterator[Tuple[int, Frame]], outbox: Outbox) -> None:
    try:
        for t1_ns, frame in received:
            if frame.kind == PING:
                outbox.pong(frame.body["id"], t1_ns)
            elif frame.kind == BYE:
                return
    except (OSError, ProtocolError) as error:
        sys.stderr.write(f"the agent ends: {error}\n")
    finally:
        _request_stop()


def _announcer(outbox: Outbox) -> Callable[..., None]:
    """A function that sends HELLO: what every HELLO of this agent says, and what it is called with."""
    common: Dict[str, Any] = {
        "schema": SCHEMA,
        "tables": {name: [column.name for column in columns] for name, columns in TABLES.items()},
        "agent_host": outbox.host,
        "boot_id": _boot_id(),
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


def _sample_host(outbox: Outbox, meter: Meter) -> None:
    sampler = HostSampler()
    pace = Pace(SLOW_NS)
    while True:
        pace.wait()
        outbox.sample("host", [sampler.row()])
        outbox.sample("agent", [meter.row(outbox.dropped)])


def _start(body: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=body, args=arguments, daemon=True)
    thread.start()
    return thread


def _request_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


if __name__ == "__main__":
    main()
