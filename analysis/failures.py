"""What failed: over time, and by kind with a raw text of each. The share that failed is a metric (metrics.py).

A request's failure counts at its end; seconds since the run's start. Raw texts come from the workers' errors.jsonl,
are bounded here, and are not trusted: whoever shows one escapes it.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.load import Run
from analysis.metrics import Requests, histogram
from analysis.stats import Floats

_LONGEST_EXAMPLE = 500


def _failed(requests: Requests) -> pd.DataFrame:
    """Rows of the failed requests, with `seen_s`."""
    rows = requests.frame[requests.frame["failed"]]
    return rows.assign(seen_s=rows["end_s"].fillna(rows["intended_s"]))


def over_time(requests: Requests, edges: Floats) -> pd.DataFrame:
    """Failed requests in each bin between `edges`: t_s, and a column an outcome, the most frequent one first."""
    rows = _failed(requests)
    out = pd.DataFrame({"t_s": edges[:-1]})
    for outcome in rows["outcome"].value_counts().index:
        out[outcome] = histogram(rows.loc[rows["outcome"] == outcome, "seen_s"].to_numpy(), edges)
    return out


def kinds(run: Run, requests: Requests) -> list[dict[str, Any]]:
    """An entry an outcome and normalised text, over the whole run, the most frequent one first."""
    rows = _failed(requests)
    rows = rows.assign(error=run.requests["error"].reindex(rows.index).fillna(""))
    raw: dict[tuple[str, str], str] = {}
    for line in sorted(run.examples, key=lambda line: int(line["t_ns"])):
        raw.setdefault((line["outcome"], line.get("error") or ""), line["raw"])
    counted = rows.groupby(["outcome", "error"])["seen_s"].agg(["size", "min", "max"])
    return [
        {
            "outcome": outcome,
            "error": error,
            "requests": int(size),
            "first_s": float(first),
            "last_s": float(last),
            "example": _bounded(raw.get((outcome, error))),
        }
        for (outcome, error), size, first, last in counted.sort_values(
            "size", ascending=False, kind="stable"
        ).itertuples()
    ]


def _bounded(text: str | None) -> str | None:
    return text if text is None or len(text) <= _LONGEST_EXAMPLE else f"{text[:_LONGEST_EXAMPLE]}…"
