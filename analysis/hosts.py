"""What the hosts did beside the GPUs, and what watching them cost: figures of the host and agent samples.

Counters become rates here, as the difference between the first and the last sample of a window; a counter that
restarted gives none. Takes the frames of join.py: seconds since the run's start. A host of the simulator is a model
and has an entry of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.join import MIN_COVERAGE, Telemetry, between, overlap_mean
from analysis.stats import Floats

_BUSY = ("cpu_user_ticks", "cpu_nice_ticks", "cpu_sys_ticks", "cpu_irq_ticks", "cpu_steal_ticks")
_ALL = (*_BUSY, "cpu_idle_ticks", "cpu_iowait_ticks")
_PRESSURE = ("psi_cpu_some", "psi_io_some", "psi_mem_some")


def host_figures(telemetry: Telemetry, edges: Floats) -> list[dict[str, Any]]:
    """An entry a host for the window between the two `edges`; null where less than half of it has samples."""
    simulated = {clock.host: clock.simulated for clock in telemetry.clocks}
    figures = []
    for name, rows in telemetry.hosts.groupby("host"):
        t = rows["t_s"].to_numpy()
        inside = rows[between(t, *edges)]
        coverage = float(overlap_mean(t, np.zeros(t.size), edges)[1][0])
        busiest, known = overlap_mean(t, rows["cpu_max_busy_pct"].to_numpy(), edges)
        change = _change(inside) if coverage >= MIN_COVERAGE else {}
        figures.append(
            {
                "host": str(name),
                "simulated": simulated[str(name)],
                "coverage": coverage,
                "cpu_pct": _share(change, _BUSY),
                "busiest_cpu_pct": {"mean": float(busiest[0]), "max": float(inside["cpu_max_busy_pct"].max())}
                if known[0] >= MIN_COVERAGE
                else None,
                "iowait_pct": _share(change, ("cpu_iowait_ticks",)),
                "steal_pct": _share(change, ("cpu_steal_ticks",)),
                **{f"{name}_pct": _pressure(change, f"{name}_us") for name in _PRESSURE},
                "mem_available_bytes": _known(inside["mem_available_b"].min()),
                "mem_total_bytes": _known(rows["mem_total_b"].max()),
            }
        )
    return figures


def _change(inside: pd.DataFrame) -> dict[str, float]:
    """By how much time and counters went on between the first and the last sample; without what is not known."""
    values = inside[["t_s", *_ALL, *(f"{name}_us" for name in _PRESSURE)]]
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


def agent_figures(telemetry: Telemetry) -> list[dict[str, Any]]:
    """What each agent cost over the whole run; an agent that was started again counts from zero again."""
    figures = []
    for name, rows in telemetry.agents.groupby("host"):
        time_s = float(rows["t_s"].iloc[-1] - rows["t_s"].iloc[0])
        used = {column: float(rows[column].diff().clip(lower=0).sum()) for column in ("cpu_us", "ticks", "overruns")}
        due = used["ticks"] + used["overruns"]
        figures.append(
            {
                "host": str(name),
                "cpu_pct": 100 * used["cpu_us"] / 1e6 / time_s if time_s > 0 and rows["cpu_us"].notna().any() else None,
                "ticks": int(used["ticks"]),
                "skipped": int(used["overruns"]),
                "skipped_share": used["overruns"] / due if due else None,
                "rss_bytes": _known(rows["rss_b"].max()),
                "dropped": _known(rows["dropped"].max()),
            }
        )
    return figures


def _known(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
