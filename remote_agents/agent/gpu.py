"""GPU rows through NVML, ten times and once a second, in a thread of its own that may hang without harm to the rest.

A column that a GPU does not have is None, marked absent once with the reason, and tried again every minute. Where a
value can be read in several ways, the way that worked first stays for the run: two ways may be two quantities. A lost
GPU is left alone, and found again by UUID. CLOCK_MONOTONIC ns of this host.
"""

import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import pynvml

from remote_agents.agent.outbox import Outbox
from remote_agents.agent.pace import FAST_NS, SLOW_EVERY, Meter, Pace

RETRY_ABSENT_NS = 60_000_000_000
RETRY_LOST_NS = 5_000_000_000
CALIBRATION_CALLS = 10
HANG_NS = 2_000_000_000
NOT_AVAILABLE = 1 << 63  # NVML has all bits set where it has no value, and a column is a signed integer
INIT_HANG_NS = 10_000_000_000  # without persistence mode the driver itself is started

# NVMLLibraryMismatchError is no NVMLError.
NVML_ERRORS = (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError)
_NEVER = (  # this GPU, driver or user will not have it
    pynvml.NVMLError_NotSupported,
    pynvml.NVMLError_NoPermission,
    pynvml.NVMLError_FunctionNotFound,
    pynvml.NVMLError_ArgumentVersionMismatch,
    pynvml.NVMLLibraryMismatchError,
)
_LOST = (pynvml.NVMLError_GpuIsLost, pynvml.NVMLError_ResetRequired)
_VALUE = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by NVML_VALUE_TYPE_*


class Way(NamedTuple):
    """One way to read some columns; a value may be an NVMLError, which makes that column absent."""

    name: str
    read: Callable[[Any], Sequence[Any]]


class Reading(NamedTuple):
    columns: Tuple[str, ...]
    ways: Tuple[Way, ...]


def _memory_v2(handle: Any) -> Sequence[Any]:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    return memory.total, memory.used, memory.reserved, 2


def _memory_v1(handle: Any) -> Sequence[Any]:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return memory.total, memory.used, None, 1


def _fields(handle: Any, ids: Sequence[int]) -> Sequence[Any]:
    return [
        pynvml.NVMLError(field.nvmlReturn) if field.nvmlReturn else getattr(field.value, _VALUE[field.valueType])
        for field in pynvml.nvmlDeviceGetFieldValues(handle, ids)
    ]


def _one(name: str, *arguments: Any) -> Way:
    """A pynvml function with one result, looked up when called: an old pynvml may lack it."""
    return Way(name, lambda handle: (getattr(pynvml, name)(handle, *arguments),))


