"""A stand-in for libnvidia-ml.so.1: `pynvml.nvmlLib = FakeNvml()`; the real pynvml calls it with ctypes arguments.

Each attribute is a C function: it writes through its pointer arguments and returns an NVML error code.
"""

import ctypes
import sys
import threading
from typing import Any

import pynvml

TOTAL_B = 80 << 30
RESERVED_B = 900 << 20
USED_B = 10 << 30


class FakeNvml:
    def __init__(self, gpus: int = 2) -> None:
        self.gpus = gpus
        self.errors: dict[str, int] = {}  # function -> error code
        self.field_errors: dict[int, int] = {}  # field -> error code
        self.missing: set[str] = set()
        self.lost: set[int] = set()
        self.hang_in: str | None = None
        self.hang_after = 0
        self.calls: list[str] = []
        self.released = threading.Event()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in self.missing or not hasattr(type(self), f"c_{name}"):
            raise AttributeError(name)

        def function(*arguments: Any) -> int:
            self.calls.append(name)
            if name == self.hang_in and self.calls.count(name) > self.hang_after:
                self.released.wait(30)
            if name in self.errors:
                return self.errors[name]
            if arguments and isinstance(arguments[0], pynvml.c_nvmlDevice_t) and _index(arguments[0]) in self.lost:
                return int(pynvml.NVML_ERROR_GPU_IS_LOST)
            return getattr(self, f"c_{name}")(*arguments) or 0

        return function

    def c_nvmlInitWithFlags(self, flags: Any) -> None:
        pass

    def c_nvmlShutdown(self) -> None:
        sys.stderr.write("nvmlShutdown\n")
        sys.stderr.flush()

    def c_nvmlSystemGetDriverVersion(self, text: Any, size: Any) -> None:
        text.value = b"580.65.06"

    def c_nvmlSystemGetNVMLVersion(self, text: Any, size: Any) -> None:
        text.value = b"13.580.65.06"

    def c_nvmlDeviceGetCount_v2(self, count: Any) -> None:
        count._obj.value = self.gpus

    def c_nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> None:
        ctypes.cast(handle, ctypes.POINTER(ctypes.c_void_p))[0] = index.value + 1

    def c_nvmlDeviceGetHandleByUUID(self, uuid: Any, handle: Any) -> int:
        index = int(uuid.value.rpartition(b"-")[2])
        if index in self.lost:
            return int(pynvml.NVML_ERROR_NOT_FOUND)
        ctypes.cast(handle, ctypes.POINTER(ctypes.c_void_p))[0] = index + 1
        return 0

    def c_nvmlDeviceGetUUID(self, handle: Any, text: Any, size: Any) -> None:
        text.value = f"GPU-{_index(handle)}".encode()

    def c_nvmlDeviceGetName(self, handle: Any, text: Any, size: Any) -> None:
        text.value = b"Fake H100"

    def c_nvmlDeviceGetIndex(self, handle: Any, index: Any) -> None:
        index._obj.value = _index(handle)

    def c_nvmlDeviceGetUtilizationRates(self, handle: Any, rates: Any) -> None:
        rates._obj.gpu = 40 + _index(handle)

    def c_nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> None:
        memory._obj.total, memory._obj.used = TOTAL_B, USED_B + RESERVED_B

    def c_nvmlDeviceGetMemoryInfo_v2(self, handle: Any, memory: Any) -> None:
        memory._obj.total, memory._obj.used, memory._obj.reserved = TOTAL_B, USED_B, RESERVED_B

    def c_nvmlDeviceGetFieldValues(self, handle: Any, count: Any, values: Any) -> None:
        for value in values._obj:
            value.nvmlReturn = self.field_errors.get(value.fieldId, 0)
            if value.fieldId == pynvml.NVML_FI_DEV_POWER_INSTANT:
                value.valueType, value.value.uiVal = pynvml.NVML_VALUE_TYPE_UNSIGNED_INT, 350_000
            else:
                value.valueType = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
                value.value.ullVal = (1 << 40) + value.fieldId

    def c_nvmlDeviceGetPowerUsage(self, handle: Any, power: Any) -> None:
        power._obj.value = 340_000

    def c_nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, energy: Any) -> None:
        energy._obj.value = 1 << 41

    def c_nvmlDeviceGetEnforcedPowerLimit(self, handle: Any, limit: Any) -> None:
        limit._obj.value = 700_000

    def c_nvmlDeviceGetClockInfo(self, handle: Any, kind: Any, clock: Any) -> None:
        clock._obj.value = {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 2619}[kind.value]

    def c_nvmlDeviceGetTemperature(self, handle: Any, sensor: Any, temperature: Any) -> None:
        temperature._obj.value = 61

    def c_nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any, reasons: Any) -> None:
        reasons._obj.value = 4

    def c_nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any, reasons: Any) -> None:
        reasons._obj.value = 8


def _index(handle: Any) -> int:
    return int(ctypes.cast(handle, ctypes.c_void_p).value or 0) - 1


def install(fake: FakeNvml | None) -> None:
    """Let pynvml call `fake`; None undoes it."""
    pynvml.nvmlLib = fake
    pynvml._nvmlGetFunctionPointer_cache.clear()
