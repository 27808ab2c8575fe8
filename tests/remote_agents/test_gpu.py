"""The GPU sampler through the real pynvml, with a stand-in for the driver's library."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import fake_nvml
import pynvml
import pytest
from conftest import Sent, until
from fake_nvml import RESERVED_B, TOTAL_B, USED_B, FakeNvml

from remote_agents.agent import gpu as gpu_module
from remote_agents.agent.gpu import FAST, SLOW, Gpu, GpuSampler
from remote_agents.agent.pace import Meter
from remote_agents.agent.sample import TABLES


@pytest.fixture
def nvml() -> Iterator[FakeNvml]:
    fake = FakeNvml()
    fake_nvml.install(fake)
    pynvml.nvmlInit()
    yield fake
    fake.released.set()
    fake_nvml.install(None)


def opened(sent: Sent, index: int = 0) -> Gpu:
    return Gpu(pynvml.nvmlDeviceGetHandleByIndex(index), sent.outbox)


def named(table: str, row: list[Any] | None) -> dict[str, Any]:
    assert row is not None
    return dict(zip([column.name for column in TABLES[table]], row, strict=True))


def test_the_readings_fill_their_tables_in_order() -> None:
    for table, readings in (("gpu_fast", FAST), ("gpu_slow", SLOW)):
        columns = [column for reading in readings for column in reading.columns]
        assert columns == [column.name for column in TABLES[table][4:]]


def test_a_healthy_gpu(nvml: FakeNvml, sent: Sent) -> None:
    gpu = opened(sent, 1)
    fast, slow = named("gpu_fast", gpu.row(FAST)), named("gpu_slow", gpu.row(SLOW))
    assert fast["t0_mono_ns"] <= fast["t1_mono_ns"]
    assert list(fast.values())[2:] == ["GPU-1", 1, 41, TOTAL_B, USED_B, RESERVED_B, 2, 350_000, 1 << 41]
    throttled = [(1 << 40) + field for field in (74, 269, 270, 271)]
    assert list(slow.values())[2:] == ["GPU-1", 1, 700_000, 1980, 2619, 61, 4, *throttled]
    assert gpu.facts()["name"] == "Fake H100"
    assert gpu.facts()["mem_total_b"] == TOTAL_B
    assert gpu.facts()["mem_bus_bits"] is None  # the library has no such function
    assert gpu.facts()["fallbacks"] == []
    assert gpu.call_us()["nvmlDeviceGetUtilizationRates"]["max"] >= 0
    assert sent.events() == []


def test_an_old_driver_has_older_ways(nvml: FakeNvml, sent: Sent) -> None:
    nvml.missing = {"nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetCurrentClocksEventReasons"}
    nvml.field_errors[186] = pynvml.NVML_ERROR_NOT_SUPPORTED
    gpu = opened(sent)
    fast, slow = named("gpu_fast", gpu.row(FAST)), named("gpu_slow", gpu.row(SLOW))
    assert (fast["mem_used_b"], fast["mem_reserved_b"], fast["mem_version"]) == (USED_B + RESERVED_B, None, 1)
    assert (fast["power_mw"], slow["clk_event_mask"]) == (340_000, 8)
    assert gpu.facts()["fallbacks"] == [
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
    ]
    assert sent.events() == []


def test_the_way_that_worked_stays_since_two_ways_are_two_quantities(nvml: FakeNvml, sent: Sent) -> None:
    gpu = opened(sent)
    gpu.row(FAST)
    nvml.field_errors[186] = pynvml.NVML_ERROR_NOT_SUPPORTED
    assert named("gpu_fast", gpu.row(FAST))["power_mw"] is None
    assert "nvmlDeviceGetPowerUsage" not in nvml.calls


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (pynvml.NVML_ERROR_NOT_SUPPORTED, "Not Supported"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "Insufficient Permissions"),
        (pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, "Function Not Found"),
    ],
)
def test_what_a_gpu_lacks_is_none_and_said_once(nvml: FakeNvml, sent: Sent, code: int, said: str) -> None:
    nvml.errors["nvmlDeviceGetTotalEnergyConsumption"] = code
    gpu = opened(sent)
    for _ in range(5):
        fast = named("gpu_fast", gpu.row(FAST))
        assert (fast["energy_mj"], fast["power_mw"]) == (None, 350_000)
    assert gpu.absent == {"energy_mj": f"nvmlDeviceGetTotalEnergyConsumption: {said}"}
    assert nvml.calls.count("nvmlDeviceGetTotalEnergyConsumption") == 1  # not asked again for a minute
    assert [(event["kind"], event["column"], event["gpu_uuid"]) for event in sent.events()] == [
        ("gpu_absent", "energy_mj", "GPU-0")
    ]


def test_what_was_absent_may_come_back(nvml: FakeNvml, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_module, "RETRY_ABSENT_NS", 0)
    nvml.errors["nvmlDeviceGetUtilizationRates"] = pynvml.NVML_ERROR_NOT_SUPPORTED
    gpu = opened(sent)
    assert named("gpu_fast", gpu.row(FAST))["util_pct"] is None
    nvml.errors.clear()
    assert named("gpu_fast", gpu.row(FAST))["util_pct"] == 40


def test_one_bad_field_of_a_batch_costs_itself_only(nvml: FakeNvml, sent: Sent) -> None:
    nvml.field_errors[270] = pynvml.NVML_ERROR_NOT_SUPPORTED
    gpu = opened(sent)
    slow = named("gpu_slow", gpu.row(SLOW))
    assert (slow["thr_hw_therm_ns"], slow["thr_sw_therm_ns"]) == (None, (1 << 40) + 269)
    assert list(gpu.absent) == ["thr_hw_therm_ns"]


def test_all_bits_set_is_no_value(nvml: FakeNvml, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_nvml, "USED_B", 2**64 - 1)
    gpu = opened(sent)
    fast = [named("gpu_fast", gpu.row(FAST)) for _ in range(2)][1]
    assert (fast["mem_used_b"], fast["mem_total_b"]) == (None, TOTAL_B)
    assert [(event["kind"], event["column"]) for event in sent.events()] == [("gpu_absent", "mem_used_b")]


def test_a_thread_that_ends_with_an_error_says_so_and_is_no_hang(nvml: FakeNvml, sent: Sent) -> None:
    nvml.errors["nvmlDeviceGetCount_v2"] = pynvml.NVML_ERROR_UNKNOWN
    sampler = GpuSampler(None, sent.outbox, Meter())
    with pytest.raises(pynvml.NVMLError):
        sampler.run(lambda **_: None)
    assert not sampler.hangs(2**63)
    (event,) = sent.events()
    assert event["kind"] == "gpu_thread_lost"
    assert event["text"] == "GPUs are watched no more: NVMLError_Unknown: Unknown Error"


def test_a_passing_error_costs_one_value(nvml: FakeNvml, sent: Sent) -> None:
    gpu = opened(sent)
    nvml.errors["nvmlDeviceGetUtilizationRates"] = pynvml.NVML_ERROR_UNKNOWN
    assert [named("gpu_fast", gpu.row(FAST))["util_pct"] for _ in range(3)] == [None] * 3
    nvml.errors.clear()
    assert named("gpu_fast", gpu.row(FAST))["util_pct"] == 40
    assert [event["kind"] for event in sent.events()] == ["nvml_error"]


def test_a_lost_gpu_is_left_alone_and_found_again(nvml: FakeNvml, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [opened(sent, 0), opened(sent, 1)]
    nvml.lost = {1}
    assert [gpu.row(FAST) is None for gpu in gpus] == [False, True]
    calls = len(nvml.calls)
    assert gpus[1].row(FAST) is None
    assert len(nvml.calls) == calls  # left alone
    monkeypatch.setattr(gpu_module, "RETRY_LOST_NS", 0)
    nvml.lost = set()
    gpus[1]._lost_until_ns = 0
    assert named("gpu_fast", gpus[1].row(FAST))["gpu_uuid"] == "GPU-1"
    assert [event["kind"] for event in sent.events()] == ["gpu_lost", "gpu_back"]


def sample_until(nvml: FakeNvml, sent: Sent, wanted: Any, calls: int) -> tuple[list[dict[str, Any]], list[Any]]:
    """Run the sampler's thread until that many utilisation calls; its announcements and all that it sent."""
    sampler = GpuSampler(wanted, sent.outbox, Meter())
    said: list[dict[str, Any]] = []
    thread = threading.Thread(target=sampler.run, args=(lambda **facts: said.append(facts),))
    thread.start()
    until(lambda: not thread.is_alive() or nvml.calls.count("nvmlDeviceGetUtilizationRates") >= calls)
    sampler.stopping = True
    thread.join(1)
    assert not thread.is_alive()
    return said, sent.frames()


