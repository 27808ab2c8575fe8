"""What an agent samples: one table of columns (name, type, unit, source) for each tier.

Here: the tables, and nothing that reads a sensor. Rows are sent as arrays in this order, without host and device
names of their own machine's making: those are columns like any other. Raw counters, never rates. `None` is "not
measured", never 0. All `_mono_ns` are CLOCK_MONOTONIC of the host that the agent runs on.
"""

from typing import Dict, NamedTuple, Tuple

# 1  first version
# 2  MIG, GPM, links, buffered utilisation, processes, disks, dcgm-exporter, the kernel's clock
SCHEMA = 2


class Column(NamedTuple):
    name: str
    type: str
    unit: str
    source: str


_STAMPS = (
    Column("t0_mono_ns", "int64", "ns", "before the read"),
    Column("t1_mono_ns", "int64", "ns", "after the read"),
)
_SCRAPE_STAMPS = (
    Column("t0_mono_ns", "int64", "ns", "before the request"),
    Column("t1_mono_ns", "int64", "ns", "at the first byte of the answer"),
)
_GPU_KEY = (
    Column("gpu_uuid", "string", "", "nvmlDeviceGetUUID"),
    Column("gpu_index", "int32", "", "nvmlDeviceGetIndex at start; of a MIG device: that of its GPU"),
    Column("gi_id", "int32", "", "GPU instance of a MIG device; null: a whole GPU"),
)
_PERCENT_OF_GPM = "GPM metric {}: mean since win_start_mono_ns"

