"""What leaks and what drifts while the load stands still: trends within each step's window, with their intervals.

A step counts that was measured for LEAST_S at least; restarts and other jumps of a level are no trend (slopes.py). A
change is told when it is surely there (Mann-Kendall, SURE) and large enough to matter (`material` of each signal). Not
here: changes from step to step, which are the load's doing. Seconds since the run's start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.gpus import Card
from analysis.join import Telemetry
from analysis.overlap import Spans, around, mean
from analysis.slopes import Slope, jumps, slope
from analysis.stats import Floats
from analysis.trend_words import sentence
from analysis.windows import Window

# A shorter window tells no trend, nor do fewer equal parts of it with a value. More parts than MOST say no more. Of a
# window that is long enough for parts of a second, a signal is told to be unknown; of a shorter one it is left out.
LEAST_S = 10.0
LEAST_PARTS = 30
MOST_PARTS = 200
LEAST_PART_S = 0.25
# A trend is told when chance alone would bring it less often than this.
SURE = 0.01
# Whether there is one that matters is not known where the interval reaches so many times what is material.
WIDE = 5.0
# With more of the parts infinite (failures reach the percentile) the others mislead.
MOST_INFINITE = 0.05
# What a change over the window has to exceed: a share of the card, of the host's memory, of the signal's own level.
OF_CARD = {"vram_used": 0.001, "vram_effective": 0.01}
OF_HOST = 0.001
OF_PROCESS = 0.01
OF_LOAD = 0.05
# Column of the timeline -> unit, the least change that matters, and what a part is of its seconds: the median of
# latencies, which a few infinite seconds do not reach; the mean of what is counted, which comes in whole numbers.
_LOAD = {
    **{f"{name}_{stat}_ms": ("ms", 1.0, "median") for name in ("ttft", "e2e") for stat in ("p50", "p99")},
    **dict.fromkeys(("qps", "output_tokens_per_s"), ("1/s", 0.0, "mean")),
    **dict.fromkeys(("running", "waiting"), ("requests", 1.0, "mean")),
}
# So many jumps are named.
_NAMED = 3


class Series(NamedTuple):
    """A signal in equal parts of a window. `material` is the change over it that matters; `limit` is where it ends."""

    signal: str
    where: str
    unit: str
    t_s: Floats
    values: Floats
    material: float
    limit: float | None = None


class Trend(NamedTuple):
    """`figures` is the entry of the summary, `series` what it was seen in."""

    figures: dict[str, Any]
    series: Series


def find(telemetry: Telemetry, cards: Sequence[Card], timeline: pd.DataFrame, windows: Sequence[Window]) -> list[Trend]:
    """The trends of each window, those without a change too; `timeline` has a row a second (timeline.py).

    A signal that the run has is in each window that is long enough, if only as unknown.
    """
    return [
        _trend(series, window, number, len(windows))
        for number, window in enumerate(windows)
        if window.length_s >= LEAST_S
        for series in (*_of_machines(telemetry, cards, window), *_of_load(timeline, window))
        if series.t_s.size >= LEAST_PARTS or window.length_s >= LEAST_PARTS
    ]


def _of_machines(telemetry: Telemetry, cards: Sequence[Card], window: Window) -> Iterator[Series]:
    """Memory of each card, of each host, and of the server's processes on it."""
    edges = np.array([window.begin_s, window.end_s])
    for card in cards:
        near = card.during(edges)
        name = f"GPU {card.index}" + ("" if card.gi_id is None else f" MIG {card.gi_id}")
        for signal, share in OF_CARD.items():
            spans = near.spans(f"{signal}_bytes")
            if not spans.values.size and not card.spans(f"{signal}_bytes").values.size:
                continue
            parts = _parts([spans], window)
            full = card.total_b if signal == "vram_used" else None
            yield Series(signal, f"{name} on {card.host}", "B", *parts, share * card.total_b, full)
    for host, rows in telemetry.processes.groupby("host"):
        alone = [_samples(mine, "rss_b") for _, mine in rows.groupby(["pid", "starttime_ticks"])]
        for signal, sources in (("rss", alone), ("cgroup", [_samples(rows.drop_duplicates("t_s"), "cg_mem_b")])):
            if any(spans.values.size for spans in sources):
                t_s, values = _parts(sources, window)
                yield Series(signal, f"the server on {host}", "B", t_s, values, _share(values, OF_PROCESS))
    for host, rows in telemetry.hosts.groupby("host"):
        available = _samples(rows, "mem_available_b")
        if available.values.size:
            parts = _parts([available], window)
            yield Series("host_available", str(host), "B", *parts, OF_HOST * float(rows["mem_total_b"].max()), 0.0)


