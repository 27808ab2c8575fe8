"""What a request passes before the GPU's queue: the network, preprocessing on a CPU, waiting for I/O.

    read from the socket -> network, its link first in, first out -> one of the CPU workers, first in, first out
                         -> I/O, one of its places, any number of them unless told -> ready

Each takes a constant time, the link one by the request's size, so that the whole passage is known when the request
comes in; a client that leaves does not shorten it. One `Stages` a host. Instants are ns of the caller's clock.
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
    """The front end of one host, and what its work has cost by now.

    `io_places`: waits for I/O at once, 0 for any number; `link_ns_per_b`: what a byte of a request takes on the link.
    """

    def __init__(
        self,
        network_ns: int,
        preprocess_ns: int,
        workers: int,
        io_wait_ns: int,
        io_places: int = 0,
        link_ns_per_b: float = 0.0,
    ) -> None:
        self._network_ns, self._preprocess_ns, self._io_wait_ns = network_ns, preprocess_ns, io_wait_ns
        self._link_ns_per_b = link_ns_per_b
        self._link_free_ns = 0
        self._cpu_free_ns = [0] * workers
        self._io_free_ns = [0] * io_places
        self._inside: deque[Passage] = deque()  # in the order of `ready_ns`
        self._passed_cpu_ns = self._passed_io_ns = 0
        self._waited = _Busy()  # for a CPU worker
        self._in_io = _Busy()
        self._last_read = (0, 0)

    def enter(self, read_ns: int, size_b: int = 0) -> Passage:
        """Calls come in the order of `read_ns`."""
        if not self._network_ns + self._preprocess_ns + self._io_wait_ns + self._link_ns_per_b:
            return Passage(read_ns, read_ns, read_ns, read_ns)
        self._settle(read_ns)
        self._link_free_ns = max(self._link_free_ns, read_ns) + round(size_b * self._link_ns_per_b)
        began_ns = arrived_ns = self._link_free_ns + self._network_ns
        if self._preprocess_ns:
            began_ns = _take(self._cpu_free_ns, arrived_ns, self._preprocess_ns)
        ended_ns = io_began_ns = began_ns + self._preprocess_ns
        if self._io_free_ns:
            io_began_ns = _take(self._io_free_ns, ended_ns, self._io_wait_ns)
        passage = Passage(arrived_ns, began_ns, ended_ns, io_began_ns + self._io_wait_ns)
        self._waited.add(arrived_ns, began_ns)
        self._in_io.add(ended_ns, passage.ready_ns)
        self._inside.append(passage)
        return passage

    def cpu_ns(self, now_ns: int) -> int:
        """CPU time of preprocessing since the start."""
        self._settle(now_ns)
        inside = sum(max(0, min(now_ns, one.cpu_ended_ns) - one.cpu_began_ns) for one in self._inside)
        return self._passed_cpu_ns + inside

    def io_ns(self, now_ns: int) -> int:
        """Time that requests have waited for I/O since the start, added up."""
        self._settle(now_ns)
        return self._passed_io_ns + sum(max(0, now_ns - one.cpu_ended_ns) for one in self._inside)

    def at_work(self, now_ns: int) -> tuple[int, int]:
        """Requests on a CPU, and waiting for I/O."""
        self._settle(now_ns)
        on_cpu = sum(one.cpu_began_ns <= now_ns < one.cpu_ended_ns for one in self._inside)
        return on_cpu, sum(one.cpu_ended_ns <= now_ns for one in self._inside)

    def waiting_for_cpu(self, now_ns: int) -> int:
        """Requests that have come, and have no CPU worker yet."""
        self._settle(now_ns)
        return sum(one.arrived_ns <= now_ns < one.cpu_began_ns for one in self._inside)

    def pressure_ns(self, now_ns: int) -> tuple[int, int]:
        """Time since the start in which some request waited for a CPU worker, and in which some waited for I/O."""
        return self._waited.until(now_ns), self._in_io.until(now_ns)

    def workers_busy(self, now_ns: int) -> float:
        """Share of the time since this was asked last in which the CPU workers were busy; they take turns."""
        cpu_ns = self.cpu_ns(now_ns)
        (before_ns, before_cpu_ns), self._last_read = self._last_read, (now_ns, cpu_ns)
        window_ns = (now_ns - before_ns) * len(self._cpu_free_ns)
        return min(1.0, (cpu_ns - before_cpu_ns) / window_ns) if window_ns > 0 else 0.0

    def _settle(self, now_ns: int) -> None:
        while self._inside and self._inside[0].ready_ns <= now_ns:
            passed = self._inside.popleft()
            self._passed_cpu_ns += passed.cpu_ended_ns - passed.cpu_began_ns
            self._passed_io_ns += passed.ready_ns - passed.cpu_ended_ns


class _Busy:
    """For how long at least one of the added times ran; they are added by their begin."""

    def __init__(self) -> None:
        self._past_ns = 0
        self._periods: deque[tuple[int, int]] = deque()  # apart from each other, and not yet over

    def add(self, began_ns: int, ended_ns: int) -> None:
        if began_ns >= ended_ns:
            return
        if self._periods and began_ns <= self._periods[-1][1]:
            first_ns, last_ns = self._periods[-1]
            self._periods[-1] = (first_ns, max(last_ns, ended_ns))
        else:
            self._periods.append((began_ns, ended_ns))

    def until(self, now_ns: int) -> int:
        while self._periods and self._periods[0][1] <= now_ns:
            began_ns, ended_ns = self._periods.popleft()
            self._past_ns += ended_ns - began_ns
        return self._past_ns + sum(max(0, now_ns - began_ns) for began_ns, _ in self._periods)


def _take(free_ns: list[int], from_ns: int, for_ns: int) -> int:
    """When the place of a heap that is free first can be had; it is taken for that long."""
    began_ns = max(from_ns, free_ns[0])
    heapq.heapreplace(free_ns, began_ns + for_ns)
    return began_ns
