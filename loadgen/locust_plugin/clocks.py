"""The clocks of workers on other hosts: probed by the master over Locust's own messages, so that records can be joined.

The probes are lines of clocks.jsonl as those of the agents are, with `worker:<host>` for their host. A worker that
shares the master's clock is asked once, and then no more. Stamps are CLOCK_MONOTONIC ns, each of its own host.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import gevent
from locust.runners import MasterRunner, Message, WorkerRunner

from remote_agents.agent.kernel_clock import boot_id

PROBE = "loadgen_clock_probe"
ANSWER = "loadgen_clock_answer"
BURST = 8
BURST_AT_ENDS = 16
EVERY_S = 10.0


def answer_probes(runner: WorkerRunner) -> None:
    """The worker's side."""
    identity = {"host": socket.gethostname(), "boot_id": boot_id()}

    def answer(msg: Message, **_: Any) -> None:
        t1_ns = time.monotonic_ns()
        runner.send_message(ANSWER, {**msg.data, **identity, "t1_ns": t1_ns, "t2_ns": time.monotonic_ns()})

    runner.register_message(PROBE, answer)


class WorkerClocks:
    """The master's side; `write` gets each probe as a line of clocks.jsonl."""

    def __init__(self, runner: MasterRunner, write: Callable[[dict[str, Any]], None]) -> None:
        self._runner = runner
        self._write = write
        self._boot_id = boot_id()
        self._ours: set[str] = set()  # workers that share the master's clock
        self._left: dict[str, int] = {}  # probes of the burst under way
        self._best: dict[str, tuple[int, int]] = {}  # of the latest burst: round trip, worker's clock less ours
        runner.register_message(ANSWER, self._take)
        self._rounds = gevent.spawn(self._each_round)

    def burst(self, probes: int = BURST_AT_ENDS) -> None:
        for client in self._runner.clients.all:
            if client.id not in self._ours:
                self._left[client.id] = probes
                self._best.pop(client.id, None)
                self._ask(client.id)

    def at_worker(self, worker: str, t_ns: int) -> int:
        """An instant of the master on the clock of a worker, by the quickest probe of the latest burst."""
        return t_ns + self._best.get(worker, (0, 0))[1]

    def stop(self) -> None:
        self._rounds.kill()

    def _each_round(self) -> None:
        self.burst()
        while True:
            gevent.sleep(EVERY_S)
            self.burst(BURST)

    def _ask(self, worker: str) -> None:
        self._runner.send_message(PROBE, {"t0_ns": time.monotonic_ns()}, worker)

    def _take(self, msg: Message, **_: Any) -> None:
        t3_ns, worker, data = time.monotonic_ns(), msg.node_id, msg.data
        if data["boot_id"] and data["boot_id"] == self._boot_id:  # neither is named where the kernel does not tell
            self._ours.add(worker)
            return
        stamps = {"t0_ns": data["t0_ns"], "t1_ns": data["t1_ns"], "t2_ns": data["t2_ns"], "t3_ns": t3_ns}
        round_trip_ns = (t3_ns - data["t0_ns"]) - (data["t2_ns"] - data["t1_ns"])
        offset_ns = ((data["t1_ns"] - data["t0_ns"]) + (data["t2_ns"] - t3_ns)) // 2
        self._best[worker] = min(self._best.get(worker, (round_trip_ns, offset_ns)), (round_trip_ns, offset_ns))
        self._write({"host": f"worker:{data['host']}", **stamps})
        self._left[worker] -= 1
        if self._left[worker] > 0:
            self._ask(worker)
