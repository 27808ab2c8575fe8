"""How often GPUs are read: less often while NVML takes too much of the time. Pure; CLOCK_MONOTONIC ns of the caller."""

from typing import Optional

STEPS_NS = (200_000_000, 500_000_000, 1_000_000_000)
TOO_DEAR = 0.2  # NVML's share of a period
CHEAP = 0.1  # of the shorter period
TICKS = 10
CHEAP_NS = 60_000_000_000


class Rate:
    """`period_ns` of the ticks to come."""

    def __init__(self, shortest_ns: int) -> None:
        self._periods_ns = (shortest_ns, *STEPS_NS)
        self._step = 0
        self._dear_ticks = 0
        self._cheap_since_ns: Optional[int] = None

    @property
    def period_ns(self) -> int:
        return self._periods_ns[self._step]

    def add(self, cost_ns: int, now_ns: int) -> bool:
        """Take in what NVML took of one tick; whether the period has changed."""
        self._dear_ticks = self._dear_ticks + 1 if cost_ns > TOO_DEAR * self.period_ns else 0
        if self._dear_ticks == TICKS and self._step + 1 < len(self._periods_ns):
            return self._go(self._step + 1)
        if self._step == 0 or cost_ns >= CHEAP * self._periods_ns[self._step - 1]:
            self._cheap_since_ns = None
        elif self._cheap_since_ns is None:
            self._cheap_since_ns = now_ns
        elif now_ns - self._cheap_since_ns >= CHEAP_NS:
            return self._go(self._step - 1)
        return False

    def _go(self, step: int) -> bool:
        self._step = step
        self._dear_ticks = 0
        self._cheap_since_ns = None
        return True
