"""XIDs and the like, as the driver reports them: in a thread of its own, since NVML waits for them.

They are sent as events with their time, never kept as a gauge. Of a storm the first ten a minute and GPU are sent, then
one event with the count of the others. CLOCK_MONOTONIC ns of this host.
"""

import contextlib
import ctypes
import time
from collections import Counter
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

import pynvml

from remote_agents.agent.gpu_device import Gpu
from remote_agents.agent.gpu_errors import NVML_ERRORS
from remote_agents.agent.gpu_readings import Handle
from remote_agents.agent.outbox import Outbox

WAIT_MS = 200  # and as long until the thread sees that it is to end
RETRY_NS = 5_000_000_000
AT_MOST = 10
WINDOW_NS = 60_000_000_000
_NO_INSTANCE = 0xFFFFFFFF


class Kind(NamedTuple):
    kind: str
    text: str


KINDS = {  # by nvmlEventType…, as numbers: an old pynvml does not know the last two
    0x2: Kind("ecc", "an uncorrected memory error, code {}"),
    0x8: Kind("xid", "XID {}"),
    0x4000: Kind("gpu_unavailable", "unavailable, code {}"),
    0x8000: Kind("recovery_action", "a recovery action is asked for, code {}"),
}
_WANTED = sum(KINDS)
# NVIDIA's own words for the numbers that are met most.
XIDS = {
    13: "graphics engine exception",
    31: "GPU memory page fault",
    43: "GPU stopped processing",
    45: "preemptive cleanup, due to previous errors",
    48: "double bit ECC error",
    63: "ECC page retirement or row remapping",
    64: "ECC page retirement or row remapping failed",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    92: "high single-bit ECC error rate",
    94: "contained ECC error",
    95: "uncontained ECC error",
    119: "GSP RPC timeout",
    120: "GSP error",
}


class _Window:
    """A minute of one GPU."""

    def __init__(self, begin_ns: int) -> None:
        self.begin_ns = begin_ns
        self.sent = 0
        self.others: "Counter[str]" = Counter()


class EventWatch:
    """`gpus` are whole ones: their handles are looked at again and again, since a lost GPU comes back with another."""

    def __init__(
        self,
        gpus: Sequence[Gpu],
        outbox: Outbox,
        is_ending: Callable[[], bool],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._gpus = gpus
        self._outbox = outbox
        self._is_ending = is_ending
        self._clock = clock
        self._set: Any = None
        self._registered: Dict[str, Handle] = {}  # by UUID
        self._by_address: Dict[Optional[int], Gpu] = {}
        self._windows: Dict[str, _Window] = {}
        self._retry_ns = 0
        self._failure = ""

    def run(self) -> None:
        """Thread body, until `is_ending`. NVML must be open all the time."""
        try:
            self._set = pynvml.nvmlEventSetCreate()
        except NVML_ERRORS as error:
            self._outbox.event("no_xids", f"XIDs are not told: {error}")
            return
        while not self._is_ending():
            self._register()
            if self._by_address and self._clock() >= self._retry_ns:
                self._wait()
            else:
                time.sleep(WAIT_MS / 1000)
            self._end_windows(self._clock() - WINDOW_NS)
        self._end_windows(self._clock())
        with contextlib.suppress(*NVML_ERRORS):
            pynvml.nvmlEventSetFree(self._set)

    def _register(self) -> None:
        refused: Dict[str, List[str]] = {}
        for gpu in self._gpus:
            handle = gpu.handle
            if self._registered.get(gpu.uuid) is handle:
                continue
            self._registered[gpu.uuid] = handle
            try:
                types = pynvml.nvmlDeviceGetSupportedEventTypes(handle) & _WANTED
                if not types:
                    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
                pynvml.nvmlDeviceRegisterEvents(handle, types, self._set)
            except NVML_ERRORS as error:
                refused.setdefault(str(error), []).append(gpu.name)
            else:
                self._by_address[_address(handle)] = gpu
        for reason, names in refused.items():
            self._outbox.event("no_xids", f"XIDs of {', '.join(names)} are not told: {reason}")

    def _wait(self) -> None:
        try:
            told = pynvml.nvmlEventSetWait_v2(self._set, WAIT_MS)
        except pynvml.NVMLError_Timeout:
            self._failure = ""
        except NVML_ERRORS as error:
            self._retry_ns = self._clock() + RETRY_NS
            if str(error) != self._failure:
                self._failure = str(error)
                self._outbox.event("no_xids", f"XIDs are not told for now: {error}")
        else:
            self._failure = ""
            self._tell(told)

    def _tell(self, told: Any) -> None:
        gpu = self._by_address.get(_address(told.device))
        kind = KINDS.get(told.eventType)
        if gpu is None or kind is None:
            return
        code = told.eventData
        what = kind.text.format(code)
        window = self._windows.setdefault(gpu.uuid, _Window(self._clock()))
        if window.sent == AT_MOST:
            window.others[what] += 1
            return
        window.sent += 1
        facts = {"gpu_uuid": gpu.uuid, "gpu_index": gpu.index, "code": code}
        if told.gpuInstanceId != _NO_INSTANCE:
            facts["gi_id"] = told.gpuInstanceId
        meaning = f" ({XIDS[code]})" if kind.kind == "xid" and code in XIDS else ""
        self._outbox.event(kind.kind, f"{gpu.name}: {what}{meaning}", **facts)

    def _end_windows(self, older_ns: int) -> None:
        """End those that began before, and say what was not sent of them."""
        for gpu in self._gpus:
            window = self._windows.get(gpu.uuid)
            if window is None or window.begin_ns > older_ns:
                continue
            del self._windows[gpu.uuid]
            if window.others:
                count = sum(window.others.values())
                parts = ", ".join(f"{what} ({times} times)" for what, times in window.others.most_common(5))
                seconds = (self._clock() - window.begin_ns) / 1e9
                text = f"{gpu.name}: {count} more within {seconds:.0f} s: {parts}"
                self._outbox.event("xid_storm", text, gpu_uuid=gpu.uuid, gpu_index=gpu.index, count=count)


def _address(handle: Handle) -> Optional[int]:
    """What pynvml's pointer points to: two pointers to one GPU are not equal."""
    return ctypes.cast(handle, ctypes.c_void_p).value
