"""/telemetry: what NVML and /proc would say on the simulated hosts, in the columns of remote_agents.agent.sample.

Everything follows from the model's work by stated formulas; what has none is null. Power in a window is idle + what
computing and reading memory draw (profiles.Engine.dynamic_w) for their shares of it; an iteration runs, so `util_pct`
is its time, whatever bounds it. The gpm columns are of the time since the answer before: SMs and engine run while an
iteration does, the tensor cores while it computes, and while it reads memory it does so at what its clock leaves of the
peak. Sensors go by the real clock: a sped-up GPU is a faster one that draws the same. Times are CLOCK_MONOTONIC ns of
the simulator's host.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from typing import Any

from loadgen.simulator.model import Replica
from loadgen.simulator.stages import Stages
from remote_agents.agent.sample import SCHEMA, TABLES

WINDOW_S = 1 / 6  # NVML's shortest window of utilisation; also how often `GpuMeter.advance` wants to be called

_AVERAGE_NS = 1_000_000_000  # of power_avg_mw
_LONGEST_GPM_NS = 2_000_000_000
_TICKS_PER_S = 100
_CLOCK_EVENT_GPU_IDLE = 0x1
_CLOCK_EVENT_SW_POWER_CAP = 0x4
_CLOCK_EVENT_SW_THERMAL = 0x20
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
    """The sensors of one GPU. `advance` closes a window and integrates the energy.

    `behind_ns`: how long after its instant the replica is brought up to date. Leaks are by second of the real clock.
    """

    def __init__(
        self,
        replica: Replica[Any],
        now_ns: int,
        behind_ns: int = 0,
        leak_b_per_s: float = 0,
        leak_b_per_request: float = 0,
    ) -> None:
        self.replica = replica
        self.util = 0.0
        self.power_w = replica.engine.gpu.idle_w
        self.energy_j = 0.0
        self.clock = 1.0  # share of the highest
        self.throttled_ns = 0.0
        self._behind_ns = behind_ns
        self._leak_b_per_s, self._leak_b_per_request = leak_b_per_s, leak_b_per_request
        self._started_ns = self._at_ns = now_ns
        self._work_ns = replica.work_ns(now_ns - behind_ns)
        self._last_read: tuple[int, tuple[float, float]] | None = None
        self._energies_j = deque([(now_ns, 0.0)])  # of the last second

    @property
    def busy_s(self) -> float:
        return sum(self._work_ns) / 1e9

    @property
    def average_w(self) -> float:
        """Of the last second, or since the start."""
        (began_ns, before_j), (ended_ns, after_j) = self._energies_j[0], self._energies_j[-1]
        return (after_j - before_j) / (ended_ns - began_ns) * 1e9 if ended_ns > began_ns else self.power_w

    def advance(self, now_ns: int) -> None:
        engine, window_ns, before = self.replica.engine, now_ns - self._at_ns, self._work_ns
        self._at_ns, self._work_ns = now_ns, self.replica.work_ns(now_ns - self._behind_ns)
        compute, memory = _shares(before, self._work_ns, window_ns)
        self.util = compute + memory
        compute_w, memory_w = engine.dynamic_w
        self.power_w = engine.gpu.idle_w + compute * compute_w + memory * memory_w
        self.energy_j += self.power_w * window_ns / 1e9
        self._energies_j.append((now_ns, self.energy_j))
        while self._energies_j[1][0] <= now_ns - _AVERAGE_NS:
            self._energies_j.popleft()
        compute_clock, memory_clock = engine.clocks
        self.clock = (compute * compute_clock + memory * memory_clock) / (self.util or 1)
        self.throttled_ns += window_ns * (compute * (compute_clock < 1) + memory * (memory_clock < 1))

    def since_last_read(self, now_ns: int) -> tuple[int, float, float] | None:
        """(when this was asked last, shares of the time since then spent computing and reading memory).

        None when that was never, or so long ago that the mean says little.
        """
        before, self._last_read = self._last_read, (now_ns, self.replica.work_ns(now_ns - self._behind_ns))
        if before is None or not 0 < now_ns - before[0] <= _LONGEST_GPM_NS:
            return None
        return before[0], *_shares(before[1], self._last_read[1], now_ns - before[0])

    def vram_used_b(self, now_ns: int) -> int:
        """With what has leaked; a card cannot lose more than it has."""
        engine, replica = self.replica.engine, self.replica
        leaked_b = self._leak_b_per_s * (now_ns - self._started_ns) / 1e9
        leaked_b += self._leak_b_per_request * (replica.finished + replica.cancelled)
        return min(engine.gpu.vram_b, engine.vram_used_b + round(leaked_b))


def _shares(before_ns: tuple[float, float], after_ns: tuple[float, float], window_ns: int) -> tuple[float, float]:
    """Of a window, computing and reading memory: 1 at most, since a late loop books work after its window."""
    compute, memory = ((after - before) / window_ns for after, before in zip(after_ns, before_ns, strict=True))
    too_much = max(1.0, compute + memory)
    return compute / too_much, memory / too_much


def render(
    meters: Sequence[GpuMeter], stages: Sequence[Stages], gpus_per_host: int, started_ns: int, now_ns: int
) -> bytes:
    """All hosts' rows, as JSON; `started_ns` is when their counters began, `stages` has the front end of each."""
    hosts: list[dict[str, Any]] = []
    for number, front in enumerate(stages):
        first = number * gpus_per_host
        mine = meters[first : first + gpus_per_host]
        hosts.append(
            {
                "host": f"sim-{number}",
                "gpus": [_facts(first + i, m) | {"index": i} for i, m in enumerate(mine)],
                "gpu_fast": [_row("gpu_fast", now_ns, _key(first, i) | _fast(m, now_ns)) for i, m in enumerate(mine)],
                "gpu_slow": [_row("gpu_slow", now_ns, _key(first, i) | _slow(m)) for i, m in enumerate(mine)],
                "host_counters": _row("host", now_ns, _host(mine, front, started_ns, now_ns)),
            }
        )
    speedup = meters[0].replica.engine.speedup
    answer = {"schema": SCHEMA, "simulated": True, "speedup": speedup, "t_mono_ns": now_ns, "hosts": hosts}
    return json.dumps(answer).encode()


