"""The requests whose latencies are kept one by one: all of a run, or in a very long one every k-th.

Percentiles and intervals need them in the order in which they were intended; what is only counted is in tally.py.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.growing import Growing
from analysis.requests import Requests
from analysis.stats import Floats

LATENCIES = ("ttft_ms", "e2e_ms", "service_ms", "tpot_ms")
_FLOATS = ("intended_s", *LATENCIES, "send_lag_ms", "read_lag_ms")
_FLAGS = ("ok", "failed", "cancelled", "dropped")


class Kept:
    """Fed in parts; `frame` has them all, sorted by intended_s."""

    def __init__(self, stride: int, more: list[str]) -> None:
        """`more` are further columns of numbers."""
        self._stride = stride
        self._columns = {name: Growing(bool if name in _FLAGS else np.float64) for name in (*_FLOATS, *more, *_FLAGS)}

    def add(self, requests: Requests) -> None:
        chosen = slice(-requests.first % self._stride, None, self._stride)
        for name, column in self._columns.items():
            column.append(requests.frame[name].to_numpy()[chosen])

    def frame(self) -> pd.DataFrame:
        """Empties this: no column is there twice."""
        intended = self._columns.pop("intended_s").taken()
        order = np.argsort(intended, kind="stable")
        columns = {"intended_s": intended.take(order)}
        for name in list(self._columns):
            columns[name] = self._columns.pop(name).taken().take(order)
        return pd.DataFrame(columns, copy=False)


def intended_in(frame: pd.DataFrame, begin_s: float, end_s: float) -> pd.DataFrame:
    """The rows of a sorted frame that were intended in [begin, end)."""
    return frame.iloc[slice(*np.searchsorted(frame["intended_s"].to_numpy(), (begin_s, end_s)))]


def is_measured(frame: pd.DataFrame, name: str) -> bool:
    """Whether OK requests have that latency: plain inference has no TTFT, and then neither has a failure."""
    ok = frame["ok"].to_numpy()
    return not ok.any() or not bool(np.isnan(frame[name].to_numpy()[ok]).all())


def latencies(frame: pd.DataFrame, name: str) -> Floats:
    """A latency, if it `is_measured`, of every request that was not cancelled.

    Failures are +infinity, OK requests without it are left out.
    """
    values: Floats = np.where(frame["failed"], np.inf, frame[name].to_numpy())[~frame["cancelled"].to_numpy()]
    return values[~np.isnan(values)]
