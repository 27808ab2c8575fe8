"""The run over time: bins of a second, and as few as a figure shows. Seconds since the run's start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.clocks import seconds, start_ns
from analysis.flow import Resident, histogram, in_flight, resident, tokens_arrived
from analysis.gpus import Card, gpu_series
from analysis.join import Telemetry
from analysis.kept import is_measured
from analysis.load import Run
from analysis.overlap import overlap_mean
from analysis.requests import Requests
from analysis.servers import server_series
from analysis.stats import Floats, rank_of
from analysis.workers import users

# A figure has no more points than this; failures have bars.
MAX_POINTS = 1200
MAX_BARS = 90


class OverTime(NamedTuple):
    """The timeline and the failures in bins of so many seconds, which are whole."""

    timeline: pd.DataFrame
    width_s: float
    failures: pd.DataFrame
    failures_width_s: float


def bins_of(run: Run, last_s: float) -> Floats:
    """Edges of bins of a second from t = 0 to the end of the last request and step."""
    marks = [float(seconds(np.array(line["t_ns"]), start_ns(run))) for line in run.steps]
    return np.arange(math.ceil(max([0.0, last_s, *marks])) + 1, dtype=np.float64)


class Seconds:
    """What is counted of requests that are fed in parts, in bins of a second between `edges`."""

    def __init__(self, edges: Floats) -> None:
        self.edges = edges
        names = ("in_flight", "due_qps", "qps", "failed_qps", "output_tokens_per_s", "tokens", "unknown")
        self._sums = {name: np.zeros(edges.size - 1) for name in names}
        self._prompts = self._prompt_tokens = 0.0

    @property
    def prompt_mean(self) -> float | None:
        """Mean prompt tokens of OK requests; None where no prompt is known."""
        return self._prompt_tokens / self._prompts if self._prompts else None

    def add(self, requests: Requests) -> None:
        frame = requests.frame
        ok = frame["ok"].to_numpy()
        prompts = frame["prompt_tokens"].to_numpy()[ok]
        self._prompts += int((~np.isnan(prompts)).sum())
        self._prompt_tokens += float(np.nansum(prompts))
        intended, begin, end = (frame[f"{name}_s"].to_numpy() for name in ("intended", "begin", "end"))
        first_s, last_s = np.minimum(intended, begin).min(), np.fmax(intended, end).max()
        part = slice(*(int(np.clip(at, 0, self.edges.size - 1)) for at in (math.floor(first_s), math.ceil(last_s) + 1)))
        edges = self.edges[part.start : part.stop + 1]
        if edges.size < 2:
            return
        end_s, there = frame["end_s"].to_numpy(), resident(frame, edges)
        for name, values in {
            "in_flight": in_flight(frame, edges),
            "due_qps": histogram(frame["intended_s"].to_numpy(), edges),
            "qps": histogram(end_s[ok], edges),
            "failed_qps": histogram(end_s[frame["failed"].to_numpy()], edges),
            "output_tokens_per_s": tokens_arrived(requests, edges),
            "tokens": there.tokens,
            "unknown": there.unknown,
        }.items():
            self._sums[name][part] += values

    def means(self, width_s: int) -> dict[str, Floats]:
        """The columns of the timeline, in bins of so many seconds."""
        bins = self.edges.size - 1
        starts = np.arange(0, bins, width_s)
        means = {
            name: np.add.reduceat(values, starts) / width_s if starts.size else values
            for name, values in self._sums.items()
        }
        tokens = Resident(means.pop("tokens"), means.pop("unknown"))
        return means | {"resident_tokens": tokens.mean(self.prompt_mean)}


class Timeline(NamedTuple):
    """The columns of requests and workers, in bins of `width_s`: what they were made of is not needed any more."""

    frame: pd.DataFrame
    width_s: int

    @property
    def edges(self) -> Floats:
        return self.width_s * np.arange(len(self.frame) + 1, dtype=np.float64)

    def beside(self, telemetry: Telemetry, gpus: Sequence[Card]) -> pd.DataFrame:
        """With what was sampled."""
        columns = gpu_series(gpus, self.edges) | server_series(telemetry.servers, self.edges)
        return self.frame.assign(**columns, busiest_cpu_pct=_busiest_cpu(telemetry, self.edges))


def of_load(counted: Seconds, kept: pd.DataFrame, health: pd.DataFrame, width_s: int) -> Timeline:
    """`kept` is that of kept.Kept; latencies are of requests intended in the bin."""
    bins = -(-(counted.edges.size - 1) // width_s)
    edges = width_s * np.arange(bins + 1, dtype=np.float64)
    means = counted.means(width_s)
    frame = pd.DataFrame({"t_s": edges[:-1], "users": users(health, edges)} | means)
    for name in ("ttft", "e2e"):
        frame[f"{name}_p50_ms"], frame[f"{name}_p99_ms"] = _percentiles(kept, f"{name}_ms", edges)
    return Timeline(frame, width_s)


def wide(counted: Seconds, most: int) -> int:
    """How many seconds a bin has when there are to be no more than `most`."""
    return max(1, math.ceil((counted.edges.size - 1) / most))


def _percentiles(kept: pd.DataFrame, latency: str, edges: Floats) -> Floats:
    """p50 and p99 of a latency in each bin, in two rows."""
    out = np.full((2, edges.size - 1), np.nan)
    if not is_measured(kept, latency):
        return out
    values = np.where(kept["failed"], np.inf, kept[latency])
    values[kept["cancelled"].to_numpy()] = np.nan
    ends = np.searchsorted(kept["intended_s"].to_numpy(), edges).tolist()
    for number, (begin, end) in enumerate(pairwise(ends)):
        mine = values[begin:end]
        mine.sort()
        size = mine.size - int(np.isnan(mine).sum())
        if size:
            out[:, number] = mine[rank_of(size, 50)], mine[rank_of(size, 99)]
    return out


def _busiest_cpu(telemetry: Telemetry, edges: Floats) -> Floats:
    """The busiest core of any host in each bin, %; hosts of the simulator are a model, and count where all are."""
    simulated = {clock.host for clock in telemetry.clocks if clock.simulated}
    hosts = {str(name): rows for name, rows in telemetry.hosts.groupby("host")}
    if not hosts.keys() <= simulated:
        hosts = {name: rows for name, rows in hosts.items() if name not in simulated}
    means = [
        overlap_mean(rows["t_s"].to_numpy(), rows["cpu_max_busy_pct"].to_numpy(), edges)[0] for rows in hosts.values()
    ]
    return np.asarray(np.fmax.reduce(means)) if means else np.full(edges.size - 1, np.nan)
