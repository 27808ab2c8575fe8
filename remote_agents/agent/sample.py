"""What an agent samples: one table of columns (name, type, unit, source) for each tier.

Here: the tables, and nothing that reads a sensor. Rows are sent as arrays in this order, without host and device
names of their own machine's making: those are columns like any other. Raw counters, never rates. `None` is "not
measured", never 0. All `_mono_ns` are CLOCK_MONOTONIC of the host that the agent runs on.
"""

from typing import Dict, NamedTuple, Tuple

# 1  first version
SCHEMA = 1


class Column(NamedTuple):
    name: str
    type: str
    unit: str
    source: str


_STAMPS = (
    Column("t0_mono_ns", "int64", "ns", "before the read"),
    Column("t1_mono_ns", "int64", "ns", "after the read"),
)
_GPU_KEY = (
    Column("gpu_uuid", "string", "", "nvmlDeviceGetUUID"),
    Column("gpu_index", "int32", "", "nvmlDeviceGetIndex at start"),
)

TABLES: Dict[str, Tuple[Column, ...]] = {
    "gpu_fast": (
        *_STAMPS,
        *_GPU_KEY,
        Column("util_pct", "float64", "%", "nvmlDeviceGetUtilizationRates.gpu: share of time with a kernel running"),
        Column("mem_total_b", "int64", "B", "nvmlDeviceGetMemoryInfo"),
        Column("mem_used_b", "int64", "B", "nvmlDeviceGetMemoryInfo; without the reserved part when mem_version is 2"),
        Column("mem_reserved_b", "int64", "B", "nvmlDeviceGetMemoryInfo v2"),
        Column("mem_version", "int32", "", "2, or 1 where the driver is too old"),
        Column("power_mw", "int64", "mW", "field 186 (instant), else nvmlDeviceGetPowerUsage"),
        Column("energy_mj", "int64", "mJ", "nvmlDeviceGetTotalEnergyConsumption: since driver load"),
    ),
    "gpu_slow": (
        *_STAMPS,
        *_GPU_KEY,
        Column("power_limit_mw", "int64", "mW", "nvmlDeviceGetEnforcedPowerLimit"),
        Column("sm_mhz", "int32", "MHz", "nvmlDeviceGetClockInfo(SM)"),
        Column("mem_mhz", "int32", "MHz", "nvmlDeviceGetClockInfo(MEM)"),
        Column("temp_c", "int32", "C", "nvmlDeviceGetTemperature(GPU)"),
        Column("clk_event_mask", "int64", "", "nvmlDeviceGetCurrentClocksEventReasons"),
        Column("thr_sw_power_ns", "int64", "ns", "field 74, cumulative"),
        Column("thr_sw_therm_ns", "int64", "ns", "field 269, cumulative"),
        Column("thr_hw_therm_ns", "int64", "ns", "field 270, cumulative"),
        Column("thr_hw_brake_ns", "int64", "ns", "field 271, cumulative"),
    ),
    "host": (
        *_STAMPS,
        Column("cpu_user_ticks", "int64", "ticks", "/proc/stat"),
        Column("cpu_nice_ticks", "int64", "ticks", "/proc/stat"),
        Column("cpu_sys_ticks", "int64", "ticks", "/proc/stat"),
        Column("cpu_idle_ticks", "int64", "ticks", "/proc/stat"),
        Column("cpu_iowait_ticks", "int64", "ticks", "/proc/stat; a hint only"),
        Column("cpu_irq_ticks", "int64", "ticks", "/proc/stat irq + softirq"),
        Column("cpu_steal_ticks", "int64", "ticks", "/proc/stat"),
        Column("cpu_max_busy_pct", "float64", "%", "/proc/stat: the busiest CPU since the last sample"),
        Column("ctxt", "int64", "", "/proc/stat"),
        Column("procs_running", "int32", "", "/proc/stat"),
        Column("procs_blocked", "int32", "", "/proc/stat"),
        Column("load1", "float64", "", "/proc/loadavg"),
        Column("psi_cpu_some_us", "int64", "us", "/proc/pressure/cpu total"),
        Column("psi_io_some_us", "int64", "us", "/proc/pressure/io total"),
        Column("psi_io_full_us", "int64", "us", "/proc/pressure/io total"),
        Column("psi_mem_some_us", "int64", "us", "/proc/pressure/memory total"),
        Column("psi_mem_full_us", "int64", "us", "/proc/pressure/memory total"),
        Column("mem_total_b", "int64", "B", "/proc/meminfo"),
        Column("mem_available_b", "int64", "B", "/proc/meminfo"),
        Column("swap_free_b", "int64", "B", "/proc/meminfo"),
        Column("pgmajfault", "int64", "", "/proc/vmstat"),
        Column("net_rx_b", "int64", "B", "/proc/net/dev, all but loopback"),
        Column("net_tx_b", "int64", "B", "/proc/net/dev, all but loopback"),
        Column("tcp_retrans", "int64", "", "/proc/net/snmp RetransSegs"),
        Column("tcp_outsegs", "int64", "", "/proc/net/snmp OutSegs"),
        Column("tcp_listen_overflows", "int64", "", "/proc/net/netstat ListenOverflows"),
        Column("tcp_listen_drops", "int64", "", "/proc/net/netstat ListenDrops"),
    ),
    "server": (
        *_STAMPS,
        Column("engine", "string", "", "engine / data-parallel rank label; empty where there is none"),
        Column("render_us", "int64", "us", "how long the scrape took"),
        Column("running", "float64", "", "requests being served"),
        Column("waiting", "float64", "", "requests queued"),
        Column("kv_usage_ratio", "float64", "0-1", "share of the KV cache in use"),
        Column("kv_pool_b", "int64", "B", "size of the KV cache on one GPU, where the server tells"),
        Column("preemptions", "float64", "", "counter"),
        Column("prompt_tokens", "float64", "", "counter"),
        Column("generation_tokens", "float64", "", "counter"),
        Column("success", "float64", "", "counter of requests finished"),
    ),
    "agent": (
        *_STAMPS,
        Column("cpu_us", "int64", "us", "CPU time of the agent since its start"),
        Column("rss_b", "int64", "B", "/proc/self/statm"),
        Column("ticks", "int64", "", "fast ticks since the start"),
        Column("overruns", "int64", "", "fast ticks skipped because one came too late"),
        Column("tick_late_us_p99", "int64", "us", "lateness of the fast ticks of the last second"),
        Column("nvml_us_p99", "int64", "us", "time in NVML of one fast tick, over the last second"),
        Column("dropped", "int64", "", "frames thrown away since the start because the collector did not read"),
    ),
}
