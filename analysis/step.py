"""The figures of a step: everything that summary.json says of one, but for its caveats. ms, bytes, watts as named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.clocks import seconds, start_ns
from analysis.gpus import Card, gpu_figures, gpu_total
from analysis.hosts import host_figures
from analysis.intervals import mean_interval, percentile_bounds, share_interval
from analysis.join import Telemetry
from analysis.kept import intended_in, is_measured, latencies
from analysis.load import Run
from analysis.overlap import between
from analysis.requests import server_time, server_time_names
from analysis.servers import server_figures
from analysis.stats import PERCENTILES, Floats, Sorted, describe, inverted_cdf, sort
from analysis.tally import Tally, share
from analysis.ttft_protocol import ttft_protocol
from analysis.windows import Window
from analysis.workers import during, worker_cpu
from loadgen.histogram import quantile

_LAG_STATS = {"p50": 0.5, "p99": 0.99, "max": 1.0}
_THREADS = 2


def load_figures(
    run: Run, tally: Tally, kept: pd.DataFrame, health: pd.DataFrame, reads: Counter[int], prompt: float | None
) -> dict[str, Any]:
    """What the load was, and how it was served.

    `kept` is that of kept.Kept, `health` that of workers.health, `reads` the histogram of the window's reads, `prompt`
    the mean of the run's prompts. The gaps of the tally are gone then.
    """
    window = tally.window
    mine = intended_in(kept, window.begin_s, window.end_s)
    ok = mine["ok"].to_numpy()
    health = during(health, window)
    loop_lag = _lag(health["loop_lag_p99_us"].to_numpy() / 1e3, "p50", "p99")
    read_lag = _read_lag(reads, mine)
    by_reads = read_lag["p99"] is not None
    with ThreadPoolExecutor(_THREADS) as threads:  # most of the work is numpy's sorting
        latencies_ms = threads.map(lambda name: _latency(mine, name), ("ttft_ms", "tpot_ms", "e2e_ms", "service_ms"))
    return {
        "level": window.level,
        "unit": window.unit,
        "begin_s": window.begin_s,
        "end_s": window.end_s,
        "window_s": window.length_s,
        **tally.figures(prompt),
        "success_pct_ci95": _percents(share_interval(mine.loc[~mine["cancelled"], "ok"].to_numpy(dtype=np.float64))),
        "ttft_protocol": ttft_protocol(mine["ttft_ms"].to_numpy()[ok]),
        **_gaps(tally),
        **{key: figures for each in latencies_ms for key, figures in each.items()},
        "server_times_ms": _server_times(run, mine, ok),
        "read_lag_ms": read_lag,
        "send_lag_ms": _lag(mine["send_lag_ms"].to_numpy(), *_LAG_STATS),
        "client_lag_ms": {name: (read_lag if by_reads else loop_lag)[name] for name in ("p50", "p99")},
        "client_lag_source": "read_lag" if by_reads else None if loop_lag["p99"] is None else "loop_lag",
        "loop_lag_ms": loop_lag,
        "loop_stall_ms": _lag(health["loop_lag_max_us"].to_numpy() / 1e3, "max")["max"],
        "gc_pause_ms": _lag(health["gc_pause_max_us"].to_numpy() / 1e3, "max")["max"],
        "worker_cpu_pct": worker_cpu(health),
        "simulator_late_share": _simulator_late(run, window),
    }


def sampled_figures(telemetry: Telemetry, gpus: Sequence[Card], window: Window) -> dict[str, Any]:
    """What was sampled beside the load."""
    edges = np.array([window.begin_s, window.end_s])
    measured = [(card, gpu_figures(card, edges)) for card in gpus]
    return {
        "gpus": [gpu for _, gpu in measured],
        "gpu_total": gpu_total([gpu for card, gpu in measured if card.counted]),
        "server": server_figures(telemetry.servers, edges),
        "hosts": host_figures(telemetry, edges),
    }


def _gaps(tally: Tally) -> dict[str, Any]:
    values, weights = tally.gaps()
    return _described("itl_ms", values, sort(values, weights), weights)


def _latency(rows: pd.DataFrame, name: str) -> dict[str, Any]:
    """The percentiles of a latency with their intervals, and those of the survivors; `rows` by intended instant.

    What was never sent has no service time.
    """
    if name == "service_ms" and rows["dropped"].any():
        rows = rows[~rows["dropped"]]
    values = latencies(rows, name) if is_measured(rows, name) else np.zeros(0)
    ordered = sort(values, None)
    found = _described(name, values, ordered)
    if not rows["failed"].any():
        return found | {key.replace(name, f"{name}_ok"): figures for key, figures in found.items()}
    good = rows[name].to_numpy()[rows["ok"].to_numpy()]
    good = good[~np.isnan(good)]  # in order they are what comes before the failures
    return found | _described(f"{name}_ok", good, ordered._replace(values=ordered.values[: good.size]))


def _described(name: str, values: Floats, ordered: Sorted, weights: Floats | None = None) -> dict[str, Any]:
    """`name`: percentiles and mean; `name`_ci95: their intervals; `name`_effective: as how many requests they count.

    An interval is [null, null] where there is none. Weighted values have no interval of their mean.
    """
    bounds = percentile_bounds(values, weights, ordered)
    none = (None, None)
    within: dict[str, Any] = {f"p{p}": bounds[f"p{p}"][:2] if bounds else none for p in PERCENTILES}
    within["mean"] = (mean_interval(values) if weights is None else None) or none
    effective = {name: round(each.effective) for name, each in bounds.items()}
    return {name: describe(values, weights, ordered), f"{name}_ci95": within, f"{name}_effective": effective}


def _percents(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if interval is None else (100 * interval[0], 100 * interval[1])


def _server_times(run: Run, mine: pd.DataFrame, ok: NDArray[np.bool_]) -> dict[str, dict[str, float | None]]:
    """What the server said of its own times, by the names of --server-time, ms; OK requests only."""
    columns = {name: mine[server_time(name)].to_numpy()[ok] for name in server_time_names(run)}
    return {name: describe(values[~np.isnan(values)]) for name, values in columns.items()}


def _read_lag(reads: Counter[int], mine: pd.DataFrame) -> dict[str, float | None]:
    """p50, p99 and max in ms over the reads of all workers; over each request's worst where reads were not counted."""
    if not reads:
        return _lag(mine.loc[~mine["cancelled"], "read_lag_ms"].to_numpy(), *_LAG_STATS)
    ranks = {stat: quantile(reads, share) for stat, share in _LAG_STATS.items()}
    return {stat: None if ns is None else ns / 1e6 for stat, ns in ranks.items()}


def _lag(values_ms: Floats, *stats: str) -> dict[str, float | None]:
    """The named ones of p50, p99 and max, without NaN; None each when there are no values."""
    values = np.sort(values_ms[~np.isnan(values_ms)])
    return {stat: inverted_cdf(values, None, 100 * _LAG_STATS[stat]) if values.size else None for stat in stats}


def _simulator_late(run: Run, window: Window) -> float | None:
    """Share of the simulator's tokens that it wrote more than 5 ms after they were due."""
    received_s = seconds(run.truth["received_ns"].to_numpy(dtype=np.int64), start_ns(run))
    rows = run.truth[between(received_s, window.begin_s, window.end_s)]
    return share(rows["late_tokens"].sum(), rows["emissions"].sum())
