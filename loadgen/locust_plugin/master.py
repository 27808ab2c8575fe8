"""A master's side: it begins and ends runs as Locust starts and stops the load, and watches the workers.

A run begins with the load and ends with it: with the web UI, one process may make several. Live figures go as a JSON
line a second to the descriptor LOADGEN_LIVE_FD, when there is one; `stop` comes from the lifeline.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
from locust.env import Environment
from locust.runners import STATE_MISSING, MasterRunner, Runner

from loadgen import lifeline, rundir
from loadgen.doctor import find_model
from loadgen.errors import LoadgenError, TargetError
from loadgen.locust_plugin import traps
from loadgen.locust_plugin.active_run import ActiveRun
from loadgen.locust_plugin.shape import SteppedShape
from loadgen.locust_plugin.worker import DRAIN
from loadgen.manifest import new_manifest
from loadgen.option import ENV_PREFIX
from loadgen.options import Settings, parse_settings

logger = logging.getLogger(__name__)

# After the load has stopped, the workers' last reports arrive within this time.
_LAST_REPORTS_S = 2.0


class Master:
    """Exists from Locust's `init` to its `quitting`."""

    def __init__(
        self, environment: Environment, runner: Runner, local_report: Callable[[], dict[str, Any]] | None
    ) -> None:
        """Without workers the users run in this process: `local_report` is what a worker would report."""
        self._environment = environment
        self._local_report = local_report
        self._runner = runner
        self._run: ActiveRun | None = None
        self._stop_asked = False
        # A run directory that was made for us holds one run; later ones get directories of their own.
        self._given: str = environment.parsed_options.run_dir
        self._live = int(os.environ.pop(ENV_PREFIX + "LIVE_FD", "-1"))
        try:
            self.plan_load(vars(environment.parsed_options))
        except LoadgenError as error:
            sys.exit(f"error: {error}")
        events = environment.events
        events.spawning_complete.add_listener(self._on_spawned)
        events.test_stop.add_listener(self._on_stop)
        events.quitting.add_listener(self._on_quitting)
        events.reset_stats.add_listener(self._on_reset)
        events.worker_report.add_listener(self._on_report)
        if isinstance(runner, MasterRunner):
            traps.refuse_late_workers(runner, lambda: self._run is not None)
        traps.before_start(runner, self._on_ask)
        self._listen_to_lifeline()
        gevent.spawn(self._each_second)

    def plan_load(self, texts: Mapping[str, Any]) -> None:
        """Take the options of the command line, or of the web UI's form: with steps a shape leads, else somebody does.

        Raises UsageError.
        """
        settings = parse_settings(texts, simulated=False, steps_required=False)
        shape = None
        if settings.plan.steps:
            shape = SteppedShape(settings.plan.peak, self._begin, lambda: self._runner.send_message(DRAIN))
            shape.runner = self._runner
        self._environment.shape_class = shape
        self._settings = settings

    # -- a run begins and ends

    def _begin(self) -> ActiveRun:
        """The run that goes on; made when there is none."""
        while self._run is not None and self._run.load_has_stopped:
            gevent.sleep(0.1)  # its last reports are still coming
        if self._run is None:
            host = self._environment.host
            options = self._environment.parsed_options
            if self._settings.model is None and not self._given:
                self._settings = replace(self._settings, model=_model_of(replace(self._settings, host=host)))
                options.model = self._settings.model or ""
            directory = Path(self._given) if self._given else self._new_directory(host, self._settings)
            self._given = ""
            # The workers get the options with their first message.
            options.run_dir = str(directory)
            self._run = ActiveRun(directory, self._settings, self._runner, host)
            if self._stop_asked:
                self._interrupt()
        return self._run

    def _new_directory(self, host: str, settings: Settings) -> Path:
        scenario = Path(self._environment.parsed_options.locustfile.split(",")[0]).resolve()
        run = rundir.create(Path(settings.runs_dir), scenario.stem, settings.label)
        target = {"url": host, "model": settings.model, "simulated": False, "simulator": None}
        workers = getattr(self._runner, "worker_count", 1)
        rundir.write_manifest(run, new_manifest(run, scenario, target, settings, workers))
        return run

    def _finish(self) -> str | None:
        """Give the run its final status; None when there is no run."""
        run, self._run = self._run, None
        if run is None:
            return None
        if self._local_report is not None:
            run.take_report("local", self._local_report())
        return run.finish(getattr(self._environment.shape_class, "failure", None))

    def _finish_later(self) -> None:
        run = self._run
        gevent.sleep(_LAST_REPORTS_S)
        if self._run is run:
            self._finish()

    def _interrupt(self) -> None:
        self._stop_asked = True
        if self._run is not None:
            self._run.stop(rundir.INTERRUPTED, "interrupted by the user")

    def _listen_to_lifeline(self) -> None:
        watcher = gevent.get_hub().loop.async_()
        watcher.start(lambda: gevent.spawn(self._interrupt))

        def take(message: bytes) -> None:
            if message == lifeline.STOP:
                watcher.send()
            elif message == lifeline.LOST and self._run is not None:
                self._run.abandon("the process that started the run was lost")

        lifeline.on_message(take)

    # -- Locust's events

    def _on_ask(self, users: int) -> None:
        if isinstance(self._runner, MasterRunner) and not self._runner.worker_count:
            return  # Locust will refuse to start
        self._begin().ask_by_hand(users)

    def _on_spawned(self, user_count: int, **_: Any) -> None:
        if self._run is not None:
            self._run.reached_by_hand(user_count)

    def _on_stop(self, **_: Any) -> None:
        if self._run is not None:
            self._look_for_lost_workers()
            self._run.load_stopped()
            gevent.spawn(self._finish_later)

    def _on_reset(self, **_: Any) -> None:
        if self._run is not None:
            self._run.keep_counts()

    def _on_report(self, client_id: str, data: dict[str, Any], **_: Any) -> None:
        if self._run is not None:
            self._run.take_report(client_id, data["loadgen"])

    def _on_quitting(self, **_: Any) -> None:
        if self._run is not None and not self._run.abandoned and self._runner.user_count:
            self._runner.stop()
            gevent.sleep(_LAST_REPORTS_S)
        status = self._finish()
        # Whoever started us looks at the manifest; by hand, failed requests are data and no failure of the run.
        self._environment.process_exit_code = 0 if status in (None, rundir.COMPLETE) else 1

    # -- workers, and the live line

    def _each_second(self) -> None:
        while True:
            gevent.sleep(1)
            self._look_for_lost_workers()
            if self._run is not None and self._local_report is not None:
                self._run.take_report("local", self._local_report())
            self._write_live()

    def _look_for_lost_workers(self) -> None:
        if isinstance(self._runner, MasterRunner) and self._run is not None:
            for client in self._runner.clients.all:
                if client.state == STATE_MISSING:
                    self._run.lose(client.id, self._runner.get_worker_index(client.id))

    def _write_live(self) -> None:
        if self._live < 0:
            return
        run, runner, web_ui = self._run, self._runner, self._environment.web_ui
        plan = self._settings.plan
        line: dict[str, Any] = {
            "phase": run.phase if run else "start",
            "rpc_port": runner.server.port if isinstance(runner, MasterRunner) else None,
            "web_port": web_ui.server.server_port if web_ui is not None and web_ui.server.started else None,
        }
        if run is not None:
            figures = run.board.look(time.monotonic())
            line |= {
                "step": run.stepper.index,
                "steps": len(plan.steps),
                "level": run.stepper.level if plan.steps else None,
                "unit": plan.steps[0].unit if plan.steps else "users",
                "users": figures["in_flight"] if plan.is_open else runner.user_count,
                **figures,
                "telemetry": run.telemetry,
            }
        try:
            os.write(self._live, (json.dumps(line) + "\n").encode())
        except OSError:
            self._live = -1


def _model_of(settings: Settings) -> str | None:
    try:
        return find_model(settings)
    except TargetError as error:
        logger.warning("%s", error)
        return None
