"""The thread that reads GPUs through NVML, and may hang in the driver without harm to the rest.

    gpu.py           when, and what is said of it: this file
    gpu_device.py    one GPU's rows                 gpu_facts.py   what it is          gpu_rate.py    how often
    gpu_source.py    what works, what is lacking    gpu_readings.py, gpu_errors.py     tables of calls and errors
    gpu_gpm.py, gpu_samples.py, gpu_events.py       GPM, the driver's buffers, XIDs (in a thread of their own)

Fast rows ten times a second, all others once. CLOCK_MONOTONIC ns of this host.
"""

import contextlib
import threading
import time
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Sequence, Tuple

import pynvml

from remote_agents.agent.gpu_device import Gpu, Rows
from remote_agents.agent.gpu_errors import NVML_ERRORS, UNREADABLE, fact
from remote_agents.agent.gpu_events import EventWatch
from remote_agents.agent.gpu_rate import Rate
from remote_agents.agent.outbox import Outbox
from remote_agents.agent.pace import FAST_NS, SLOW_NS, Meter, Pace
from remote_agents.agent.sample import TABLES

HANG_NS = 2_000_000_000
INIT_HANG_NS = 10_000_000_000  # without persistence mode the driver itself is started
GPM_MARGIN_NS = 5_000_000  # two ticks of GPM must not be closer than 100 ms, even if the first one comes late
STOP_CHECK_S = 0.1
EVENTS_END_S = 0.3

Table = Tuple[str, Callable[[Gpu], Rows]]
FAST: Table = ("gpu_fast", Gpu.fast)
SLOW: Tuple[Table, ...] = (
    ("gpu_slow", Gpu.slow),
    ("gpu_util", Gpu.utilisation),
    ("gpu_process", Gpu.processes),
)
_PID = [column.name for column in TABLES["gpu_process"]].index("pid")


class _Stopped(Exception):
    """The agent ends."""


