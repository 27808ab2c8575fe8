"""When to sample, and what sampling costs: absolute deadlines, lateness, CPU and memory of the agent itself.

Tick k is due at start + k * period. A tick whose time has passed is skipped, never made up for. CLOCK_MONOTONIC ns.
"""

import os
import resource
import time
from pathlib import Path
from typing import Any, Callable, List, Optional

FAST_NS = 100_000_000
SLOW_NS = 1_000_000_000
SLOW_EVERY = SLOW_NS // FAST_NS


class Pace:
    """The deadlines of one loop."""

    def __init__(
        self,
        period_ns: int,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.skipped = 0
        self._period_ns = period_ns
        self._clock = clock
        self._sleep = sleep
        self._due_ns: Optional[int] = None

    def wait(self) -> int:
        """Sleep until the next deadline; the first is now. Returns how late the wake-up is, in ns."""
        now_ns = self._clock()
        if self._due_ns is None:
            self._due_ns = now_ns
            return 0
        due_ns = self._due_ns + self._period_ns
        missed = max(0, -((due_ns - now_ns) // self._period_ns))
        self.skipped += missed
        self._due_ns = due_ns + missed * self._period_ns
        while True:
            left_ns = self._due_ns - self._clock()
            if left_ns <= 0:
                return -left_ns
            self._sleep(left_ns / 1e9)


class Meter:
    """What the fast loop reports and the slow loop sends, once a second, as a row of table `agent`."""

    def __init__(self) -> None:
        self.period_ns = FAST_NS  # set by the fast loop, when the driver is too slow for it
        self._ticks = 0
        self._skipped = 0
        self._late_us: List[int] = []
        self._nvml_us: List[int] = []

    def tick(self, late_ns: int, skipped: int, nvml_ns: Optional[int] = None) -> None:
        self._ticks += 1
        self._skipped = skipped
        self._late_us.append(late_ns // 1000)
        if nvml_ns is not None:
            self._nvml_us.append(nvml_ns // 1000)

    def row(self, *others: Any) -> List[Any]:
        """`others` are the columns after period_ms."""
        t0_ns = time.monotonic_ns()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        late_us, self._late_us = self._late_us, []
        nvml_us, self._nvml_us = self._nvml_us, []
        cost = [int((usage.ru_utime + usage.ru_stime) * 1e6), _rss_b()]
        ticks = [self._ticks, self._skipped, _p99(late_us), _p99(nvml_us), self.period_ns // 1_000_000]
        return [t0_ns, time.monotonic_ns(), *cost, *ticks, *others]


def _p99(values: List[int]) -> Optional[int]:
    return sorted(values)[(len(values) * 99 + 99) // 100 - 1] if values else None


def _rss_b() -> Optional[int]:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
