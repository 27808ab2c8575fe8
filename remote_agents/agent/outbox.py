"""What the agent has to say: frames are numbered, and kept until the collector has them on its disk.

Rows of half a second are gathered into one frame a table: that halves the bytes, and the work. No sampler ever blocks
here: when the collector does not take what waits, the oldest frames are thrown away, counted, and said to be lost.
Times are CLOCK_MONOTONIC ns of this host.
"""

import threading
import time
from collections import deque
from typing import Any, Deque, Dict, List, NamedTuple, Optional, Tuple

from remote_agents.agent.protocol import EVENT, LOST, SAMPLE, encode

GATHER_NS = 500_000_000
SPOOL_B = 16 << 20  # of deflated frames: an hour and more of eight GPUs


class Entry(NamedTuple):
    number: int
    frame: bytes
    t_ns: int


class Outbox:
    """The spool between samplers and links."""

    def __init__(self, host: str, limit_b: int = SPOOL_B, gather_ns: int = GATHER_NS) -> None:
        self.host = host
        self.dropped = 0
        self.spool_b = 0
        self.last = 0  # number of the newest frame
        self._limit_b = limit_b
        self._gather_ns = gather_ns
        self._spool: Deque[Entry] = deque()
        self._gathered: Dict[Tuple[str, str], List[List[Any]]] = {}  # (table, host) -> rows
        self._gathered_since_ns = 0
        self._lost_from_ns: Optional[int] = None  # of what was thrown away and not acknowledged since
        self._lost_to_ns = 0
        self._changed = threading.Condition()

    def put(self, kind: int, body: Any) -> None:
        with self._changed:  # encoded inside: numbers go in order
            entry = Entry(self.last + 1, encode(kind, body, self.last + 1), time.monotonic_ns())
            self.last = entry.number  # only now: a body that cannot be encoded leaves no hole
            self._spool.append(entry)
            self.spool_b += len(entry.frame)
            while self.spool_b > self._limit_b and len(self._spool) > 1:
                self._throw_away(self._spool.popleft())
            self._changed.notify_all()

    def sample(self, table: str, rows: List[List[Any]], host: Optional[str] = None) -> None:
        if not rows:
            return
        with self._changed:
            now_ns = time.monotonic_ns()
            if not self._gathered:
                self._gathered_since_ns = now_ns
            self._gathered.setdefault((table, host or self.host), []).extend(rows)
            if now_ns - self._gathered_since_ns >= self._gather_ns:
                self.flush()

    def flush(self) -> None:
        """Make frames of the rows that were gathered."""
        with self._changed:
            gathered, self._gathered = self._gathered, {}
            for (table, host), rows in gathered.items():
                self.put(SAMPLE, [table, host, rows])

    def event(self, kind: str, text: str, **facts: Any) -> None:
        self.put(EVENT, dict(facts, t_mono_ns=time.monotonic_ns(), kind=kind, text=text))

    def acknowledge(self, number: int) -> None:
        """All up to `number` is on the collector's disk."""
        with self._changed:
            while self._spool and self._spool[0].number <= number:
                self.spool_b -= len(self._spool.popleft().frame)
            if self._lost_from_ns is not None and (not self._spool or self._spool[0].number <= number + 1):
                self._lost_from_ns = None

    def after(self, number: int, wait_s: float) -> Optional[Entry]:
        """What to send after frame `number`; None when nothing comes within `wait_s`."""
        with self._changed:
            if self.last <= number:
                self._changed.wait(wait_s)
            if self.last <= number:
                return None
            first = self._spool[0].number
            if first > number + 1:
                lost = {"frames": first - 1 - number, "from_ns": self._lost_from_ns, "to_ns": self._lost_to_ns}
                return Entry(first - 1, encode(LOST, lost, first - 1), self._lost_to_ns)
            return self._spool[number + 1 - first]

    def _throw_away(self, entry: Entry) -> None:
        self.spool_b -= len(entry.frame)
        self.dropped += 1
        self._lost_to_ns = entry.t_ns
        if self._lost_from_ns is None:
            self._lost_from_ns = entry.t_ns
