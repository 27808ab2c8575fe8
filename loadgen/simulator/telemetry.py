"""/telemetry: what NVML and /proc would say on the simulated hosts, in the columns of remote_agents.agent.sample.

Everything follows from the model's work by stated formulas; what has none is null. Power in a window is
idle + (max - idle) x (compute share + 0.7 x memory share), since a card that waits for memory stays below its limit;
an iteration runs, so `util_pct` is its time, whatever bounds it. Times are CLOCK_MONOTONIC ns of the simulator's host.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from loadgen.simulator.model import Replica
from loadgen.simulator.profiles import Gpu
from remote_agents.agent.sample import SCHEMA, TABLES

WINDOW_S = 1 / 6  # NVML's shortest window of utilisation; also how often `GpuMeter.advance` wants to be called

_MEMORY_POWER = 0.7
_TICKS_PER_S = 100
_CLOCK_EVENT_GPU_IDLE = 1
# The simulated host: 96 CPUs, 384 GiB
_CPUS = 96
_MEMORY_B = 384 << 30
_SERVER_MEMORY_B = 6 << 30  # of each model server process
# What serving costs its CPUs: an engine loop keeps a CPU busy for this share of GPU time, and each token costs more
_ENGINE_LOOP_SHARE = 0.6
_USER_S_PER_TOKEN = 40e-6
_SYSTEM_S_PER_TOKEN = 15e-6
# On the wire: an SSE chunk a token out, words and heads in
_TX_B_PER_TOKEN = 260
_RX_B_PER_TOKEN = 6
_RX_B_PER_REQUEST = 400


class GpuMeter:
    """The sensors of one GPU. `advance` closes a window and integrates the energy."""

    def __init__(self, replica: Replica[Any], now_ns: int) -> None:
        self.replica = replica
        self.util = 0.0
        self.power_w = replica.engine.gpu.idle_w
        self.energy_j = 0.0
        self._at_ns = now_ns
        self._work_ns = replica.work_ns(now_ns)

    @property
    def busy_s(self) -> float:
        return sum(self._work_ns) / 1e9

    def advance(self, now_ns: int) -> None:
        gpu, window_ns, before = self.replica.engine.gpu, now_ns - self._at_ns, self._work_ns
        self._at_ns, self._work_ns = now_ns, self.replica.work_ns(now_ns)
        compute, memory = ((after - past) / window_ns for after, past in zip(self._work_ns, before, strict=True))
        # Work that a late loop books afterwards may exceed its window.
        self.util = min(1.0, compute + memory)
        self.power_w = gpu.idle_w + (gpu.max_w - gpu.idle_w) * min(1.0, compute + _MEMORY_POWER * memory)
        self.energy_j += self.power_w * window_ns / 1e9


def render(meters: Sequence[GpuMeter], gpus_per_host: int, started_ns: int, now_ns: int) -> bytes:
    """All hosts' rows, as JSON; `started_ns` is when their counters began."""
    hosts: list[dict[str, Any]] = []
    for first in range(0, len(meters), gpus_per_host):
        mine = meters[first : first + gpus_per_host]
        rows = [
            (_row("gpu_fast", now_ns, _key(first, i) | _fast(m)), _row("gpu_slow", now_ns, _key(first, i) | _slow(m)))
            for i, m in enumerate(mine)
        ]
        hosts.append(
            {
                "host": f"sim-{len(hosts)}",
                "gpu_fast": [fast for fast, _ in rows],
                "gpu_slow": [slow for _, slow in rows],
                "host_counters": _row("host", now_ns, _host(mine, (now_ns - started_ns) / 1e9)),
            }
        )
    return json.dumps({"schema": SCHEMA, "simulated": True, "t_mono_ns": now_ns, "hosts": hosts}).encode()


def _row(table: str, now_ns: int, values: dict[str, float]) -> dict[str, Any]:
    return (
        dict.fromkeys(column.name for column in TABLES[table]) | {"t0_mono_ns": now_ns, "t1_mono_ns": now_ns} | values
    )


def _key(first: int, index: int) -> dict[str, Any]:
    return {"gpu_uuid": f"SIM-GPU-{first + index:08x}", "gpu_index": index}


def _fast(meter: GpuMeter) -> dict[str, float]:
    engine = meter.replica.engine
    return {
        "util_pct": round(100 * meter.util, 1),
        "mem_total_b": engine.gpu.vram_b,
        "mem_used_b": engine.vram_used_b,
        "mem_reserved_b": 0,
        "mem_version": 2,
        "power_mw": round(meter.power_w * 1e3),
        "energy_mj": round(meter.energy_j * 1e3),
    }


def _slow(meter: GpuMeter) -> dict[str, float]:
    gpu: Gpu = meter.replica.engine.gpu
    busy = meter.util > 0
    return {
        "power_limit_mw": round(gpu.max_w * 1e3),
        "sm_mhz": gpu.max_sm_mhz if busy else gpu.idle_sm_mhz,
        "mem_mhz": gpu.mem_mhz,
        "temp_c": round(30 + 40 * (meter.power_w - gpu.idle_w) / (gpu.max_w - gpu.idle_w)),
        "clk_event_mask": 0 if busy else _CLOCK_EVENT_GPU_IDLE,
        "thr_sw_power_ns": 0,
        "thr_sw_therm_ns": 0,
        "thr_hw_therm_ns": 0,
        "thr_hw_brake_ns": 0,
    }


def _host(meters: Sequence[GpuMeter], up_s: float) -> dict[str, float]:
    replicas = [meter.replica for meter in meters]
    generated = sum(replica.generated_tokens for replica in replicas)
    prompts = sum(replica.prompt_tokens for replica in replicas)
    requests = sum(replica.finished + replica.cancelled for replica in replicas)
    gpu_s = sum(meter.busy_s for meter in meters)
    user_s = _ENGINE_LOOP_SHARE * gpu_s + _USER_S_PER_TOKEN * generated
    system_s = _SYSTEM_S_PER_TOKEN * generated
    return {
        "cpu_user_ticks": int(user_s * _TICKS_PER_S),
        "cpu_nice_ticks": 0,
        "cpu_sys_ticks": int(system_s * _TICKS_PER_S),
        "cpu_idle_ticks": int((_CPUS * up_s - user_s - system_s) * _TICKS_PER_S),
        "cpu_iowait_ticks": 0,
        "cpu_irq_ticks": 0,
        "cpu_steal_ticks": 0,
        "procs_running": 1 + sum(meter.util > 0 for meter in meters),
        "procs_blocked": 0,
        "mem_total_b": _MEMORY_B,
        "mem_available_b": _MEMORY_B - _SERVER_MEMORY_B * len(meters),
        "swap_free_b": 0,
        "net_rx_b": _RX_B_PER_TOKEN * prompts + _RX_B_PER_REQUEST * requests,
        "net_tx_b": _TX_B_PER_TOKEN * generated,
        "tcp_retrans": 0,
        "tcp_outsegs": generated,
        "tcp_listen_overflows": 0,
        "tcp_listen_drops": 0,
    }
