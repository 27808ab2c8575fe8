"""What was going on in bins of time, by a part of the requests: sums of several parts are those of all. Pure.

`frame` is that of requests.Requests; edges of bins are seconds since the run's start.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.overlap import grown, occupied
from analysis.requests import Requests
from analysis.stats import Floats


def histogram(values: Floats, edges: Floats, weights: Floats | None = None) -> Floats:
    """Sum of weights in each bin [edge, next edge); NaN values fall in none."""
    bins = np.searchsorted(edges, values, side="right")
    return np.asarray(np.bincount(bins, weights, minlength=edges.size + 1)[1 : edges.size], dtype=np.float64)


def in_flight(frame: pd.DataFrame, edges: Floats) -> Floats:
    """Time-weighted mean of requests sent and not ended in each bin between `edges`."""
    begin, end = frame["begin_s"].to_numpy(), frame["end_s"].to_numpy()
    there = ~frame["dropped"].to_numpy() & (begin < edges[-1]) & ~(end < edges[0])
    return occupied(begin[there], end[there], edges)


def tokens_arrived(requests: Requests, edges: Floats) -> Floats:
    """Output tokens of OK requests that arrived in each bin between `edges`.

    Where only the gaps' summary was kept, the tokens after the first chunk are spread evenly up to the last one.
    """
    frame = requests.frame
    ok = frame["ok"].to_numpy()
    first, last, tokens, per_chunk = (
        frame[name].to_numpy() for name in ("first_token_s", "last_token_s", "tokens", "per_chunk")
    )
    gaps = ok[requests.gap_row]
    arrived = histogram(first[ok], edges, per_chunk[ok])
    arrived += histogram(requests.gap_s[gaps], edges, requests.tokens_of(gaps))
    rest = ok & ~frame["kept"].to_numpy()
    first, last, later = first[rest], last[rest], (tokens - per_chunk)[rest]
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = later / (last - first)
    long = last > first
    spread = occupied(first[long], last[long], edges, rate[long]) * np.diff(edges)
    at_once = histogram(first[~long], edges, later[~long])
    return np.asarray(arrived + np.nan_to_num(spread) + at_once)


class Resident(NamedTuple):
    """Means in each bin: tokens that are known to be in the KV cache, and requests there whose prompt is not known."""

    tokens: Floats
    unknown: Floats

    def mean(self, prompt: float | None) -> Floats:
        """Tokens, with so many for a prompt that is not known; NaN in bins with such a one, where no prompt is."""
        of_unknown = self.unknown * (np.nan if prompt is None else prompt)
        return np.asarray(self.tokens + np.where(self.unknown > 0, of_unknown, 0.0))


def resident(frame: pd.DataFrame, edges: Floats) -> Resident:
    """Prompt and output between each request's first token and its end; output grows evenly up to the last token."""
    names = ("first_token_s", "last_token_s", "end_s", "prompt_tokens", "tokens", "per_chunk")
    first, last, end, prompt, tokens, at_first = (frame[name].to_numpy() for name in names)
    there = (first < edges[-1]) & (end > edges[0])
    first, last, end, prompt, tokens, at_first = (each[there] for each in (first, last, end, prompt, tokens, at_first))
    last = np.where(last > first, np.fmin(last, end), first)
    later = np.where(last > first, tokens - at_first, 0.0)
    known = occupied(first, end, edges, np.nan_to_num(prompt) + tokens - later) + occupied(last, end, edges, later)
    unknown = np.isnan(prompt)
    return Resident(known + grown(first, last, later, edges), occupied(first[unknown], end[unknown], edges))
