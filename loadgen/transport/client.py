"""HTTP/1.1 requests over one kept-alive connection: what `users.ModelUser` sends through.

`Client.fetch` never raises for what a server or a network does: an `Exchange` says how it ended. It raises only what
the harness itself does (a greenlet that is killed), after the connection was closed. Stamps are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from socket import gaierror

import gevent
from geventhttpclient._parser import HTTPParseError, HTTPResponseParser

from loadgen.endpoints import Failure, Malformed
from loadgen.record import Outcome
from loadgen.transport.connection import Connection, Target

_MAX_HEADER_BYTES = 64 << 10
_MAX_ERROR_BODY_BYTES = 4 << 10
_EVIDENCE_BYTES = 400
# A server that closes an idle connection does not wait for longer than this after our request has left: what ends a
# kept connection later is a failure, and the request may have been worked on.
_IDLE_CLOSE_NS = 1_000_000_000


@dataclass
class Exchange:
    """What happened on the wire. `None` is "did not happen" or "not measured"."""

    sent_ns: int | None = None
    first_byte_ns: int | None = None
    end_ns: int = 0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)  # names in lower case; values of equal names joined
    failure: Failure | None = None
    error_body: bytes = b""
    attempts: int = 1
    dns_us: int | None = None
    connect_us: int | None = None
    tls_us: int | None = None
    bytes_out: int = 0
    bytes_in: int = 0
    read_lag_ns: int = -1
    kernel_stamps: bool = False


class _Parser(HTTPResponseParser):
    """llhttp, with the few facts that we need; body bytes gather in `body` until they are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.headers: dict[str, str] = {}
        self.headers_complete = False
        self.complete = False
        self.body = bytearray()
        self._name = ""
        self._in_value = True

    def _on_message_begin(self) -> None:
        if self.complete:
            raise Malformed("more bytes than the answer has")
        # An interim 1xx answer is followed by the final one.
        self.headers.clear()

    def _on_status(self, _: str) -> None: ...

    # A name or value comes in several calls when reads cut it.

    def _on_header_field(self, text: str) -> None:
        self._name = text if self._in_value else self._name + text
        self._in_value = False

    def _on_header_value(self, text: str) -> None:
        name = self._name.lower()
        if name in self.headers:
            text = f"{self.headers[name]}{'' if self._in_value else ', '}{text}"
        self.headers[name] = text
        self._in_value = True

    def _on_headers_complete(self) -> None:
        self.headers_complete = self.get_code() >= 200

    def _on_body(self, data: bytes) -> None:
        self.body += data

    def _on_message_complete(self) -> None:
        self.complete = self.get_code() >= 200

    def take_body(self) -> bytes:
        body = bytes(self.body)
        self.body.clear()
        return body


