"""A TCP relay with a bad network in it: delays, stalls, lost and broken connections. A process, so that it is punctual.

    client -- up --> relay -- up --> server         Relay(server's host, port).port is where clients connect
           <- down --       <- down --

Delays are seconds of each direction, good to about a millisecond. To a client a relay that stalls is a network that
swallows everything: TCP still answers, no byte passes.
"""

from __future__ import annotations

import collections
import contextlib
import json
import random
import selectors
import socket
import struct
import subprocess
import sys
import time
from typing import Any

_READ_B = 1 << 16
_AHEAD_B = 4 << 20  # what a delayed direction may hold
_RESET = struct.pack("ii", 1, 0)


class Relay:
    """To one server, for any number of connections. Each method has its effect when it returns."""

    def __init__(self, host: str, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, host, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.port = int(self._answer())

    def delay(self, up_s: float = 0.0, down_s: float = 0.0, jitter_s: float = 0.0) -> None:
        """Of all bytes that come from now on; each read waits up to `jitter_s` longer, and never overtakes."""
        self._order("delay", up_s, down_s, jitter_s)

    def stall(self) -> None:
        """Let nothing through, and no new connections in, until `restore`; nothing is lost."""
        self._order("stall")

    def blackhole(self) -> None:
        """As `stall`, but what is on its way is lost, and with it the connections: `restore` resets them."""
        self._order("blackhole")

    def restore(self) -> None:
        self._order("restore")

    def reset(self) -> None:
        """Break all connections, with RST to both ends; new ones are let in."""
        self._order("reset")

    def connections(self) -> int:
        return int(self._order("connections"))

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _order(self, *words: Any) -> str:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().decode().strip()


class Way:
    """One direction of a connection: what was read and when it is to be written, in order; b"" is the end."""

    def __init__(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        self.source, self.sink, self.direction = source, sink, direction
        self.waiting: collections.deque[tuple[float, bytes]] = collections.deque()
        self.held_b = 0
        self.ended = False  # nothing more is to be read
        self.done = False  # nothing more is to be written

    def take(self, delay_s: float) -> None:
        """Read once. Raises OSError."""
        try:
            data = self.source.recv(_READ_B)
        except BlockingIOError:
            return
        due = time.monotonic() + delay_s
        self.waiting.append((max(due, self.waiting[-1][0]) if self.waiting else due, data))
        self.held_b += len(data)
        self.ended = not data

    def give(self, now: float) -> None:
        """Write what is due. Raises OSError."""
        while self.waiting and self.waiting[0][0] <= now:
            due, data = self.waiting.popleft()
            if not data:
                self.sink.shutdown(socket.SHUT_WR)
                self.done = True
                return
            try:
                sent = self.sink.send(data)
            except BlockingIOError:
                sent = 0
            self.held_b -= sent
            if sent < len(data):
                self.waiting.appendleft((due, data[sent:]))
                return


class Loop:
    """The process: one thread, which waits for sockets, orders, and the next byte that is due."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self._delay_s = {"up": 0.0, "down": 0.0}
        self._jitter_s = 0.0
        self._state = "open"
        self._pairs: list[tuple[Way, Way]] = []
        self.port = self._listener.getsockname()[1]

    def run(self) -> None:
        while True:
            with selectors.SelectSelector() as selector:  # the one whose timeouts are not rounded to milliseconds
                selector.register(sys.stdin, selectors.EVENT_READ)
                wait_s = self._register(selector) if self._state == "open" else None
                ready = {key.fileobj for key, _ in selector.select(wait_s)}
            if self._state == "open":
                self._move(ready)  # an order is about what comes after it
            if sys.stdin in ready:
                line = sys.stdin.readline()
                if not line:
                    return
                sys.stdout.write(f"{self._obey(*json.loads(line))}\n")
                sys.stdout.flush()

    def _register(self, selector: selectors.BaseSelector) -> float | None:
        """What to wait for: readers, sinks of what is due; and how long, for what is not due yet."""
        selector.register(self._listener, selectors.EVENT_READ)
        now = time.monotonic()
        later: list[float] = []
        wanted: collections.Counter[socket.socket] = collections.Counter()
        for way in self._ways():
            if not way.ended and way.held_b < _AHEAD_B:
                wanted[way.source] |= selectors.EVENT_READ
            if way.waiting and way.waiting[0][0] <= now:
                wanted[way.sink] |= selectors.EVENT_WRITE
            elif way.waiting:
                later.append(way.waiting[0][0] - now)
        for connection, events in wanted.items():
            selector.register(connection, events)
        return min(later, default=None)

    def _ways(self) -> list[Way]:
        return [way for pair in self._pairs for way in pair]

    def _move(self, ready: set[Any]) -> None:
        if self._listener in ready:
            self._accept()
        for pair in list(self._pairs):
            try:
                for way in pair:
                    if way.source in ready and not way.ended and way.held_b < _AHEAD_B:
                        way.take(self._delay_s[way.direction] + random.uniform(0, self._jitter_s))
                    way.give(time.monotonic())
            except OSError:
                self._break(pair)
            if all(way.done for way in pair):
                self._pairs.remove(pair)
                for way in pair:
                    way.source.close()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            client, _ = self._listener.accept()
            try:
                server = socket.create_connection(self._address, 5)
            except OSError:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                client.close()
                return
            for end in (client, server):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs.append((Way(client, server, "up"), Way(server, client, "down")))

    def _break(self, pair: tuple[Way, Way]) -> None:
        self._pairs.remove(pair)
        for way in pair:
            way.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            way.source.close()

    def _obey(self, order: str, *values: float) -> object:
        if order == "delay":
            self._delay_s["up"], self._delay_s["down"], self._jitter_s = values
        elif order == "connections":
            return len(self._pairs)
        elif order == "reset" or (order == "restore" and self._state == "blackhole"):
            for pair in list(self._pairs):
                self._break(pair)
            self._state = "open"
        else:
            self._state = "open" if order == "restore" else order
        return "done"


if __name__ == "__main__":
    loop = Loop((sys.argv[1], int(sys.argv[2])))
    sys.stdout.write(f"{loop.port}\n")
    sys.stdout.flush()
    loop.run()