def _facts(number: int, meter: GpuMeter) -> dict[str, Any]:
    """What remote_agents.agent.gpu_facts finds out of a card; clocks and bandwidth are those without the speed-up."""
    gpu = meter.replica.engine.gpu
    return {
        "uuid": _uuid(number),
        "name": gpu.name,
        "mem_total_b": gpu.vram_b,
        "sm_max_mhz": gpu.max_sm_mhz,
        "dram_peak_b_s": round(gpu.bandwidth),
    }


def _row(table: str, now_ns: int, values: dict[str, float]) -> dict[str, Any]:
    return (
        dict.fromkeys(column.name for column in TABLES[table]) | {"t0_mono_ns": now_ns, "t1_mono_ns": now_ns} | values
    )


def _key(first: int, index: int) -> dict[str, Any]:
    return {"gpu_uuid": _uuid(first + index), "gpu_index": index}


def _uuid(number: int) -> str:
    return f"SIM-GPU-{number:08x}"


def _fast(meter: GpuMeter, now_ns: int) -> dict[str, float]:
    gpu = meter.replica.engine.gpu
    used_b = meter.vram_used_b(now_ns)
    return _gpm(meter, now_ns) | {
        "util_pct": round(100 * meter.util, 1),
        "mem_total_b": gpu.vram_b,
        "mem_used_b": used_b,
        "mem_reserved_b": 0,
        "mem_free_b": gpu.vram_b - used_b,
        "mem_version": 2,
        "power_mw": round(meter.power_w * 1e3),
        "energy_mj": round(meter.energy_j * 1e3),
    }


def _gpm(meter: GpuMeter, now_ns: int) -> dict[str, float]:
    window = meter.since_last_read(now_ns)
    if window is None:
        return {}
    start_ns, compute, memory = window
    return {
        "win_start_mono_ns": start_ns,
        "gpm_graphics_pct": round(100 * (compute + memory), 3),
        "gpm_sm_pct": round(100 * (compute + memory), 3),
        "gpm_tensor_pct": round(100 * compute, 3),
        "gpm_dram_pct": round(100 * memory * meter.replica.engine.clocks[1], 3),
    }


