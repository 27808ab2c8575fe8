"""What can be wrong with a GPU, its driver or its library: what the record holds then, and which event says it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import fake_nvml
import pynvml
import pytest
from conftest import Sent, until
from fake_nvml import ALL_BITS, COUNTER, TOTAL_B, Clock, FakeNvml, installed, run_sampler

from remote_agents.agent.gpu import GpuSampler
from remote_agents.agent.gpu_device import Gpu
from remote_agents.agent.gpu_gpm import METRICS
from remote_agents.agent.pace import Meter
from remote_agents.agent.sample import TABLES

GONE = "the row is missing"
GPM = ", ".join(["win_start_mono_ns", *(column for column, _ in METRICS)])

Cells = dict[str, Any]
Do = Callable[[FakeNvml, Clock], object]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def nvml(clock: Clock) -> Iterator[FakeNvml]:
    with installed(clock) as fake:
        yield fake


@dataclass(frozen=True)
class Step:
    """Do something, wait, and read all tables: what some cells hold ("table.column")."""

    do: Do
    cells: Cells
    wait_s: float = 1.0


@dataclass(frozen=True)
class Fault:
    name: str
    steps: tuple[Step, ...]
    events: tuple[tuple[str, str], ...] = ()  # kind, text


def nothing(nvml: FakeNvml, clock: Clock) -> None:
    pass


def fails(function: str, code: int) -> Do:
    return lambda nvml, clock: nvml.errors.update({function: code})


def field_fails(field: int, code: int) -> Do:
    return lambda nvml, clock: nvml.field_errors.update({field: code})


def has(**attributes: Any) -> Do:
    return lambda nvml, clock: [setattr(nvml, name, value) for name, value in attributes.items()]


def field_is(field: int, value: Any, kind: int = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG) -> Do:
    return lambda nvml, clock: nvml.fields.update({field: (kind, value)})


def breaks(code: int) -> Do:
    return lambda nvml, clock: nvml.broken.update({0: code})


def heals(nvml: FakeNvml, clock: Clock) -> None:
    nvml.broken.clear()
    nvml.errors.clear()
    nvml.field_errors.clear()


def comes_back_as_another_index(nvml: FakeNvml, clock: Clock) -> None:
    heals(nvml, clock)
    nvml.order.reverse()


def stamped(ahead_s: float, count: int = 1) -> Do:
    def act(nvml: FakeNvml, clock: Clock) -> None:
        stamp_us = int(clock.time_of_day() // 1000 + ahead_s * 1e6)
        nvml.samples = {1: [(stamp_us + place, 50) for place in range(count)]}

    return act


ABSENT: Cells = {"gpu_fast.energy_mj": None, "gpu_fast.power_mw": 350_000}
ENERGY = "nvmlDeviceGetTotalEnergyConsumption"


def no_energy(code: int) -> Do:
    return lambda nvml, clock: [field_fails(83, code)(nvml, clock), fails(ENERGY, code)(nvml, clock)]


FAULTS = (
    Fault(
        "a value that is not supported",
        (Step(no_energy(pynvml.NVML_ERROR_NOT_SUPPORTED), ABSENT), Step(nothing, ABSENT), Step(nothing, ABSENT)),
        (("gpu_absent", "GPU 0 has no energy_mj: field 83: Not Supported"),),
    ),
    Fault(
        "a value that the user may not read",
        (Step(no_energy(pynvml.NVML_ERROR_NO_PERMISSION), ABSENT), Step(nothing, ABSENT)),
        (("gpu_absent", "GPU 0 has no energy_mj: field 83: Insufficient Permissions"),),
    ),
    Fault(
        "a function that an old driver lacks and nothing replaces",
        (Step(has(missing={"nvmlDeviceGetEnforcedPowerLimit"}), {"gpu_slow.power_limit_mw": None}),),
        (("gpu_absent", "GPU 0 has no power_limit_mw: nvmlDeviceGetEnforcedPowerLimit: Function Not Found"),),
    ),
    Fault(
        "a structure that is too new for the driver has an older one",
        (
            Step(
                fails("nvmlDeviceGetMemoryInfo_v2", pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH),
                {"gpu_fast.mem_version": 1, "gpu_fast.mem_reserved_b": None, "gpu_fast.mem_total_b": TOTAL_B},
            ),
        ),
    ),
    Fault(
        "one bad field of a batch costs itself only",
        (
            Step(
                field_fails(270, pynvml.NVML_ERROR_NOT_SUPPORTED),
                {"gpu_slow.thr_hw_therm_ns": None, "gpu_slow.thr_sw_therm_ns": COUNTER + 269},
            ),
        ),
        (("gpu_absent", "GPU 0 has no thr_hw_therm_ns: field 270: Not Supported"),),
    ),
    Fault(
        "a field of a type that is not known",
        (Step(field_is(82, 74, kind=9), {"gpu_slow.temp_mem_c": None, "gpu_slow.temp_c": 61}),),
        (("gpu_absent", "GPU 0 has no temp_mem_c: field 82: an error that pynvml does not know"),),
    ),
    Fault(
        "no NVLink",
        (
            Step(
                lambda nvml, clock: [field_fails(field, 3)(nvml, clock) for field in (138, 139)],
                {"gpu_slow.nvl_tx_kib": None, "gpu_slow.nvl_rx_kib": None, "gpu_slow.pcie_tx_b": COUNTER + 197},
            ),
        ),
        (
            ("gpu_absent", "GPU 0 has no nvl_tx_kib: field 138: Not Supported"),
            ("gpu_absent", "GPU 0 has no nvl_rx_kib: field 139: Not Supported"),
        ),
    ),
    Fault(
        "all 64 bits set are no value",
        (
            Step(has(used_b=ALL_BITS), {"gpu_fast.mem_used_b": None, "gpu_fast.mem_total_b": TOTAL_B}),
            Step(nothing, {"gpu_fast.mem_used_b": None}),
        ),
        (("gpu_absent", "GPU 0 has no mem_used_b: nvmlDeviceGetMemoryInfo_v2: all bits are set"),),
    ),
    Fault(
        "all 32 bits set are no value",
        (Step(field_is(185, 2**32 - 1, pynvml.NVML_VALUE_TYPE_UNSIGNED_INT), {"gpu_slow.power_avg_mw": None}),),
        (("gpu_absent", "GPU 0 has no power_avg_mw: field 185: all bits are set"),),
    ),
    Fault(
        "an error that passes is counted, and costs one value",
        (
            Step(
                fails("nvmlDeviceGetUtilizationRates", pynvml.NVML_ERROR_UNKNOWN),
                {"gpu_fast.util_pct": None, "gpu_fast.power_mw": 350_000},
            ),
            *(Step(nothing, {"gpu_fast.util_pct": None}, wait_s=6) for _ in range(10)),
            Step(heals, {"gpu_fast.util_pct": 40}, wait_s=6),
        ),
        (
            ("nvml_error", "did not tell its util_pct: nvmlDeviceGetUtilizationRates: Unknown Error (1 so far)"),
            ("nvml_error", "did not tell its util_pct: nvmlDeviceGetUtilizationRates: Unknown Error (10 so far)"),
        ),
    ),
    Fault(
        "no GPM, as on an A100",
        (
            Step(has(has_gpm=False), {"gpu_fast.gpm_sm_pct": None, "gpu_fast.util_pct": 40}),
            Step(nothing, {"gpu_fast.gpm_sm_pct": None, "gpu_fast.win_start_mono_ns": None}),
        ),
        (("gpu_absent", f"GPU 0 has no {GPM}: GPM (Hopper and later): Not Supported"),),
    ),
    Fault(
        "no GPM in an old driver",
        (Step(has(missing={"nvmlGpmQueryDeviceSupport"}), {"gpu_fast.gpm_sm_pct": None}),),
        (("gpu_absent", f"GPU 0 has no {GPM}: GPM (Hopper and later): Function Not Found"),),
    ),
    Fault(
        "a GPM metric that is no number, and one with an error",
        (
            Step(has(gpm_errors={60: 3}), {"gpu_fast.gpm_sm_pct": None}),
            Step(
                lambda nvml, clock: nvml.gpm.update({2: float("nan")}),
                {"gpu_fast.gpm_sm_pct": None, "gpu_fast.gpm_nvl_rx_mibs": None, "gpu_fast.gpm_occ_pct": 13.0},
            ),
            Step(lambda nvml, clock: nvml.gpm.update({2: 55.5}), {"gpu_fast.gpm_sm_pct": 55.5}),
        ),
        (
            ("nvml_error", "did not tell its gpm_sm_pct: GPM (Hopper and later): nan is no number (1 so far)"),
            ("gpu_absent", "GPU 0 has no gpm_nvl_rx_mibs: GPM (Hopper and later): Not Supported"),
        ),
    ),
    Fault(
        "a GPM sample that cannot be taken ends its window",
        (
            Step(nothing, {"gpu_fast.win_start_mono_ns": None}),
            Step(fails("nvmlGpmSampleGet", pynvml.NVML_ERROR_UNKNOWN), {"gpu_fast.win_start_mono_ns": None}),
            Step(heals, {"gpu_fast.win_start_mono_ns": None}),
            Step(nothing, {"gpu_fast.gpm_sm_pct": 12.0}),
        ),
        (("nvml_error", f"did not tell its {GPM}: GPM (Hopper and later): Unknown Error (1 so far)"),),
    ),
    Fault(
        "a GPU that is lost is left alone, and found again by its UUID at another index",
        (
            Step(nothing, {"gpu_fast.gpu_uuid": "GPU-0"}),
            Step(breaks(pynvml.NVML_ERROR_GPU_IS_LOST), {"gpu_fast.gpu_uuid": GONE, "gpu_slow.gpu_uuid": GONE}),
            Step(comes_back_as_another_index, {"gpu_fast.gpu_uuid": GONE}, wait_s=4.5),
            Step(nothing, {"gpu_fast.gpu_uuid": "GPU-0", "gpu_fast.gpu_index": 0, "gpu_fast.util_pct": 40}),
        ),
        (("gpu_lost", "GPU 0 is left out: GPU is lost"), ("gpu_back", "GPU 0 answers again")),
    ),
    Fault(
        "a GPU that must be reset, and stays away for a while",
        (
            Step(breaks(pynvml.NVML_ERROR_RESET_REQUIRED), {"gpu_fast.gpu_uuid": GONE}),
            Step(nothing, {"gpu_fast.gpu_uuid": GONE}, wait_s=6),
            Step(heals, {"gpu_fast.gpu_uuid": "GPU-0"}, wait_s=6),
        ),
        (("gpu_reset_required", "GPU 0 is left out: GPU requires restart"), ("gpu_back", "GPU 0 answers again")),
    ),
    Fault(
        "a field that says that the GPU is lost",
        (Step(field_fails(186, pynvml.NVML_ERROR_GPU_IS_LOST), {"gpu_fast.gpu_uuid": GONE}),),
        (("gpu_lost", "GPU 0 is left out: GPU is lost"),),
    ),
    Fault(
        "an energy counter that goes back stays raw",
        (
            Step(field_is(83, 5000), {"gpu_fast.energy_mj": 5000}),
            Step(field_is(83, 10), {"gpu_fast.energy_mj": 10}),
            Step(field_is(83, 20), {"gpu_fast.energy_mj": 20}),
            Step(field_is(83, 0), {"gpu_fast.energy_mj": 0}),
        ),
        (
            ("counter_reset", "the energy counter of GPU 0 went back from 5000 to 10 mJ: its driver was loaded anew"),
            ("counter_reset", "the energy counter of GPU 0 went back from 20 to 0 mJ: its driver was loaded anew"),
        ),
    ),
    Fault(
        "a PCIe counter that wraps stays raw",
        (
            Step(field_is(197, 2**32 - 10), {"gpu_slow.pcie_tx_b": 2**32 - 10}),
            Step(field_is(197, 7), {"gpu_slow.pcie_tx_b": 7}),
        ),
    ),
    Fault(
        "a process whose memory is not told",
        (Step(has(processes={1: [(4711, None)]}), {"gpu_process.pid": 4711, "gpu_process.used_b": None}),),
    ),
    Fault(
        "no list of processes",
        (
            Step(
                lambda nvml, clock: [
                    fails(f"nvmlDeviceGetComputeRunningProcesses_v{n}", 4)(nvml, clock) for n in (3, 2)
                ],
                {"gpu_process.pid": GONE},
            ),
            Step(nothing, {"gpu_process.pid": GONE}),
        ),
        (
            (
                "gpu_absent",
                "gpu_process.used_b: nvmlDeviceGetComputeRunningProcesses_v3: Insufficient Permissions",
            ),
        ),
    ),
    Fault(
        "samples that the driver stamps in the future",
        (
            Step(stamped(0), {"gpu_util.util_pct": 50}),
            Step(stamped(3600), {"gpu_util.util_pct": GONE}),
            Step(stamped(3600), {"gpu_util.util_pct": GONE}),
            Step(stamped(0), {"gpu_util.util_pct": 50}),
        ),
        (
            (
                "driver_stamps",
                "samples of the utilisation of GPU 0 are left out, 1 so far: the driver stamps them 3599.0 s ahead of",
            ),
        ),
    ),
    Fault(
        "samples that the driver stamps in the past",
        (Step(stamped(-7200, 5), {"gpu_util.util_pct": GONE}), Step(stamped(-7200, 5), {"gpu_util.util_pct": GONE})),
        (
            ("driver_stamps", "GPU 0 are left out, 5 so far: the driver stamps them 7201.0 s behind the time of day"),
            ("driver_stamps", "GPU 0 are left out, 10 so far: the driver stamps them 7201.0 s behind the time of day"),
        ),
    ),
    Fault(
        "no buffered samples",
        (Step(fails("nvmlDeviceGetSamples", 3), {"gpu_util.util_pct": GONE}),),
        (
            ("gpu_absent", "GPU 0 has no gpu_util.util_pct: nvmlDeviceGetSamples(GPU): Not Supported"),
            ("gpu_absent", "GPU 0 has no gpu_util.memutil_pct: nvmlDeviceGetSamples(MEMORY): Not Supported"),
        ),
    ),
    Fault(
        "a performance state that is not known",
        (
            Step(
                lambda nvml, clock: setattr(
                    nvml, "c_nvmlDeviceGetPerformanceState", lambda handle, state: setattr(state._obj, "value", 32)
                ),
                {"gpu_slow.pstate": None},
            ),
        ),
        (("gpu_absent", "GPU 0 has no pstate: nvmlDeviceGetPerformanceState: Not Supported"),),
    ),
    Fault(
        "the driver is exchanged under way",
        (Step(fails("nvmlDeviceGetUtilizationRates", pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH), {}),),
        (("raised", "RM has detected an NVML/RM version mismatch."),),
    ),
)


def read(gpu: Gpu) -> dict[str, list[list[Any]]]:
    return {
        "gpu_fast": gpu.fast(),
        "gpu_slow": gpu.slow(),
        "gpu_util": gpu.utilisation(),
        "gpu_process": gpu.processes(),
    }


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_of_a_gpu(nvml: FakeNvml, sent: Sent, clock: Clock, fault: Fault) -> None:
    gpu = Gpu(pynvml.nvmlDeviceGetHandleByIndex(0), sent.outbox, clock, clock.time_of_day)
    other = Gpu(pynvml.nvmlDeviceGetHandleByIndex(1), sent.outbox, clock, clock.time_of_day)
    for number, step in enumerate(fault.steps):
        step.do(nvml, clock)
        clock.sleep(step.wait_s)
        try:
            tables = read(gpu)
        except pynvml.NVMLError as error:
            sent.outbox.event("raised", str(error), gpu_uuid=gpu.uuid)
            continue
        for cell, value in step.cells.items():
            table, _, column = cell.partition(".")
            place = [name for name, *_ in TABLES[table]].index(column)
            held = [row[place] for row in tables[table]] or [GONE]
            assert held == [value], f"step {number}: {cell}"
    events = [event for event in sent.events() if event["gpu_uuid"] == "GPU-0"]
    assert [event["kind"] for event in events] == [kind for kind, _ in fault.events]
    for event, (_, text) in zip(events, fault.events, strict=True):
        assert text in event["text"]
    if not nvml.errors and not nvml.field_errors:  # those concern all GPUs
        assert other.fast()[0][2] == "GPU-1"


def no_library(nvml: FakeNvml, clock: Clock) -> None:
    fake_nvml.install(None)


@dataclass(frozen=True)
class Start:
    name: str
    do: Do
    state: str
    reason: str | None
    uuids: tuple[str, ...]
    events: tuple[tuple[str, str], ...]


STARTS = (
    Start(
        "no driver is loaded",
        fails("nvmlInitWithFlags", pynvml.NVML_ERROR_DRIVER_NOT_LOADED),
        "absent",
        "Driver Not Loaded",
        (),
        (("gpu_missing", "GPU 0 cannot be watched: Driver Not Loaded"),),
    ),
    Start(
        "the library is not the driver's",
        fails("nvmlInitWithFlags", pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH),
        "absent",
        "RM has detected an NVML/RM version mismatch.",
        (),
        (("gpu_missing", "GPU 0 cannot be watched: RM has detected an NVML/RM version mismatch."),),
    ),
    Start(
        "there is no library",
        no_library,
        "absent",
        "NVML Shared Library Not Found",
        (),
        (("gpu_missing", "GPU 0 cannot be watched: NVML Shared Library Not Found"),),
    ),
    Start(
        "the GPUs cannot be counted",
        fails("nvmlDeviceGetCount_v2", pynvml.NVML_ERROR_UNKNOWN),
        "absent",
        "Unknown Error",
        (),
        (("gpu_thread_lost", "GPUs are watched no more: Unknown Error"),),
    ),
    Start(
        "one GPU cannot be opened",
        breaks(pynvml.NVML_ERROR_GPU_IS_LOST),
        "ok",
        None,
        ("GPU-1",),
        (
            ("gpu_missing", "GPU 0 cannot be opened: GPU is lost"),
            ("gpu_missing", "there is no GPU 0 on here: it has 1 (GPU-1)"),
        ),
    ),
    Start("a name that is no text", has(name=b"GPU \xff\xfe"), "ok", None, ("GPU-0", "GPU-1"), ()),
    Start("no GPU at all", has(gpus=0), "ok", None, (), (("gpu_missing", "there is no GPU 0 on here: it has none"),)),
)


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.name)
def test_a_fault_at_the_start(
    nvml: FakeNvml, sent: Sent, clock: Clock, monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    monkeypatch.setattr(pynvml, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    start.do(nvml, clock)
    (said,), sampler, _ = run_sampler(sent.outbox, clock, 0.3, [0, 1] if start.uuids else [0])
    assert (said["nvml"]["state"], said["nvml"].get("reason")) == (start.state, start.reason)
    assert tuple(gpu["uuid"] for gpu in said.get("gpus", [])) == start.uuids
    assert not sampler.hangs(2**63)
    events = [(event["kind"], event["text"]) for event in sent.events() if event["kind"] != "gpu_absent"]
    assert events == list(start.events)


def test_a_driver_that_goes_under_way_ends_the_rows_and_is_said(nvml: FakeNvml, sent: Sent, clock: Clock) -> None:
    clock.after(1, lambda: nvml.errors.update(nvmlDeviceGetUtilizationRates=pynvml.NVML_ERROR_DRIVER_NOT_LOADED))
    said, sampler, _ = run_sampler(sent.outbox, clock, 5)
    assert len(said) == 1  # what was announced was there
    (event,) = sent.events()
    assert (event["kind"], event["text"]) == ("gpu_thread_lost", "GPUs are watched no more: Driver Not Loaded")
    assert not sampler.hangs(2**63)


def test_an_error_of_ours_is_no_hang_and_nvml_is_shut(nvml: FakeNvml, sent: Sent, clock: Clock) -> None:
    sampler = GpuSampler(None, sent.outbox, Meter(), clock)

    def announce(**facts: Any) -> None:
        raise ValueError("a fault of ours")

    with pytest.raises(ValueError, match="a fault of ours"):
        sampler.run(announce)
    assert not sampler.hangs(2**63)
    assert nvml.calls[-1] == "nvmlShutdown"


def test_a_call_that_does_not_return_is_a_hang_with_a_name(nvml: FakeNvml, sent: Sent) -> None:
    """With the real clock; the thread stays in the call, as it would in a driver."""
    sampler = GpuSampler(None, sent.outbox, Meter())
    nvml.has_gpm = False
    thread = threading.Thread(target=sampler.run, args=(lambda **_: None,))
    thread.start()
    until(lambda: nvml.registered)  # it is under way
    nvml.hang_in = "nvmlDeviceGetUtilizationRates"
    assert nvml.hanging.wait(5)
    assert (sampler.doing, sampler.limit_ns) == ("GPU 0", 2_000_000_000)
    since_ns = sampler._in_call_since_ns
    assert since_ns is not None
    assert not sampler.hangs(since_ns + sampler.limit_ns)
    assert sampler.hangs(since_ns + sampler.limit_ns + 1)
    nvml.released.set()
    sampler.stopping = True
    thread.join(1)
    assert not thread.is_alive()
    assert nvml.after_shutdown == []


def test_a_slow_driver_is_asked_less_often_and_more_often_again(nvml: FakeNvml, sent: Sent, clock: Clock) -> None:
    nvml.has_gpm = False
    clock.after(2, lambda: nvml.slow_s.update(nvmlDeviceGetUtilizationRates=0.04))  # 80 ms a turn
    clock.after(30, lambda: nvml.slow_s.update(nvmlDeviceGetUtilizationRates=0.009))
    clock.after(70, nvml.slow_s.clear)
    _, _, meter = run_sampler(sent.outbox, clock, 300)
    frames = sent.frames()
    events = [frame.body for frame in frames if isinstance(frame.body, dict) and frame.body["kind"] == "gpu_rate"]
    assert [event["period_ms"] for event in events] == [200, 500, 200, 100]
    assert events[0]["text"] == "GPUs are read every 200 ms from now on: NVML took 80.0 ms of the last turn"
    stamps = [frame.body[2][0][0] for frame in frames if isinstance(frame.body, list) and frame.body[0] == "gpu_fast"]
    assert stamps[-1] - stamps[-2] == meter.period_ns == 100_000_000