class GpuSampler:
    """The NVML thread's body and what other threads need to know of it."""

    def __init__(
        self,
        wanted: Optional[Sequence[Any]],
        outbox: Outbox,
        meter: Meter,
        clock: Callable[[], int] = time.monotonic_ns,
        time_of_day: Callable[[], int] = time.time_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.stopping = False
        self.limit_ns = INIT_HANG_NS
        self.doing = ""  # which GPU's turn it is
        self.pids: FrozenSet[int] = frozenset()  # of processes that use the GPUs watched
        self._in_call_since_ns: Optional[int] = None
        self._wanted = wanted
        self._outbox = outbox
        self._meter = meter
        self._clock = clock
        self._time_of_day = time_of_day
        self._sleep = sleep
        self._nvml: Dict[str, Any] = {}
        self._whole: List[Gpu] = []
        self._gpus: List[Gpu] = []  # the watched ones: whole GPUs and MIG devices
        self._event_thread: Optional[threading.Thread] = None

    def hangs(self, now_ns: int) -> bool:
        """Whether the call under way has taken longer than it may; asked by another thread."""
        since_ns = self._in_call_since_ns
        return since_ns is not None and now_ns - since_ns > self.limit_ns

    def run(self, announce: Callable[..., None]) -> None:
        """Open NVML, `announce(nvml=…, gpus=…)` what is there, sample until `stopping`, shut NVML down."""
        self._enter("nvmlInit")
        try:
            pynvml.nvmlInit()
        except NVML_ERRORS as error:
            self._in_call_since_ns = None
            warnings = [f"GPU {name} cannot be watched: {error}" for name in self._wanted or []]
            self._warn(warnings)
            announce(nvml={"state": "absent", "reason": str(error)}, warnings=warnings)
            return
        try:
            self._open(announce)
            self._watch_events()
            self._sample(announce)
        except _Stopped:
            pass
        except NVML_ERRORS as error:
            self._outbox.event("gpu_thread_lost", f"GPUs are watched no more: {error}")
            if not self._nvml:
                announce(nvml={"state": "absent", "reason": str(error)})
        finally:
            self._in_call_since_ns = None  # whatever ended it: this is no hang
            self.pids = frozenset()
            self._close()

    def _open(self, announce: Callable[..., None]) -> None:
        """Find the GPUs, settle by one reading which ways are used, and announce."""
        warnings = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            self._enter(f"GPU {index}")
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                self._whole.append(Gpu(handle, self._outbox, self._clock, self._time_of_day))
            except UNREADABLE as error:
                warnings.append(f"GPU {index} cannot be opened: {error}")
        warnings += self._choose()
        self._warn(warnings)
        self.limit_ns = HANG_NS
        self._nvml = {
            "state": "ok",
            "driver": fact("nvmlSystemGetDriverVersion"),
            "version": fact("nvmlSystemGetNVMLVersion"),
            "call_us": self._gpus[0].call_us() if self._gpus else {},
        }
        announce(nvml=self._nvml, gpus=[gpu.facts() for gpu in self._gpus], warnings=warnings)
        self._in_call_since_ns = None

    def _choose(self) -> List[str]:
        """Fill the list of watched devices, and read new ones once; a warning for each wanted one that is not there."""
        warnings: List[str] = []
        there: List[Gpu] = []
        for gpu in self._whole:
            there.append(gpu)
            try:
                there += gpu.mig_devices()
            except UNREADABLE as error:
                warnings.append(f"the MIG devices of {gpu.name} cannot be opened: {error}")
        before = self._gpus
        self._gpus = [gpu for gpu in there if self._wanted is None or any(_is(gpu, name) for name in self._wanted)]
        for name in self._wanted or []:
            if not any(_is(gpu, name) for gpu in there):
                names = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in there) or "none"
                warnings.append(f"there is no GPU {name} on {self._outbox.host}: it has {names}")
        for gpu in self._gpus:
            if gpu not in before:
                self._enter(gpu.name)
                for _, read in (FAST, *SLOW):
                    read(gpu)
        return warnings

    def _watch_events(self) -> None:
        whole = [gpu for gpu in self._whole if any(gpu in (watched, watched.whole) for watched in self._gpus)]
        if whole:
            events = EventWatch(whole, self._outbox, lambda: self.stopping, self._clock)
            self._event_thread = threading.Thread(target=events.run, daemon=True)
            self._event_thread.start()

    def _sample(self, announce: Callable[..., None]) -> None:
        rate = Rate(FAST_NS + (GPM_MARGIN_NS if any(gpu.has_gpm for gpu in self._gpus) else 0))
        pace = self._paced(rate.period_ns)
        skipped = number = 0
        while self._gpus and not self.stopping:
            late_ns = pace.wait()
            is_slow = number % max(1, round(SLOW_NS / rate.period_ns)) == 0
            fast_ns, nvml_ns = self._tick((FAST, *SLOW) if is_slow else (FAST,))
            self._meter.tick(late_ns, skipped + pace.skipped, nvml_ns)
            if is_slow:
                self._follow_mig(announce)
            number += 1
            if rate.add(fast_ns, self._clock()):
                skipped += pace.skipped
                pace = self._paced(rate.period_ns)
                period_ms = rate.period_ns // 1_000_000
                text = (
                    f"GPUs are read every {period_ms} ms from now on: NVML took {fast_ns / 1e6:.1f} ms of the last turn"
                )
                self._outbox.event("gpu_rate", text, period_ms=period_ms)

    def _paced(self, period_ns: int) -> Pace:
        """Deadlines from now on; the first is a period ahead."""
        self._meter.period_ns = period_ns
        pace = Pace(period_ns, self._clock, self._sleep_unless_stopped)
        pace.wait()
        return pace

    def _sleep_unless_stopped(self, seconds: float) -> None:
        if self.stopping:
            raise _Stopped
        self._sleep(min(seconds, STOP_CHECK_S))  # not a lock's timeout: before Python 3.11 it follows the time of day

    def _tick(self, tables: Sequence[Table]) -> Tuple[int, int]:
        """Read and send; how long NVML took for the fast rows, and for all."""
        start_ns = self._clock()
        ends_ns = []
        found = []
        for name, read in tables:
            found.append((name, self._rows(read)))
            ends_ns.append(self._clock())
        for name, rows in found:
            self._outbox.sample(name, rows)
            if name == "gpu_process":
                self.pids = frozenset(row[_PID] for row in rows)
        return ends_ns[0] - start_ns, ends_ns[-1] - start_ns

    def _rows(self, read: Callable[[Gpu], Rows]) -> Rows:
        rows: Rows = []
        for gpu in self._gpus:
            self._enter(gpu.name)
            rows += read(gpu)
        self._in_call_since_ns = None
        return rows

    def _follow_mig(self, announce: Callable[..., None]) -> None:
        """When MIG is switched, its devices come or go."""
        self._enter("MIG modes")
        if [gpu for gpu in self._whole if gpu.mig_switched()]:  # all are asked
            for gpu in self._gpus:
                if gpu.whole is not None:
                    gpu.close()
            warnings = self._choose()
            self._warn(warnings)
            announce(nvml=self._nvml, gpus=[gpu.facts() for gpu in self._gpus], warnings=warnings)
        self._in_call_since_ns = None

    def _close(self) -> None:
        """In this order, and not at all while a thread of ours is in the driver: it must not find NVML shut."""
        self.stopping = True  # for the thread of the events, whatever has ended this one
        if self._event_thread is not None:
            self._event_thread.join(EVENTS_END_S)
            if self._event_thread.is_alive():
                return
        for gpu in {*self._whole, *self._gpus}:
            gpu.close()
        with contextlib.suppress(*NVML_ERRORS):
            pynvml.nvmlShutdown()

    def _enter(self, what: str) -> None:
        self.doing = what
        self._in_call_since_ns = self._clock()

    def _warn(self, warnings: Sequence[str]) -> None:
        for warning in warnings:
            self._outbox.event("gpu_missing", warning)


def _is(gpu: Gpu, name: Any) -> bool:
    """Whether a GPU is meant by an index (a number or digits) or a UUID; MIG devices are meant with their GPU."""
    return str(name) in (str(gpu.index), gpu.uuid, gpu.whole.uuid if gpu.whole else gpu.uuid)