def _slow(meter: GpuMeter) -> dict[str, float]:
    engine = meter.replica.engine
    gpu = engine.gpu
    busy, hot = meter.util > 0, engine.is_hot
    throttled_ns = round(meter.throttled_ns)
    held_back = _CLOCK_EVENT_SW_THERMAL if hot else _CLOCK_EVENT_SW_POWER_CAP
    return {
        "power_avg_mw": round(meter.average_w * 1e3),
        "power_limit_mw": round(engine.limit_w * 1e3),
        "sm_mhz": round(meter.clock * gpu.max_sm_mhz) if busy else gpu.idle_sm_mhz,
        "mem_mhz": gpu.mem_mhz,
        "temp_c": round(gpu.temp_c(meter.power_w)),
        "pstate": 0,  # the memory's clock is always the highest
        "clk_event_mask": (held_back if meter.clock < 1 else 0) if busy else _CLOCK_EVENT_GPU_IDLE,
        "thr_sw_power_ns": 0 if hot else throttled_ns,
        "thr_sw_therm_ns": throttled_ns if hot else 0,
        "thr_hw_therm_ns": 0,
        "thr_hw_brake_ns": 0,
        "thr_sync_ns": 0,
        "ecc_sbe": 0,
        "ecc_dbe": 0,
        "remap_pending": 0,
    }


def _host(meters: Sequence[GpuMeter], front: Stages, started_ns: int, now_ns: int) -> dict[str, float]:
    replicas = [meter.replica for meter in meters]
    speedup = replicas[0].engine.speedup
    generated = sum(replica.generated_tokens for replica in replicas)
    prompts = sum(replica.prompt_tokens for replica in replicas)
    requests = sum(replica.finished + replica.cancelled for replica in replicas)
    gpu_s = sum(meter.busy_s for meter in meters)
    user_s = _ENGINE_LOOP_SHARE * gpu_s + _USER_S_PER_TOKEN * generated / speedup + front.cpu_ns(now_ns) / 1e9
    system_s = _SYSTEM_S_PER_TOKEN * generated / speedup
    idle_s = _CPUS * (now_ns - started_ns) / 1e9 - user_s - system_s
    waited_s = min(idle_s, front.io_ns(now_ns) / 1e9)  # a CPU that waits for I/O is an idle one
    on_cpu, in_io = front.at_work(now_ns)
    waited_cpu_ns, in_io_ns = front.pressure_ns(now_ns)
    busiest = max(front.workers_busy(now_ns), *(_ENGINE_LOOP_SHARE * min(1.0, meter.util) for meter in meters))
    return {
        "cpu_user_ticks": int(user_s * _TICKS_PER_S),
        "cpu_nice_ticks": 0,
        "cpu_sys_ticks": int(system_s * _TICKS_PER_S),
        "cpu_idle_ticks": int((idle_s - waited_s) * _TICKS_PER_S),
        "cpu_iowait_ticks": int(waited_s * _TICKS_PER_S),
        "cpu_irq_ticks": 0,
        "cpu_steal_ticks": 0,
        "cpu_max_busy_pct": round(100 * busiest, 1),
        "procs_running": 1 + sum(meter.util > 0 for meter in meters) + on_cpu + front.waiting_for_cpu(now_ns),
        "procs_blocked": in_io,
        "psi_cpu_some_us": waited_cpu_ns // 1000,
        "psi_io_some_us": in_io_ns // 1000,
        "psi_mem_some_us": 0,
        "disk_busy_ms": in_io_ns // 1_000_000,
        "mem_total_b": _MEMORY_B,
        "mem_available_b": _MEMORY_B - _SERVER_MEMORY_B * len(meters),
        "swap_free_b": 0,
        "net_rx_b": _RX_B_PER_TOKEN * prompts + _RX_B_PER_REQUEST * requests,
        "net_tx_b": _TX_B_PER_TOKEN * generated,
        "net_drop": 0,
        "tcp_retrans": 0,
        "tcp_outsegs": generated,
        "tcp_listen_overflows": 0,
        "tcp_listen_drops": 0,
    }
