"""How latencies are spread: by step, over time, by the length of the prompt. Fed in parts, in bounded memory.

Counts in buckets 2 % apart (loadgen/histogram.py), so that parts add up in any order, and a percentile is at most 1 %
from the exact one. Who counts is as in metrics.py: a request belongs to where it was intended, a failure is infinite,
a cancelled one is in nothing, an OK one without a latency is left out. Seconds since the run's start; ms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.overlap import between
from analysis.stats import Floats
from analysis.windows import Window
from loadgen.histogram import bucket_ns, buckets

METRICS = ("ttft", "e2e")
SURFACE_PERCENTILES = (50, 99)
Counts = NDArray[np.int64]

_SHORTEST = int(buckets(np.array([0.0]))[0])
_LONGEST = int(buckets(np.array([24 * 3600e9]))[0])
_FINITE = _LONGEST - _SHORTEST + 1
# The bucket after the longest latency is that of failures.
_BUCKETS = _FINITE + 1
_MIDDLES_MS = np.array([*(bucket_ns(n) / 1e6 for n in range(_SHORTEST, _LONGEST + 1)), np.inf])
_HALF = math.sqrt(1.02)
# A percentile over time is of so many requests on average, or of so many bins of time.
_ENOUGH, _MOST_JOINED = 50, 10
# No more bins of time than this, each one of these times a power of ten long.
MAX_TIMES = 150
_ROUND = (1.0, 2.0, 5.0)
# The heat map of a metric has about so many rows, of whole buckets.
_ROWS = 36
# Prompts are told apart by half octaves of their tokens, from 1 on; more lengths than this are shown by whole ones.
_LENGTHS = 2 * 24
_MOST_LENGTHS = 9


class Distributions:
    """Of the requests of a run of `length_s`, whose steps have these `windows`."""

    def __init__(self, windows: Sequence[Window], length_s: float) -> None:
        self._windows = tuple(windows)
        self.length_s = length_s
        self.width_s = _width_s(length_s)
        times = max(1, math.ceil(length_s / self.width_s - 1e-9))
        self._by_step: Counts = np.zeros((len(METRICS), len(self._windows), _BUCKETS), np.int64)
        self._by_time: Counts = np.zeros((len(METRICS), times, _BUCKETS), np.int64)
        self._by_length = np.zeros((len(self._windows), _LENGTHS, _BUCKETS), np.int32)
        self._answered: Counts = np.zeros(len(self._windows), np.int64)

    def add(self, frame: pd.DataFrame) -> None:
        """Count a part of the requests: rows of requests.Requests.frame, with prompt_tokens."""
        counted = frame[~frame["cancelled"].to_numpy()]
        intended = counted["intended_s"].to_numpy()
        ok = counted["ok"].to_numpy(dtype=bool)
        times = np.floor(np.nan_to_num(intended, nan=-1.0) / self.width_s).astype(np.int64)
        on_time = (times >= 0) & (times < self._by_time.shape[1])
        step = np.full(len(counted), -1)
        for number, window in enumerate(self._windows):
            step[between(intended, window.begin_s, window.end_s)] = number
        within = step >= 0
        self._answered += np.bincount(step[within & ok], minlength=len(self._windows))
        lengths, known = _lengths(counted["prompt_tokens"].to_numpy(dtype=np.float64, na_value=np.nan))
        for metric, name in enumerate(METRICS):
            place, there = _places(counted[f"{name}_ms"].to_numpy(), ok)
            _count(self._by_time[metric], there & on_time, times, place)
            _count(self._by_step[metric], there & within, step, place)
            if name == "ttft":
                _count(self._by_length, there & within & known, step, lengths, place)

    def cdf(self) -> pd.DataFrame:
        """step, level, unit, metric, latency_ms, requests, share: so many requests took so long or less.

        `share` is of all that count, so failures keep a step's last one below 1.
        """
        rows = [
            pd.DataFrame(
                {
                    "step": number,
                    "level": window.level,
                    "unit": window.unit,
                    "metric": name,
                    "latency_ms": _MIDDLES_MS[used],
                    "requests": counts[used],
                    "share": np.cumsum(counts)[used] / counts.sum(),
                }
            )
            for metric, name in enumerate(METRICS)
            for number, window in enumerate(self._windows)
            if self._measured(metric, number)
            for counts in [self._by_step[metric, number]]
            for used in [np.flatnonzero(counts[:_FINITE])]
        ]
        names = ["step", "level", "unit", "metric", "latency_ms", "requests", "share"]
        return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=names)

    def heat(self) -> pd.DataFrame:
        """metric, t_s, width_s, low_ms, high_ms, requests: the cells of the heat map that are not empty.

        Failures of a bin of time are in a cell from infinity to infinity.
        """
        rows = []
        for metric, counts in self._over_time():
            used = np.flatnonzero(counts[:, :_FINITE].any(axis=0))
            firsts = np.arange(used[0], used[-1] + 1, max(1, round((used[-1] + 1 - used[0]) / _ROWS)))
            cells = np.add.reduceat(counts[:, : used[-1] + 1], firsts, axis=1)
            edges_ms = np.append(_MIDDLES_MS[firsts] / _HALF, _MIDDLES_MS[used[-1]] * _HALF)
            time, cell = np.nonzero(cells)
            failed = np.flatnonzero(counts[:, _FINITE])
            forever = np.full(failed.size, np.inf)
            rows.append(
                pd.DataFrame(
                    {
                        "metric": metric,
                        "t_s": self.width_s * np.concatenate([time, failed]),
                        "width_s": self.width_s,
                        "low_ms": np.concatenate([edges_ms[cell], forever]),
                        "high_ms": np.concatenate([edges_ms[cell + 1], forever]),
                        "requests": np.concatenate([cells[time, cell], counts[failed, _FINITE]]),
                    }
                )
            )
        names = ["metric", "t_s", "width_s", "low_ms", "high_ms", "requests"]
        return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=names)

    def over_time(self) -> pd.DataFrame:
        """metric, t_s, width_s, p50_ms, p99_ms: of bins of time that are wider where requests are few."""
        rows = []
        for metric, counts in self._over_time():
            each = counts.sum() / counts.any(axis=1).sum()
            joined = min(math.ceil(_ENOUGH / each), _MOST_JOINED)
            for first in range(0, len(counts), joined):
                found = counts[first : first + joined].sum(axis=0)
                if found.any():
                    ranks = (_percentile(found, p) for p in (50, 99))
                    rows.append((metric, first * self.width_s, joined * self.width_s, *ranks))
        return pd.DataFrame(rows, columns=["metric", "t_s", "width_s", "p50_ms", "p99_ms"])

    def surface(self) -> pd.DataFrame:
        """step, level, unit, prompt_low, prompt_high, requests, ttft_p50_ms, ttft_p99_ms: by the length of the prompt.

        A length is at least `prompt_low` tokens and less than `prompt_high`. Empty when all prompts are alike.
        """
        names = ["step", "level", "unit", "prompt_low", "prompt_high", "requests"]
        names += [f"ttft_p{p}_ms" for p in SURFACE_PERCENTILES]
        measured = [number for number in range(len(self._windows)) if self._measured(METRICS.index("ttft"), number)]
        used = np.flatnonzero(self._by_length[measured].any(axis=(0, 2)))
        if used.size < 2:
            return pd.DataFrame(columns=names)
        joined = 2 if used[-1] - used[0] >= _MOST_LENGTHS else 1
        rows = []
        for number in measured:
            window = self._windows[number]
            for first in range(used[0] // joined * joined, used[-1] + 1, joined):
                counts = self._by_length[number, first : first + joined].sum(axis=0)
                if counts.any():
                    ends = (math.ceil(2 ** (first / 2)), math.ceil(2 ** ((first + joined) / 2)))
                    ranks = (_percentile(counts, p) for p in SURFACE_PERCENTILES)
                    rows.append((number, window.level, window.unit, *ends, int(counts.sum()), *ranks))
        return pd.DataFrame(rows, columns=names)

    def _measured(self, metric: int, step: int) -> bool:
        """Whether OK requests have that latency, as metrics.is_measured says; something must have been counted."""
        counts = self._by_step[metric, step]
        return bool(counts[:_FINITE].any() or (counts.any() and not self._answered[step]))

    def _over_time(self) -> list[tuple[str, Counts]]:
        """The metrics that some request has, and their counts by time."""
        return [(name, self._by_time[k]) for k, name in enumerate(METRICS) if self._by_time[k, :, :_FINITE].any()]


def _width_s(length_s: float) -> float:
    """The shortest round time of which MAX_TIMES are long enough."""
    least = max(length_s, 1e-3) / MAX_TIMES
    power = 10.0 ** math.floor(math.log10(least))
    return next(width for times in (*_ROUND, 10.0) if (width := times * power) >= least * (1 - 1e-9))


def _places(latency_ms: Floats, ok: NDArray[np.bool_]) -> tuple[Counts, NDArray[np.bool_]]:
    """The bucket of each request from the first one on, and whether it has one."""
    known = ~np.isnan(latency_ms)
    place = np.clip(buckets(1e6 * np.where(known, latency_ms, 0)) - _SHORTEST, 0, _FINITE - 1)
    return np.where(ok, place, _FINITE), known | ~ok


def _lengths(tokens: Floats) -> tuple[Counts, NDArray[np.bool_]]:
    """The half octave of each length, and whether there is a length: 2^(n/2) is the shortest of the n-th."""
    known = tokens >= 1
    exact = 2 * np.log2(np.where(known, tokens, 1))
    return np.minimum(np.floor(exact + 1e-9), _LENGTHS - 1).astype(np.int64), known


def _count(into: NDArray[np.signedinteger], which: NDArray[np.bool_], *at: Counts) -> None:
    """Add each of `which` to its place; only the rows that the first index reaches are touched."""
    if not which.any():
        return
    row, *rest = (index[which] for index in at)
    part = into[row.min() : row.max() + 1]
    flat = np.ravel_multi_index([row - row.min(), *rest], part.shape)
    part += np.bincount(flat, minlength=part.size).reshape(part.shape).astype(part.dtype)


def _percentile(counts: NDArray[np.integer], p: float) -> float:
    """The inverted CDF of one histogram."""
    cumulated = np.cumsum(counts)
    rank = math.ceil(round(p * int(cumulated[-1]) / 100, 9))
    return float(_MIDDLES_MS[np.searchsorted(cumulated, max(rank, 1))])
