"""TTFT by the trimmed protocol: n requests (100 or more), 5 % of them off each end, then P50 and P90 of the others.

It leaves the slowest out on purpose, and failures too: its figures are for comparison with others that were made so,
and are never above the untrimmed ones. ms.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.stats import Floats, inverted_cdf, sort

LEAST = 100
TRIMMED = 0.05


def ttft_protocol(good: Floats) -> dict[str, Any]:
    """Of the TTFT of OK requests, ms, NaN for none: how many `requests` have one, how many of the shortest and of the
    longest are `left_out`, `p50_ms`, `p90_ms`.

    `reason` says why there are no figures, else it is None.
    """
    ttft: Floats = good[~np.isnan(good)]
    off = int(TRIMMED * ttft.size)
    kept = sort(ttft, None)[0][off : ttft.size - off]
    reason = None
    if not ttft.size:
        reason = "no OK request has a TTFT"
    elif ttft.size < LEAST:
        reason = f"{ttft.size} OK requests have a TTFT, {LEAST} are needed: make the step longer"
    figures = {f"p{p}_ms": None if reason else inverted_cdf(kept, None, p) for p in (50, 90)}
    return {"requests": int(ttft.size), "left_out": None if reason else off, **figures, "reason": reason}
