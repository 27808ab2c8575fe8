"""A worker's side of a run: it opens the recorder, knows the target, and reports to the master each second.

Messages from the master: `loadgen.start` (open model: when the load starts, and this worker's share of it) and
`loadgen.drain` (send nothing new). Options come with the first spawn message, so they are read at `test_start`. Stamps
are CLOCK_MONOTONIC ns of this host.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import os
import time
from pathlib import Path
from typing import Any

import gevent
import gevent.event
from locust.env import Environment
from locust.rpc import Message
from locust.runners import Runner, WorkerRunner

from loadgen import request
from loadgen.arrivals import Arrivals
from loadgen.batch import Batch
from loadgen.endpoints import Call
from loadgen.live import Tally
from loadgen.locust_plugin.bookkeeping import Bookkeeping
from loadgen.locust_plugin.clocks import answer_probes
from loadgen.options import parse_settings
from loadgen.recorder import Recorder, load_arrow, quiet_collector
from loadgen.schedule import Schedule
from loadgen.transport import reactor
from loadgen.transport.target import Target

START = "loadgen.start"
DRAIN = "loadgen.drain"
_MAX_STAGGER_S = 2.0
_STAGGER_SHARE = 0.1
_AFTER_AN_ERROR_S = 1.0
_RESOLVE_NS = 2_000_000_000


class Worker:
    """Exists from Locust's `init`; its settings, target and recorder from `test_start` on."""

    def __init__(self, environment: Environment, runner: Runner) -> None:
        self._environment = environment
        self._runner = runner
        self._recorder: Recorder | None = None
        self._recording = False
        self._sending = gevent.event.Event()
        self.tally = Tally()
        self.methods: dict[str, str] = {}  # HTTP method of each request's name, for Locust's statistics
        self._bookkeeping = Bookkeeping(environment, self.methods)
        self.stagger_s = 0.0
        self.arrivals: Arrivals | None = None  # in the open model
        load_arrow()
        events = environment.events
        events.test_start.add_listener(self._start)
        events.test_stopping.add_listener(self._stop_arrivals)
        events.test_stop.add_listener(self._stop)
        events.quitting.add_listener(self._quit)
        # T30, again for the users that came; what garbage is frozen with them is little.
        events.spawning_complete.add_listener(lambda **_: gc.freeze())
        events.report_to_master.add_listener(self._add_report)
        # In the user's own greenlet: a task that raises at once would otherwise be called as fast as Python can.
        events.user_error.add_listener(lambda **_: gevent.sleep(_AFTER_AN_ERROR_S))
        if isinstance(runner, WorkerRunner):
            answer_probes(runner)
        runner.register_message(START, self._start_arrivals)
        runner.register_message(DRAIN, self._drain)

    @property
    def recorder(self) -> Recorder:
        assert self._recorder is not None, "users exist only after test_start"
        return self._recorder

    def _start(self, environment: Environment, **_: Any) -> None:
        options = vars(environment.parsed_options)
        self.settings = settings = parse_settings(options, simulated=False, steps_required=False)
        self.target = Target.of(
            environment.host,
            insecure=settings.insecure,
            ca_file=settings.ca_file,
            reuse=settings.reuse,
            sources=settings.source_addresses,
        )
        with contextlib.suppress(OSError):  # users will say so
            self.target.resolve(time.monotonic_ns() + _RESOLVE_NS)
        self.typical_s: float | None = None  # how long an answer takes, for --cancel-rate
        self.model = settings.model
        self._heads: dict[tuple[Any, ...], bytes] = {}
        step_s = settings.plan.steps[0].duration_s if settings.plan.steps else None
        self.stagger_s = _MAX_STAGGER_S if step_s is None else min(_MAX_STAGGER_S, _STAGGER_SHARE * step_s)
        index = self._runner.worker_index if isinstance(self._runner, WorkerRunner) else 0
        self._recorder = Recorder(Path(options["run_dir"]), index, self._count)
        self._recording = True
        self.tally = Tally()
        self._sending.set()
        self.arrivals = None
        if settings.plan.is_open:
            self._schedule = Schedule(settings.plan)
            self.arrivals = Arrivals(self.drop)
        quiet_collector()

    def _count(self, batch: Batch) -> None:
        """Requests that were recorded."""
        self.tally.add(batch)
        self._bookkeeping.add(batch)

    def _start_arrivals(self, msg: Message, **_: Any) -> None:
        if self.arrivals is not None:
            share = self._schedule.arrivals(msg.data["share"], msg.data["shares"])
            self.arrivals.start(msg.data["t0_ns"], share)

    def _stop_arrivals(self, **_: Any) -> None:
        # Before the users go: nobody being there any more is no reason to drop a request.
        if self.arrivals is not None and self._recording:
            self.arrivals.stop()

    def _stop(self, **_: Any) -> None:
        if self._recorder is not None and self._recording:
            self._recording = False
            self._recorder.close()

    def _quit(self, **_: Any) -> None:
        # Told to end while users run: they go first, so that what they cut is recorded.
        if self._recording:
            self._runner.stop()

    def _drain(self, **_: Any) -> None:
        self._sending.clear()

    def drop(self, intended_ns: int) -> None:
        """A request was due, and nobody was free to send it."""
        recorder = self.recorder
        scenario = next(iter(self.methods), "")
        now = time.monotonic_ns()
        recorder.append(*request.dropped(recorder.index, recorder.next_sequence(), intended_ns, now, scenario))

    def wait_while_draining(self) -> None:
        """Returns at once, unless nothing new may be sent any more: then the user waits here for its end."""
        if not self._sending.is_set():
            self._sending.wait()

    def report(self) -> dict[str, Any]:
        """What the master shows of this worker; plain types."""
        recorder = self._recorder
        if recorder is not None:
            recorder.users = self._runner.user_count
        return {
            **self.tally.take(),
            "in_flight": recorder.in_flight if recorder else 0,
            "written": recorder.written if recorder else 0,
            "written_failed": recorder.written_failed if recorder else 0,
            "clock_steps": reactor.current().clock_steps,
            "failure": str(recorder.failure) if recorder and recorder.failure else None,
        }

    def _add_report(self, data: dict[str, Any], **_: Any) -> None:
        data["loadgen"] = self.report()

    def request_head(self, call: Call, identity: str) -> bytes:
        """Request line and headers. `identity` is 32 hex digits: the request's id, and its trace id."""
        key = (call.method, call.path, call.headers)
        head = self._heads.get(key)
        if head is None:
            head = self._heads[key] = self._head(call)
        trace, size = identity.encode(), len(call.body)
        parts = (head, trace, trace, trace[:16], size)
        return b"%bx-request-id: %b\r\ntraceparent: 00-%b-%b-01\r\nContent-Length: %d\r\n\r\n" % parts

    def _head(self, call: Call) -> bytes:
        headers = {
            "Host": self.target.authority,
            "User-Agent": f"gpu-loadgen/{importlib.metadata.version('gpu-loadgen')}",
            "Accept-Encoding": "identity",
        }
        if self.settings.api_key_env:
            headers["Authorization"] = f"Bearer {os.environ.get(self.settings.api_key_env, '')}"
        named = {name.lower(): (name, value) for name, value in (*headers.items(), *call.headers)}
        named |= {name.lower(): (name, value) for name, value in self.settings.headers}
        lines = [f"{call.method} {self.target.base_path}{call.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in named.values()]
        return ("\r\n".join(lines) + "\r\n").encode("latin-1")