class Client:
    """A user's connection to one target; opened when needed, kept while the server keeps it."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._connection: Connection | None = None

    def fetch(
        self, exchange: Exchange, head: bytes, body: bytes, on_body: Callable[[bytes, int], None], timeout_s: float
    ) -> None:
        """Send one request and read its answer into `exchange`, which is new.

        `on_body(piece, stamp_ns)` gets the body of a 2xx as it arrives; it raises Malformed for what it cannot read.
        A connection that the server closed while it was idle is replaced once, and `attempts` says so; a request is
        never sent again after a byte of an answer, nor when a fresh connection was lost. `timeout_s` bounds all of it.
        """
        deadline = gevent.Timeout(timeout_s)
        deadline.start()
        try:
            while not self._attempt(exchange, head, body, on_body):
                exchange.attempts += 1
        except gevent.Timeout as timeout:
            self.close()
            if timeout is not deadline:
                raise
            exchange.failure = Failure(Outcome.TIMEOUT, f"{_what_is_missing(exchange)} within {timeout_s:g} s")
        except BaseException:
            self.close()
            exchange.end_ns = 0
            raise
        finally:
            deadline.close()
            # The last stamp of a read is the end of an answer, but not of waiting for one.
            if not exchange.end_ns or exchange.failure is not None:
                exchange.end_ns = time.monotonic_ns()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _attempt(self, exchange: Exchange, head: bytes, body: bytes, on_body: Callable[[bytes, int], None]) -> bool:
        """False: the kept connection had been closed by the server, and the request should be sent again."""
        exchange.failure = None
        reused = self._connection is not None
        if not reused:
            exchange.failure = self._open(exchange)
            if exchange.failure is not None:
                return True
        connection = self._connection
        assert connection is not None
        exchange.kernel_stamps = connection.kernel_stamps
        exchange.bytes_out = len(head) + len(body)
        exchange.sent_ns = time.monotonic_ns()
        keep = False
        try:
            sent = _send(connection, head + body)
            keep = self._read(exchange, connection, on_body) and sent
        except Malformed as error:
            exchange.failure = error.failure()
        except ssl.SSLError as error:
            exchange.failure = Failure(Outcome.TLS_ERROR, f"TLS: {_tls_text(error)}")
        except OSError as error:
            exchange.failure = Failure(Outcome.RESET, f"connection lost: {_os_text(error)}")
        if not keep:
            self.close()
        lost = exchange.failure is not None and exchange.failure.outcome is Outcome.RESET
        was_idle = reused and exchange.first_byte_ns is None and time.monotonic_ns() - exchange.sent_ns < _IDLE_CLOSE_NS
        return not (lost and was_idle)

    def _open(self, exchange: Exchange) -> Failure | None:
        try:
            connection = Connection(self._target)
        except gaierror as error:
            return Failure(Outcome.CONNECT_ERROR, f"name cannot be resolved: {error.strerror}")
        except ssl.SSLError as error:
            return Failure(Outcome.TLS_ERROR, f"TLS: {_tls_text(error)}")
        except OSError as error:
            return Failure(Outcome.CONNECT_ERROR, _os_text(error))
        self._connection = connection
        exchange.dns_us, exchange.connect_us = connection.dns_us, connection.connect_us
        exchange.tls_us = connection.tls_us
        return None

    def _read(self, exchange: Exchange, connection: Connection, on_body: Callable[[bytes, int], None]) -> bool:
        """Read one answer into the exchange; True when the connection may be used again."""
        parser = _Parser()
        latest = exchange.sent_ns or 0
        while True:
            data, stamp, lag = connection.receive()
            # A step of the clock that the kernel stamps with must not turn the answer's time back.
            exchange.end_ns = latest = stamp = max(stamp, latest)
            if lag > exchange.read_lag_ns:
                exchange.read_lag_ns = lag
            elif lag < 0 and data:
                exchange.kernel_stamps = False
            if data:
                exchange.bytes_in += len(data)
                if exchange.first_byte_ns is None:
                    exchange.first_byte_ns = stamp
            elif exchange.first_byte_ns is None:
                exchange.failure = Failure(Outcome.RESET, "connection closed without an answer")
                return False
            unread: HTTPParseError | None = None
            try:
                parser.feed(data)
            except HTTPParseError as error:
                unread = error
            if parser.headers_complete:
                if exchange.status is None:
                    _take_head(exchange, parser)
                self._pass_on(exchange, parser, stamp, on_body)
            elif exchange.bytes_in > _MAX_HEADER_BYTES:
                raise Malformed(f"more than {_MAX_HEADER_BYTES} bytes of headers")
            if unread is not None and data:
                raise Malformed(f"no HTTP: {unread.args[0]}", data[:_EVIDENCE_BYTES]) from unread
            if parser.complete:
                return bool(data) and parser.should_keep_alive()
            if not data:
                exchange.failure = Failure(Outcome.TRUNCATED, "connection closed before the end of the answer")
                return False

    def _pass_on(self, exchange: Exchange, parser: _Parser, stamp: int, on_body: Callable[[bytes, int], None]) -> None:
        if not parser.body:
            return
        piece = parser.take_body()
        if 200 <= (exchange.status or 0) < 300:
            on_body(piece, stamp)
        else:
            exchange.error_body = (exchange.error_body + piece)[:_MAX_ERROR_BODY_BYTES]


def _send(connection: Connection, data: bytes) -> bool:
    """False when the server hung up meanwhile: it may have said why before, with a 413 for instance."""
    try:
        connection.send(data)
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


def _take_head(exchange: Exchange, parser: _Parser) -> None:
    """Status and headers. Raises Malformed for a 2xx in an encoding that was not asked for."""
    exchange.status, exchange.headers = parser.get_code(), parser.headers
    encoding = parser.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity" and 200 <= exchange.status < 300:
        raise Malformed(f"answer in the encoding {encoding}, although identity was asked for")


def _what_is_missing(exchange: Exchange) -> str:
    if exchange.sent_ns is None:
        return "no connection"
    return "no answer" if exchange.first_byte_ns is None else "no complete answer"


def _tls_text(error: ssl.SSLError) -> str:
    return getattr(error, "verify_message", "") or getattr(error, "reason", "") or _os_text(error)


def _os_text(error: OSError) -> str:
    return (error.strerror or str(error) or type(error).__name__).lower()