FAST = (
    Reading(
        ("util_pct",),
        (Way("nvmlDeviceGetUtilizationRates", lambda handle: (pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,)),),
    ),
    Reading(
        ("mem_total_b", "mem_used_b", "mem_reserved_b", "mem_version"),
        (Way("nvmlDeviceGetMemoryInfo_v2", _memory_v2), Way("nvmlDeviceGetMemoryInfo", _memory_v1)),
    ),
    Reading(("power_mw",), (Way("field 186", lambda handle: _fields(handle, [186])), _one("nvmlDeviceGetPowerUsage"))),
    Reading(("energy_mj",), (_one("nvmlDeviceGetTotalEnergyConsumption"),)),
)
SLOW = (
    Reading(("power_limit_mw",), (_one("nvmlDeviceGetEnforcedPowerLimit"),)),
    Reading(("sm_mhz",), (_one("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM),)),
    Reading(("mem_mhz",), (_one("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_MEM),)),
    Reading(
        ("temp_c",),
        (
            _one("nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
            _one("nvmlDeviceGetTemperatureV", pynvml.NVML_TEMPERATURE_GPU),
        ),
    ),
    Reading(
        ("clk_event_mask",),
        (_one("nvmlDeviceGetCurrentClocksEventReasons"), _one("nvmlDeviceGetCurrentClocksThrottleReasons")),
    ),
    Reading(
        ("thr_sw_power_ns", "thr_sw_therm_ns", "thr_hw_therm_ns", "thr_hw_brake_ns"),
        (Way("fields 74, 269, 270, 271", lambda handle: _fields(handle, [74, 269, 270, 271])),),
    ),
)


class Gpu:
    """One GPU: its handle, the ways that work for it, what it lacks and whether it is lost."""

    def __init__(self, handle: Any, outbox: Outbox) -> None:
        self.uuid = str(pynvml.nvmlDeviceGetUUID(handle))
        self.index = int(pynvml.nvmlDeviceGetIndex(handle))
        self.absent: Dict[str, str] = {}
        self._handle = handle
        self._outbox = outbox
        self._ways: Dict[Reading, Way] = {}
        self._retry_ns: Dict[Reading, int] = {}
        self._lost_until_ns: Optional[int] = None
        self._passing: Dict[str, str] = {}

    def row(self, readings: Sequence[Reading]) -> Optional[List[Any]]:
        """A row in column order, or None while the GPU is lost."""
        t0_ns = time.monotonic_ns()
        if self._lost_until_ns is not None and not self._found_again(t0_ns):
            return None
        values: List[Any] = []
        try:
            for reading in readings:
                values += self._read(reading, t0_ns)
        except _LOST as error:
            if self._lost_until_ns is None:
                kind = "gpu_lost" if isinstance(error, pynvml.NVMLError_GpuIsLost) else "gpu_reset_required"
                self._event(kind, f"GPU {self.index} is left out: {error}")
            self._lost_until_ns = t0_ns + RETRY_LOST_NS
            return None
        if self._lost_until_ns is not None:
            self._lost_until_ns = None
            self._event("gpu_back", f"GPU {self.index} answers again")
        return [t0_ns, time.monotonic_ns(), self.uuid, self.index, *values]

    def facts(self) -> Dict[str, Any]:
        """What HELLO says of it."""
        used = [way.name for reading, way in self._ways.items() if way is not reading.ways[0]]
        return {
            "index": self.index,
            "uuid": self.uuid,
            "name": _fact(pynvml.nvmlDeviceGetName, self._handle),
            "mem_total_b": getattr(_fact(pynvml.nvmlDeviceGetMemoryInfo, self._handle), "total", None),
            "mem_bus_bits": _fact(pynvml.nvmlDeviceGetMemoryBusWidth, self._handle),
            "mem_max_mhz": _fact(pynvml.nvmlDeviceGetMaxClockInfo, self._handle, pynvml.NVML_CLOCK_MEM),
            "persistence_mode": _fact(pynvml.nvmlDeviceGetPersistenceMode, self._handle),
            "fallbacks": used,
            "absent": dict(self.absent),
        }

    def call_us(self) -> Dict[str, Dict[str, int]]:
        """How long each way in use takes: the median and the worst of a few calls."""
        costs = {}
        for way in self._ways.values():
            times = []
            for _ in range(CALIBRATION_CALLS):
                start_ns = time.monotonic_ns()
                _fact(way.read, self._handle)
                times.append((time.monotonic_ns() - start_ns) // 1000)
            costs[way.name] = {"p50": sorted(times)[len(times) // 2], "max": max(times)}
        return costs

    def _read(self, reading: Reading, now_ns: int) -> List[Any]:
        missing: List[Any] = [None] * len(reading.columns)
        if now_ns < self._retry_ns.get(reading, 0):
            return missing
        used = self._ways.get(reading)
        reason = ""
        for way in (used,) if used else reading.ways:
            try:
                values = list(way.read(self._handle))
                if len(values) == 1 and isinstance(values[0], pynvml.NVMLError):
                    raise values[0]
            except _LOST:
                raise
            except _NEVER as error:
                reason = reason or f"{way.name}: {error}"
                continue
            except pynvml.NVMLError as error:
                self._mark(self._passing, "nvml_error", reading.columns[0], f"{way.name}: {error}")
                return missing
            self._ways[reading] = way
            for number, value in enumerate(values):
                if isinstance(value, pynvml.NVMLError) or (value is not None and value >= NOT_AVAILABLE):
                    self._mark(self.absent, "gpu_absent", reading.columns[number], f"{way.name}: {value}")
                    values[number] = None
            return values
        self._retry_ns[reading] = now_ns + RETRY_ABSENT_NS
        for column in reading.columns:
            self._mark(self.absent, "gpu_absent", column, reason)
        return missing

    def _found_again(self, now_ns: int) -> bool:
        if self._lost_until_ns is None or now_ns < self._lost_until_ns:
            return False
        try:
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(self.uuid.encode())
        except NVML_ERRORS:
            self._lost_until_ns = now_ns + RETRY_LOST_NS
            return False
        return True

    def _mark(self, marks: Dict[str, str], kind: str, column: str, reason: str) -> None:
        if column not in marks:
            marks[column] = reason
            self._event(kind, f"GPU {self.index} has no {column}: {reason}", column=column)

    def _event(self, kind: str, text: str, **facts: Any) -> None:
        self._outbox.event(kind, text, gpu_uuid=self.uuid, gpu_index=self.index, **facts)


class GpuSampler:
    """The NVML thread's body and what the watchdog needs to know of it."""

    def __init__(self, wanted: Optional[Sequence[Any]], outbox: Outbox, meter: Meter) -> None:
        self.stopping = False
        self.limit_ns = INIT_HANG_NS
        self._in_call_since_ns: Optional[int] = None
        self._wanted = wanted
        self._outbox = outbox
        self._meter = meter

    def hangs(self, now_ns: int) -> bool:
        """Whether the call under way has taken longer than it may; asked by another thread."""
        since_ns = self._in_call_since_ns
        return since_ns is not None and now_ns - since_ns > self.limit_ns

    def run(self, announce: Callable[..., None]) -> None:
        """Open NVML, `announce(nvml=…, gpus=…)` what is there, sample until `stopping`, shut NVML down."""
        self._in_call_since_ns = time.monotonic_ns()
        try:
            pynvml.nvmlInit()
        except NVML_ERRORS as error:
            self._in_call_since_ns = None
            warnings = [f"GPU {name} cannot be watched: {error}" for name in self._wanted or []]
            self._warn(warnings)
            announce(nvml={"state": "absent", "reason": str(error)}, warnings=warnings)
            return
        try:
            gpus, warnings = self._find()
            for gpu in gpus:
                gpu.row(FAST)
                gpu.row(SLOW)
            nvml = {
                "state": "ok",
                "driver": _fact(pynvml.nvmlSystemGetDriverVersion),
                "version": _fact(pynvml.nvmlSystemGetNVMLVersion),
                "call_us": gpus[0].call_us() if gpus else {},
            }
            announce(nvml=nvml, gpus=[gpu.facts() for gpu in gpus], warnings=warnings)
            self._in_call_since_ns = None
            self.limit_ns = HANG_NS
            self._sample(gpus)
        except Exception as error:  # said, then raised again
            self._in_call_since_ns = None  # it has returned: this is no hang
            text = f"GPUs are watched no more: {type(error).__name__}: {error}"
            self._outbox.event("gpu_thread_lost", text)
            raise
        finally:
            pynvml.nvmlShutdown()

    def _sample(self, gpus: List[Gpu]) -> None:
        pace = Pace(FAST_NS)
        number = 0
        while gpus and not self.stopping:
            late_ns = pace.wait()
            start_ns = self._in_call_since_ns = time.monotonic_ns()
            for table, readings in (("gpu_fast", FAST), ("gpu_slow", SLOW))[: 2 if number % SLOW_EVERY == 0 else 1]:
                rows = [gpu.row(readings) for gpu in gpus]
                self._outbox.sample(table, [row for row in rows if row is not None])
            self._in_call_since_ns = None
            self._meter.tick(late_ns, pace.skipped, time.monotonic_ns() - start_ns)
            number += 1

    def _find(self) -> Tuple[List[Gpu], List[str]]:
        """The wanted GPUs, and a warning for each that is not there."""
        gpus, warnings = [], []
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                gpus.append(Gpu(pynvml.nvmlDeviceGetHandleByIndex(index), self._outbox))
            except NVML_ERRORS as error:
                warnings.append(f"GPU {index} cannot be opened: {error}")
        chosen = gpus
        if self._wanted is not None:
            chosen = [gpu for gpu in gpus if any(_is(gpu, name) for name in self._wanted)]
            there = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus) or "none"
            for name in self._wanted:
                if not any(_is(gpu, name) for gpu in gpus):
                    warnings.append(f"there is no GPU {name} on {self._outbox.host}: it has {there}")
        self._warn(warnings)
        return chosen, warnings

    def _warn(self, warnings: Sequence[str]) -> None:
        for warning in warnings:
            self._outbox.event("gpu_missing", warning)


def _is(gpu: Gpu, name: Any) -> bool:
    """Whether a GPU is meant by an index (a number or digits) or a UUID."""
    return str(name) in (str(gpu.index), gpu.uuid)


def _fact(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (*NVML_ERRORS, UnicodeDecodeError):
        return None
