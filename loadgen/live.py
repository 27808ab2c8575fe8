"""What the live screen shows: compact counts of the last second, from every worker to the master. Pure.

These numbers are for looking at while a run goes on; those that count come from the records. Durations are histograms
(histogram.py), so that workers' seconds add up.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from loadgen import histogram
from loadgen.batch import Batch
from loadgen.record import Outcome

_HISTOGRAMS = ("ttft", "lag", "send_lag")


@dataclass
class Tally:
    """Totals since the start: requests that ended, those dropped among them, and those that were cancelled.

    Since the last `take`: their TTFT, the lag of all reads, and the lag of sending; histograms.
    """

    ended: int = 0
    failed: int = 0
    cancelled: int = 0
    dropped: int = 0
    ttft: Counter[int] = field(default_factory=Counter)
    lag: Counter[int] = field(default_factory=Counter)
    send_lag: Counter[int] = field(default_factory=Counter)

    def add(self, batch: Batch) -> None:
        """Requests that were recorded."""
        cancelled = batch.outcomes[Outcome.CANCELLED]
        self.ended += len(batch) - cancelled
        self.failed += batch.failed
        self.cancelled += cancelled
        self.dropped += batch.outcomes[Outcome.DROPPED]
        first, intended = batch.integers["first_token_ns"], batch.integers["intended_ns"]
        with_tokens = batch.counted & (first != -1)
        self.ttft.update(histogram.count(first[with_tokens] - intended[with_tokens]))
        self.lag.update(batch.durations["read_lag"])
        self.send_lag.update(batch.durations["send_lag"])

    def take(self) -> dict[str, Any]:
        """Totals so far, and the histograms since the last call; plain types, for a message."""
        report: dict[str, Any] = {
            "ended": self.ended,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "dropped": self.dropped,
        }
        for name in _HISTOGRAMS:
            counts: Counter[int] = getattr(self, name)
            report[name] = {str(index): count for index, count in counts.items()}
            counts.clear()
        return report


class Board:
    """On the master: the latest report of each worker, and the rates between two looks."""

    def __init__(self) -> None:
        self._reports: dict[str, dict[str, Any]] = {}
        self._histograms: dict[str, Counter[int]] = {name: Counter() for name in _HISTOGRAMS}
        self._last = (0.0, 0, 0)

    def report(self, worker: str, report: dict[str, Any]) -> None:
        self._reports[worker] = report
        for name, counts in self._histograms.items():
            counts.update({int(index): count for index, count in report[name].items()})

    def lose(self, worker: str) -> None:
        """A worker is gone: what it did stays counted, what it had in flight is gone too."""
        if worker in self._reports:
            self._reports[worker] = {**self._reports[worker], "in_flight": 0}

    def total(self, key: str) -> int:
        """Sum over the workers, those that were lost included."""
        return sum(report[key] for report in self._reports.values())

    def look(self, now_s: float) -> dict[str, Any]:
        """Figures since the last look; percentiles are None when nothing was measured."""
        ended, failed = self.total("ended"), self.total("failed")
        then, ended_then, failed_then = self._last
        self._last = (now_s, ended, failed)
        seconds = max(now_s - then, 1e-9)
        figures = {
            "qps": ((ended - failed) - (ended_then - failed_then)) / seconds,
            "ended": ended,
            "failed": failed,
            "dropped": self.total("dropped"),
            "in_flight": self.total("in_flight"),
            "ttft_p50_ms": self._ms("ttft", 0.5),
            "ttft_p99_ms": self._ms("ttft", 0.99),
            "read_lag_p99_ms": self._ms("lag", 0.99),
            "send_lag_p99_ms": self._ms("send_lag", 0.99),
        }
        for counts in self._histograms.values():
            counts.clear()
        return figures

    def _ms(self, name: str, share: float) -> float | None:
        ns = histogram.quantile(self._histograms[name], share)
        return None if ns is None else ns / 1e6
