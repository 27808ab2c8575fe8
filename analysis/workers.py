"""What workers say of themselves, second by second: their state, and histograms of what they read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from analysis import damage
from analysis.clocks import seconds, start_ns
from analysis.damage import Damage
from analysis.load import Run, numbers_of
from analysis.overlap import between, overlap_mean
from analysis.shards import HEALTH, HISTOGRAMS, read
from analysis.stats import Floats
from analysis.windows import Window
from loadgen import record
from loadgen.histogram import bucket

# No duration of 64 bits of ns is in a bucket above it.
_LAST_BUCKET = bucket(2**63 - 1)
# What a worker counts in a second, at the most and far above it.
_MOST = 2**40
READ_LAG = "read_lag"


def health(run: Run) -> pd.DataFrame:
    """record.HEALTH_COLUMNS and `worker`, a row a second of each; `at_s` is the middle of the second."""
    zero = start_ns(run)
    frames = [
        pd.DataFrame({name: numbers_of(table[name]) for name in table.column_names if name != "t_ns"}).assign(
            worker=shard.worker, at_s=seconds(table["t_ns"].to_numpy(), zero) - 0.5
        )
        for shard, table in read(run.shards, HEALTH, damage.span(run.manifest), run.damage)
    ]
    names = [column.name for column in record.HEALTH_COLUMNS if column.name != "t_ns"]
    empty = pd.DataFrame({name: np.zeros(0) for name in (*names, "worker", "at_s")})
    return pd.concat(frames, ignore_index=True) if frames else empty


def during(rows: pd.DataFrame, window: Window) -> pd.DataFrame:
    """Rows of a second each that lie in the window by more than half."""
    return rows[between(rows["at_s"].to_numpy(), window.begin_s, window.end_s)]


def read_lags(run: Run, windows: Sequence[Window]) -> list[Counter[int]]:
    """The histogram of all reads in each window; an empty one where there is none."""
    zero, within = start_ns(run), damage.span(run.manifest)
    merged: list[Counter[int]] = [Counter() for _ in windows]
    bad: Counter[str] = Counter()
    for shard, table in read(run.shards, HISTOGRAMS, within, run.damage):
        table = table.filter(pc.equal(table["name"], READ_LAG))
        lengths = [pc.list_value_length(table[column]) for column in ("buckets", "counts")]
        even = table.filter(pc.equal(*lengths)).combine_chunks()
        row = pc.list_parent_indices(even["buckets"]).to_numpy()
        buckets, counts = (pc.list_flatten(even[column]).fill_null(-1).to_numpy() for column in ("buckets", "counts"))
        good = (buckets >= 0) & (buckets <= _LAST_BUCKET) & (counts >= 1) & (counts <= _MOST)
        bad[shard.file] += table.num_rows - even.num_rows + int((~good).sum())
        at_s = (seconds(even["t_ns"].to_numpy(), zero) - 0.5)[row]
        for window, histogram in zip(windows, merged, strict=True):
            mine = good & between(at_s, window.begin_s, window.end_s)
            sums = np.bincount(buckets[mine], counts[mine])
            used = np.flatnonzero(sums)
            histogram.update(dict(zip(used.tolist(), sums[used].astype(np.int64).tolist(), strict=True)))
    run.damage.extend(
        Damage(file, f"{count} buckets are nonsense: they are left out") for file, count in bad.items() if count
    )
    return merged


def worker_cpu(rows: pd.DataFrame) -> float | None:
    """Share of one core that the busiest worker used, %."""
    busy = []
    for _, mine in rows.dropna(subset=["cpu_us"]).groupby("worker"):
        time_us = 1e6 * (mine["at_s"].iloc[-1] - mine["at_s"].iloc[0])
        if time_us > 0:
            busy.append(100 * float(mine["cpu_us"].iloc[-1] - mine["cpu_us"].iloc[0]) / time_us)
    return max(busy, default=None)


def users(rows: pd.DataFrame, edges: Floats) -> Floats:
    """Users of all workers: each worker's mean over the bin, summed; a worker that says nothing counts as 0."""
    total, known = np.zeros(edges.size - 1), np.zeros(edges.size - 1, bool)
    for _, mine in rows.groupby("worker"):
        means, _ = overlap_mean(mine["at_s"].to_numpy() + 0.5, mine["users"].to_numpy(), edges)
        total += np.nan_to_num(means)
        known |= ~np.isnan(means)
    return np.where(known, total, np.nan)
