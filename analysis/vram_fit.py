"""What a token costs in GPU memory, by the run's seconds: the slope of memory over resident tokens. Pure.

Memory is effective VRAM (without the empty part of the pool), usage x pool, or used VRAM where it grows with the
tokens. Seconds in which requests were preempted, or the cache was full, are left out: there the client's tokens are not
the server's. Servers take blocks: half a block a request is added to its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.intervals import student
from analysis.kv_pool import largest_pool
from analysis.ranges import Range
from analysis.stats import Floats

# Tokens of a KV block: the default of vLLM and of TensorRT-LLM's paged cache is 16 to 64; the smallest errs least.
BLOCK_TOKENS = 16
# An engine that puts back what does not fit is never quite full on average.
FULL = 0.9
# Fewer seconds make no line; and tokens that differ by less than this tell of noise.
LEAST_SECONDS = 6
LEAST_SPREAD = 1.3
_GROWS = 1.01

Step = Mapping[str, Any]


class Fit(NamedTuple):
    """A line of memory over resident tokens: bytes a token, bytes without any, and which memory it is."""

    slope: Range
    base: Range
    signal: str
    seconds: int


def fit(timeline: pd.DataFrame, steps: Sequence[Step]) -> Fit | None:
    """A straight line through the seconds inside the steps' windows; None where they do not tell of one."""
    seconds = timeline["t_s"].to_numpy()
    inside = np.zeros(seconds.size, bool)
    blocks = np.zeros(seconds.size)
    for step in steps:
        server = step["server"] or {}
        if (server.get("preemptions_per_s") or 0.0) > 0:
            continue
        mine = (seconds >= step["begin_s"]) & (seconds + 1 <= step["end_s"])
        inside |= mine
        blocks[mine] = BLOCK_TOKENS / 2 if server.get("kv_pool_bytes") else 0.0
    tokens = timeline["resident_tokens"].to_numpy() + blocks * np.nan_to_num(timeline["running"].to_numpy())
    usage = timeline["kv_usage_ratio"].to_numpy()
    inside &= ~(usage > FULL) & ~np.isnan(tokens)
    pool_bytes = largest_pool(steps)
    signals = {
        "effective VRAM": timeline["vram_effective_b"].to_numpy(),
        "KV usage x pool": usage * (pool_bytes or np.nan),
        "used VRAM": timeline["vram_used_b"].to_numpy(),
    }
    for name, memory in signals.items():
        use = inside & ~np.isnan(memory)
        x, y = tokens[use], memory[use]
        if x.size < LEAST_SECONDS or not x.max() > LEAST_SPREAD * max(x.min(), 1.0):
            continue
        if name == "used VRAM" and not y.max() > _GROWS * y.min():
            continue
        slope, base = _line(x, y)
        if slope.low is not None and slope.low > 0:
            return Fit(slope, base, name, int(use.sum()))
    return None


def _line(x: Floats, y: Floats) -> tuple[Range, Range]:
    """Least squares; neighbours that are alike count as fewer."""
    middle = x.mean()
    spread = ((x - middle) ** 2).sum()
    slope = float(((x - middle) * (y - y.mean())).sum() / spread)
    errors = y - y.mean() - slope * (x - middle)
    alike = float(np.clip((errors[1:] * errors[:-1]).sum() / max((errors**2).sum(), 1e-300), 0, 0.9))
    free = max((x.size - 2) * (1 - alike) / (1 + alike), 1.0)
    deviation = math.sqrt((errors**2).sum() / free)
    reach = student(free) * deviation
    base = float(y.mean() - slope * middle)
    around = reach / math.sqrt(spread)
    below = reach * math.sqrt(1 / x.size + middle**2 / spread)
    return Range(slope, slope - around, slope + around), Range(base, base - below, base + below)
