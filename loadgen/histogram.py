"""Histograms of durations in buckets 2 % apart, so that those of workers and seconds add up. Pure.

A histogram is a Counter of buckets: bucket n counts durations around 1.02^n ns. 1 us is the shortest it tells apart.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BASE = math.log(1.02)
_SHORTEST_NS = 1000


def buckets(ns: NDArray[Any]) -> NDArray[np.int64]:
    """The bucket of each duration; what is shorter than 1 us, or negative, counts as 1 us."""
    exact: NDArray[np.float64] = np.log(np.maximum(ns, _SHORTEST_NS)) / _BASE
    return np.rint(exact).astype(np.int64)


def bucket(ns: int) -> int:
    """The bucket of one duration."""
    return int(buckets(np.array([ns]))[0])


def bucket_ns(index: int) -> float:
    """The middle of a bucket: at most 1 % from any duration that it counts."""
    return math.exp(index * _BASE)


def count(ns: NDArray[Any]) -> Counter[int]:
    """The histogram of some durations."""
    counts = np.bincount(buckets(ns))
    used = np.flatnonzero(counts)
    return Counter(dict(zip(used.tolist(), counts[used].tolist(), strict=True)))


def quantile(histogram: Counter[int], share: float) -> float | None:
    """Nearest rank, in ns; None when nothing was counted."""
    rank = math.ceil(share * histogram.total())
    for index in sorted(histogram):
        rank -= histogram[index]
        if rank <= 0:
            return bucket_ns(index)
    return None
