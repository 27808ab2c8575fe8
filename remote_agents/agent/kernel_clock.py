"""What the kernel says of its clocks: which they are, how well NTP steers the time of day, how long the host has slept.

`adjtimex` is called to read only, which needs no privilege. Where a sandbox forbids it there is nothing: None. Times of
day are labels here, and durations go by CLOCK_MONOTONIC; the two figures say how far either can be trusted.
"""

import ctypes
import os
import time
from pathlib import Path
from typing import Optional, Tuple

_UNSYNCHRONISED = 0x40  # STA_UNSYNC
_NOTHING_BELOW_NS = 1_000_000  # two clocks read one after the other differ by less


_FIRST_TIME_NAMESPACE = "time:[4026531834]"


class _Timex(ctypes.Structure):
    """The beginning of the kernel's `struct timex`, and room for the rest. Modes 0 changes nothing."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def kernel_clock() -> Tuple[Optional[int], Optional[int], Optional[float]]:
    """(1 when not synchronised, else 0; the largest error in us; the oscillator's correction in ppm), or three None."""
    state = _Timex()
    try:
        code = ctypes.CDLL(None).adjtimex(ctypes.byref(state))
    except (OSError, AttributeError):
        code = -1
    if code < 0:
        return None, None, None
    return int(bool(state.status & _UNSYNCHRONISED)), state.maxerror, state.freq / 65536


def suspended_ns() -> int:
    """How long the host has slept since it was started: CLOCK_BOOTTIME goes on meanwhile, CLOCK_MONOTONIC does not."""
    before_ns = time.monotonic_ns()
    boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    after_ns = time.monotonic_ns()
    slept_ns = boot_ns - (before_ns + after_ns) // 2
    return slept_ns if slept_ns - (after_ns - before_ns) // 2 >= _NOTHING_BELOW_NS else 0


def boot_id() -> str:
    """Names CLOCK_MONOTONIC: the boot, and a container's own time if it has one. Only stamps of equal ones compare."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    try:
        namespace = os.readlink("/proc/self/ns/time")  # noqa: PTH115  Path has none in Python 3.8
    except OSError:  # older kernels have none
        return boot
    return boot if namespace == _FIRST_TIME_NAMESPACE else f"{boot} {namespace}"