def test_the_sampler_announces_samples_and_shuts_nvml_down(nvml: FakeNvml, sent: Sent) -> None:
    said, frames = sample_until(nvml, sent, None, calls=30)
    assert said[0]["nvml"]["state"] == "ok"
    assert said[0]["nvml"]["driver"] == "580.65.06"
    assert [gpu["uuid"] for gpu in said[0]["gpus"]] == ["GPU-0", "GPU-1"]
    tables = [frame.body[0] for frame in frames]
    assert tables[:3] == ["gpu_fast", "gpu_slow", "gpu_fast"]
    assert [row[3] for row in frames[0].body[2]] == [0, 1]
    assert nvml.calls[-1] == "nvmlShutdown"


@pytest.mark.parametrize("wanted", [[1], ["1"], ["GPU-1"]])
def test_only_the_wanted_gpus_are_touched(nvml: FakeNvml, sent: Sent, wanted: list[Any]) -> None:
    said, frames = sample_until(nvml, sent, wanted, calls=12)
    assert [gpu["uuid"] for gpu in said[0]["gpus"]] == ["GPU-1"]
    assert said[0]["warnings"] == []
    assert {row[2] for frame in frames for row in frame.body[2]} == {"GPU-1"}


def test_a_wanted_gpu_that_does_not_exist_is_said(nvml: FakeNvml, sent: Sent) -> None:
    said, frames = sample_until(nvml, sent, [0, 7], calls=12)
    warning = "there is no GPU 7 on here: it has 0 (GPU-0), 1 (GPU-1)"
    assert said[0]["warnings"] == [warning]
    assert (frames[0].body["kind"], frames[0].body["text"]) == ("gpu_missing", warning)
    assert [gpu["index"] for gpu in said[0]["gpus"]] == [0]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "Driver Not Loaded"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "RM has detected an NVML/RM version mismatch."),
    ],
)
def test_nvml_that_cannot_start_is_no_error(nvml: FakeNvml, sent: Sent, code: int, reason: str) -> None:
    nvml.errors["nvmlInitWithFlags"] = code
    said, frames = sample_until(nvml, sent, [0], calls=1)
    assert said[0]["nvml"] == {"state": "absent", "reason": reason}
    assert [frame.body["text"] for frame in frames] == [f"GPU 0 cannot be watched: {reason}"]


def test_no_library_is_no_error(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml.install(None)
    monkeypatch.setattr(pynvml, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    said, frames = sample_until(FakeNvml(), sent, None, calls=1)
    assert said[0]["nvml"] == {"state": "absent", "reason": "NVML Shared Library Not Found"}
    assert frames == []
