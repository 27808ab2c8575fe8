"""A first look at all requests: how many there are, when they ended, and which of them are kept for percentiles.

Read before the windows are known, of three columns only. Seconds since the run's start.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from analysis import damage
from analysis.clocks import seconds, start_ns
from analysis.load import Run
from analysis.requests import Tell
from analysis.shards import REQUESTS, read
from loadgen.record import Outcome

# Percentiles and intervals of a longer run are those of every k-th request, and of every k-th gap list.
MOST_REQUESTS = 16_000_000
MOST_GAPS = 16_000_000


class Overview(NamedTuple):
    """`frame`: intended_s, end_s, e2e_ms, ok and cancelled of every `stride`-th request.

    Of every `gap_stride`-th the gaps are kept; `last_s` is when the last one ended, 0 without any.
    """

    requests: int
    stride: int
    gap_stride: int
    last_s: float
    frame: pd.DataFrame


def look(run: Run, tell: Tell, most: int = MOST_REQUESTS, most_gaps: int = MOST_GAPS) -> Overview:
    """At most `most` requests are kept. What is wrong with their shards is found when they are read as a whole."""
    zero, names = start_ns(run), ("intended_ns", "end_ns", "outcome", "chunk_gaps_us")
    kept: list[pd.DataFrame] = []
    requests, gaps, stride, last_s = 0, 0, 1, 0.0
    for _, table in read(run.shards, REQUESTS, damage.span(run.manifest), [], names):
        end_ns, intended_ns = table["end_ns"], table["intended_ns"].to_numpy()
        known = end_ns.is_valid().to_numpy()
        ends = np.where(known, pc.fill_null(end_ns, 0).to_numpy(), 0)
        is_dropped = pc.equal(table["outcome"], Outcome.DROPPED).to_numpy(zero_copy_only=False)
        end_s = np.where(known, seconds(ends, zero), np.nan)
        last_s = max(last_s, float(np.nanmax(end_s, initial=0.0)))
        intended_s = seconds(intended_ns, zero)
        part = pd.DataFrame(
            {
                "number": np.arange(requests, requests + len(intended_ns), dtype=np.int32),
                "intended_s": intended_s,
                "end_s": np.where(is_dropped, intended_s, end_s),
                "e2e_ms": np.where(known, (ends - intended_ns).astype(np.float64) / 1e6, np.nan),
                **{
                    name: pc.equal(table["outcome"], outcome).to_numpy(zero_copy_only=False)
                    for name, outcome in (("ok", Outcome.OK), ("cancelled", Outcome.CANCELLED))
                },
            }
        )
        kept.append(part[part["number"] % stride == 0])
        requests += len(part)
        gaps += int(pc.sum(pc.list_value_length(table["chunk_gaps_us"])).as_py() or 0)
        if sum(map(len, kept)) > most:
            stride *= 2
            kept = [each[each["number"] % stride == 0] for each in kept]
    tell(1.0)
    names_kept = ["number", "intended_s", "end_s", "e2e_ms", "ok", "cancelled"]
    frame = pd.concat(kept, ignore_index=True) if kept else pd.DataFrame({name: np.zeros(0) for name in names_kept})
    frame = frame.astype({"ok": bool, "cancelled": bool}).drop(columns="number")
    return Overview(requests, stride, max(1, -(-gaps // most_gaps)), last_s, frame)
