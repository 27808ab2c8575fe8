"""Utilisation from the driver's own buffer: five or six samples a second for one call a second.

The driver stamps them with its time of day, in us. That is turned to CLOCK_MONOTONIC ns by a pair of both clocks, read
with the samples: a time of day that is set cannot move a row. A sample that is stamped in the future, or older than the
buffer can be, is left out, counted and said.
"""

from typing import Any, Callable, Dict, List, NamedTuple, Optional

import pynvml

from remote_agents.agent.gpu_readings import Call, Handle, Reading
from remote_agents.agent.gpu_source import Lacks, Source

OLDEST_US = 30_000_000
AHEAD_US = 100_000  # the time of day is slewed, and not read at the very instant
LONGEST_NS = 1_000_000_000  # the driver samples every 1/6 to 1 s: further apart, some are missing
_VALUE = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by NVML_VALUE_TYPE_*


class Sample(NamedTuple):
    stamp_us: int
    t0_ns: int
    t1_ns: int
    value: float


class Buffer:
    """One buffer of the driver, and what has been read of it."""

    def __init__(self, kind: int, lacks: Lacks, clock: Callable[[], int], time_of_day: Callable[[], int]) -> None:
        self._kind = kind
        self._lacks = lacks
        self._clock = clock
        self._time_of_day = time_of_day
        self._seen_us = 0
        self._asked_ns = clock()
        self._before_ns: Optional[int] = None
        self._dropped = 0

    def read(self, handle: Handle) -> List[Sample]:
        """What is new, oldest first."""
        now_ns, now_us = self._clock(), self._time_of_day() // 1000
        if self._seen_us > now_us:  # the time of day was set back: what came since the last time is new
            self._seen_us = now_us - (now_ns - self._asked_ns) // 1000
        self._asked_ns = now_ns
        try:
            kind, found = pynvml.nvmlDeviceGetSamples(handle, self._kind, self._seen_us)
        except pynvml.NVMLError_NotFound:
            return []
        now_ns, now_us = self._clock(), self._time_of_day() // 1000
        samples: List[Sample] = []
        wrong_us: List[int] = []
        for stamp_us, value in sorted((one.timeStamp, getattr(one.sampleValue, _VALUE[kind])) for one in found):
            if stamp_us <= self._seen_us:  # read before, or an unused entry: its stamp is 0
                continue
            age_us = now_us - stamp_us
            if -AHEAD_US <= age_us <= OLDEST_US:
                samples.append(self._sample(stamp_us, now_ns - age_us * 1000, value))
                self._seen_us = stamp_us
            else:
                wrong_us.append(-age_us)
        if wrong_us and (wrong_us[-1] > 0 or not samples):  # old ones before good ones are but history
            self._drop(len(wrong_us), wrong_us[-1] / 1e6)
        return samples

    def _sample(self, stamp_us: int, t1_ns: int, value: float) -> Sample:
        t0_ns = t1_ns
        if self._before_ns is not None and 0 < t1_ns - self._before_ns <= LONGEST_NS:
            t0_ns = self._before_ns
        self._before_ns = t1_ns
        return Sample(stamp_us, t0_ns, t1_ns, float(value))

    def _drop(self, count: int, ahead_s: float) -> None:
        """Said when ten times as many as the last time have been left out."""
        before, self._dropped = self._dropped, self._dropped + count
        if len(str(self._dropped)) > len(str(before)) or not before:
            text = (
                f"samples of the utilisation of {self._lacks.name} are left out, {self._dropped} so far: the driver "
                f"stamps them {abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} the time of day"
            )
            self._lacks.event("driver_stamps", text, count=self._dropped)


class Utilisation:
    """Both buffers of a GPU."""

    def __init__(self, lacks: Lacks, clock: Callable[[], int], time_of_day: Callable[[], int]) -> None:
        self.sources = [
            Source(Reading((f"gpu_util.{column}",), (Call(f"nvmlDeviceGetSamples({name})", buffer.read),)), lacks)
            for column, name, buffer in (
                ("util_pct", "GPU", Buffer(pynvml.NVML_GPU_UTILIZATION_SAMPLES, lacks, clock, time_of_day)),
                ("memutil_pct", "MEMORY", Buffer(pynvml.NVML_MEMORY_UTILIZATION_SAMPLES, lacks, clock, time_of_day)),
            )
        ]

    def rows(self, handle: Handle, now_ns: int) -> List[List[Any]]:
        """t0, t1, util_pct, memutil_pct: samples of one stamp share a row."""
        rows: Dict[int, List[Any]] = {}
        for place, source in enumerate(self.sources, 2):
            for sample in source.attempt(handle, now_ns, {}) or []:
                row = rows.setdefault(sample.stamp_us, [sample.t0_ns, sample.t1_ns, None, None])
                row[place] = sample.value
        return [rows[stamp_us] for stamp_us in sorted(rows)]
