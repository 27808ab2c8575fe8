"""Figures of a run from the reference server's log and a client's own records. Pure; times are CLOCK_REALTIME ns.

A client's records are a frame of `id`, `due_ns` (what its latencies count from), `sent_ns`, `first_ns`, `last_ns`
(first and last token), `end_ns`, `tokens` and `ok`. The log is that of the reference server.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

PROBES = 20  # of a client that asks a few things before it begins

Row = dict[str, Any]


class Window(NamedTuple):
    begin_ns: int
    end_ns: int

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.begin_ns) / 1e9

    def of(self, frame: pd.DataFrame, column: str) -> pd.DataFrame:
        """Rows whose `column` lies in the window."""
        return frame[(frame[column] >= self.begin_ns) & (frame[column] < self.end_ns)]


def steady_window(log: pd.DataFrame, lead_s: float, seconds: float) -> Window:
    """From `lead_s` after the load's first requests. Raises RuntimeError when there was no load."""
    if len(log) <= PROBES:
        raise RuntimeError(f"the server got {len(log)} requests: the client did not load it")
    begin = int(log["t_read"].iloc[PROBES] + lead_s * 1e9)
    return Window(begin, begin + int(seconds * 1e9))


def tokens_sent(log: pd.DataFrame, window: Window) -> int:
    """Tokens that the server sent in the window; those of a request lie evenly between its first and its last."""
    sent = log[(log["t_first"] > 0) & (log["t_last"] > 0) & (log["n_sent"] > 0)]
    first, count = sent["t_first"].to_numpy(), sent["n_sent"].to_numpy()
    gap = np.maximum((sent["t_last"].to_numpy() - first) / np.maximum(count - 1, 1), 1.0)
    before = [np.clip(np.ceil((instant - first) / gap), 0, count) for instant in window]
    return int((before[1] - before[0]).sum())


def ideal_tokens_per_s(streams: int, tokens: int, ttft_ms: float, itl_ms: float) -> float:
    """Of streams that ask again at once."""
    return streams * tokens / (ttft_ms + (tokens - 1) * itl_ms) * 1e3


def percentiles(values: pd.Series[float] | npt.NDArray[Any], *shares: float) -> list[float]:
    """nan without values."""
    array = np.asarray(values, dtype=float)
    return [float(value) for value in np.percentile(array, shares)] if array.size else [math.nan] * len(shares)


def times_of(records: pd.DataFrame, log: pd.DataFrame, window: Window) -> Row:
    """What the client says of the requests that were due in the window, and what the server's log says of them."""
    both = window.of(records[records["ok"]], "due_ns").merge(log, on="id", suffixes=("", "_log"))
    itl = (both["last_ns"] - both["first_ns"]) / (both["tokens"] - 1).clip(lower=1) / 1e6
    return {**_ttft("", (both["first_ns"] - both["due_ns"]) / 1e6), "itl_mean": float(itl.mean()), **truth_of(both)}


def truth_of(log: pd.DataFrame) -> Row:
    """What the log says of its requests: from their arrival at the server's kernel."""
    whole = log[(log["t_first"] > 0) & (log["t_last"] > 0) & (log["t_arrived"] > 0)]
    itl = (whole["t_last"] - whole["t_first"]) / (whole["n_sent"] - 1).clip(lower=1) / 1e6
    return {**_ttft("true_", (whole["t_first"] - whole["t_arrived"]) / 1e6), "true_itl_mean": float(itl.mean())}


def _ttft(prefix: str, ttft_ms: pd.Series[float]) -> Row:
    p50, p99 = percentiles(ttft_ms, 50, 99)
    return {f"{prefix}ttft_p50": p50, f"{prefix}ttft_p99": p99}


def accounted(records: pd.DataFrame, log: pd.DataFrame, asked: pd.DataFrame) -> str:
    """How many of the requests `asked` (rows of the log) have a record under their id, and the records of none.

    Probes have no id and do not count.
    """
    asked = asked[asked["id"] != ""]
    strangers = int((~records["id"].isin(log["id"])).sum())
    known = f"{int(asked['id'].isin(records['id']).sum())} of {len(asked)}"
    return f"{known}, {strangers} not in the log" if strangers else known


def read_time(stamped_ms: npt.NDArray[Any], lag_ms: npt.NDArray[Any], weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """TTFT as a client would have seen it that takes the time when it reads: stamps plus read lags.

    Lags are known as a histogram over all reads, so each stamp gets one of them at random (seeded).
    """
    lags = np.random.default_rng(0).choice(lag_ms, size=stamped_ms.size, p=weights / weights.sum())
    return np.asarray(stamped_ms + lags)


def kolmogorov_smirnov(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> tuple[float, float]:
    """Distance of two samples' distributions, and the probability of so large a one between equals (asymptotic)."""
    one, other = np.sort(one), np.sort(other)
    both = np.concatenate([one, other])
    shares = [np.searchsorted(sample, both, side="right") / sample.size for sample in (one, other)]
    distance = float(np.abs(shares[0] - shares[1]).max())
    size = math.sqrt(one.size * other.size / (one.size + other.size))
    scaled = (size + 0.12 + 0.11 / size) * distance
    tail = sum((-1) ** (k - 1) * math.exp(-2 * k * k * scaled * scaled) for k in range(1, 101))
    return distance, min(max(2 * tail, 0.0), 1.0) if scaled > 0.2 else 1.0


def table(columns: Sequence[tuple[str, str]], rows: Sequence[Row]) -> str:
    """Markdown of `(key, heading)`; a number has the digits that it deserves, what is not there is a dash."""
    cells = [[heading for _, heading in columns]] + [[_text(row.get(key)) for key, _ in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
