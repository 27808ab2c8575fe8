"""Sensors by a manual clock: power and clocks at a limit, leaks, and what the stages do to the host's counters."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loadgen.simulator.model import Replica, Sequence
from loadgen.simulator.profiles import Engine, engine
from loadgen.simulator.stages import Stages
from loadgen.simulator.telemetry import GpuMeter, render

S = 1_000_000_000
L4 = engine("L4", "8b", "bf16", 128)


def busy(model: Engine, output: int = 10_000, prompt: int = 1) -> Replica[Sequence]:
    replica: Replica[Sequence] = Replica(model)
    replica.submit(Sequence(received_ns=0, prompt_tokens=prompt, max_tokens=output))
    return replica


def run_until(replica: Replica[Sequence], now_ns: int) -> None:
    while replica.due_ns is not None and replica.due_ns <= now_ns:
        replica.step()


def rows(meter: GpuMeter, now_ns: int, front: Stages | None = None) -> dict[str, Any]:
    answer = json.loads(render([meter], [front or Stages(0, 0, 1, 0)], 8, 0, now_ns))
    [host] = answer["hosts"]
    return {"speedup": answer["speedup"]} | host["gpu_fast"][0] | host["gpu_slow"][0] | host["host_counters"]


def told(replica: Replica[Sequence], **leak: Any) -> dict[str, Any]:
    meter = GpuMeter(replica, 0, **leak)
    run_until(replica, 10 * S)
    meter.advance(10 * S)
    return rows(meter, 10 * S)


def test_without_a_limit_the_clock_is_the_highest() -> None:
    row = told(busy(L4))
    assert row["power_mw"] == pytest.approx(16_000 + 0.7 * 56_000, rel=0.001)
    assert (row["sm_mhz"], row["clk_event_mask"], row["thr_sw_power_ns"], row["power_limit_mw"]) == (2040, 0, 0, 72_000)
    assert row["energy_mj"] == pytest.approx(10 * row["power_mw"], rel=0.001)


def test_at_its_limit_a_gpu_draws_that_and_lowers_its_clock() -> None:
    limited = engine("L4", "8b", "bf16", 128, power_limit_w=16 + 0.7 * 56 / 8)
    row = told(busy(limited))
    assert row["power_mw"] == row["power_limit_mw"] == pytest.approx(16_000 + 700 * 7)
    assert row["sm_mhz"] == 1020
    assert (row["clk_event_mask"], row["thr_sw_power_ns"]) == (4, pytest.approx(10 * S))


def test_a_limit_between_the_two_throttles_computing_alone() -> None:
    limited = engine("L4", "8b", "bf16", 128, power_limit_w=16 + 0.75 * 56)
    row = told(busy(limited, output=1, prompt=20_000))
    compute_s = 20_000 * limited.prefill_ns_per_token / 1e9
    assert row["thr_sw_power_ns"] == pytest.approx(compute_s * S, rel=0.001)
    assert 2040 * 0.75 ** (1 / 3) < row["sm_mhz"] < 2040


def test_an_idle_gpu() -> None:
    row = told(Replica(L4))
    assert (row["util_pct"], row["power_mw"], row["sm_mhz"], row["clk_event_mask"]) == (0, 16_000, 210, 1)


def test_leaks_grow_by_time_and_by_request_up_to_the_card() -> None:
    assert told(Replica(L4))["mem_used_b"] == L4.vram_used_b
    assert told(Replica(L4), leak_b_per_s=1000)["mem_used_b"] == L4.vram_used_b + 10_000
    replica = busy(L4, output=2)
    left = Sequence(received_ns=0, prompt_tokens=1, max_tokens=9)
    replica.submit(left)
    replica.cancel(left)
    assert told(replica, leak_b_per_request=500)["mem_used_b"] == L4.vram_used_b + 1000
    assert told(Replica(L4), leak_b_per_s=1e12)["mem_used_b"] == L4.gpu.vram_b


def test_preprocessing_is_cpu_time_and_io_is_iowait() -> None:
    front = Stages(0, 2 * S, 4, 3 * S)
    for _ in range(4):
        front.enter(0)
    meter = GpuMeter(Replica(L4), 0)
    early, late, done = (rows(meter, at * S, front) for at in (1, 4, 9))
    assert [row["cpu_user_ticks"] for row in (early, late, done)] == [400, 800, 800]
    assert [row["cpu_iowait_ticks"] for row in (early, late, done)] == [0, 800, 1200]
    assert [(row["procs_running"], row["procs_blocked"]) for row in (early, late, done)] == [(5, 0), (1, 4), (1, 0)]
    for row, at in ((early, 1), (late, 4), (done, 9)):
        assert sum(value for name, value in row.items() if name.endswith("_ticks")) == pytest.approx(9600 * at, abs=2)


def test_more_io_than_idle_cpus_fills_them_and_no_more() -> None:
    front = Stages(0, 0, 1, 10 * S)
    for _ in range(200):
        front.enter(0)
    row = rows(GpuMeter(Replica(L4), 0), 1 * S, front)
    assert (row["cpu_iowait_ticks"], row["cpu_idle_ticks"], row["procs_blocked"]) == (9600, 0, 200)


def test_a_network_delay_is_how_late_the_sensors_are() -> None:
    replica = busy(L4)
    meter = GpuMeter(replica, 0, behind_ns=1 * S)
    run_until(replica, 3 * S)
    meter.advance(4 * S)
    assert meter.util == pytest.approx(0.75)


def test_sped_up_it_says_so_and_draws_the_same() -> None:
    row = told(busy(engine("L4", "8b", "bf16", 128, speedup=10)))
    assert (row["speedup"], row["util_pct"]) == (10, 100)
    assert row["power_mw"] == pytest.approx(16_000 + 0.7 * 56_000, rel=0.001)


def sampled(replica: Replica[Sequence], *at_s: float) -> list[dict[str, Any]]:
    """Rows of a meter that is read at these instants, and advanced as the simulator does."""
    meter = GpuMeter(replica, 0)
    result = []
    for now_ns in range(S // 10, round(max(at_s) * S) + 1, S // 10):
        run_until(replica, now_ns)
        meter.advance(now_ns)
        if now_ns / S in at_s:
            result.append(rows(meter, now_ns))
    return result


def test_memory_adds_up_and_nothing_is_wrong_with_it() -> None:
    row = told(busy(L4))
    assert row["mem_used_b"] + row["mem_reserved_b"] + row["mem_free_b"] == L4.gpu.vram_b
    assert [row[name] for name in ("ecc_sbe", "ecc_dbe", "remap_pending", "pstate", "net_drop")] == [0] * 5
    assert row["gpm_occ_pct"] is None  # what has no formula


def test_gpm_is_of_the_time_since_the_answer_before() -> None:
    first, second, third, late = sampled(busy(L4, output=300), 0.1, 0.2, 0.3, 5.0)
    names = ("gpm_graphics_pct", "gpm_sm_pct", "gpm_tensor_pct", "gpm_dram_pct")
    assert [first[name] for name in (*names, "win_start_mono_ns")] == [None] * 5  # the first answer has none before it
    for row, start_ns in ((second, S // 10), (third, S // 5)):
        assert (row["win_start_mono_ns"], row["t0_mono_ns"]) == (start_ns, start_ns + S // 10)
        assert [row[name] for name in names] == [pytest.approx(share) for share in (100, 100, 0, 100)]  # decoding reads
    assert late["gpm_sm_pct"] is None  # too long after the answer before


def test_tensor_cores_work_while_a_prompt_is_read_in() -> None:
    prompt = 20_000
    replica = busy(L4, output=2, prompt=prompt)
    [*_, row] = sampled(replica, *(n / 10 for n in range(1, 26)))
    assert prompt * L4.prefill_ns_per_token > 2.5 * S
    assert 80 < row["gpm_tensor_pct"] <= 100
    assert row["gpm_tensor_pct"] + row["gpm_dram_pct"] == pytest.approx(row["gpm_sm_pct"], abs=0.01)


def test_a_lowered_clock_reads_less_than_the_peak() -> None:
    limited = engine("L4", "8b", "bf16", 128, power_limit_w=16 + 0.7 * 56 / 8)
    row = sampled(busy(limited), 0.1, 0.2)[1]
    assert (row["gpm_sm_pct"], row["gpm_dram_pct"]) == (pytest.approx(100, rel=0.001), pytest.approx(50, rel=0.001))


def test_the_average_power_is_that_of_the_last_second() -> None:
    replica = busy(L4, output=1, prompt=2000)
    busy_s = (2000 * L4.prefill_ns_per_token + L4.decode_ns(0)) / 1e9
    assert 0.2 < busy_s < 1
    at_1, at_3 = sampled(replica, 1.0, 3.0)
    assert at_1["power_avg_mw"] == pytest.approx(at_1["energy_mj"], rel=0.001)  # mJ in one second
    assert at_1["power_avg_mw"] > 1000 * L4.gpu.idle_w
    assert at_3["power_avg_mw"] == at_3["power_mw"] == 1000 * L4.gpu.idle_w


def test_full_workers_are_full_cpus_and_what_waits_for_them_is_pressure() -> None:
    front = Stages(0, 1 * S, 2, 2 * S, io_places=1)
    for _ in range(4):
        front.enter(0)
    row = rows(GpuMeter(Replica(L4), 0), 1 * S, front)
    assert (row["cpu_max_busy_pct"], row["psi_cpu_some_us"], row["procs_running"]) == (100, 1_000_000, 3)
    row = rows(GpuMeter(Replica(L4), 0), 5 * S, front)
    assert (row["psi_cpu_some_us"], row["psi_io_some_us"], row["disk_busy_ms"]) == (1_000_000, 4_000_000, 4000)


def test_a_hot_gpu_slows_down_as_one_at_a_limit_of_its_power_does() -> None:
    hot = engine("L4", "8b", "bf16", 128, temp_limit_c=30 + 40 * 0.7 / 8)
    row = told(busy(hot))
    assert (row["sm_mhz"], row["clk_event_mask"], row["temp_c"]) == (1020, 0x20, 34)
    assert (row["thr_sw_power_ns"], row["thr_sw_therm_ns"]) == (0, pytest.approx(10 * S))


def test_an_answer_says_which_cards_these_are() -> None:
    answer = json.loads(render([GpuMeter(Replica(L4), 0)], [Stages(0, 0, 1, 0)], 8, 0, S))
    [gpu] = answer["hosts"][0]["gpus"]
    assert gpu == {
        "index": 0,
        "uuid": answer["hosts"][0]["gpu_fast"][0]["gpu_uuid"],
        "name": "L4",
        "mem_total_b": L4.gpu.vram_b,
        "sm_max_mhz": 2040,
        "dram_peak_b_s": 300_000_000_000,
    }
