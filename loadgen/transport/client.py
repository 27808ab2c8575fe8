"""HTTP/1.1 requests over one kept-alive connection: what `users.ModelUser` sends through.

`Client.fetch` never raises for what a server or a network does: an `Exchange` says how it ended. It raises only what
the harness itself does (a greenlet that is killed), after the connection was closed. Stamps are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

import ssl
import time
from socket import gaierror

from loadgen.endpoints import Failure
from loadgen.record import Outcome
from loadgen.transport.connection import NEVER, Connection, os_text, tls_text
from loadgen.transport.reactor import Feed
from loadgen.transport.response import Exchange
from loadgen.transport.target import Target

# A server that closes an idle connection does not wait for longer than this after our request has left: what ends a
# kept connection later is a failure, and the request may have been worked on.
_IDLE_CLOSE_NS = 1_000_000_000


class Client:
    """A user's connection to one target; opened when needed, kept while the server keeps it."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._connection: Connection | None = None

    def fetch(
        self,
        exchange: Exchange,
        head: bytes,
        body: bytes,
        feed: Feed,
        timeout_s: float,
        first_output_s: float | None = None,
    ) -> None:
        """Send one request and read its answer into `exchange`, which is new.

        `feed` gets the body of a 2xx, in pieces and with their stamps; it raises Malformed for what it cannot read.
        A connection that the server closed while it was idle is replaced once, and `attempts` says so; a request is
        never sent again after a byte of an answer, nor when a fresh connection was lost. `timeout_s` bounds all of it,
        `first_output_s` the time until `feed` has seen output.
        """
        started = time.monotonic_ns()
        deadline = started + int(timeout_s * 1e9)
        first_output = NEVER if first_output_s is None else started + int(first_output_s * 1e9)
        try:
            while not self._attempt(exchange, head + body, feed, deadline, first_output):
                exchange.attempts += 1
        except BaseException:
            self.close()
            exchange.end_ns = time.monotonic_ns()
            raise
        failure = exchange.failure
        if failure is not None:
            if failure.outcome is Outcome.TIMEOUT:
                seconds = first_output_s if failure.text == "no output" else timeout_s
                exchange.failure = Failure(Outcome.TIMEOUT, f"{failure.text} within {seconds:g} s")
            # The last stamp of a read is the end of an answer, but not of waiting for one.
            exchange.end_ns = time.monotonic_ns()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _attempt(self, exchange: Exchange, data: bytes, feed: Feed, deadline: int, first_output: int) -> bool:
        """False: the kept connection had been closed by the server, and the request should be sent again."""
        exchange.failure = None
        connection = self._connection
        reused = connection is not None and not connection.closed
        if connection is None or not reused:
            connection = self._open(exchange, min(deadline, first_output))
            if connection is None:
                return True
        exchange.bytes_out = len(data)
        connection.run(exchange, data, feed, deadline, first_output)
        if not connection.reusable() or exchange.failure is not None or not self._target.reuse:
            self.close()
        lost = exchange.failure is not None and exchange.failure.outcome is Outcome.RESET
        if not (lost and reused and exchange.first_byte_ns is None):
            return True
        return time.monotonic_ns() - (exchange.sent_ns or 0) > _IDLE_CLOSE_NS

    def _open(self, exchange: Exchange, deadline: int) -> Connection | None:
        """None when there is none, and the exchange says why."""
        self.close()
        try:
            connection = Connection(self._target, deadline)
        except gaierror as error:
            exchange.failure = Failure(Outcome.CONNECT_ERROR, f"name cannot be resolved: {error.strerror}")
        except ssl.SSLError as error:
            exchange.failure = Failure(Outcome.TLS_ERROR, f"TLS: {tls_text(error)}")
        except TimeoutError as error:
            if error.errno is None:
                exchange.failure = Failure(Outcome.TIMEOUT, "no connection")
            else:
                exchange.failure = Failure(Outcome.CONNECT_ERROR, os_text(error))  # the kernel's own, after minutes
        except OSError as error:
            exchange.failure = Failure(Outcome.CONNECT_ERROR, os_text(error))
        else:
            self._connection = connection
            exchange.dns_us, exchange.connect_us = connection.dns_us, connection.connect_us
            exchange.tls_us = connection.tls_us
            return connection
        return None
