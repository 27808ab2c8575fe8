"""A stand-in for libnvidia-ml.so.1: `pynvml.nvmlLib = FakeNvml()`; the real pynvml calls it with ctypes arguments.

Each attribute c_… is a C function: it writes through its pointer arguments and returns an NVML error code. A handle is
the number of a GPU + 1, and of a MIG device 1000 * that + the number of its instance.
"""

import contextlib
import ctypes
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pynvml

from remote_agents.agent.gpu import GpuSampler
from remote_agents.agent.outbox import Outbox
from remote_agents.agent.pace import Meter

TOTAL_B = 80 << 30
RESERVED_B = 900 << 20
USED_B = 10 << 30
MIG_USED_B = 3 << 30
ALL_BITS = 2**64 - 1
COUNTER = 1 << 40

_UINT, _ULL = pynvml.NVML_VALUE_TYPE_UNSIGNED_INT, pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
_MEMBER = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    _UINT: "uiVal",
    _ULL: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
}


class Clock:
    """CLOCK_MONOTONIC and the time of day of a test: they stand still until someone sleeps."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000_000
        self.ahead_ns = 1_700_000_000_000_000_000  # of the time of day
        self._due: list[tuple[int, Callable[[], None]]] = []

    def __call__(self) -> int:
        return self.ns

    def time_of_day(self) -> int:
        return self.ns + self.ahead_ns

    def sleep(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)
        for due_ns, act in [pair for pair in self._due if pair[0] <= self.ns]:
            self._due.remove((due_ns, act))
            act()

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Call `act` when so much time has been slept."""
        self._due.append((self.ns + round(seconds * 1e9), act))


def run_sampler(
    outbox: Outbox, clock: Clock, seconds: float, wanted: Any = None
) -> tuple[list[dict[str, Any]], GpuSampler, Meter]:
    """The sampler for so long on the test's clock: its announcements, itself, and its meter."""
    meter = Meter()
    sampler = GpuSampler(wanted, outbox, meter, clock, clock.time_of_day, clock.sleep)
    clock.after(seconds, lambda: setattr(sampler, "stopping", True))
    said: list[dict[str, Any]] = []
    sampler.run(lambda **facts: said.append(facts))
    return said, sampler, meter


