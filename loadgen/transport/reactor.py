"""Epolls for all connections of a process, drained in batches: no greenlet wakes for a piece of an answer.

A drain reads every connection that is ready, keeps bytes, kernel stamp and instant of the read, and goes on; an answer
is taken apart when its end may have come. A greenlet is switched to when its answer has ended, from here, without a
turn of the loop in between.

Two segments that wait in one socket have one stamp, the later one's. So answers that have begun to stream are in an
epoll of their own, which is read a slice at a time: a first token waits for a slice of the others at most.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import gevent
from gevent.hub import Hub
from gevent.monkey import get_original

if TYPE_CHECKING:
    from loadgen.transport.connection import Connection

BUFFER_BYTES = 65536
ANCILLARY_BYTES = 128
# What a gathered piece costs in memory beside its bytes.
_PIECE_BYTES = 128
_BATCH = 512
_SLICE = 128
# After a drain that only gathered a few pieces: stamps are the kernel's, and a batch costs less than its parts.
_FEW = 64
_PAUSE_S = 0.001
ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_MAX_STEP_NS = 1_000_000
# The end of a chunked answer, trailers or none; an event whose lines end so has the end of its chunk behind it.
_END = b"\r\n\r\n"
_LINES = b"\r\n\r\n\r\n"


class Reactor:
    """`clock_steps` counts the times when the wall clock was seen to jump, against the monotonic one."""

    def __init__(self, hub: Hub) -> None:
        epoll = get_original("select", "epoll")  # which gevent takes away
        self._epoll, self._streams = epoll(), epoll()
        # Watching the one watches both.
        self._streams_descriptor = self._streams.fileno()
        self._epoll.register(self._streams_descriptor, select.EPOLLIN)
        self._buffer = bytearray(BUFFER_BYTES)
        self._connections: dict[int, Connection] = {}
        self.hub = hub
        loop = hub.loop
        self._ready = loop.io(self._epoll.fileno(), 1)
        self._ready.start(self._on_ready)
        self._pauses = loop.timer(_PAUSE_S, _PAUSE_S)
        self._alarm = loop.timer(0)
        self._alarm_ns = 0
        # (monotonic, realtime - monotonic): what the kernel's stamps are converted with, from that instant on.
        self.offsets = [(0, _offset_ns())]

    @property
    def clock_steps(self) -> int:
        return len(self.offsets) - 1

    def add(self, connection: Connection, descriptor: int) -> None:
        self._connections[descriptor] = connection
        self._epoll.register(descriptor, _EVENTS)

    def remove(self, descriptor: int, streams: bool) -> None:
        """Before the descriptor is closed."""
        del self._connections[descriptor]
        (self._streams if streams else self._epoll).unregister(descriptor)

    def move(self, descriptor: int, streams: bool) -> None:
        """To the connections that stream, or back from there."""
        old, new = (self._epoll, self._streams) if streams else (self._streams, self._epoll)
        old.unregister(descriptor)
        new.register(descriptor, _EVENTS)

    # -- reading

    def _on_ready(self) -> None:
        if self._drain():
            return
        # Only pieces of streams: let some gather.
        self._ready.stop()
        self._pauses.again(self._after_pause)

    def _after_pause(self) -> None:
        if self._drain():
            self._pauses.stop()
            self._ready.start(self._on_ready)

    def _drain(self) -> bool:
        """Read what is ready. False when that was only a few pieces of streams."""
        ready = self._epoll.poll(0, _BATCH)
        self._watch_the_clock()
        find, buffer = self._connections.get, self._buffer
        streams = woke = False
        for descriptor, mask in ready:
            if descriptor == self._streams_descriptor:
                streams = True
            elif (connection := find(descriptor)) is not None:
                woke = connection.on_event(mask, buffer) or woke
        return (self._drain_streams() if streams else True) or woke

    def _drain_streams(self) -> bool:
        """The path of nearly every piece; `Connection.on_event` is the whole of it."""
        ready = self._streams.poll(0, _SLICE)
        now, find = time.monotonic_ns, self._connections.get
        buffer, view = self._buffer, memoryview(self._buffer)
        buffers = [buffer]
        woke = len(ready) > _FEW
        for descriptor, mask in ready:
            connection = find(descriptor)
            if connection is None:
                continue
            if not connection.streaming or mask & ENDED:
                woke = connection.on_event(mask, buffer) or woke
                continue
            try:
                size, ancillary, _, _ = connection.receive(buffers, ANCILLARY_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                connection.lose(error)
                woke = connection.settle() or woke
                continue
            if not size:
                woke = connection.on_event(mask, buffer) or woke
                continue
            piece = bytes(view[:size])
            if connection.decrypt is not None:
                piece = connection.decrypt(piece)
                if not piece:
                    woke = connection.settle() or woke
                    continue
            connection.pieces.append(piece)
            connection.ancillary.append(ancillary[0][2] if ancillary else b"")
            connection.reads.append(now())
            connection.room -= size + _PIECE_BYTES
            if size == BUFFER_BYTES:
                woke = connection.on_event(mask, buffer) or woke
            elif connection.room < 0 or size < 4 or (piece.endswith(_END) and not piece.endswith(_LINES)):
                woke = connection.settle() or woke
        return woke

    def offset_ns(self, read_ns: int) -> int:
        """Realtime minus monotonic as it was at a read."""
        since, offset = self.offsets[-1]
        if read_ns >= since:
            return offset
        return next((offset for since, offset in reversed(self.offsets) if read_ns >= since), self.offsets[0][1])

    def _watch_the_clock(self) -> None:
        offset = _offset_ns()
        if abs(offset - self.offsets[-1][1]) > _MAX_STEP_NS:
            self.offsets.append((time.monotonic_ns(), offset))
        elif len(self.offsets) == 1:
            self.offsets[0] = (0, offset)
        else:
            self.offsets[-1] = (self.offsets[-1][0], offset)

    # -- deadlines

    def wake_at(self, deadline_ns: int) -> None:
        """See to it that no connection waits beyond its deadline, of which this is one."""
        if not self._alarm_ns or deadline_ns < self._alarm_ns:
            self._alarm_ns = deadline_ns
            self._alarm.stop()
            self._alarm = self.hub.loop.timer(max(deadline_ns - time.monotonic_ns(), 0) / 1e9)
            self._alarm.start(self._expire)

    def _expire(self) -> None:
        """The alarm may be of a request that ended long ago: it is set again for the earliest that is left."""
        self._alarm_ns = 0
        now = time.monotonic_ns()
        for connection in list(self._connections.values()):
            if connection.deadline_ns <= now:
                connection.expire()
        if waiting := [c.deadline_ns for c in self._connections.values() if c.waits]:
            self.wake_at(min(waiting))


def _offset_ns() -> int:
    """Realtime minus monotonic; the greatest of three: it is too small by what lies between the two readings."""
    return max(time.time_ns() - time.monotonic_ns() for _ in range(3))


_reactors: WeakKeyDictionary[Hub, Reactor] = WeakKeyDictionary()


def current() -> Reactor:
    """The reactor of this thread's loop."""
    hub = gevent.get_hub()
    reactor = _reactors.get(hub)
    if reactor is None:
        reactor = _reactors[hub] = Reactor(hub)
    return reactor


Feed = Callable[[list[bytes], list[int]], bool]
"""Takes pieces of a body and when each was received (CLOCK_MONOTONIC ns); True when output has been seen so far."""
