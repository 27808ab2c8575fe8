"""GPM, the counters that Hopper and later keep without a profiler: means between two samples of one device.

NVIDIA calls values of less than 100 ms invalid: a tick that comes too early keeps the sample before, and the next one
covers both. The window of a row begins when the sample before was taken. CLOCK_MONOTONIC ns.
"""

import ctypes
import struct
from typing import Any, Callable, List, Optional, Sequence

import pynvml

from remote_agents.agent.gpu_errors import NVML_ERRORS
from remote_agents.agent.gpu_readings import Handle, Outcome

GPM_NS = 101_000_000  # from call to call: the driver may take a little longer for the first
METRICS = (
    ("gpm_graphics_pct", 1),
    ("gpm_sm_pct", 2),
    ("gpm_occ_pct", 3),
    ("gpm_tensor_pct", 5),
    ("gpm_dram_pct", 10),
    ("gpm_pcie_tx_mibs", 20),
    ("gpm_pcie_rx_mibs", 21),
    ("gpm_nvl_rx_mibs", 60),
    ("gpm_nvl_tx_mibs", 61),
)
GPM_COLUMNS = ("win_start_mono_ns", *(column for column, _ in METRICS))

# nvmlGpmMetricsGet_t as bytes: version, count, two samples, then (id, return code, value, three names) a metric.
_HEAD_B = 24
_METRIC = struct.Struct("=4xId24x")
_TOO_EARLY: List[Outcome] = [None] * len(GPM_COLUMNS)


class Gpm:
    """Two samples of a GPU, or of one GPU instance of it, that take turns."""

    def __init__(self, instance: Optional[int], clock: Callable[[], int]) -> None:
        self._instance = instance
        self._clock = clock
        self._samples: List[Any] = []
        self._newest = 0
        self._taken_ns: Optional[int] = None
        self._request: Any = None
        self._answer: Any = b""

    def read(self, handle: Handle) -> Sequence[Outcome]:
        """win_start_mono_ns, then a value or an error a metric; all None when it is too early. `handle`: GPU."""
        now_ns = self._clock()
        before_ns = self._taken_ns
        if before_ns is not None and now_ns - before_ns < GPM_NS:
            return _TOO_EARLY
        if not self._samples:
            self._open(handle)
        self._taken_ns = None  # unless all goes well
        self.take(handle)
        self._newest = 1 - self._newest
        self._taken_ns = now_ns
        if before_ns is None:
            return _TOO_EARLY
        self._request.sample1, self._request.sample2 = self._samples[1 - self._newest], self._samples[self._newest]
        pynvml.nvmlGpmMetricsGet(self._request)
        metrics = _METRIC.iter_unpack(self._answer)
        return [before_ns, *(pynvml.NVMLError(code) if code else round(value, 3) for code, value in metrics)]

    def take(self, handle: Handle) -> None:
        """Overwrite the older sample."""
        sample = self._samples[1 - self._newest]
        if self._instance is None:
            pynvml.nvmlGpmSampleGet(handle, sample)
        else:
            pynvml.nvmlGpmMigSampleGet(handle, self._instance, sample)

    def forget(self) -> None:
        """The device was away: its next sample is a first one."""
        self._taken_ns = None

    def close(self) -> None:
        while self._samples:
            try:
                pynvml.nvmlGpmSampleFree(self._samples.pop())
            except NVML_ERRORS:
                return  # NVML is about to be shut down, which frees the rest

    def _open(self, handle: Handle) -> None:
        if not pynvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        self._samples = [pynvml.nvmlGpmSampleAlloc() for _ in range(2)]
        self._request = pynvml.c_nvmlGpmMetricsGet_t()  # 19 kB: one for all times
        self._request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        self._request.numMetrics = len(METRICS)
        for place, (_, number) in enumerate(METRICS):
            self._request.metrics[place].metricId = number
        self._answer = (ctypes.c_char * (_METRIC.size * len(METRICS))).from_buffer(self._request, _HEAD_B)
