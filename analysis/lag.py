"""How late each sensor shows what the load does: requests in flight against a GPU's signals where the load changes.

Around each step's ramp the requests in flight, in bins of 100 ms, are correlated with a signal that is moved back by 0
to 2 s; the lag with the highest correlation is the estimate. A signal's own windows are accounted for already, so what
is left is the sensor's, and the server's time to feel the load. It is shown, and nothing is moved by it.
Seconds since the run's start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.gpus import Card
from analysis.overlap import mean
from analysis.stats import Floats
from analysis.windows import Window

SIGNALS = ("util_pct", "sm_pct", "power_w")
BIN_S = 0.1
LONGEST_S = 2.0
# A lower peak is chance, or a load that the GPU does not follow.
LEAST_PEAK = 0.7
_BEFORE_S = 2.0
_AFTER_S = 4.0


def sensor_lags(loads: Sequence[Floats], cards: Sequence[Card], windows: Sequence[Window]) -> list[dict[str, Any]]:
    """`loads` are the requests in flight in the `ramp_bins` of each window.

    host, signal, lag_ms and peak (the correlation) of each host and signal that there is; means of a host's GPUs.

    `lag_ms` is null where the peak is weak or the lag is none of those tried, both are null where the load has no ramp.
    """
    hosts: dict[str, list[Card]] = {}
    for card in cards:
        if card.counted:
            hosts.setdefault(card.host, []).append(card)
    ramps = [ramp_bins(window) for window in windows]
    found = []
    for host, mine in hosts.items():
        for signal in SIGNALS:
            spans = [values for card in mine if (values := card.spans(signal)).values.size]
            if spans:
                seen = [np.mean([mean(values, edges)[0] for values in spans], axis=0) for edges in ramps]
                found.append({"host": host, "signal": signal} | _best(loads, seen))
    return found


def ramp_bins(window: Window) -> Floats:
    """From before the ramp until the level has been there for a while, and as long again as the longest lag."""
    begin_s, end_s = window.ramp_s - _BEFORE_S, min(window.hold_s + _AFTER_S, window.end_s)
    bins = round((end_s - begin_s + LONGEST_S) / BIN_S)
    return begin_s + BIN_S * np.arange(bins + 1, dtype=np.float64)


def _best(loads: Sequence[Floats], seen: Sequence[Floats]) -> dict[str, float | None]:
    lags = range(round(LONGEST_S / BIN_S) + 1)
    heights = np.array([_correlation(loads, seen, lag, lags[-1]) for lag in lags])
    if np.isnan(heights).all():
        return {"lag_ms": None, "peak": None}
    best = int(np.nanargmax(heights))
    clear = heights[best] >= LEAST_PEAK and best < lags[-1]
    return {"lag_ms": 1000 * BIN_S * best if clear else None, "peak": float(heights[best])}


def _correlation(loads: Sequence[Floats], seen: Sequence[Floats], lag: int, longest: int) -> float:
    """Of all ramps together, each about its own mean; NaN where either does not change."""
    xy = xx = yy = 0.0
    for load, signal in zip(loads, seen, strict=True):
        x, y = load[: load.size - longest], signal[lag : signal.size - longest + lag]
        known = ~np.isnan(y)
        if known.any():
            x, y = x[known] - x[known].mean(), y[known] - y[known].mean()
            xy, xx, yy = xy + float(x @ y), xx + float(x @ x), yy + float(y @ y)
    return xy / np.sqrt(xx * yy) if xx > 0 and yy > 0 else np.nan
