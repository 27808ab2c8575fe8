"""A master's side of a run: it leads the steps, logs them and the events, watches the workers and the collector.

It writes a JSON line of live figures each second to the descriptor LOADGEN_LIVE_FD, when it has one, and takes `stop`
from the lifeline. All stamps are CLOCK_MONOTONIC ns of this host.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import gevent.subprocess
from locust.env import Environment
from locust.runners import STATE_MISSING, MasterRunner, Runner

from loadgen import lifeline, rundir
from loadgen.errors import UsageError
from loadgen.live import Board
from loadgen.locust_plugin import traps
from loadgen.locust_plugin.shape import SteppedShape
from loadgen.locust_plugin.worker import DRAIN
from loadgen.manifest import new_manifest
from loadgen.options import ENV_PREFIX, parse_settings
from loadgen.stepper import Phase, Stepper

logger = logging.getLogger(__name__)

_COLLECTOR_START_S = 5.0
_COLLECTOR_STOP_S = 5.0


class Master:
    """Exists from Locust's `init` to its `quitting`."""

    def __init__(self, environment: Environment, runner: Runner) -> None:
        self._environment = environment
        self._runner = runner
        options = environment.parsed_options
        try:
            self._settings = parse_settings(vars(options), simulated=False, steps_required=False)
        except UsageError as error:
            sys.exit(f"error: {error}")
        self._run = self._run_directory(options)
        self._board = Board()
        self._stepper = Stepper(self._settings.plan, self._log_step)
        self._stop: tuple[str, str | None] | None = None
        self._lost: set[str] = set()
        self._started = False
        self._quitting = False
        self._telemetry: dict[str, Any] = {}
        self._collector: gevent.subprocess.Popen[bytes] | None = None
        self._live = int(os.environ.pop(ENV_PREFIX + "LIVE_FD", "-1"))
        if self._settings.plan.steps:
            environment.shape_class = SteppedShape(self._stepper, self._counts, self._drain)
            environment.shape_class.runner = runner
        events = environment.events
        events.test_start.add_listener(self._on_start)
        events.test_stop.add_listener(self._on_stop)
        events.quitting.add_listener(self._on_quitting)
        events.worker_report.add_listener(self._on_report)
        if isinstance(runner, MasterRunner):
            traps.refuse_late_workers(runner, lambda: self._started)
        self._listen_to_lifeline()
        if self._settings.agents:
            self._start_collector()
        gevent.spawn(self._each_second)

    # -- the run directory

    def _run_directory(self, options: Any) -> Path:
        if not options.run_dir:
            scenario = Path(options.locustfile).resolve()
            run = rundir.create(Path(self._settings.runs_dir), scenario.stem, self._settings.label)
            target = {"url": options.host, "model": self._settings.model, "simulated": False, "simulator": None}
            rundir.write_manifest(run, new_manifest(run, scenario, target, self._settings, workers=None))
            # The workers get the options with their first message.
            options.run_dir = str(run)
        return Path(options.run_dir)

    def _log_step(self, line: dict[str, Any]) -> None:
        rundir.append_line(self._run / rundir.STEPS, line)

    # -- steps

    def _counts(self) -> tuple[int, int, int]:
        return self._runner.user_count, self._board.total("ended"), self._board.total("in_flight")

    def _drain(self) -> None:
        self._runner.send_message(DRAIN)

    def _end(self, status: str, reason: str | None) -> None:
        """End the run early, once; what is in flight is cut."""
        if self._stop is None and not self._quitting:
            self._stop = (status, reason)
            rundir.log_event(self._run, "stop", reason or status)
            self._stepper.stop(time.monotonic_ns(), self._runner.user_count)
            if not self._settings.plan.steps:
                gevent.spawn(self._quit_runner)

    def _quit_runner(self) -> None:
        self._runner.stop()
        os.kill(os.getpid(), signal.SIGTERM)

    def _listen_to_lifeline(self) -> None:
        watcher = gevent.get_hub().loop.async_()
        watcher.start(lambda: gevent.spawn(self._end, rundir.INTERRUPTED, "interrupted by the user"))

        def take(message: bytes) -> None:
            if message == lifeline.STOP:
                watcher.send()
            elif message == lifeline.LOST and self._stop is None:
                self._stop = (rundir.ABORTED, "the process that started the run was lost")

        lifeline.on_message(take)

    # -- Locust's events

    def _on_start(self, **_: Any) -> None:
        self._started = True

    def _on_stop(self, **_: Any) -> None:
        if self._stop is None and self._settings.plan.steps and self._stepper.phase is not Phase.DONE:
            self._look_for_lost_workers()
            everyone_lost = bool(self._lost) and not self._runner.worker_count
            self._stepper.stop(time.monotonic_ns(), self._runner.user_count)
            self._stop = (
                (rundir.ABORTED, "every worker was lost") if everyone_lost else (rundir.INTERRUPTED, "stopped by hand")
            )

    def _on_report(self, client_id: str, data: dict[str, Any], **_: Any) -> None:
        self._take_report(client_id, data["loadgen"])

    def watch_local(self, report: Callable[[], dict[str, Any]]) -> None:
        """Without workers the users run here: their report is taken directly."""

        def each_second() -> None:
            while True:
                self._take_report("local", report())
                gevent.sleep(traps.REPORT_INTERVAL_S)

        gevent.spawn(each_second)

    def _take_report(self, worker: str, report: dict[str, Any]) -> None:
        self._board.report(worker, report)
        if report["failure"]:
            self._end(rundir.ABORTED, f"a worker cannot write its records: {report['failure']}")

    def _on_quitting(self, **_: Any) -> None:
        self._quitting = True
        self._stop_collector()
        shape_failure = getattr(self._environment.shape_class, "failure", None)
        if shape_failure is not None:
            self._stop = (rundir.ABORTED, f"the load shape failed: {shape_failure}")
        if self._stop is None and self._stepper.phase is not Phase.DONE:
            self._stop = (rundir.ABORTED, "the run was ended from outside")
        status, reason = self._stop or (rundir.COMPLETE, None)
        total = self._runner.stats.total
        locust = {"requests": total.num_requests, "failures": total.num_failures}
        recorded = {"requests": self._board.total("ended"), "failures": self._board.total("failed")}
        if locust != recorded and not self._lost:
            rundir.log_event(
                self._run,
                "locust_mismatch",
                "Locust counted other requests than were recorded",
                locust=locust,
                recorded=recorded,
            )
        for row in self._runner.exceptions.values():
            text = f"a task raised an exception, {row['count']} time(s): {row['msg']}"[:500]
            rundir.log_event(self._run, "user_error", text, count=row["count"], traceback=row["traceback"])
        rundir.finish(self._run, status, reason, locust=locust, recorded=recorded)
        # The conductor looks at the manifest; by hand, failed requests are data and no failure of the run.
        self._environment.process_exit_code = 0 if status == rundir.COMPLETE else 1

    # -- workers and the live line

    def _each_second(self) -> None:
        while True:
            gevent.sleep(1)
            self._look_for_lost_workers()
            self._write_live()

    def _look_for_lost_workers(self) -> None:
        if not isinstance(self._runner, MasterRunner) or not self._started or self._quitting:
            return
        for client in self._runner.clients.all:
            if client.state == STATE_MISSING and client.id not in self._lost:
                self._lost.add(client.id)
                self._board.lose(client.id)
                index = self._runner.get_worker_index(client.id)
                rundir.log_event(self._run, "worker_lost", f"worker {index} was lost; its users are gone", worker=index)

    def _write_live(self) -> None:
        if self._live < 0:
            return
        web_ui = self._environment.web_ui
        line = {
            "phase": "start" if not self._started else "stop" if self._stop else self._stepper.phase.value,
            "step": self._stepper.index,
            "steps": len(self._settings.plan.steps),
            "level": self._stepper.level if self._settings.plan.steps else None,
            "users": self._runner.user_count,
            "rpc_port": self._runner.server.port if isinstance(self._runner, MasterRunner) else None,
            "web_port": web_ui.server.server_port if web_ui is not None and web_ui.server.started else None,
            **self._board.look(time.monotonic()),
            "telemetry": self._telemetry,
        }
        try:
            os.write(self._live, (json.dumps(line) + "\n").encode())
        except OSError:
            self._live = -1

    # -- the collector

    def _start_collector(self) -> None:
        telemetry_url = os.environ.get(ENV_PREFIX + "TELEMETRY_URL")
        settings = self._settings
        config = {
            "run_dir": str(self._run),
            "agents": list(settings.agents),
            "gpus": list(settings.gpus) if settings.gpus is not None else None,
            "metrics_url": settings.metrics_url or f"{self._environment.host}/metrics",
            "metrics_token_env": settings.api_key_env,
            "telemetry_url": telemetry_url,
            "max_lifetime_s": None,
        }
        with (self._run / rundir.LOGS / "collector.log").open("ab") as log:
            self._collector = gevent.subprocess.Popen(
                [sys.executable, "-m", "remote_agents.collector"],
                stdin=gevent.subprocess.PIPE,
                stdout=gevent.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._tell_collector(json.dumps(config) + "\n")
        gevent.spawn(self._read_collector, self._collector)
        with gevent.Timeout(_COLLECTOR_START_S, False):
            while not self._telemetry and self._collector.poll() is None:
                gevent.sleep(0.05)

    def _tell_collector(self, text: str) -> None:
        assert self._collector is not None
        try:
            self._collector.stdin.write(text.encode())
            self._collector.stdin.flush()
        except OSError:
            pass  # it is gone; its reader says so

    def _read_collector(self, collector: gevent.subprocess.Popen[bytes]) -> None:
        for line in collector.stdout:
            self._telemetry = json.loads(line)
        if not self._quitting:
            self._telemetry = {}
            rundir.log_event(self._run, "collector_lost", "the collector ended early; no telemetry from here on")

    def _stop_collector(self) -> None:
        if self._collector is None:
            return
        self._tell_collector("stop\n")
        try:
            self._collector.wait(timeout=_COLLECTOR_STOP_S)
        except gevent.subprocess.TimeoutExpired:
            logger.error("the collector did not end in time")
            self._collector.terminate()
