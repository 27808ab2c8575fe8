"""What failed: over time, and by kind with a raw text of each. The share that failed is a metric (metrics.py).

A request's failure counts at its end; seconds since the run's start. Raw texts come from the workers' errors.jsonl,
are bounded here, and are not trusted: whoever shows one escapes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.flow import histogram
from analysis.stats import Floats

_LONGEST_EXAMPLE = 500


class Failures:
    """Of requests that are fed in parts, as frames of requests.Requests; `edges` are of bins of a second."""

    def __init__(self, edges: Floats) -> None:
        self._edges = edges
        self._kinds: dict[tuple[str, str], tuple[int, float, float]] = {}
        self._seconds: dict[str, Floats] = {}

    def add(self, frame: pd.DataFrame) -> None:
        rows = frame.loc[frame["failed"], ["outcome", "error", "end_s", "intended_s"]]
        seen = rows["end_s"].fillna(rows["intended_s"])
        for name, at_s in seen.groupby(rows["outcome"]):
            counts = self._seconds.setdefault(str(name), np.zeros(self._edges.size - 1))
            counts += histogram(at_s.to_numpy(), self._edges)
        for key, mine in seen.groupby([rows["outcome"], rows["error"]]):
            outcome, error = map(str, key)
            size, first, last = self._kinds.get((outcome, error), (0, np.inf, -np.inf))
            kind = (size + len(mine), min(first, float(mine.min())), max(last, float(mine.max())))
            self._kinds[outcome, error] = kind

    def over_time(self, width_s: int) -> pd.DataFrame:
        """Failed requests in bins of so many seconds: t_s, and a column an outcome, the most frequent one first."""
        starts = np.arange(0, self._edges.size - 1, width_s)
        out = pd.DataFrame({"t_s": self._edges[starts]})
        totals = dict.fromkeys(self._seconds, 0)
        for (outcome, _), (size, _, _) in self._kinds.items():
            totals[outcome] += size
        for outcome in sorted(totals, key=lambda outcome: -totals[outcome]):
            out[outcome] = np.add.reduceat(self._seconds[outcome], starts) if starts.size else np.zeros(0)
        return out

    def kinds(self, examples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """An entry an outcome and normalised text, over the whole run, the most frequent one first."""
        raw: dict[tuple[str, str], str] = {}
        for line in sorted(examples, key=lambda line: int(line["t_ns"])):
            raw.setdefault((line["outcome"], line.get("error") or ""), line["raw"])
        return [
            {
                "outcome": outcome,
                "error": error,
                "requests": size,
                "first_s": first,
                "last_s": last,
                "example": _bounded(raw.get((outcome, error))),
            }
            for (outcome, error), (size, first, last) in sorted(
                self._kinds.items(), key=lambda item: (-item[1][0], item[0])
            )
        ]


def _bounded(text: str | None) -> str | None:
    return text if text is None or len(text) <= _LONGEST_EXAMPLE else f"{text[:_LONGEST_EXAMPLE]}…"
