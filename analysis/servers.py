"""What the model server says of itself: figures of a step's window, and over time. Seconds since the run's start."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from analysis.overlap import MAX_BLUR, overlap_mean, quality
from analysis.stats import Floats

_SERVER: tuple[tuple[str, Callable[..., Floats]], ...] = (
    *(("running", np.sum), ("waiting", np.sum)),
    ("kv_usage_ratio", np.mean),
)


def server_figures(servers: pd.DataFrame, edges: Floats) -> dict[str, float | None] | None:
    """Requests running and waiting, summed over engines; KV usage, their mean. None when the run has none of them."""
    names = [name for name, _ in _SERVER]
    if servers[names].isna().all(axis=None):
        return None
    series = server_series(servers, edges)
    return {name: None if np.isnan(series[name][0]) else float(series[name][0]) for name in names}


def server_series(servers: pd.DataFrame, edges: Floats) -> dict[str, Floats]:
    """running, waiting (sums over engines) and kv_usage_ratio (mean) in each bin; NaN where an engine has no data.

    server_coverage is the least of the engines', server_bound_ms the worst.
    """
    engines = [rows for _, rows in servers.groupby(["host", "engine"])]
    if not engines:
        names = (*(name for name, _ in _SERVER), "server_coverage", "server_bound_ms")
        return dict.fromkeys(names, np.full(edges.size - 1, np.nan))
    bounds, coverage = quality(engines, edges)
    blurred = bounds > MAX_BLUR * np.diff(edges)
    series = {}
    for name, combine in _SERVER:
        binned = [overlap_mean(rows["t_s"].to_numpy(), rows[name].to_numpy(), edges)[0] for rows in engines]
        series[name] = combine(np.where(blurred, np.nan, binned), axis=0)
    return series | {"server_coverage": coverage.min(axis=0), "server_bound_ms": 1e3 * bounds.max(axis=0)}
