"""What the order of runs tells where some have no finite figure: 0 < finite < infinite. Exact tests, and medians.

Pure: numbers in, numbers out; 0 comes as minus infinity where figures are logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def centre(values: Sequence[float]) -> float:
    """The mean; where some are infinite the median, which may be so too. NaN where it is infinite either way."""
    if all(map(math.isfinite, values)):
        return math.fsum(values) / len(values)
    with np.errstate(invalid="ignore"):
        return float(np.median(values))


def smirnov_p(lower: Sequence[float], upper: Sequence[float]) -> float:
    """How often runs dealt out at random would have `upper` as far above `lower`: Smirnov's test, one-sided, exact.

    Apart they are by the most that the share of `lower` up to some value exceeds that of `upper`.
    """
    m, n = len(lower), len(upper)
    values, counts = np.unique([*lower, *upper], return_counts=True)
    apart = max(n * sum(v <= x for v in lower) - m * sum(v <= x for v in upper) for x in values.tolist())
    # Of the runs up to a value, by how many of them `upper` has: in how many ways, never as far apart as that.
    ways, seen = {0: 1}, 0
    for count in counts.tolist():
        seen += count
        reached: dict[int, int] = {}
        for had, so_many in ways.items():
            for has in range(had, min(had + count, n) + 1):
                if n * (seen - has) - m * has < apart:
                    reached[has] = reached.get(has, 0) + so_many * math.comb(count, has - had)
        ways = reached
    total = math.comb(m + n, n)
    return (total - ways.get(n, 0)) / total


def sign_p(beyond: int, runs: int) -> float:
    """How often as many of them would be beyond their median."""
    return sum(math.comb(runs, k) for k in range(beyond, runs + 1)) / (1 << runs)
