"""One GPU, or one MIG device of it: its handle, its rows, and whether it is lost.

A lost GPU is left alone for 5 s at a time, and found again by its UUID: its index may be another one then, and rows are
keyed by UUID. Of a MIG device NVML knows the memory, the processes and, through the GPU, GPM; power, energy, clocks and
load are in rows of the whole GPU. CLOCK_MONOTONIC ns of this host.
"""

import time
from functools import partial
from typing import Any, Callable, Dict, List, Optional

import pynvml

from remote_agents.agent import gpu_facts
from remote_agents.agent.gpu_errors import LOST, NVML_ERRORS, UNREADABLE, fact
from remote_agents.agent.gpu_gpm import GPM_COLUMNS, Gpm
from remote_agents.agent.gpu_readings import (
    FAST,
    MIG_FAST,
    PROCESSES,
    SLOW,
    Call,
    Handle,
    Reading,
    Value,
    columns_of,
    read_fields,
)
from remote_agents.agent.gpu_samples import Utilisation
from remote_agents.agent.gpu_source import Lacks, Row, Source
from remote_agents.agent.outbox import Outbox

RETRY_LOST_NS = 5_000_000_000
CALIBRATION_CALLS = 100
CALIBRATION_NS = 20_000_000  # for one way: a slow one is called less often
_ENERGY = columns_of(FAST).index("energy_mj")

Rows = List[List[Any]]


