"""One way to the collector and back: two descriptors, a thread for each.

After a link that broke, a new one sends what the collector has not received. A pong goes past all data that wait. A
link on which nothing was heard for too long counts as broken, whatever its descriptors say. CLOCK_MONOTONIC ns.
"""

import os
import select
import sys
import threading
import time
from typing import Optional

from remote_agents.agent.outbox import Outbox
from remote_agents.agent.protocol import ACK, MAGIC, PING, PONG, STOP, WELCOME, Decoder, ProtocolError, encode

_TURN_S = 0.5

BROKEN, SILENT, STOPPED = "the link broke", "nothing was heard", "the collector told it to stop"


class Link:
    """Descriptors are the link's own from now on; `close` closes them."""

    def __init__(self, outbox: Outbox, reads: int, writes: int, received: int, silent_ns: int) -> None:
        self.heard_ns = time.monotonic_ns()
        self.is_heard = False  # the collector knows that it has an agent
        self.end: Optional[str] = None  # why nothing more is read
        self._outbox = outbox
        self._reads, self._writes = reads, writes
        self._sent = received
        self._silent_ns = silent_ns
        self._broken = False
        self._write_lock = threading.Lock()
        self._threads = [threading.Thread(target=body, daemon=True) for body in (self._listen, self._send)]
        os.set_blocking(writes, False)

    def open(self, agent: str) -> None:
        self._write(MAGIC + encode(WELCOME, {"agent": agent}))
        for thread in self._threads:
            thread.start()

    def flush(self, number: int, wait_s: float) -> None:
        """Wait until frame `number` is sent, or can no longer be."""
        end_ns = time.monotonic_ns() + int(wait_s * 1e9)
        while self._sent < number and not self._broken and time.monotonic_ns() < end_ns:
            time.sleep(0.01)

    def close(self) -> None:
        self.end, self._broken = self.end or BROKEN, True
        for thread in self._threads:
            thread.join()  # a closed descriptor's number is soon another's
        for descriptor in {self._reads, self._writes}:
            os.close(descriptor)

    def _listen(self) -> None:
        decoder = Decoder()
        decoder.in_step = True  # START has been read
        try:
            while self.end is None:
                if not select.select([self._reads], [], [], _TURN_S)[0]:
                    if time.monotonic_ns() - self.heard_ns > self._silent_ns:
                        self.end = SILENT
                    continue
                data = os.read(self._reads, 1 << 16)
                self.heard_ns = time.monotonic_ns()
                if not data:
                    self.end = self.end or BROKEN
                for frame in decoder.feed(data):
                    self.is_heard = True
                    if frame.kind == PING:
                        pong = {"id": frame.body["id"], "t1_ns": self.heard_ns, "t2_ns": time.monotonic_ns()}
                        self._write(encode(PONG, pong))
                    elif frame.kind == ACK:
                        self._outbox.acknowledge(frame.body["received"])
                    elif frame.kind == STOP:
                        self.end = STOPPED
        except (OSError, ValueError, ProtocolError) as error:
            sys.stderr.write(f"the link is given up: {error}\n")
            self.end = self.end or BROKEN

    def _send(self) -> None:
        while not self._broken:
            entry = self._outbox.after(self._sent, _TURN_S)
            if entry is not None and self._write(entry.frame):
                self._sent = entry.number

    def _write(self, data: bytes) -> bool:
        """Whether all of it was written; it may take as long as the link lives."""
        view = memoryview(data)
        with self._write_lock:
            while view and not self._broken:
                try:
                    view = view[os.write(self._writes, view) :]
                except BlockingIOError:
                    select.select([], [self._writes], [], _TURN_S)
                except OSError:
                    self._broken = True
                    self.end = self.end or BROKEN
        return not view
