"""What the agent sends: data wait in a bounded queue for the writer thread, a pong goes past them.

No sampler ever blocks here: when the collector stops reading, the oldest frames are dropped and counted. The stamps
are CLOCK_MONOTONIC of this host.
"""

import threading
import time
from collections import deque
from typing import Any, Callable, Deque, List, Optional, Tuple

from remote_agents.agent.protocol import BYE, EVENT, MAGIC, PONG, SAMPLE, encode, write_all

SPOOL_FRAMES = 10_000  # more than ten minutes of one agent


class Outbox:
    """The way out of the agent; `run` is its writer thread's body."""

    def __init__(self, descriptor: int, host: str, on_broken: Callable[[], None]) -> None:
        self.host = host
        self.dropped = 0
        self._descriptor = descriptor
        self._on_broken = on_broken
        self._queue: Deque[Tuple[int, Any]] = deque()
        self._changed = threading.Condition()
        self._write_lock = threading.Lock()
        self._seq = 0
        write_all(descriptor, MAGIC)

    def put(self, kind: int, body: Any) -> None:
        with self._changed:
            if len(self._queue) >= SPOOL_FRAMES:
                self._queue.popleft()
                self.dropped += 1
            self._queue.append((kind, body))
            self._changed.notify()

    def sample(self, table: str, rows: List[List[Any]], host: Optional[str] = None) -> None:
        if rows:
            self.put(SAMPLE, [table, host or self.host, rows])

    def event(self, kind: str, text: str, **facts: Any) -> None:
        self.put(EVENT, dict(facts, t_mono_ns=time.monotonic_ns(), kind=kind, text=text))

    def pong(self, ping_id: int, t1_ns: int) -> None:
        with self._write_lock:
            self._write(PONG, {"id": ping_id, "t1_ns": t1_ns, "t2_ns": time.monotonic_ns()})

    def run(self) -> None:
        kind = 0
        try:
            while kind != BYE:
                with self._changed:
                    while not self._queue:
                        self._changed.wait()
                    kind, body = self._queue.popleft()
                with self._write_lock:
                    self._write(kind, body)
        except OSError:
            self._on_broken()

    def _write(self, kind: int, body: Any) -> None:
        data = encode(kind, self._seq, body)
        self._seq += 1
        write_all(self._descriptor, data)