TABLES: Dict[str, Tuple[Column, ...]] = {
    "gpu_fast": (
        *_STAMPS,
        *_GPU_KEY,
        Column("util_pct", "float64", "%", "nvmlDeviceGetUtilizationRates.gpu: share of time with a kernel running"),
        Column("mem_total_b", "int64", "B", "nvmlDeviceGetMemoryInfo"),
        Column("mem_used_b", "int64", "B", "nvmlDeviceGetMemoryInfo; without the reserved part when mem_version is 2"),
        Column("mem_reserved_b", "int64", "B", "nvmlDeviceGetMemoryInfo v2"),
        Column("mem_free_b", "int64", "B", "nvmlDeviceGetMemoryInfo"),
        Column("mem_version", "int32", "", "2, or 1 where the driver is too old"),
        Column(
            "power_mw", "int64", "mW", "field 186 (instant), else nvmlDeviceGetPowerUsage: hello.json says what it is"
        ),
        Column("energy_mj", "int64", "mJ", "field 83, else nvmlDeviceGetTotalEnergyConsumption: since driver load"),
        Column(
            "win_start_mono_ns", "int64", "ns", "begin of the time that the gpm columns are means of; t0 is its end"
        ),
        *(
            Column(f"gpm_{name}_pct", "float64", "%", _PERCENT_OF_GPM.format(number))
            for name, number in (("graphics", 1), ("sm", 2), ("occ", 3), ("tensor", 5), ("dram", 10))
        ),
        *(
            Column(f"gpm_{name}_mibs", "float64", "MiB/s", _PERCENT_OF_GPM.format(number))
            for name, number in (("pcie_tx", 20), ("pcie_rx", 21), ("nvl_rx", 60), ("nvl_tx", 61))
        ),
    ),
    "gpu_slow": (
        *_STAMPS,
        *_GPU_KEY,
        Column("power_avg_mw", "int64", "mW", "field 185: mean of the last second"),
        Column("power_limit_mw", "int64", "mW", "nvmlDeviceGetEnforcedPowerLimit"),
        Column("sm_mhz", "int32", "MHz", "nvmlDeviceGetClockInfo(SM)"),
        Column("mem_mhz", "int32", "MHz", "nvmlDeviceGetClockInfo(MEM)"),
        Column("temp_c", "int32", "C", "nvmlDeviceGetTemperature(GPU)"),
        Column("temp_mem_c", "int32", "C", "field 82"),
        Column("pstate", "int32", "", "nvmlDeviceGetPerformanceState: 0 is the fastest"),
        Column("clk_event_mask", "int64", "", "nvmlDeviceGetCurrentClocksEventReasons"),
        Column("thr_sw_power_ns", "int64", "ns", "field 74, cumulative"),
        Column("thr_sw_therm_ns", "int64", "ns", "field 269, cumulative"),
        Column("thr_hw_therm_ns", "int64", "ns", "field 270, cumulative"),
        Column("thr_hw_brake_ns", "int64", "ns", "field 271, cumulative"),
        Column("thr_sync_ns", "int64", "ns", "field 76, cumulative"),
        Column("pcie_tx_b", "int64", "B", "field 197, cumulative; may wrap"),
        Column("pcie_rx_b", "int64", "B", "field 198, cumulative; may wrap"),
        Column("nvl_tx_kib", "int64", "KiB", "field 138, all links, cumulative"),
        Column("nvl_rx_kib", "int64", "KiB", "field 139, all links, cumulative"),
        Column("ecc_sbe", "int64", "", "field 3: corrected errors since driver load"),
        Column("ecc_dbe", "int64", "", "field 4: uncorrected errors since driver load"),
        Column("remap_pending", "int32", "", "field 144: 1 when rows wait for a reset to be remapped"),
    ),
    "gpu_util": (
        Column("t0_mono_ns", "int64", "ns", "the driver's stamp of the sample before, or of this one"),
        Column("t1_mono_ns", "int64", "ns", "the driver's stamp of this sample"),
        *_GPU_KEY,
        Column(
            "util_pct",
            "float64",
            "%",
            "nvmlDeviceGetSamples(GPU_UTILIZATION): the driver's own buffer, 5 to 6 a second",
        ),
        Column(
            "memutil_pct", "float64", "%", "nvmlDeviceGetSamples(MEMORY_UTILIZATION): time in which memory was accessed"
        ),
    ),
    "gpu_process": (
        *_STAMPS,
        *_GPU_KEY,
        Column("pid", "int64", "", "as the host numbers it"),
        Column("used_b", "int64", "B", "nvmlDeviceGetComputeRunningProcesses"),
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
        Column("net_drop", "int64", "", "/proc/net/dev, all but loopback: dropped, both ways"),
        Column("tcp_retrans", "int64", "", "/proc/net/snmp RetransSegs"),
        Column("tcp_outsegs", "int64", "", "/proc/net/snmp OutSegs"),
        Column("tcp_listen_overflows", "int64", "", "/proc/net/netstat ListenOverflows"),
        Column("tcp_listen_drops", "int64", "", "/proc/net/netstat ListenDrops"),
        Column("disk_r_b", "int64", "B", "/proc/diskstats, whole disks"),
        Column("disk_w_b", "int64", "B", "/proc/diskstats, whole disks"),
        Column("disk_busy_ms", "int64", "ms", "/proc/diskstats: time that the busiest disk of each second was busy"),
    ),
    "process": (
        *_STAMPS,
        Column(
            "pid",
            "int64",
            "",
            "a process of the model server: it uses a GPU, listens on the server's port, or is above them",
        ),
        Column("starttime_ticks", "int64", "ticks", "/proc/<pid>/stat: with the pid it names a process"),
        Column("name", "string", "", "/proc/<pid>/comm"),
        Column("utime_ticks", "int64", "ticks", "/proc/<pid>/stat"),
        Column("stime_ticks", "int64", "ticks", "/proc/<pid>/stat"),
        Column("rss_b", "int64", "B", "/proc/<pid>/statm"),
        Column("threads", "int32", "", "/proc/<pid>/stat"),
        Column("vctx", "int64", "", "/proc/<pid>/status of the main thread: it waited"),
        Column("nvctx", "int64", "", "/proc/<pid>/status of the main thread: it was interrupted"),
        Column(
            "run_delay_ns", "int64", "ns", "/proc/<pid>/schedstat of the main thread: ready to run, but no CPU was free"
        ),
        Column("cg_usage_us", "int64", "us", "CPU time of its cgroup"),
        Column("cg_nr_throttled", "int64", "", "periods in which the cgroup's CPU quota was used up"),
        Column("cg_throttled_us", "int64", "us", "time that its cgroup was held back by the quota"),
        Column("cg_mem_b", "int64", "B", "memory of its cgroup"),
        Column("cg_oom_kill", "int64", "", "processes of its cgroup that were killed for want of memory"),
    ),
    "server": (
        *_SCRAPE_STAMPS,
        Column("engine", "string", "", "engine / data-parallel rank label; empty where there is none"),
        Column("render_us", "int64", "us", "from the request to the end of the answer"),
        Column("page_b", "int64", "B", "size of the page"),
        Column("running", "float64", "", "requests being served"),
        Column("waiting", "float64", "", "requests queued"),
        Column("kv_usage_ratio", "float64", "0-1", "share of the KV cache in use"),
        Column("kv_pool_b", "int64", "B", "size of the KV cache on one GPU, where the server tells"),
        Column("kv_used_tokens", "float64", "", "tokens in the KV cache, where the server tells"),
        Column("prefix_queries_tok", "float64", "", "counter of tokens looked up in the prefix cache"),
        Column("prefix_hits_tok", "float64", "", "counter of tokens found in it"),
        Column("preemptions", "float64", "", "counter"),
        Column("prompt_tokens", "float64", "", "counter"),
        Column("generation_tokens", "float64", "", "counter"),
        Column("success", "float64", "", "counter of requests finished well"),
        Column("failed", "float64", "", "counter of requests that failed, were aborted or refused"),
    ),
    "dcgm": (
        *_SCRAPE_STAMPS,
        Column("gpu_uuid", "string", "", "label UUID"),
        Column("gpu_index", "int32", "", "label gpu"),
        Column("render_us", "int64", "us", "from the request to the end of the answer"),
        Column("util_pct", "float64", "%", "DCGM_FI_DEV_GPU_UTIL"),
        Column("sm_active_pct", "float64", "%", "DCGM_FI_PROF_SM_ACTIVE"),
        Column("sm_occ_pct", "float64", "%", "DCGM_FI_PROF_SM_OCCUPANCY"),
        Column("tensor_pct", "float64", "%", "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"),
        Column("dram_pct", "float64", "%", "DCGM_FI_PROF_DRAM_ACTIVE"),
        Column("mem_used_b", "int64", "B", "DCGM_FI_DEV_FB_USED"),
        Column("power_mw", "int64", "mW", "DCGM_FI_DEV_POWER_USAGE"),
        Column("energy_mj", "int64", "mJ", "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"),
        Column("sm_mhz", "int32", "MHz", "DCGM_FI_DEV_SM_CLOCK"),
        Column("temp_c", "int32", "C", "DCGM_FI_DEV_GPU_TEMP"),
    ),
    "agent": (
        *_STAMPS,
        Column("cpu_us", "int64", "us", "CPU time of the agent since its start"),
        Column("rss_b", "int64", "B", "/proc/self/statm"),
        Column("ticks", "int64", "", "fast ticks since the start"),
        Column("overruns", "int64", "", "fast ticks skipped because one came too late"),
        Column("tick_late_us_p99", "int64", "us", "lateness of the fast ticks of the last second"),
        Column("nvml_us_p99", "int64", "us", "time in NVML of one fast tick, over the last second"),
        Column("period_ms", "int64", "ms", "of the fast ticks: longer when the driver is slow"),
        Column("spool_b", "int64", "B", "waiting for the collector's word that it is on its disk"),
        Column("dropped", "int64", "", "frames thrown away since the start because the spool was full"),
        Column("clock_unsync", "int32", "", "adjtimex: 1 when the kernel's time of day is not synchronised"),
        Column("clock_maxerror_us", "int64", "us", "adjtimex: what the kernel thinks its time of day may be off"),
        Column("clock_freq_ppm", "float64", "ppm", "adjtimex: by how much the kernel corrects the oscillator"),
        Column("suspended_ns", "int64", "ns", "CLOCK_BOOTTIME - CLOCK_MONOTONIC: how long this host has slept"),
    ),
}
