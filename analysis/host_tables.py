"""The tables of GPUs, hosts and clocks in a report: in CSV every figure, in text those that there are.

Made from a summary alone, as those of tables.py are; no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from analysis.checks import SIMULATED_GPU
from analysis.serving import gpu_name
from analysis.tables import DASH, Summary, as_number, at, count, fine, gib, per_cent, share, text, unit_of

# Path into a GPU's entry of the summary -> column of the CSV.
_GPU_FIGURES: dict[tuple[str, ...], str] = {
    **{
        (name, stat): f"{name}_{stat}"
        for name in (
            *("util_pct", "sm_pct", "occ_pct", "tensor_pct", "dram_pct"),
            *("vram_used_bytes", "vram_effective_bytes", "power_w"),
        )
        for stat in ("mean", "max")
    },
    ("sm_mhz",): "sm_mhz_mean",
    ("temp_c",): "temp_c_max",
    **{("throttled_share", cause): f"throttled_{cause}_share" for cause in ("power", "heat")},
    **{
        (f"{link}_bytes_per_s", way): f"{link}_{way}_bytes_per_s" for link in ("pcie", "nvlink") for way in ("tx", "rx")
    },
}


def gpus_frame(summary: Summary) -> pd.DataFrame:
    """A row a step and GPU: every figure."""
    facts = ["host", "uuid", "index", "gi_id", "coverage", "bound_ms", "vram_total_bytes"]
    rows = [
        {"step": number, "level": step["level"]}
        | {name: gpu[name] for name in facts}
        | {column: as_number(at(gpu, path)) for path, column in _GPU_FIGURES.items()}
        | {"gpu_source": SIMULATED_GPU if gpu["simulated"] else "NVML"}
        for number, step in enumerate(summary["steps"])
        for gpu in step["gpus"]
    ]
    frame = pd.DataFrame(rows, columns=["step", "level", *facts, *_GPU_FIGURES.values(), "gpu_source"])
    return frame.astype({"gi_id": "Int64"})


def _mib(value: float) -> str:
    return fine(value / 2**20)


class Cell(NamedTuple):
    """A column of a text table: where the figure is in an entry, and how it is shown."""

    header: str
    path: tuple[str, ...]
    show: Callable[[float], str] = per_cent


_GPU_CELLS = (
    Cell("util %", ("util_pct", "mean"), count),
    Cell("SM %", ("sm_pct", "mean"), count),
    Cell("tensor %", ("tensor_pct", "mean"), count),
    Cell("DRAM %", ("dram_pct", "mean"), count),
    Cell("VRAM used GiB", ("vram_used_bytes", "mean"), gib),
    Cell("VRAM effective GiB", ("vram_effective_bytes", "mean"), gib),
    Cell("VRAM total GiB", ("vram_total_bytes",), gib),
    Cell("power W", ("power_w", "mean"), count),
    Cell("SM MHz", ("sm_mhz",), count),
    Cell("hottest °C", ("temp_c",), count),
    Cell("held back by power %", ("throttled_share", "power"), share),
    Cell("held back by heat %", ("throttled_share", "heat"), share),
    Cell("PCIe to host MiB/s", ("pcie_bytes_per_s", "tx"), _mib),
    Cell("PCIe from host MiB/s", ("pcie_bytes_per_s", "rx"), _mib),
    Cell("NVLink out MiB/s", ("nvlink_bytes_per_s", "tx"), _mib),
    Cell("NVLink in MiB/s", ("nvlink_bytes_per_s", "rx"), _mib),
)
_HOST_CELLS = (
    Cell("CPU %", ("cpu_pct",)),
    Cell("busiest core %", ("busiest_cpu_pct", "mean")),
    Cell("iowait %", ("iowait_pct",)),
    Cell("steal %", ("steal_pct",)),
    Cell("pressure CPU %", ("psi_cpu_some_pct",)),
    Cell("pressure IO %", ("psi_io_some_pct",)),
    Cell("pressure memory %", ("psi_mem_some_pct",)),
    Cell("memory available GiB", ("mem_available_bytes",), gib),
    Cell("memory total GiB", ("mem_total_bytes",), gib),
    Cell("server CPU % of a core", ("server", "cpu_pct"), count),
    Cell("server waits for a CPU %", ("server", "run_delay_pct")),
    Cell("server held back by quota %", ("server", "throttled_pct")),
    Cell("server memory GiB", ("server", "rss_bytes"), gib),
)


def _shown(cells: Iterable[Cell], entries: Sequence[dict[str, Any]]) -> list[Cell]:
    """The cells that some entry has a figure for."""
    return [cell for cell in cells if any(at(entry, cell.path) is not None for entry in entries)]


def gpu_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the table of GPUs as text, of each step's window; without what none of them tells."""
    cells = _shown(_GPU_CELLS, [gpu for step in summary["steps"] for gpu in step["gpus"]])
    rows = [
        [str(step["level"]), gpu["host"], _gpu_name(gpu), *(text(at(gpu, cell.path), cell.show) for cell in cells)]
        for step in summary["steps"]
        for gpu in step["gpus"]
    ]
    return [unit_of(summary), "host", "GPU", *(cell.header for cell in cells)], rows


