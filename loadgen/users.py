"""ModelUser: the base of every scenario's users, and the only place where a request becomes a record.

A scenario's task builds a `Call` and gives it to `self.send`, which returns when the answer has ended, however it
ended. All stamps are CLOCK_MONOTONIC ns of this process's host.
"""

from __future__ import annotations

import itertools
import random
import secrets
import time

import gevent
from locust import User

from loadgen import live, locust_plugin
from loadgen.endpoints import Answer, Call, Failure
from loadgen.options import Settings
from loadgen.record import Outcome
from loadgen.transport.client import Client, Exchange

locust_plugin.install()

_ordinals = itertools.count()
_ERROR_TEXT = 200


class ModelUser(User):
    """One virtual user with a connection of its own. Scenarios extend it and call `send` in their tasks."""

    abstract = True

    def __init__(self, environment: locust_plugin.Environment) -> None:
        super().__init__(environment)
        worker = locust_plugin.worker_of(environment)
        self._worker = worker
        self._client = Client(worker.target)
        self.random = random.Random(f"{worker.settings.plan.seed}:{worker.recorder.index}:{next(_ordinals)}")

    @property
    def settings(self) -> Settings:
        """The options of the run."""
        return self._worker.settings

    @property
    def model(self) -> str | None:
        return self._worker.model

    def on_start(self) -> None:
        """Start at a random offset, so that users spawned together do not march in step."""
        gevent.sleep(self.random.uniform(0, self._worker.stagger_s))

    def on_stop(self) -> None:
        self._client.close()

    def send(self, call: Call) -> Answer:
        """Send one request now and record how it went. The answer holds what was read, also of a failure."""
        worker = self._worker
        worker.wait_while_draining()
        identity = secrets.token_hex(16)
        intended = time.monotonic_ns()
        exchange = Exchange()
        # What stays when the greenlet is killed. An exception of ours goes on to Locust, and the run names it.
        failure: Failure | None = Failure(Outcome.CANCELLED, "cut by the harness")
        recorder = worker.recorder
        recorder.in_flight += 1
        try:
            head = worker.request_head(call, identity)
            self._client.fetch(exchange, head, call.body, call.reader.feed, worker.settings.plan.timeout_s)
            failure = exchange.failure or _judge(call, exchange)
        finally:
            recorder.in_flight -= 1
            self._record(call, identity, intended, exchange, failure)
        return call.reader.answer

    def _record(self, call: Call, identity: str, intended: int, exchange: Exchange, failure: Failure | None) -> None:
        answer = call.reader.answer
        stamps = answer.stamps_ns
        outcome, error = failure or (Outcome.OK, None)
        source = "usage" if answer.output_tokens is not None else "events" if stamps else None
        recorder = self._worker.recorder
        recorder.append(
            (
                recorder.index,
                recorder.next_sequence(),
                identity,
                call.name,
                intended,
                exchange.sent_ns,
                exchange.first_byte_ns,
                stamps[0] if stamps else None,
                stamps[-1] if stamps else None,
                exchange.end_ns,
                outcome.value,
                exchange.status,
                answer.finish_reason,
                error[:_ERROR_TEXT] if error else None,
                exchange.attempts,
                exchange.dns_us,
                exchange.connect_us,
                exchange.tls_us,
                answer.prompt_tokens,
                answer.output_tokens if source == "usage" else len(stamps) or None,
                source,
                len(stamps),
                [(later - earlier) // 1000 for earlier, later in itertools.pairwise(stamps)],
                exchange.bytes_out,
                exchange.bytes_in,
                exchange.read_lag_ns // 1000 if exchange.read_lag_ns >= 0 else None,
                answer.coalesced_reads,
                "kernel" if exchange.kernel_stamps else "user",
            )
        )
        tally = self._worker.tally
        if outcome is Outcome.CANCELLED:
            tally.cancelled += 1
            return
        tally.ended += 1
        tally.failed += outcome is not Outcome.OK
        if stamps:
            tally.ttft[live.bucket(stamps[0] - intended)] += 1
        self.environment.events.request.fire(
            request_type=call.method,
            name=call.name,
            response_time=(exchange.end_ns - intended) / 1e6,
            response_length=exchange.bytes_in,
            exception=None if outcome is Outcome.OK else RuntimeError(outcome.value),
            context={},
        )


def _judge(call: Call, exchange: Exchange) -> Failure | None:
    """The failure that a complete HTTP answer tells of."""
    status = exchange.status or 0
    if not 200 <= status < 300:
        return Failure(Outcome.HTTP_ERROR, f"HTTP {status}: {call.reader.error_text(exchange.error_body)}")
    try:
        return call.reader.finish()
    except ValueError as error:
        return Failure(Outcome.MALFORMED, f"body that cannot be read: {error}")
