"""GPUs through the real pynvml, with a stand-in for the driver's library: what is read, and when."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pynvml
import pytest
from conftest import Sent, until
from fake_nvml import COUNTER, MIG_USED_B, RESERVED_B, TOTAL_B, USED_B, Clock, FakeNvml, installed, run_sampler

from remote_agents.agent.gpu import GpuSampler
from remote_agents.agent.gpu_device import Gpu
from remote_agents.agent.gpu_facts import power_means
from remote_agents.agent.gpu_gpm import GPM_COLUMNS, METRICS
from remote_agents.agent.gpu_readings import ALL_LINKS, FAST, MIG_FAST, SLOW, Field, columns_of
from remote_agents.agent.pace import Meter
from remote_agents.agent.sample import TABLES

KEYS = 5  # t0, t1, uuid, index, instance


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def nvml(clock: Clock) -> Iterator[FakeNvml]:
    with installed(clock) as fake:
        yield fake


def opened(sent: Sent, clock: Clock, index: int = 0) -> Gpu:
    return Gpu(pynvml.nvmlDeviceGetHandleByIndex(index), sent.outbox, clock, clock.time_of_day)


def named(table: str, rows: list[list[Any]]) -> dict[str, Any]:
    (row,) = rows
    return dict(zip([column.name for column in TABLES[table]], row, strict=True))


def test_the_readings_fill_their_tables_in_order() -> None:
    for readings in (FAST, MIG_FAST):
        assert [*columns_of(readings), *GPM_COLUMNS] == [column.name for column in TABLES["gpu_fast"][KEYS:]]
    assert columns_of(SLOW) == [column.name for column in TABLES["gpu_slow"][KEYS:]]
    for reading in (*FAST, *SLOW):
        kinds = [isinstance(way, Field) for way in reading.ways]
        assert kinds == sorted(kinds, reverse=True), f"{reading.columns}: fields come first"


def test_a_healthy_gpu(nvml: FakeNvml, sent: Sent, clock: Clock) -> None:
    gpu = opened(sent, clock, 1)
    fast, slow = named("gpu_fast", gpu.fast()), named("gpu_slow", gpu.slow())
    memory = [TOTAL_B, USED_B, RESERVED_B, TOTAL_B - USED_B - RESERVED_B, 2]
    assert list(fast.values()) == [clock.ns, clock.ns, "GPU-1", 1, None, 41, *memory, 350_000, 1 << 41] + [None] * 10
    counters = [COUNTER + field for field in (74, 269, 270, 271, 76, 197, 198)]
    slow_values = [345_000, 700_000, 1755, 2619, 61, 74, 0, 4, *counters, 1380, 1390, 0, 0, 0]
    assert list(slow.values())[2:] == ["GPU-1", 1, None, *slow_values]
    assert sent.events() == []


def test_the_fields_of_a_table_are_one_call_and_links_are_all_links(nvml: FakeNvml, sent: Sent, clock: Clock) -> None:
    gpu = opened(sent, clock)
    gpu.fast()
    gpu.slow()
    fast, slow = nvml.field_batches
    assert fast == [(186, 0), (83, 0)]
    assert sorted(slow) == sorted(
        [(field, 0) for field in (185, 82, 74, 269, 270, 271, 76, 197, 198, 3, 4, 144)]
        + [(138, ALL_LINKS), (139, ALL_LINKS)]
    )
    assert "nvmlDeviceGetPcieThroughput" not in nvml.calls


def test_facts_say_what_a_gpu_is_and_what_its_power_means(nvml: FakeNvml, sent: Sent, clock: Clock) -> None:
    gpu = opened(sent, clock)
    gpu.fast()
    facts = gpu.facts()
    assert facts.pop("call_us", None) is None
    assert facts == {
        "index": 0,
        "uuid": "GPU-0",
        "gi_id": None,
        "whole_uuid": None,
        "name": "Fake H100",
        "architecture": "Hopper",
        "compute_capability": "9.0",
        "cores": None,  # the library has no such function, nor some below
        "sm_max_mhz": 1980,
        "mem_max_mhz": 2619,
        "mem_total_b": TOTAL_B,
        "mem_bus_bits": 5120,
        "dram_peak_b_s": 3_352_320_000_000,
        "bar1_total_b": 128 << 30,
        "pcie_gen": None,
        "pcie_gen_max": None,
        "pcie_width": None,
        "pcie_width_max": None,
        "pci_bus_id": None,
        "numa_node": None,
        "ecc_mode": 1,
        "persistence_mode": 1,
        "mig_mode": None,
        "power_means": "instant (field 186)",
        "fallbacks": [],
        "absent": {},
    }


@pytest.mark.parametrize(
    ("architecture", "capability", "name", "means"),
    [
        ("Hopper", "9.0", "NVIDIA H100 80GB HBM3", "mean of 1 s"),
        ("Ada", "8.9", "NVIDIA L40S", "mean of 1 s"),
        ("Ampere", "8.6", "NVIDIA A10", "mean of 1 s"),
        ("Ampere", "8.0", "NVIDIA A100-SXM4-80GB", "instant"),
        ("Ampere", None, "NVIDIA A100-SXM4-80GB", "instant"),
        ("Ampere", None, "NVIDIA A10", "mean of 1 s"),
        ("Volta", "7.0", "Tesla V100-SXM2-32GB", "instant"),
        (None, None, "NVIDIA", "unknown"),
    ],
)
def test_the_old_power_call_is_a_mean_or_not_by_the_architecture(
    architecture: str | None, capability: str | None, name: str, means: str
) -> None:
    known = {"architecture": architecture, "compute_capability": capability, "name": name}
    assert str(power_means("nvmlDeviceGetPowerUsage", known)).startswith(f"{means} (nvmlDeviceGetPowerUsage")
    assert power_means("field 186", known) == "instant (field 186)"
    assert power_means(None, known) is None


def test_an_old_driver_has_older_ways(nvml: FakeNvml, sent: Sent, clock: Clock) -> None:
    nvml.missing = {"nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetFieldValues"}
    nvml.missing |= {"nvmlDeviceGetComputeRunningProcesses_v3"}
    nvml.processes = {1: [(7, 1 << 30)]}
    gpu = opened(sent, clock)
    fast, slow = named("gpu_fast", gpu.fast()), named("gpu_slow", gpu.slow())
    assert (fast["mem_used_b"], fast["mem_reserved_b"], fast["mem_version"]) == (USED_B + RESERVED_B, None, 1)
    assert (fast["power_mw"], fast["energy_mj"], slow["clk_event_mask"]) == (340_000, (1 << 41) + 1, 8)
    assert (slow["power_avg_mw"], slow["thr_sw_power_ns"]) == (None, None)
    assert named("gpu_process", gpu.processes())["used_b"] == 1 << 30
    facts = gpu.facts()
    assert facts["power_means"] == "mean of 1 s (nvmlDeviceGetPowerUsage on Ampere, not GA100, and later)"
    assert facts["fallbacks"] == [
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
        "nvmlDeviceGetComputeRunningProcesses_v2",
    ]
    assert facts["absent"]["pcie_tx_b"] == "field 197: Function Not Found"


def test_the_way_that_worked_stays_since_two_ways_are_two_quantities(nvml: FakeNvml, sent: Sent, clock: Clock) -> None:
    gpu = opened(sent, clock)
    gpu.fast()
    nvml.field_errors[186] = pynvml.NVML_ERROR_NOT_SUPPORTED
    assert named("gpu_fast", gpu.fast())["power_mw"] is None
    assert "nvmlDeviceGetPowerUsage" not in nvml.calls


def test_gpm_is_a_mean_since_the_sample_before_and_never_of_less_than_100_ms(
    nvml: FakeNvml, sent: Sent, clock: Clock
) -> None:
    gpu = opened(sent, clock)
    rows = []
    for pause_ms in (0, 101, 100, 1, 250):
        clock.sleep(pause_ms / 1000)
        rows.append(named("gpu_fast", gpu.fast()))
    windows = [row["t0_mono_ns"] - row["win_start_mono_ns"] if row["win_start_mono_ns"] else None for row in rows]
    assert windows == [None, 101_000_000, None, 101_000_000, 250_000_000]
    assert nvml.gpm_apart_ns == [101_000_000, 101_000_000, 250_000_000]
    assert [rows[1][column] for column, _ in METRICS] == [10.0 + number for _, number in METRICS]
    assert {rows[2][column] for column, _ in METRICS} == {None}
    assert len(nvml.gpm_samples) == 2
    gpu.close()
    assert nvml.gpm_samples == {}
    assert sent.events() == []


def test_the_drivers_buffer_gives_each_sample_once_on_our_clock(nvml: FakeNvml, sent: Sent, clock: Clock) -> None:
    gpu = opened(sent, clock)
    start_ns = clock.ns

    def stamp(milliseconds: int) -> int:
        return (start_ns + clock.ahead_ns) // 1000 + milliseconds * 1000

    nvml.samples = {1: [(stamp(-5000), 11), (stamp(-4800), 12)], 2: [(stamp(-5000), 21), (0, 99)]}
    first = gpu.utilisation()
    clock.sleep(1)
    nvml.samples[1] += [(stamp(-4600), 13), (stamp(900), 14)]
    clock.ahead_ns += 3_600_000_000_000  # the time of day is set; the driver's stamps of old samples stay
    nvml.samples[1] += [(stamp(950), 15)]
    second = gpu.utilisation()
    names = [column.name for column in TABLES["gpu_util"]]
    rows = [dict(zip(names, row, strict=True)) for row in first]
    assert [((row["t0_mono_ns"] - start_ns) / 1e6, (row["t1_mono_ns"] - start_ns) / 1e6) for row in rows] == [
        (-5000, -5000),
        (-5000, -4800),
    ]
    assert [(row["util_pct"], row["memutil_pct"]) for row in rows] == [(11, 21), (12, None)]
    assert [((row[1] - start_ns) / 1e6, row[-2], row[-1]) for row in second] == [(950, 15, None)]
    assert gpu.utilisation() == []  # not found: nothing new
    assert sent.events() == []


def test_processes_and_what_they_hold(nvml: FakeNvml, sent: Sent, clock: Clock) -> None:
    nvml.processes = {1: [(4711, 5 << 30), (4712, None)], 2: [(4711, 1 << 30)]}
    assert [row[2:] for row in opened(sent, clock).processes()] == [
        ["GPU-0", 0, None, 4711, 5 << 30],
        ["GPU-0", 0, None, 4712, None],
    ]
    assert sent.events() == []


def test_what_was_absent_is_asked_for_again_after_a_minute(nvml: FakeNvml, sent: Sent, clock: Clock) -> None:
    nvml.errors["nvmlDeviceGetUtilizationRates"] = pynvml.NVML_ERROR_NOT_SUPPORTED
    gpu = opened(sent, clock)
    gpu.fast()
    nvml.errors.clear()
    clock.sleep(59)
    assert named("gpu_fast", gpu.fast())["util_pct"] is None
    clock.sleep(1)
    assert named("gpu_fast", gpu.fast())["util_pct"] == 40


def test_mig_devices_have_rows_of_their_own_and_power_is_in_the_gpus(nvml: FakeNvml, sent: Sent, clock: Clock) -> None:
    nvml.mig = {1: [3, 9]}
    nvml.processes = {2: [(1, 1)], 2003: [(50, 1 << 30)], 2009: [(51, 2 << 30)]}
    (said,), sampler, _ = run_sampler(sent.outbox, clock, 2)
    assert [(gpu["uuid"], gpu["index"], gpu["gi_id"], gpu["whole_uuid"]) for gpu in said["gpus"]] == [
        ("GPU-0", 0, None, None),
        ("GPU-1", 1, None, None),
        ("MIG-1-3", 1, 3, "GPU-1"),
        ("MIG-1-9", 1, 9, "GPU-1"),
    ]
    assert said["gpus"][2]["absent"]["power_mw"] == "known of the whole GPU only"
    frames = [frame.body for frame in sent.frames() if isinstance(frame.body, list)]
    rows = [dict(zip([c.name for c in TABLES[table]], row, strict=True)) for table, _, rows in frames for row in rows]
    fast = [row for row in rows if "gpm_sm_pct" in row][-4:]
    assert [(row["gpu_uuid"], row["gi_id"], row["power_mw"], row["util_pct"]) for row in fast] == [
        ("GPU-0", None, 350_000, 40),
        ("GPU-1", None, 350_000, 41),
        ("MIG-1-3", 3, None, None),
        ("MIG-1-9", 9, None, None),
    ]
    assert [row["mem_used_b"] for row in fast] == [USED_B, USED_B, MIG_USED_B, MIG_USED_B]
    assert [row["gpm_sm_pct"] for row in fast] == [12.0] * 4
    assert set(nvml.gpm_of) == {(0, None), (1, None), (1, 3), (1, 9)}  # through the GPU
    assert {row["gpu_uuid"] for row in rows if "temp_c" in row} == {"GPU-0", "GPU-1"}
    assert {(row["gpu_uuid"], row["pid"]) for row in rows if "pid" in row} == {("MIG-1-3", 50), ("MIG-1-9", 51)}
    assert nvml.gpm_samples == {}
    assert sampler.pids == frozenset()  # it has ended


def test_mig_that_is_switched_is_said_and_followed(nvml: FakeNvml, sent: Sent, clock: Clock) -> None:
    nvml.mig = {}
    clock.after(2, lambda: setattr(nvml, "mig", {0: [5]}))
    clock.after(4, lambda: setattr(nvml, "mig", {}))
    said, *_ = run_sampler(sent.outbox, clock, 6)
    assert [[gpu["uuid"] for gpu in facts["gpus"]] for facts in said] == [
        ["GPU-0", "GPU-1"],
        ["GPU-0", "MIG-0-5", "GPU-1"],
        ["GPU-0", "GPU-1"],
    ]
    events = [event for event in sent.events() if event["kind"] == "mig_change"]
    assert [(event["text"], event["code"]) for event in events] == [
        ("MIG of GPU 0 was switched on", 1),
        ("MIG of GPU 0 was switched off", 0),
    ]


@pytest.mark.parametrize(("has_gpm", "period_ms"), [(True, 105), (False, 100)])
def test_ten_fast_rows_a_second_and_one_of_the_others(
    nvml: FakeNvml, sent: Sent, clock: Clock, has_gpm: bool, period_ms: int
) -> None:
    nvml.has_gpm = has_gpm
    nvml.processes = {1: [(4711, 1)]}
    run_sampler(sent.outbox, clock, 3.3)
    frames = [frame.body for frame in sent.frames() if isinstance(frame.body, list)]
    stamps = [rows[0][0] for table, _, rows in frames if table == "gpu_fast"]
    assert {after - before for before, after in pairwise(stamps)} == {period_ms * 1_000_000}
    assert len(stamps) == 3300 // period_ms
    assert sum(table == "gpu_slow" for table, _, _ in frames) == 4
    assert sum(table == "gpu_process" for table, _, _ in frames) == 4
    assert all(apart_ns >= 100_000_000 for apart_ns in nvml.gpm_apart_ns)
    assert len(nvml.gpm_apart_ns) == (2 * len(stamps) if has_gpm else 0)


def test_the_sampler_announces_samples_and_shuts_nvml_down(nvml: FakeNvml, sent: Sent) -> None:
    """With the real clock."""
    nvml.processes = {1: [(4711, 1 << 30)], 2: [(4712, None)]}
    meter = Meter()
    sampler = GpuSampler(None, sent.outbox, meter)
    said: list[dict[str, Any]] = []
    thread = threading.Thread(target=sampler.run, args=(lambda **facts: said.append(facts),))
    thread.start()
    until(lambda: sampler.pids)
    assert sampler.pids == {4711, 4712}
    assert meter.period_ns == 105_000_000
    until(lambda: nvml.registered)
    sampler.stopping = True
    thread.join(0.5)
    assert not thread.is_alive()
    assert said[0]["nvml"]["state"] == "ok"
    assert said[0]["nvml"]["driver"] == "580.65.06"
    costs = said[0]["nvml"]["call_us"]
    assert set(costs["fields 186, 83"]) == {"p50", "p99", "max"}
    assert {"nvmlGpmSampleGet", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetSamples(GPU)"} <= set(costs)
    assert [gpu["uuid"] for gpu in said[0]["gpus"]] == ["GPU-0", "GPU-1"]
    tables = [frame.body[0] for frame in sent.frames()]
    assert tables[:3] == ["gpu_fast", "gpu_slow", "gpu_process"]
    assert nvml.calls[-2:] == ["nvmlGpmSampleFree", "nvmlShutdown"]
    assert nvml.after_shutdown == []


@pytest.mark.parametrize("wanted", [[1], ["1"], ["GPU-1"]])
def test_only_the_wanted_gpus_are_read(nvml: FakeNvml, sent: Sent, clock: Clock, wanted: list[Any]) -> None:
    (said,), *_ = run_sampler(sent.outbox, clock, 0.5, wanted)
    assert [gpu["uuid"] for gpu in said["gpus"]] == ["GPU-1"]
    assert said["warnings"] == []
    assert {row[2] for row in sent.rows("gpu_fast")} == {"GPU-1"}


@pytest.mark.parametrize(("wanted", "watched"), [(["1"], ["GPU-1", "MIG-1-3", "MIG-1-9"]), (["MIG-1-9"], ["MIG-1-9"])])
def test_a_mig_device_is_wanted_with_its_gpu_or_by_itself(
    nvml: FakeNvml, sent: Sent, clock: Clock, wanted: list[str], watched: list[str]
) -> None:
    nvml.mig = {1: [3, 9]}
    (said,), *_ = run_sampler(sent.outbox, clock, 0.2, wanted)
    assert [gpu["uuid"] for gpu in said["gpus"]] == watched


def test_a_wanted_gpu_that_does_not_exist_is_said(nvml: FakeNvml, sent: Sent, clock: Clock) -> None:
    (said,), *_ = run_sampler(sent.outbox, clock, 0.2, [0, 7])
    warning = "there is no GPU 7 on here: it has 0 (GPU-0), 1 (GPU-1)"
    assert said["warnings"] == [warning]
    assert [gpu["index"] for gpu in said["gpus"]] == [0]
    (event,) = sent.events()
    assert (event["kind"], event["text"]) == ("gpu_missing", warning)
