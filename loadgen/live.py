"""What the live screen shows: compact counts of the last second, from every worker to the master. Pure.

These numbers are for looking at while a run goes on; those that count come from the records. TTFT is kept in a
histogram of buckets 2 % apart, so that workers' seconds add up.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_BASE = math.log(1.02)


def bucket(ns: int) -> int:
    """Histogram bucket of a duration; its value is `bucket_ms`."""
    return round(math.log(max(ns, 1000)) / _BASE)


def bucket_ms(index: int) -> float:
    return math.exp(index * _BASE) / 1e6


@dataclass
class Tally:
    """Since the last `take`: requests that ended, and their TTFT; since the start: the totals."""

    ended: int = 0
    failed: int = 0
    cancelled: int = 0
    ttft: Counter[int] = field(default_factory=Counter)

    def take(self) -> dict[str, Any]:
        """Totals so far, and the TTFT histogram since the last call; plain types, for a message."""
        report = {
            "ended": self.ended,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "ttft": {str(index): count for index, count in self.ttft.items()},
        }
        self.ttft.clear()
        return report


class Board:
    """On the master: the latest report of each worker, and the rates between two looks."""

    def __init__(self) -> None:
        self._reports: dict[str, dict[str, Any]] = {}
        self._ttft: Counter[int] = Counter()
        self._last = (0.0, 0, 0)

    def report(self, worker: str, report: dict[str, Any]) -> None:
        self._reports[worker] = report
        self._ttft.update({int(index): count for index, count in report["ttft"].items()})

    def lose(self, worker: str) -> None:
        """A worker is gone: what it did stays counted, what it had in flight is gone too."""
        if worker in self._reports:
            self._reports[worker] = {**self._reports[worker], "in_flight": 0}

    def total(self, key: str) -> int:
        """Sum over the workers, those that were lost included."""
        return sum(report[key] for report in self._reports.values())

    def look(self, now_s: float) -> dict[str, Any]:
        """Figures since the last look; percentiles are None when nothing ended."""
        ended, failed = self.total("ended"), self.total("failed")
        then, ended_then, failed_then = self._last
        self._last = (now_s, ended, failed)
        seconds = max(now_s - then, 1e-9)
        figures = {
            "qps": ((ended - failed) - (ended_then - failed_then)) / seconds,
            "ended": ended,
            "failed": failed,
            "in_flight": self.total("in_flight"),
            "ttft_p50_ms": _quantile(self._ttft, 0.5),
            "ttft_p99_ms": _quantile(self._ttft, 0.99),
        }
        self._ttft.clear()
        return figures


def _quantile(histogram: Counter[int], share: float) -> float | None:
    rank = math.ceil(share * histogram.total())
    for index in sorted(histogram):
        rank -= histogram[index]
        if rank <= 0:
            return bucket_ms(index)
    return None
