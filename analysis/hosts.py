"""What the hosts did beside the GPUs, and what watching them cost: figures of host, process and agent samples.

Counters become rates here, as the difference between the first and the last sample of a window; a counter that
restarted gives none. Takes the frames of join.py: seconds since the run's start. A host of the simulator is a model
and has an entry of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.join import Telemetry
from analysis.overlap import MAX_BLUR, MIN_COVERAGE, between, overlap_mean, quality, rate
from analysis.stats import Floats

_BUSY = ("cpu_user_ticks", "cpu_nice_ticks", "cpu_sys_ticks", "cpu_irq_ticks", "cpu_steal_ticks")
_ALL = (*_BUSY, "cpu_idle_ticks", "cpu_iowait_ticks")
_PRESSURE = ("psi_cpu_some", "psi_io_some", "psi_mem_some")
_NETWORK = ("net_rx_b", "net_tx_b", "net_drop", "tcp_retrans", "tcp_outsegs")
_PROCESSES = ("procs_running", "procs_blocked")
# USER_HZ: what the kernel tells ticks in, whatever its own are.
_TICKS_PER_S = 100


def host_figures(telemetry: Telemetry, edges: Floats) -> list[dict[str, Any]]:
    """An entry a host for the window between the two `edges`.

    Null where less than half of it has samples, or they may be off by more than half of it.
    """
    simulated = {clock.host: clock.simulated for clock in telemetry.clocks}
    processes = dict(list(telemetry.processes.groupby("host")))
    figures = []
    for name, rows in telemetry.hosts.groupby("host"):
        t = rows["t_s"].to_numpy()
        inside = rows[between(t, *edges)]
        bound_s, coverage = (float(values[0, 0]) for values in quality([rows], edges))
        busiest, known = overlap_mean(t, rows["cpu_max_busy_pct"].to_numpy(), edges)
        usable = coverage >= MIN_COVERAGE and not bound_s > MAX_BLUR * (edges[1] - edges[0])
        change = _change(inside) if usable else {}
        figures.append(
            {
                "host": str(name),
                "simulated": simulated[str(name)],
                "coverage": coverage,
                "bound_ms": 1e3 * bound_s,
                "cpu_pct": _share(change, _BUSY),
                "busiest_cpu_pct": {"mean": float(busiest[0]), "max": float(inside["cpu_max_busy_pct"].max())}
                if usable and known[0] >= MIN_COVERAGE
                else None,
                "iowait_pct": _share(change, ("cpu_iowait_ticks",)),
                "steal_pct": _share(change, ("cpu_steal_ticks",)),
                **{f"{name}_pct": _pressure(change, f"{name}_us") for name in _PRESSURE},
                **{f"{name}_bytes_per_s": _rate(change, f"{name}_b") for name in ("net_rx", "net_tx")},
                "net_drops_per_s": _rate(change, "net_drop"),
                "tcp_retrans_pct": _retransmitted(change),
                "disk_busy_pct": _rate(change, "disk_busy_ms", 0.1),
                **{name: _known(inside[name].mean()) if usable else None for name in _PROCESSES},
                "mem_available_bytes": _known(inside["mem_available_b"].min()) if usable else None,
                "mem_total_bytes": _known(rows["mem_total_b"].max()),
                "server": _server(processes[name], edges) if usable and name in processes else None,
            }
        )
    return figures


def _change(inside: pd.DataFrame) -> dict[str, float]:
    """By how much time and counters went on between the first and the last sample; without what is not known."""
    values = inside[["t_s", *_ALL, *(f"{name}_us" for name in _PRESSURE), *_NETWORK, "disk_busy_ms"]]
    if len(values) < 2:
        return {}
    change = values.to_numpy()[-1] - values.to_numpy()[0]
    return {name: float(value) for name, value in zip(values.columns, change, strict=True) if value >= 0}


def _share(change: dict[str, float], counters: Sequence[str]) -> float | None:
    """Ticks of the counters, in % of the ticks of all CPUs."""
    total = sum(change.get(name, np.nan) for name in _ALL)
    return 100 * sum(change[name] for name in counters) / total if total > 0 else None


def _pressure(change: dict[str, float], counter: str) -> float | None:
    """Share of the time, in %, in which some task waited."""
    return 100 * change[counter] / 1e6 / change["t_s"] if counter in change and change["t_s"] > 0 else None


def _rate(change: dict[str, float], counter: str, scale: float = 1.0) -> float | None:
    return scale * change[counter] / change["t_s"] if counter in change and change["t_s"] > 0 else None


def _retransmitted(change: dict[str, float]) -> float | None:
    """TCP segments that were sent again, in % of all that were sent."""
    sent = change.get("tcp_outsegs", 0.0)
    return 100 * change["tcp_retrans"] / sent if sent > 0 and "tcp_retrans" in change else None


def _server(processes: pd.DataFrame, edges: Floats) -> dict[str, Any] | None:
    """The process of the model server that used most CPU time; one that was not there for half the window is none.

    `throttled_pct` is of its cgroup, summed over the CPUs: it may exceed 100.
    """
    rows = processes[between(processes["t_s"].to_numpy(), *edges)]
    found: list[dict[str, Any]] = []
    for _, mine in rows.groupby(["pid", "starttime_ticks"]):
        t = mine["t_s"].to_numpy()
        ticks, waited, held = (
            rate(t, mine[list(columns)].sum(axis=1, skipna=False).to_numpy(), *edges)
            for columns in (("utime_ticks", "stime_ticks"), ("run_delay_ns",), ("cg_throttled_us",))
        )
        if ticks is not None:
            found.append(
                {
                    "pid": int(mine["pid"].iloc[-1]),
                    "name": str(mine["name"].iloc[-1]),
                    "cpu_pct": 100 * ticks / _TICKS_PER_S,
                    "run_delay_pct": None if waited is None else 100 * waited / 1e9,
                    "throttled_pct": None if held is None else 100 * held / 1e6,
                    "rss_bytes": _known(mine["rss_b"].max()),
                }
            )
    return max(found, key=lambda process: process["cpu_pct"], default=None)


def agent_figures(telemetry: Telemetry) -> list[dict[str, Any]]:
    """What each agent cost over the whole run, and how long its host slept; one that was started again counts anew."""
    figures = []
    for name, rows in telemetry.agents.groupby("host"):
        time_s = float(rows["t_s"].iloc[-1] - rows["t_s"].iloc[0])
        used = {column: float(rows[column].diff().clip(lower=0).sum()) for column in ("cpu_us", "ticks", "overruns")}
        due = used["ticks"] + used["overruns"]
        slept_ns = rows["suspended_ns"].dropna()
        figures.append(
            {
                "host": str(name),
                "cpu_pct": 100 * used["cpu_us"] / 1e6 / time_s if time_s > 0 and rows["cpu_us"].notna().any() else None,
                "ticks": int(used["ticks"]),
                "skipped": int(used["overruns"]),
                "skipped_share": used["overruns"] / due if due else None,
                "rss_bytes": _known(rows["rss_b"].max()),
                "dropped": _known(rows["dropped"].max()),
                "suspended_s": float(slept_ns.diff().clip(lower=0).sum()) / 1e9 if len(slept_ns) else None,
            }
        )
    return figures


def _known(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