def _gpu_name(gpu: dict[str, Any]) -> str:
    name = gpu_name(gpu)
    return f"{name} ({SIMULATED_GPU})" if gpu["simulated"] else name


_HOST_FIGURES = (
    *("cpu_pct", "iowait_pct", "steal_pct", "psi_cpu_some_pct", "psi_io_some_pct", "psi_mem_some_pct"),
    *("mem_available_bytes", "mem_total_bytes"),
)
_SERVER_FIGURES = ("cpu_pct", "run_delay_pct", "throttled_pct", "rss_bytes")


def hosts_frame(summary: Summary) -> pd.DataFrame:
    """A row a step and host; `source` says whether the host is one of the simulator."""
    facts = ["host", "coverage", "bound_ms"]
    rows = [
        {"step": number, "level": step["level"]}
        | {name: host[name] for name in facts}
        | {name: as_number(host[name]) for name in _HOST_FIGURES}
        | {f"busiest_cpu_pct_{stat}": as_number(at(host, ("busiest_cpu_pct", stat))) for stat in ("mean", "max")}
        | {f"server_{name}": as_number(at(host, ("server", name))) for name in _SERVER_FIGURES}
        | {"source": SIMULATED_GPU if host["simulated"] else "measured"}
        for number, step in enumerate(summary["steps"])
        for host in step["hosts"]
    ]
    figures = [*_HOST_FIGURES, "busiest_cpu_pct_mean", "busiest_cpu_pct_max"]
    figures += [f"server_{name}" for name in _SERVER_FIGURES]
    return pd.DataFrame(rows, columns=["step", "level", *facts, *figures, "source"])


def host_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the table of hosts as text; without what none of them tells."""
    cells = _shown(_HOST_CELLS, [host for step in summary["steps"] for host in step["hosts"]])
    rows = [
        [
            str(step["level"]),
            f"{host['host']} ({SIMULATED_GPU})" if host["simulated"] else host["host"],
            *(text(at(host, cell.path), cell.show) for cell in cells),
        ]
        for step in summary["steps"]
        for host in step["hosts"]
    ]
    return [unit_of(summary), "host", *(cell.header for cell in cells)], rows


def clock_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Headers and rows, as text, of how well each host's clock is known, and of what watching the host cost."""
    headers = ["host", "clock", "error at worst ms", "median ms", "drift ppm", "moved", "time of day", "agent"]
    agents = {agent["host"]: agent for agent in summary["agents"]}
    rows = [
        [
            clock["host"],
            "the controller's" if clock["drift_ppm"] is None else "fitted by probes",
            _milliseconds(clock["bound_ms"]),
            _milliseconds(clock["bound_median_ms"]),
            text(clock["drift_ppm"]),
            "; ".join(f"{step['size_ms'] / 1e3:+.3g} s at {step['at_s']:.0f} s" for step in clock["steps"]) or DASH,
            _time_of_day(clock),
            agent_cost(agents[clock["host"]]) if clock["host"] in agents else DASH,
        ]
        for clock in summary["clocks"]
    ]
    return headers, rows


def _milliseconds(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _time_of_day(clock: dict[str, Any]) -> str:
    """What the kernel says of it, and by how much it differs from the controller's when the probes have placed it."""
    said = {True: "synchronised", False: "not synchronised", None: DASH}[clock["synchronised"]]
    if clock["time_of_day_ms"] is None:
        return said
    return f"{said}, {clock['time_of_day_ms']:+.3g} ms (may be {clock['time_of_day_limit_ms']:.3g})"


_SIGNALS = {"util_pct": "utilisation", "sm_pct": "SM activity", "power_w": "power"}


def sensor_lag(summary: Summary) -> str:
    """The lags that could be told, on one line; empty without any."""
    return "; ".join(
        f"{_SIGNALS[lag['signal']]} of {lag['host']} {lag['lag_ms']:.0f} ms (correlation {lag['peak']:.2f})"
        for lag in summary["sensor_lag_ms"]
        if lag["lag_ms"] is not None
    )


def agent_cost(agent: dict[str, Any]) -> str:
    """What an agent cost, on one line."""
    rss = DASH if agent["rss_bytes"] is None else f"{agent['rss_bytes'] / 2**20:.0f} MiB"
    due = agent["ticks"] + agent["skipped"]
    return f"{text(agent['cpu_pct'])} % of a core, {agent['skipped']} of {due} ticks skipped, {rss}"
