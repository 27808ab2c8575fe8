"""What a request passes before the GPU's queue: the network, preprocessing on a CPU, waiting for I/O.

    read from the socket -> network -> one of the CPU workers, first in, first out -> I/O, any number at once -> ready

Each takes a constant time, so that the whole passage is known when the request comes in; a client that leaves does not
shorten it. One `Stages` a host. Instants are ns of the caller's clock.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import NamedTuple


class Passage(NamedTuple):
    arrived_ns: int
    cpu_began_ns: int
    cpu_ended_ns: int
    ready_ns: int


class Stages:
    """The front end of one host, and what its work has cost by now."""

    def __init__(self, network_ns: int, preprocess_ns: int, workers: int, io_wait_ns: int) -> None:
        self._network_ns, self._preprocess_ns, self._io_wait_ns = network_ns, preprocess_ns, io_wait_ns
        self._free_at_ns = [0] * workers
        self._inside: deque[Passage] = deque()  # in the order of `ready_ns`
        self._passed = 0

    def enter(self, read_ns: int) -> Passage:
        """Calls come in the order of `read_ns`."""
        if not self._network_ns + self._preprocess_ns + self._io_wait_ns:
            return Passage(read_ns, read_ns, read_ns, read_ns)
        self._settle(read_ns)
        began_ns = arrived_ns = read_ns + self._network_ns
        if self._preprocess_ns:
            began_ns = max(arrived_ns, self._free_at_ns[0])
            heapq.heapreplace(self._free_at_ns, began_ns + self._preprocess_ns)
        ended_ns = began_ns + self._preprocess_ns
        passage = Passage(arrived_ns, began_ns, ended_ns, ended_ns + self._io_wait_ns)
        self._inside.append(passage)
        return passage

    def cpu_ns(self, now_ns: int) -> int:
        """CPU time of preprocessing since the start."""
        self._settle(now_ns)
        inside = sum(max(0, min(now_ns, one.cpu_ended_ns) - one.cpu_began_ns) for one in self._inside)
        return self._passed * self._preprocess_ns + inside

    def io_ns(self, now_ns: int) -> int:
        """Time that requests have waited for I/O since the start, added up."""
        self._settle(now_ns)
        inside = sum(max(0, now_ns - one.cpu_ended_ns) for one in self._inside)
        return self._passed * self._io_wait_ns + inside

    def at_work(self, now_ns: int) -> tuple[int, int]:
        """Requests on a CPU, and waiting for I/O."""
        self._settle(now_ns)
        on_cpu = sum(one.cpu_began_ns <= now_ns < one.cpu_ended_ns for one in self._inside)
        return on_cpu, sum(one.cpu_ended_ns <= now_ns for one in self._inside)

    def _settle(self, now_ns: int) -> None:
        while self._inside and self._inside[0].ready_ns <= now_ns:
            self._inside.popleft()
            self._passed += 1
