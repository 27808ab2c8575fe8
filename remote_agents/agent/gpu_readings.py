"""The ways to read the columns of `gpu_fast` and `gpu_slow`: tables, no state.

A column may have several ways, the best first. All fields of a table are read by one call. Units are those of
sample.py. Never here: nvmlDeviceGetPcieThroughput, which counts for 20 ms before it returns.
"""

import struct
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple, Union

import pynvml

from remote_agents.agent.gpu_errors import GONE, LOST, NVML_ERRORS, call

Handle = Any  # pynvml has no types
Value = Union[int, float, None]
Outcome = Union[Value, Exception]  # of one value: an exception says why there is none

ALL_LINKS = 0xFFFFFFFF
_UNKNOWN_PSTATE = 32


class Field(NamedTuple):
    """One value of nvmlDeviceGetFieldValues."""

    id: int
    scope: int = 0

    @property
    def name(self) -> str:
        return f"field {self.id}"


class Call(NamedTuple):
    """A function of its own; what it returns belongs to the columns in their order."""

    name: str
    read: Callable[[Handle], Sequence[Any]]


Way = Union[Field, Call]


class Reading(NamedTuple):
    """Columns that come from one place, and the ways to get there: fields come first."""

    columns: Tuple[str, ...]
    ways: Tuple[Way, ...]


# nvmlFieldValue_t and nvmlMemory_v2_t as bytes: an attribute of pynvml's structures costs a microsecond each time.
_FIELD = struct.Struct("=IIqqIi8s")
_MEMORY = struct.Struct("=I4xQQQQ")
_BY_TYPE = tuple(struct.Struct(f"={letter}") for letter in "dIQQqiH")  # by NVML_VALUE_TYPE_*


def read_fields(handle: Handle, fields: Sequence[Field]) -> Dict[Field, Outcome]:
    """All fields by one call, which may succeed while single ones fail."""
    if not fields:
        return {}
    try:
        answer = pynvml.nvmlDeviceGetFieldValues(handle, fields)
    except (*LOST, *GONE):
        raise
    except NVML_ERRORS as error:
        return dict.fromkeys(fields, error)
    outcomes: Dict[Field, Outcome] = {}
    for place, (_, _, _, _, kind, code, data) in enumerate(_FIELD.iter_unpack(answer)):
        if code:
            outcomes[fields[place]] = pynvml.NVMLError(code)
        elif kind < len(_BY_TYPE):
            outcomes[fields[place]] = _BY_TYPE[kind].unpack_from(data)[0]
        else:
            outcomes[fields[place]] = pynvml.NVMLError(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
    return outcomes


def _memory_v2(handle: Handle) -> Sequence[Value]:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    _, total, reserved, free, used = _MEMORY.unpack_from(memory)
    return total, used, reserved, free, 2


def _memory_v1(handle: Handle) -> Sequence[Value]:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return memory.total, memory.used, None, memory.free, 1


def _pstate(handle: Handle) -> Sequence[Outcome]:
    state: int = pynvml.nvmlDeviceGetPerformanceState(handle)
    return (pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED) if state == _UNKNOWN_PSTATE else state,)


def _one(name: str, *arguments: Any) -> Call:
    """A pynvml function with one result."""
    return Call(name, lambda handle: (call(name, handle, *arguments),))


def _field(column: str, number: int, scope: int = 0) -> Reading:
    return Reading((column,), (Field(number, scope),))


_MEMORY_READING = Reading(
    ("mem_total_b", "mem_used_b", "mem_reserved_b", "mem_free_b", "mem_version"),
    (Call("nvmlDeviceGetMemoryInfo_v2", _memory_v2), Call("nvmlDeviceGetMemoryInfo", _memory_v1)),
)
FAST: Tuple[Reading, ...] = (
    Reading(
        ("util_pct",),
        (Call("nvmlDeviceGetUtilizationRates", lambda handle: (pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,)),),
    ),
    _MEMORY_READING,
    Reading(("power_mw",), (Field(186), _one("nvmlDeviceGetPowerUsage"))),
    Reading(("energy_mj",), (Field(83), _one("nvmlDeviceGetTotalEnergyConsumption"))),
)
# A MIG device has memory of its own; NVML knows load, power and energy of the whole GPU only.
MIG_FAST = tuple(reading if reading is _MEMORY_READING else Reading(reading.columns, ()) for reading in FAST)
SLOW: Tuple[Reading, ...] = (
    _field("power_avg_mw", 185),
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
    _field("temp_mem_c", 82),
    Reading(("pstate",), (Call("nvmlDeviceGetPerformanceState", _pstate),)),
    Reading(
        ("clk_event_mask",),
        (_one("nvmlDeviceGetCurrentClocksEventReasons"), _one("nvmlDeviceGetCurrentClocksThrottleReasons")),
    ),
    _field("thr_sw_power_ns", 74),
    _field("thr_sw_therm_ns", 269),
    _field("thr_hw_therm_ns", 270),
    _field("thr_hw_brake_ns", 271),
    _field("thr_sync_ns", 76),
    _field("pcie_tx_b", 197),
    _field("pcie_rx_b", 198),
    _field("nvl_tx_kib", 138, ALL_LINKS),
    _field("nvl_rx_kib", 139, ALL_LINKS),
    _field("ecc_sbe", 3),
    _field("ecc_dbe", 4),
    _field("remap_pending", 144),
)


def _processes(name: str) -> Call:
    return Call(name, lambda handle: [(process.pid, process.usedGpuMemory) for process in call(name, handle)])


PROCESSES = Reading(
    ("gpu_process.pid", "gpu_process.used_b"),
    (_processes("nvmlDeviceGetComputeRunningProcesses_v3"), _processes("nvmlDeviceGetComputeRunningProcesses_v2")),
)


def columns_of(readings: Sequence[Reading]) -> List[str]:
    return [column for reading in readings for column in reading.columns]
