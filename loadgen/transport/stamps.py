"""The kernel's receive stamps: asked for on a socket, and converted from the wall clock to CLOCK_MONOTONIC.

A TCP socket with SO_TIMESTAMPING tells in the ancillary data of `recvmsg` when the kernel received the bytes
(CLOCK_REALTIME; the last segment's, when several were merged). Instants and lags of reads are ns and us.
"""

from __future__ import annotations

import functools
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gevent.monkey import get_original
from numpy.typing import NDArray

_SO_TIMESTAMPING = 37
_SOFTWARE_RECEIVE = 0x18  # SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE
_TIMESPEC = struct.Struct("@ll")
# A stamp further away than this from the clock is a clock step, not a delay.
_MAX_LAG_NS = 60_000_000_000
# From so many on, arrays are faster.
_MANY_READS = 16

Lags = Sequence[int] | NDArray[np.int64]


def ask(connection: Any) -> bool:
    """Let the kernel stamp what a socket receives; False where it does not."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, _SOFTWARE_RECEIVE)
        _keep_stamping()
    except OSError:
        return False
    return True


@functools.cache
def _keep_stamping() -> Any:
    """A socket that is never used: while one asks for stamps, the kernel makes them.

    It begins to some time after the first one asked, and ends with the last: what arrives before is stamped when it is
    read. A lone connection to a server that closes it after each answer would always be a new first one.
    """
    keeper = get_original("socket", "socket")(socket.AF_INET, socket.SOCK_DGRAM)
    keeper.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, _SOFTWARE_RECEIVE)
    return keeper


def received(
    ancillary: list[bytes], reads: list[int], latest_ns: int, offset_ns: Callable[[int], int]
) -> tuple[list[int], Lags]:
    """When the bytes of each read were received, none before `latest_ns`; and the lags of those the kernel stamped.

    `ancillary` is what came with each read, empty where nothing did: its instant is then the read's. `offset_ns` gives
    realtime minus monotonic as it was at a read.
    """
    if len(reads) >= _MANY_READS:
        by_array = _by_array(ancillary, reads, latest_ns, offset_ns)
        if by_array is not None:
            return by_array
    stamps, lags = [], []
    for payload, read in zip(ancillary, reads, strict=True):
        stamp = read
        if payload:
            seconds, nanoseconds = _TIMESPEC.unpack_from(payload)
            lag = read + offset_ns(read) - seconds * 1_000_000_000 - nanoseconds
            if 0 <= lag < _MAX_LAG_NS:
                stamp = read - lag
                lags.append(lag // 1000)
        # A step of the clock that the kernel stamps with must not turn the answer's time back.
        latest_ns = max(stamp, latest_ns)
        stamps.append(latest_ns)
    return stamps, lags


def _by_array(
    ancillary: list[bytes], reads: list[int], latest_ns: int, offset_ns: Callable[[int], int]
) -> tuple[list[int], Lags] | None:
    """None when there is anything unusual about them."""
    offset = offset_ns(reads[0])
    if not all(ancillary) or offset != offset_ns(reads[-1]):
        return None
    words = np.frombuffer(b"".join(ancillary), np.int64).reshape(len(reads), -1)
    now = np.array(reads, np.int64)
    lags = now + (offset - words[:, 0] * 1_000_000_000) - words[:, 1]
    if int(lags.max()) >= _MAX_LAG_NS or int(lags.min()) < 0:
        return None
    stamps = now - lags
    stamps[0] = max(int(stamps[0]), latest_ns)
    return np.maximum.accumulate(stamps).tolist(), lags // 1000
