"""What the model server says of itself: figures of a step's window, and over time. Seconds since the run's start.

Counters become rates here, from the first to the last scrape of a window; one that went back gives none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from analysis.overlap import MAX_BLUR, between, overlap_mean, quality, rate
from analysis.stats import Floats

_SERVER: tuple[tuple[str, Callable[..., Floats]], ...] = (
    *(("running", np.sum), ("waiting", np.sum)),
    ("kv_usage_ratio", np.mean),
)
# Figure -> counter.
_RATES = {
    "preemptions_per_s": "preemptions",
    "prompt_tokens_per_s": "prompt_tokens",
    "generation_tokens_per_s": "generation_tokens",
}


def server_figures(servers: pd.DataFrame, edges: Floats) -> dict[str, float | None] | None:
    """Of all engines: requests running and waiting, their sums; KV usage, its mean, and that of the fullest engine.

    `…_max` is the sum of the engines' largest scrapes, or of their means, which scrapes just outside the window are
    part of too; `kv_pool_bytes` that of one GPU of each. None when the run has
    neither running nor waiting nor KV usage.
    """
    names = [name for name, _ in _SERVER]
    if servers[names].isna().all(axis=None):
        return None
    series = server_series(servers, edges)
    engines = [rows for _, rows in servers.groupby(["host", "engine"])]
    inside = [rows[between(rows["t_s"].to_numpy(), *edges)] for rows in engines]
    usages, used, running, waiting = (
        [float(overlap_mean(rows["t_s"].to_numpy(), rows[name].to_numpy(), edges)[0][0]) for rows in engines]
        for name in ("kv_usage_ratio", "kv_used_tokens", "running", "waiting")
    )
    largest = {
        name: [float(np.fmax(rows[name].max(), mean)) for rows, mean in zip(inside, means, strict=True)]
        for name, means in (("running", running), ("waiting", waiting))
    }
    figures = {name: None if np.isnan(series[name][0]) else float(series[name][0]) for name in names}
    if figures == dict.fromkeys(names):
        return dict.fromkeys((*names, *_MORE))
    hits, queries = (_rate(engines, f"prefix_{what}_tok", edges) for what in ("hits", "queries"))
    rates = {name: _rate(engines, counter, edges) for name, counter in _RATES.items()}
    return {
        **figures,
        "engines": len(engines),
        "kv_usage_max": None if np.isnan(usages).any() else max(usages),
        "running_max": _sum(largest["running"]),
        "waiting_max": _sum(largest["waiting"]),
        "kv_used_tokens": _sum(used),
        "kv_pool_bytes": _sum([float(rows["kv_pool_b"].max()) for rows in inside]),
        "prefix_hit_pct": 100 * hits / queries if hits is not None and queries else None,
        "computed_prompt_tokens_per_s": _computed(rates["prompt_tokens_per_s"], hits, queries),
        **rates,
    }


_MORE = (
    *("engines", "kv_usage_max", "running_max", "waiting_max", "kv_used_tokens", "kv_pool_bytes", "prefix_hit_pct"),
    *("computed_prompt_tokens_per_s", *_RATES),
)


def _computed(prompts: float | None, hits: float | None, queries: float | None) -> float | None:
    """Prompt tokens a second that no cache answered. Some servers leave those out of their counter, most do not.

    Where they are in it, there are no fewer of them than were looked up.
    """
    if prompts is None or hits is None or queries is None:
        return None
    return min(prompts, max(prompts, queries) - hits)


def _sum(values: Sequence[float]) -> float | None:
    return None if np.isnan(values).any() else float(sum(values))


def _rate(engines: Sequence[pd.DataFrame], counter: str, edges: Floats) -> float | None:
    """Growth a second, summed over the engines; None when one of them does not tell it."""
    begin_s, end_s = edges
    rates = [rate(rows["t_s"].to_numpy(), rows[counter].to_numpy(), begin_s, end_s) for rows in engines]
    known = [value for value in rates if value is not None]
    return sum(known) if len(known) == len(rates) else None


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