def _of_load(timeline: pd.DataFrame, window: Window) -> Iterator[Series]:
    """Parts of so many whole seconds of the window that they are few enough; none of a recording.

    A part is made of those of its seconds that have a value.
    """
    inside = timeline[timeline["t_s"].between(window.begin_s, window.end_s - 1)]
    together = -(-len(inside) // MOST_PARTS)
    if not window.level or not together:
        return
    kept = inside[: len(inside) // together * together]
    parts = kept.groupby(np.arange(len(kept)) // together)
    t_s = parts["t_s"].mean().to_numpy() + 0.5
    for column, (unit, least, how) in _LOAD.items():
        if column in kept and timeline[column].fillna(0).any():
            values = parts[column].agg(how).to_numpy(dtype=np.float64)
            yield Series(column.removesuffix("_ms"), "", unit, t_s, values, max(_share(values, OF_LOAD), least))


def _samples(rows: pd.DataFrame, column: str) -> Spans:
    return around(rows["t_s"].to_numpy(), rows[column].to_numpy(dtype=np.float64))


def _parts(sources: Sequence[Spans], window: Window) -> tuple[Floats, Floats]:
    """Middles of equal parts of the window, and sums of the means of those sources that were there at the middle."""
    inside = [spans.during(window.begin_s, window.end_s) for spans in sources]
    apart = [float(np.median(spans.end_s - spans.begin_s)) for spans in inside if spans.values.size]
    count = max(1, min(MOST_PARTS, int(window.length_s / max([LEAST_PART_S, *apart]))))
    edges = np.linspace(window.begin_s, window.end_s, count + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    means = np.array([np.where(_there(spans, middles), mean(spans, edges)[0], np.nan) for spans in inside])
    means = means.reshape(-1, count)
    return middles, np.where(np.isnan(means).all(axis=0), np.nan, np.nansum(means, axis=0))


def _there(spans: Spans, at_s: Floats) -> NDArray[np.bool_]:
    begun, ended = (np.searchsorted(ends, at_s, side="right") for ends in (spans.begin_s, spans.end_s))
    return begun > ended


def _share(values: Floats, share: float) -> float:
    known = values[np.isfinite(values)]
    return share * abs(float(np.median(known))) if known.size else 0.0


def _trend(series: Series, window: Window, number: int, steps: int) -> Trend:
    t_s, infinite = series.t_s, np.isinf(series.values)
    values = np.where(infinite, np.nan, series.values)
    known = values[~np.isnan(values)]
    found = slope(t_s, values, window.end_s) if known.size >= LEAST_PARTS else None
    jumped = [float(t_s[place]) for place in jumps(values)] if known.size and np.ptp(known) > series.material else []
    verdict, why = "unknown", ""
    if infinite.sum() > MOST_INFINITE * t_s.size:
        why = f"failures reach it in {infinite.sum()} of {t_s.size} parts of the window"
    elif found is None:
        why = f"{known.size} of {t_s.size} parts of the window have a value, and it takes {LEAST_PARTS}"
    elif jumped:
        more = f" and {len(jumped) - _NAMED} times more" if len(jumped) > _NAMED else ""
        why = f"level jumps at {', '.join(f'{at:.0f} s' for at in jumped[:_NAMED])}{more}"
    else:
        verdict = _verdict(found, series.material, window.length_s)
    told = found if verdict in ("rising", "falling") else None
    exhausted, within = _exhausted(series.limit, told)
    figures = {
        "step": number,
        "level": window.level,
        "level_unit": window.unit,
        "signal": series.signal,
        "where": series.where,
        "unit": series.unit,
        "begin_s": window.begin_s,
        "end_s": window.end_s,
        "slope_per_h": None if found is None else 3600 * found.value,
        "slope_per_h_ci95": None if found is None else [_finite(3600 * end) for end in (found.low, found.high)],
        "at_end": None if found is None else found.level,
        "p_value": None if found is None else found.p_value,
        "material": series.material,
        "verdict": verdict,
        "why": why,
        "jumps_s": jumped,
        "limit": series.limit,
        "exhausted_in_h": exhausted,
        "exhausted_in_h_ci95": within,
    }
    return Trend(figures | {"text": sentence(figures, with_level=steps > 1)}, series)


def _verdict(found: Slope, material: float, length_s: float) -> str:
    change, low, high = (length_s * each for each in (found.value, found.low, found.high))
    if found.p_value < SURE and not low <= 0 <= high and abs(change) > material:
        return "rising" if change > 0 else "falling"
    return "none" if max(abs(low), abs(high)) <= WIDE * material else "unknown"


def _exhausted(limit: float | None, found: Slope | None) -> tuple[float | None, list[float | None] | None]:
    """Hours from the window's end until the limit, and the interval; nothing where it goes away from it."""
    if found is None or limit is None or (limit - found.level) * found.value <= 0:
        return None, None
    value, *ends = ((limit - found.level) / each / 3600 for each in (found.value, found.low, found.high))
    return value, [_finite(end) for end in sorted(ends)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
