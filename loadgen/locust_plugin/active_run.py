"""One run, from before its first request until its manifest has a final status: what the master keeps of it.

With steps in its plan a `Stepper` leads it; without, each number of users that somebody asks for becomes a step. In
the open model it tells the workers when the load starts, and which arrivals are theirs. All stamps are CLOCK_MONOTONIC
ns of the master's host.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import gevent
from locust.runners import MasterRunner, Runner

from loadgen import rundir
from loadgen.live import Board
from loadgen.locust_plugin.clocks import WorkerClocks
from loadgen.locust_plugin.collection import Collection
from loadgen.locust_plugin.worker import START
from loadgen.option import ENV_PREFIX
from loadgen.options import Settings
from loadgen.stepper import ClosedStepper, OpenStepper, Phase, Stepper


class ActiveRun:
    def __init__(self, directory: Path, settings: Settings, runner: Runner, host: str) -> None:
        self.directory = directory
        self.board = Board()
        plan = settings.plan
        self.stepper: Stepper = (
            OpenStepper(plan, self._log_step, self._start_arrivals)
            if plan.is_open
            else ClosedStepper(plan, self._log_step)
        )
        self.abandoned = False
        self._planned = bool(plan.steps)
        self._runner = runner
        self._stop: tuple[str, str | None] | None = None
        self._lost: set[str] = set()
        self._clock_steps = 0
        self._by_hand: dict[str, Any] = {}
        self._locust = {"requests": 0, "failures": 0}
        self.load_has_stopped = False
        self._clocks: WorkerClocks | None = None
        if isinstance(runner, MasterRunner):
            self._clocks = WorkerClocks(runner, lambda line: self._append(rundir.CLOCKS, line))
        self._collection: Collection | None = None
        if settings.watching.agents:
            config = {
                **settings.watching.config(),
                "endpoint": host,
                "metrics_token_env": settings.api_key_env,
                "telemetry_url": os.environ.get(ENV_PREFIX + "TELEMETRY_URL"),
            }
            self._collection = Collection(directory, config, self._collector_lost)
            if settings.require_agents and (missing := self._collection.missing(settings.watching.agents)):
                texts = "; ".join(missing)
                self.stop(rundir.ABORTED, f"not every host can be watched, as --require-agents asks: {texts}")

    @property
    def telemetry(self) -> dict[str, Any]:
        return self._collection.latest if self._collection else {}

    @property
    def phase(self) -> str:
        return "stop" if self._stop else self.stepper.phase.value if self._planned else "hold"

    @property
    def counts(self) -> tuple[int, int, int]:
        """Users, requests that ended, requests in flight."""
        return self._runner.user_count, self.board.total("ended"), self.board.total("in_flight")

    def log(self, kind: str, text: str, **facts: Any) -> None:
        self._append(rundir.EVENTS, {"t_ns": time.monotonic_ns(), "kind": kind, "text": text, **facts})

    def _log_step(self, line: dict[str, Any]) -> None:
        self._append(rundir.STEPS, line)

    def _append(self, name: str, line: dict[str, Any]) -> None:
        try:
            rundir.append_line(self.directory / name, line)
        except OSError as error:
            rundir.release_reserve(self.directory)
            rundir.append_line(self.directory / name, line)
            self._stop = self._stop or (rundir.ABORTED, f"the run directory cannot be written: {error.strerror}")

    def _start_arrivals(self, t0_ns: int) -> None:
        """The load of the open model starts at `t0_ns`: each worker that has users takes an equal share of it."""
        runner, workers = self._runner, ["local"]
        if isinstance(runner, MasterRunner):
            workers = [client.id for client in runner.clients.all if client.user_count]
            workers.sort(key=runner.get_worker_index)
        for share, worker in enumerate(workers):
            at_worker_ns = self._clocks.at_worker(worker, t0_ns) if self._clocks else t0_ns
            runner.send_message(START, {"t0_ns": at_worker_ns, "share": share, "shares": len(workers)}, worker)

    # -- users that somebody sets by hand

    def ask_by_hand(self, level: int) -> None:
        """Somebody asks for another number of users: the step that was ends, the next ramps."""
        if not self._planned:
            self._end_by_hand()
            self._by_hand = {"step": self._by_hand.get("step", -1) + 1, "level": level, "unit": "users"}
            self._log_step({**self._by_hand, "what": "ramp", "t_ns": time.monotonic_ns(), "users": self.counts[0]})

    def reached_by_hand(self, users: int) -> None:
        """The users are there."""
        if self._by_hand and not self._by_hand.get("began"):
            self._log_step({**self._by_hand, "what": "begin", "t_ns": time.monotonic_ns(), "users": users})
            self._by_hand["began"] = True

    def _end_by_hand(self) -> None:
        if self._by_hand.pop("began", False):
            self._log_step({**self._by_hand, "what": "end", "t_ns": time.monotonic_ns(), "users": self.counts[0]})

    # -- ends

    def stop(self, status: str, reason: str | None) -> None:
        """End before the plan does; the first reason counts."""
        if self._stop is None:
            self._stop = (status, reason)
            self.log("stop", reason or status)
            users, _, in_flight = self.counts
            self.stepper.stop(time.monotonic_ns(), users, in_flight)
            if not self._planned:
                gevent.spawn(self._runner.stop)

    def abandon(self, reason: str) -> None:
        """Like `stop`, from another thread of a process about to end: the reason is noted, nothing is written."""
        self.abandoned = True
        self._stop = self._stop or (rundir.ABORTED, reason)

    def load_stopped(self) -> None:
        """Locust has stopped the users, for whatever reason."""
        self.load_has_stopped = True
        if self._clocks is not None:
            self._clocks.burst()
        self._end_by_hand()
        if self._planned and self.stepper.phase is not Phase.DONE:
            if self._lost and not self._runner.worker_count:
                self.stop(rundir.ABORTED, "every worker was lost")
            else:
                self.stop(rundir.INTERRUPTED, "stopped by hand")

    def take_report(self, worker: str, report: dict[str, Any]) -> None:
        self.board.report(worker, report)
        if report["clock_steps"] > self._clock_steps:
            self._clock_steps = report["clock_steps"]
            self.log("clock_step", "the wall clock was set while requests ran; their stamps are not moved by it")
        if report["failure"]:
            rundir.release_reserve(self.directory)
            self.stop(rundir.ABORTED, f"a worker cannot write its records: {report['failure']}")

    def keep_counts(self) -> None:
        """Take over what Locust has counted, and the exceptions it saw, before it forgets them."""
        total = self._runner.stats.total
        self._locust["requests"] += total.num_requests
        self._locust["failures"] += total.num_failures
        for row in self._runner.exceptions.values():
            text = f"a task raised an exception, {row['count']} time(s): {row['msg']}"[:500]
            self.log("user_error", text, count=row["count"], traceback=row["traceback"])

    def lose(self, worker: str, index: int) -> None:
        """A worker does not answer any more."""
        if worker not in self._lost:
            self._lost.add(worker)
            self.board.lose(worker)
            self.log("worker_lost", f"worker {index} was lost; its share of the load is gone", worker=index)

    def _collector_lost(self) -> None:
        self.log("collector_lost", "the collector ended early; no telemetry from here on: see logs/collector.log")

    def finish(self, shape_failure: Exception | None) -> str:
        """Stop the collector, reconcile the counts, write the final status; returns it."""
        if self._clocks is not None:
            self._clocks.stop()
        if self._collection is not None:
            self._collection.stop()
        if shape_failure is not None:
            self._stop = (rundir.ABORTED, f"the load shape failed: {shape_failure}")
        if self._stop is None and self._planned and self.stepper.phase is not Phase.DONE:
            self._stop = (rundir.ABORTED, "the run was ended from outside")
        status, reason = self._stop or (rundir.COMPLETE, None)
        self.keep_counts()
        locust = dict(self._locust)
        recorded = {"requests": self.board.total("written"), "failures": self.board.total("written_failed")}
        if locust != recorded and not self._lost:
            text = "Locust counted other requests than were recorded"
            self.log("locust_mismatch", text, locust=locust, recorded=recorded)
        rundir.finish(self.directory, status, reason, locust=locust, recorded=recorded)
        return status