class Gpu:
    """`whole` is the GPU that a MIG device is a part of."""

    def __init__(
        self,
        handle: Handle,
        outbox: Outbox,
        clock: Callable[[], int] = time.monotonic_ns,
        time_of_day: Callable[[], int] = time.time_ns,
        whole: "Optional[Gpu]" = None,
    ) -> None:
        self.handle = handle
        self.uuid = str(pynvml.nvmlDeviceGetUUID(handle))
        self.index: int = whole.index if whole else pynvml.nvmlDeviceGetIndex(handle)
        self.gi_id: Optional[int] = pynvml.nvmlDeviceGetGpuInstanceId(handle) if whole else None
        self.name = f"MIG device {self.uuid} of GPU {self.index}" if whole else f"GPU {self.index}"
        self.whole = whole
        self._outbox = outbox
        self._clock = clock
        self._time_of_day = time_of_day
        self._lacks = Lacks(outbox, self.name, self.uuid, self.index)
        self._fast = Row(MIG_FAST if whole else FAST, self._lacks)
        self._slow = Row(SLOW, self._lacks)
        self._gpm = Gpm(self.gi_id, clock)
        self._gpm_source = Source(Reading(GPM_COLUMNS, (Call("GPM (Hopper and later)", self._gpm.read),)), self._lacks)
        self._utilisation = Utilisation(self._lacks, clock, time_of_day)
        self._processes = Source(PROCESSES, self._lacks)
        self._energy_mj = 0
        self._mig_mode = None if whole else gpu_facts.mig_mode(handle)
        self._lost_until_ns: Optional[int] = None

    @property
    def has_gpm(self) -> bool:
        return self._gpm_source.used is not None

    def fast(self) -> Rows:
        """Its row of `gpu_fast`. This and what follows: no rows while it is lost."""
        return self._unless_lost(self._fast_rows)

    def slow(self) -> Rows:
        return [] if self.whole else self._unless_lost(self._slow_rows)

    def utilisation(self) -> Rows:
        """What is new for `gpu_util`."""
        return [] if self.whole else self._unless_lost(self._utilisation_rows)

    def processes(self) -> Rows:
        """Rows of `gpu_process`; with MIG on, the MIG devices tell."""
        return [] if self._mig_mode else self._unless_lost(self._process_rows)

    def mig_devices(self) -> "List[Gpu]":
        count = fact("nvmlDeviceGetMaxMigDeviceCount", self.handle) if self._mig_mode else None
        handles = (fact("nvmlDeviceGetMigDeviceHandleByIndex", self.handle, number) for number in range(count or 0))
        return [
            Gpu(handle, self._outbox, self._clock, self._time_of_day, self) for handle in handles if handle is not None
        ]

    def mig_switched(self) -> bool:
        """Whether MIG is not what it was, which is said."""
        if self._mig_mode is None or self._lost_until_ns is not None:
            return False
        mode = gpu_facts.mig_mode(self.handle)
        if mode is None or mode == self._mig_mode:
            return False
        self._mig_mode = mode
        self._lacks.event("mig_change", f"MIG of {self.name} was switched {'on' if mode else 'off'}", code=mode)
        return True

    def facts(self) -> Dict[str, Any]:
        """What HELLO says of it, once its rows have been read."""
        known = gpu_facts.facts(self.handle)
        power = next(source.used for source in self._fast.sources if source.reading.columns == ("power_mw",))
        elsewhere = columns_of([source.reading for source in self._fast.sources if not source.reading.ways])
        return {
            "index": self.index,
            "uuid": self.uuid,
            "gi_id": self.gi_id,
            "whole_uuid": self.whole and self.whole.uuid,
            **known,
            "power_means": gpu_facts.power_means(power and power.name, known),
            "fallbacks": [
                source.used.name
                for source in self._sources()
                if source.used is not None and source.used is not source.reading.ways[0]
            ],
            "absent": {**dict.fromkeys(elsewhere, "known of the whole GPU only"), **self._lacks.absent},
        }

    def call_us(self) -> Dict[str, Dict[str, int]]:
        """How long each way in use takes."""
        calls: Dict[str, Callable[[], Any]] = {}
        for source in self._sources():
            if isinstance(source.used, Call):
                calls[source.used.name] = partial(source.used.read, self.handle)
        for row in (self._fast, self._slow):
            fields = row.fields(self._clock())
            if fields:
                calls["fields " + ", ".join(str(field.id) for field in fields)] = partial(
                    read_fields, self.handle, fields
                )
        if self.has_gpm:
            calls["nvmlGpmSampleGet"] = partial(self._gpm.take, self._gpm_handle)
        return {name: _cost_us(call, self._clock) for name, call in calls.items()}

    def close(self) -> None:
        self._gpm.close()

    @property
    def _gpm_handle(self) -> Handle:
        return (self.whole or self).handle

    def _sources(self) -> List[Source]:
        return [*self._fast.sources, *self._slow.sources, self._processes, *self._utilisation.sources]

    def _keyed(self, t0_ns: int, t1_ns: int, values: List[Value]) -> List[Any]:
        return [t0_ns, t1_ns, self.uuid, self.index, self.gi_id, *values]

    def _fast_rows(self, t0_ns: int) -> Rows:
        gpm = self._gpm_source.values(self._gpm_handle, t0_ns, {})  # first: t0 is the end of its window
        values = self._fast.values(self.handle, t0_ns)
        energy_mj = values[_ENERGY]
        if energy_mj is not None:
            if energy_mj < self._energy_mj:
                self._lacks.event(
                    "counter_reset",
                    f"the energy counter of {self.name} went back from {self._energy_mj} to {energy_mj} mJ: "
                    "its driver was loaded anew",
                    column="energy_mj",
                )
            self._energy_mj = int(energy_mj)
        return [self._keyed(t0_ns, self._clock(), values + gpm)]

    def _slow_rows(self, t0_ns: int) -> Rows:
        values = self._slow.values(self.handle, t0_ns)
        return [self._keyed(t0_ns, self._clock(), values)]

    def _utilisation_rows(self, now_ns: int) -> Rows:
        return [
            self._keyed(t0_ns, t1_ns, values) for t0_ns, t1_ns, *values in self._utilisation.rows(self.handle, now_ns)
        ]

    def _process_rows(self, t0_ns: int) -> Rows:
        found = self._processes.attempt(self.handle, t0_ns, {}) or []
        t1_ns = self._clock()
        return [self._keyed(t0_ns, t1_ns, [pid, used_b]) for pid, used_b in found]

    def _unless_lost(self, read: Callable[[int], Rows]) -> Rows:
        now_ns = self._clock()
        if self._lost_until_ns is not None and not self._found_again(now_ns):
            return []
        try:
            rows = read(now_ns)
        except LOST as error:
            if self._lost_until_ns is None:
                kind = "gpu_lost" if isinstance(error, pynvml.NVMLError_GpuIsLost) else "gpu_reset_required"
                self._lacks.event(kind, f"{self.name} is left out: {error}")
            self._lost_until_ns = now_ns + RETRY_LOST_NS
            return []
        if self._lost_until_ns is not None:
            self._lost_until_ns = None
            self._lacks.event("gpu_back", f"{self.name} answers again")
        return rows

    def _found_again(self, now_ns: int) -> bool:
        if self._lost_until_ns is None or now_ns < self._lost_until_ns:
            return False
        try:
            self.handle = pynvml.nvmlDeviceGetHandleByUUID(self.uuid.encode())
        except NVML_ERRORS:
            self._lost_until_ns = now_ns + RETRY_LOST_NS
            return False
        self._gpm.forget()
        return True


def _cost_us(call: Callable[[], Any], clock: Callable[[], int]) -> Dict[str, int]:
    times_us: List[int] = []
    first_ns = end_ns = clock()
    while len(times_us) < CALIBRATION_CALLS and end_ns - first_ns < CALIBRATION_NS:
        start_ns = end_ns
        try:
            call()
        except UNREADABLE:
            pass  # an error takes its time too
        end_ns = clock()
        times_us.append((end_ns - start_ns) // 1000)
    times_us.sort()
    return {"p50": times_us[len(times_us) // 2], "p99": times_us[-1 - len(times_us) // 100], "max": times_us[-1]}
