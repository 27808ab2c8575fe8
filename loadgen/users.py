"""ModelUser: the base of every scenario's users, and the only place where a request becomes a record.

A scenario's task builds a `Call` and gives it to `self.send`, which returns when the answer has ended, however it
ended. All stamps are CLOCK_MONOTONIC ns of this process's host.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import gevent
from locust import User

from loadgen import locust_plugin, request, rundir
from loadgen.endpoints import Answer, Call, Failure, server_times
from loadgen.failures import FailureLog, secrets_of
from loadgen.locust_plugin.traps import NO_TURN
from loadgen.options import Settings
from loadgen.record import Outcome
from loadgen.transport.client import Client
from loadgen.transport.response import Exchange

locust_plugin.install()

_ordinals = itertools.count()
_identities = random.Random()  # seeded by the system: no two runs use the same
_AWAY = (Outcome.CONNECT_ERROR, Outcome.TLS_ERROR, Outcome.RESET)
_SMOOTHING = 0.05  # of the running mean that --cancel-rate goes by
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0


class ModelUser(User):
    """One virtual user with a connection of its own. Scenarios extend it and call `send` in their tasks."""

    abstract = True

    def __init__(self, environment: locust_plugin.Environment) -> None:
        super().__init__(environment)
        worker = locust_plugin.worker_of(environment)
        self._worker = worker
        self._client = Client(worker.target)
        self._server_times = [server_times.parse(text) for text in worker.settings.server_times]
        folder = Path(environment.parsed_options.run_dir) / rundir.REQUESTS
        path = folder / f"worker-{worker.recorder.index}.errors.jsonl"
        self._failures = _failure_log(path, secrets_of(worker.settings))
        self._away_s = 0.0
        self._arrived = False
        self._due_ns = 0  # open model: when the task's first request was due
        self._sent = False  # since the last task ended
        thinks = worker.settings.think_time_s[1] or type(self).wait_time is not User.wait_time
        self._paced = bool(thinks) or worker.arrivals is not None
        self.random = random.Random(f"{worker.settings.plan.seed}:{worker.recorder.index}:{next(_ordinals)}")

    @property
    def settings(self) -> Settings:
        """The options of the run."""
        return self._worker.settings

    @property
    def model(self) -> str | None:
        return self._worker.model

    def on_start(self) -> None:
        """Open model: wait for an arrival. Closed: start at a random offset, so that users do not march in step."""
        if self._worker.arrivals is not None:
            self._await_arrival()
        else:
            gevent.sleep(self.random.uniform(0, self._worker.stagger_s))

    def goes_on(self) -> bool:
        """Whether the next task follows at once; asked after each. A task that has sent nothing lets others run."""
        sent, self._sent = self._sent, False
        return sent and not self._paced

    def between_tasks(self, wait_time: Callable[[], float]) -> float:
        """Seconds until the next task. `wait_time` is the scenario's own, which the options of the run outweigh.

        In the open model the next arrival is waited for here.
        """
        if self._worker.arrivals is not None:
            self._await_arrival()
            return NO_TURN
        shortest, longest = self.settings.think_time_s
        return self.random.uniform(shortest, longest) if longest else wait_time()

    def _await_arrival(self) -> None:
        assert self._worker.arrivals is not None
        self._due_ns = self._worker.arrivals.next()
        self._arrived = True

    def on_stop(self) -> None:
        self._client.close()

    def send(self, call: Call) -> Answer:
        """Send one request now and record how it went. The answer holds what was read, also of a failure."""
        worker = self._worker
        if worker.arrivals is not None and not self._arrived:
            self._await_arrival()  # a scenario's own on_start did not
        if not self._due_ns:
            worker.wait_while_draining()
        identity = f"{_identities.getrandbits(128):032x}"
        intended = self._due_ns or time.monotonic_ns()
        self._due_ns, self._sent = 0, True
        exchange = Exchange()
        # What stays when the greenlet is killed. An exception of ours goes on to Locust, and the run names it.
        failure: Failure | None = Failure(Outcome.CANCELLED, "cut by the harness")
        recorder = worker.recorder
        recorder.in_flight += 1
        try:
            failure = self._perform(call, exchange, worker.request_head(call, identity))
        finally:
            recorder.in_flight -= 1
            self._record(call, identity, intended, exchange, failure)
        self._pause_while_away(exchange, failure)
        return call.reader.answer

    def _perform(self, call: Call, exchange: Exchange, head: bytes) -> Failure | None:
        worker, settings = self._worker, self._worker.settings
        timeout_s, first_s = settings.plan.timeout_s, settings.first_token_timeout_s
        if not settings.cancel_rate:
            return request.perform(self._client, exchange, head, call, timeout_s, first_s)
        patience_s = math.inf
        if worker.typical_s is not None and self.random.random() < settings.cancel_rate:
            patience_s = self.random.uniform(0, worker.typical_s)
        started = time.monotonic()
        failure = request.perform(self._client, exchange, head, call, min(timeout_s, patience_s), first_s)
        took_s = time.monotonic() - started
        if failure is None:
            typical_s = worker.typical_s or took_s
            worker.typical_s = typical_s + _SMOOTHING * (took_s - typical_s)
        elif failure.outcome is Outcome.TIMEOUT and took_s >= patience_s:
            return Failure(Outcome.CANCELLED, "hung up on purpose")
        return failure

    def _pause_while_away(self, exchange: Exchange, failure: Failure | None) -> None:
        """A server that takes no connection would be asked as fast as this machine can: wait, longer each time."""
        if failure is not None and exchange.first_byte_ns is None and failure.outcome in _AWAY:
            self._away_s = min(2 * self._away_s or _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
            gevent.sleep(self.random.uniform(0.5, 1.0) * self._away_s)
        else:
            self._away_s = 0.0

    def _record(self, call: Call, identity: str, intended: int, exchange: Exchange, failure: Failure | None) -> None:
        outcome, error = Outcome.OK, None
        if failure is not None:
            outcome, error = failure.outcome, self._text_of(failure, call, identity, exchange)
        worker = self._worker
        recorder = worker.recorder
        worker.methods[call.name] = call.method
        sequence = recorder.next_sequence()
        recorder.append(
            *request.fields(
                recorder.index, sequence, identity, intended, call, exchange, outcome, error, self._server_times
            )
        )

    def _text_of(self, failure: Failure, call: Call, identity: str, exchange: Exchange) -> str:
        """Normalised; the first failure of its kind is kept as it was."""
        if failure.outcome is Outcome.CANCELLED:
            return failure.text
        facts = {
            "t_ns": exchange.end_ns,
            "request_id": identity,
            "scenario": call.name,
            "status": exchange.status,
        }
        text, example = self._failures.note(failure, facts)
        if example is not None:
            try:
                self._failures.write(example)
            except OSError as error:
                self._worker.recorder.failure = error
        return text


@functools.cache
def _failure_log(path: Path, secrets: tuple[str, ...]) -> FailureLog:
    """One for all users of a worker."""
    return FailureLog(path, secrets)
