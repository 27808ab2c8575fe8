"""Wakes an idle user at each arrival of the open model: the only place that waits for a schedule.

Instants are CLOCK_MONOTONIC ns. A kernel timer (timerfd) in gevent's own poll wakes the loop: gevent's timers have ms.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import numpy as np
from numpy.typing import NDArray

_NEVER = sys.maxsize
_READABLE = 1
# A loop that was held up has much to send at once: in between it reads what has come.
_SLICE_NS = 2_000_000


class Arrivals:
    """The arrivals of one worker. Users that are free wait in `next`; the one that waited least is taken.

    Late means send now, as often as it takes: no instant is moved. Nobody free when an arrival is seen to be due: it is
    dropped, and `on_drop` gets its instant.
    """

    def __init__(self, on_drop: Callable[[int], None]) -> None:
        self._on_drop = on_drop
        self._idle: dict[Any, None] = {}
        self._instants: Iterator[int] = iter(())
        self._due = _NEVER
        self._hub = gevent.get_hub()
        self._timer = _Timer()
        self._watcher = self._hub.loop.io(self._timer.fd, _READABLE, priority=self._hub.loop.MAXPRI)

    def start(self, t0_ns: int, blocks: Iterator[NDArray[np.int64]]) -> None:
        """Begin with offsets from `t0_ns`, in blocks, in order."""
        self._instants = (instant for block in blocks for instant in (block + t0_ns).tolist())
        self._due = next(self._instants, _NEVER)
        self._watcher.start(self._send_due)
        self._timer.set(self._due)

    def stop(self) -> None:
        """No arrivals any more, for good; who waits in `next` goes on waiting."""
        self._due, self._instants = _NEVER, iter(())
        self._watcher.stop()
        self._watcher.close()
        self._timer.close()

    def next(self) -> int:
        """Wait for an arrival; returns the instant at which it was due. After the last one it waits until killed."""
        user = gevent.getcurrent()
        self._idle[user] = None
        try:
            return int(self._hub.switch())
        finally:
            self._idle.pop(user, None)  # who is killed must not be woken

    def _send_due(self) -> None:
        """Runs in the hub, and users straight from it: each until it waits for something."""
        now = time.monotonic_ns()
        pause = now + _SLICE_NS
        while self._due <= now < pause:
            due, self._due = self._due, next(self._instants, _NEVER)
            if self._idle:
                user, _ = self._idle.popitem()
                user.switch(due)
            else:
                self._on_drop(due)
            now = time.monotonic_ns()
        if self._due < _NEVER:
            self._timer.set(self._due)
        else:
            self._watcher.stop()


class _Timer:
    """A timerfd that is readable once an absolute instant has passed. Python has its own from 3.13 on."""

    _libc = ctypes.CDLL(None, use_errno=True)

    def __init__(self) -> None:
        """Raises OSError."""
        self.fd: int = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")

    def set(self, instant_ns: int) -> None:
        """Not readable from now on, until that instant."""
        absolute = 1  # TFD_TIMER_ABSTIME
        # struct itimerspec: the interval, here none, and the instant, each in seconds and ns.
        times = (ctypes.c_long * 4)(0, 0, *divmod(instant_ns, 1_000_000_000))
        if self._libc.timerfd_settime(self.fd, absolute, times, None):
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")

    def close(self) -> None:
        os.close(self.fd)