class FakeNvml:
    def __init__(self, gpus: int = 2) -> None:
        self.gpus = gpus
        self.order = list(range(gpus))  # index -> GPU
        self.errors: dict[str, int] = {}  # function -> error code
        self.missing: set[str] = set()
        self.broken: dict[int, int] = {}  # GPU -> error code of all that is asked of it
        self.slow_s: dict[str, float] = {}  # function -> how long it takes
        self.sleep: Callable[[float], None] = time.sleep
        self.hang_in: str | None = None
        self.hang_after = 0
        self.hanging, self.released = threading.Event(), threading.Event()
        self.calls: list[str] = []
        self.is_shut = False
        self.after_shutdown: list[str] = []

        self.name = b"Fake H100"
        self.architecture = pynvml.NVML_DEVICE_ARCH_HOPPER
        self.capability = (9, 0)
        self.used_b = USED_B
        self.fields: dict[int, tuple[int, Any]] = {
            **{field: (_ULL, COUNTER + field) for field in (74, 76, 269, 270, 271, 197, 198)},
            138: (_ULL, 1380),
            139: (_ULL, 1390),
            186: (_UINT, 350_000),
            83: (_ULL, 1 << 41),
            185: (_UINT, 345_000),
            82: (_UINT, 74),
            3: (_ULL, 0),
            4: (_ULL, 0),
            144: (_UINT, 0),
        }
        self.field_errors: dict[int, int] = {}  # field -> error code
        self.field_batches: list[list[tuple[int, int]]] = []

        self.has_gpm = True
        self.gpm = {number: 10.0 + number for number in (1, 2, 3, 5, 10, 20, 21, 60, 61)}
        self.gpm_errors: dict[int, int] = {}  # metric -> error code
        self.gpm_samples: dict[int, list[Any]] = {}  # address -> what it was taken of, and when
        self.gpm_of: list[tuple[int, int | None]] = []  # GPU and instance of each sample taken
        self.clock: Callable[[], int] = time.monotonic_ns
        self.gpm_apart_ns: list[int] = []  # of the two samples of each question

        self.samples: dict[int, list[tuple[int, int]]] = {}  # kind -> (stamp in us, value)
        self.processes: dict[int, list[tuple[int, int | None]]] = {}  # handle -> pid, bytes
        self.mig: dict[int, list[int]] | None = None  # GPU -> instances; None: no GPU can have MIG
        self.event_types = pynvml.nvmlEventTypeAll
        self.events: queue.Queue[tuple[int, int, int, int]] = queue.Queue()  # GPU, type, code, instance
        self.registered: dict[int, int] = {}  # handle -> types

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("_", "c_")) or name in self.missing or not hasattr(self, f"c_{name}"):
            raise AttributeError(name)

        def function(*arguments: Any) -> int:
            self.calls.append(name)
            if self.is_shut and name != "nvmlInitWithFlags":
                self.after_shutdown.append(name)
                return int(pynvml.NVML_ERROR_UNINITIALIZED)
            if name == self.hang_in and self.calls.count(name) > self.hang_after:
                self.hanging.set()
                self.released.wait(30)
            if name in self.slow_s:
                self.sleep(self.slow_s[name])
            if name in self.errors:
                return self.errors[name]
            if arguments and isinstance(arguments[0], pynvml.c_nvmlDevice_t) and _gpu(arguments[0]) in self.broken:
                return self.broken[_gpu(arguments[0])]
            return getattr(self, f"c_{name}")(*arguments) or 0

        return function

    def c_nvmlInitWithFlags(self, flags: Any) -> None:
        self.is_shut = False

    def c_nvmlShutdown(self) -> None:
        self.is_shut = True
        sys.stderr.write("nvmlShutdown\n")
        sys.stderr.flush()

    def c_nvmlErrorString(self, code: int) -> bytes:
        return b"an error that pynvml does not know"

    def c_nvmlSystemGetDriverVersion(self, text: Any, size: Any) -> None:
        text.value = b"580.65.06"

    def c_nvmlSystemGetNVMLVersion(self, text: Any, size: Any) -> None:
        text.value = b"13.580.65.06"

    def c_nvmlDeviceGetCount_v2(self, count: Any) -> None:
        count._obj.value = self.gpus

    def c_nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> None:
        _point(handle, self.order[index.value] + 1)

    def c_nvmlDeviceGetHandleByUUID(self, uuid: Any, handle: Any) -> int:
        kind, *numbers = uuid.value.decode().split("-")
        gpu = int(numbers[0])
        if gpu in self.broken:
            return int(pynvml.NVML_ERROR_NOT_FOUND)
        _point(handle, gpu + 1 if kind == "GPU" else 1000 * (gpu + 1) + int(numbers[1]))
        return 0

    def c_nvmlDeviceGetUUID(self, handle: Any, text: Any, size: Any) -> None:
        instance = _instance(handle)
        text.value = f"GPU-{_gpu(handle)}".encode() if instance is None else f"MIG-{_gpu(handle)}-{instance}".encode()

    def c_nvmlDeviceGetName(self, handle: Any, text: Any, size: Any) -> None:
        text.value = self.name

    def c_nvmlDeviceGetIndex(self, handle: Any, index: Any) -> None:
        index._obj.value = self.order.index(_gpu(handle))

    def c_nvmlDeviceGetArchitecture(self, handle: Any, architecture: Any) -> None:
        architecture._obj.value = self.architecture

    def c_nvmlDeviceGetCudaComputeCapability(self, handle: Any, major: Any, minor: Any) -> None:
        major._obj.value, minor._obj.value = self.capability

    def c_nvmlDeviceGetMemoryBusWidth(self, handle: Any, bits: Any) -> None:
        bits._obj.value = 5120

    def c_nvmlDeviceGetMaxClockInfo(self, handle: Any, kind: Any, clock: Any) -> None:
        clock._obj.value = {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 2619}[kind.value]

    def c_nvmlDeviceGetBAR1MemoryInfo(self, handle: Any, memory: Any) -> None:
        memory._obj.bar1Total = 128 << 30

    def c_nvmlDeviceGetEccMode(self, handle: Any, current: Any, pending: Any) -> None:
        current._obj.value = pending._obj.value = 1

    def c_nvmlDeviceGetPersistenceMode(self, handle: Any, mode: Any) -> None:
        mode._obj.value = 1

    def c_nvmlDeviceGetUtilizationRates(self, handle: Any, rates: Any) -> int:
        if _instance(handle) is not None:
            return int(pynvml.NVML_ERROR_NOT_SUPPORTED)
        rates._obj.gpu = 40 + _gpu(handle)
        return 0

    def c_nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> None:
        memory._obj.total, memory._obj.used, memory._obj.free = TOTAL_B, USED_B + RESERVED_B, TOTAL_B - USED_B

    def c_nvmlDeviceGetMemoryInfo_v2(self, handle: Any, memory: Any) -> None:
        used_b = self.used_b if _instance(handle) is None else MIG_USED_B
        memory._obj.total, memory._obj.used, memory._obj.reserved = TOTAL_B, used_b, RESERVED_B
        memory._obj.free = TOTAL_B - USED_B - RESERVED_B

    def c_nvmlDeviceGetFieldValues(self, handle: Any, count: Any, values: Any) -> None:
        self.field_batches.append([(value.fieldId, value.scopeId) for value in values._obj])
        for value in values._obj:
            kind, content = self.fields.get(value.fieldId, (_UINT, 0))
            unknown = 0 if value.fieldId in self.fields else pynvml.NVML_ERROR_NOT_SUPPORTED
            value.nvmlReturn = self.field_errors.get(value.fieldId, unknown)
            value.valueType = kind
            if kind in _MEMBER:
                setattr(value.value, _MEMBER[kind], content)

    def c_nvmlDeviceGetPowerUsage(self, handle: Any, power: Any) -> None:
        power._obj.value = 340_000

    def c_nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, energy: Any) -> None:
        energy._obj.value = (1 << 41) + 1

    def c_nvmlDeviceGetEnforcedPowerLimit(self, handle: Any, limit: Any) -> None:
        limit._obj.value = 700_000

    def c_nvmlDeviceGetClockInfo(self, handle: Any, kind: Any, clock: Any) -> None:
        clock._obj.value = {pynvml.NVML_CLOCK_SM: 1755, pynvml.NVML_CLOCK_MEM: 2619}[kind.value]

    def c_nvmlDeviceGetTemperature(self, handle: Any, sensor: Any, temperature: Any) -> None:
        temperature._obj.value = 61

    def c_nvmlDeviceGetPerformanceState(self, handle: Any, state: Any) -> None:
        state._obj.value = 0

    def c_nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any, reasons: Any) -> None:
        reasons._obj.value = 4

    def c_nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any, reasons: Any) -> None:
        reasons._obj.value = 8

    def c_nvmlGpmQueryDeviceSupport(self, handle: Any, support: Any) -> None:
        support._obj.isSupportedDevice = int(self.has_gpm)

    def c_nvmlGpmSampleAlloc(self, sample: Any) -> None:
        address = 0x10000 + 16 * len(self.calls)
        self.gpm_samples[address] = []
        _point(sample, address)

    def c_nvmlGpmSampleFree(self, sample: Any) -> None:
        del self.gpm_samples[_address(sample)]

    def c_nvmlGpmSampleGet(self, handle: Any, sample: Any) -> None:
        self._take_gpm(handle, None, sample)

    def c_nvmlGpmMigSampleGet(self, handle: Any, instance: int, sample: Any) -> None:
        self._take_gpm(handle, instance, sample)

    def _take_gpm(self, handle: Any, instance: int | None, sample: Any) -> None:
        self.gpm_of.append((_gpu(handle), instance))
        self.gpm_samples[_address(sample)] = [_gpu(handle), instance, self.clock()]

    def c_nvmlGpmMetricsGet(self, request: Any) -> int:
        asked = request._obj
        first, second = (self.gpm_samples[_address(sample)] for sample in (asked.sample1, asked.sample2))
        if asked.version != 1 or first[:2] != second[:2]:
            return int(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        self.gpm_apart_ns.append(second[2] - first[2])
        for metric in asked.metrics[: asked.numMetrics]:
            metric.nvmlReturn = self.gpm_errors.get(metric.metricId, 0)
            metric.value = self.gpm[metric.metricId]
        return 0

    def c_nvmlDeviceGetSamples(self, handle: Any, kind: Any, seen: Any, types: Any, count: Any, samples: Any) -> int:
        new = [sample for sample in self.samples.get(kind.value, []) if sample[0] > seen.value]
        if not new:
            return int(pynvml.NVML_ERROR_NOT_FOUND)
        types._obj.value = _UINT
        if samples is None:
            count._obj.value = 120
            return 0
        count._obj.value = len(new)
        for place, (stamp_us, value) in enumerate(new):
            samples[place].timeStamp, samples[place].sampleValue.uiVal = stamp_us, value
        return 0

    def c_nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any, count: Any, processes: Any) -> int:
        running = self.processes.get(_address(handle), [])
        room, count._obj.value = count._obj.value, len(running)
        if len(running) > room:
            return int(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
        for place, (pid, used_b) in enumerate(running):
            processes[place].pid, processes[place].usedGpuMemory = pid, ALL_BITS if used_b is None else used_b
        return 0

    c_nvmlDeviceGetComputeRunningProcesses_v2 = c_nvmlDeviceGetComputeRunningProcesses_v3

    def c_nvmlDeviceGetMigMode(self, handle: Any, current: Any, pending: Any) -> int:
        if self.mig is None:
            return int(pynvml.NVML_ERROR_NOT_SUPPORTED)
        current._obj.value = pending._obj.value = int(_gpu(handle) in self.mig)
        return 0

    def c_nvmlDeviceGetMaxMigDeviceCount(self, handle: Any, count: Any) -> None:
        count._obj.value = 7

    def c_nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, number: Any, mig_handle: Any) -> int:
        instances = (self.mig or {}).get(_gpu(handle), [])
        if number.value >= len(instances):
            return int(pynvml.NVML_ERROR_NOT_FOUND)
        _point(mig_handle, 1000 * (_gpu(handle) + 1) + instances[number.value])
        return 0

    def c_nvmlDeviceGetGpuInstanceId(self, handle: Any, instance: Any) -> None:
        instance._obj.value = _instance(handle)

    def c_nvmlEventSetCreate(self, events: Any) -> None:
        _point(events, 0xE0)

    def c_nvmlEventSetFree(self, events: Any) -> None:
        self.registered.clear()

    def c_nvmlDeviceGetSupportedEventTypes(self, handle: Any, types: Any) -> None:
        types._obj.value = self.event_types

    def c_nvmlDeviceRegisterEvents(self, handle: Any, types: Any, events: Any) -> None:
        self.registered[_address(handle)] = types.value

    def c_nvmlEventSetWait_v2(self, events: Any, data: Any, timeout: Any) -> int:
        try:
            gpu, kind, code, instance = self.events.get(timeout=timeout.value / 1000)
        except queue.Empty:
            return int(pynvml.NVML_ERROR_TIMEOUT)
        told = data._obj
        told.device = ctypes.cast(gpu + 1, pynvml.c_nvmlDevice_t)
        told.eventType, told.eventData, told.gpuInstanceId = kind, code, instance
        return 0


def _address(pointer: Any) -> int:
    return int(ctypes.cast(pointer, ctypes.c_void_p).value or 0)


def _gpu(handle: Any) -> int:
    address = _address(handle)
    return (address if address < 1000 else address // 1000) - 1


def _instance(handle: Any) -> int | None:
    address = _address(handle)
    return None if address < 1000 else address % 1000


def _point(pointer: Any, address: int) -> None:
    ctypes.cast(pointer, ctypes.POINTER(ctypes.c_void_p))[0] = address


def install(fake: FakeNvml | None) -> None:
    """Let pynvml call `fake`; None undoes it."""
    pynvml.nvmlLib = fake
    pynvml._nvmlGetFunctionPointer_cache.clear()


@contextlib.contextmanager
def installed(clock: Clock) -> Iterator[FakeNvml]:
    """A library that takes its time from the test's clock, open."""
    fake = FakeNvml()
    fake.clock, fake.sleep = clock, clock.sleep
    install(fake)
    pynvml.nvmlInit()
    yield fake
    fake.released.set()
    install(None)
