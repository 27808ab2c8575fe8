"""One TCP or TLS connection of the reactor's: opened, and one exchange after the other on it.

TLS is decrypted from memory, so that its stamps are the kernel's too (stamps.py). Bytes are gathered as they come and
taken apart when the end of the answer may be there, when a bound of memory is reached, or when a deadline asks what has
been seen: HTTP first, then the body by the `Feed` of the answer's reader.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.monkey import get_original
from geventhttpclient._parser import HTTPParseError

from loadgen.endpoints import Failure, Malformed
from loadgen.record import Outcome
from loadgen.transport import reactor, stamps
from loadgen.transport.reactor import BUFFER_BYTES, Feed
from loadgen.transport.response import MAX_HEADER_BYTES, Exchange, Head, Parser
from loadgen.transport.target import Target

NEVER = sys.maxsize

_socket: Any = get_original("socket", "socket")  # one that does not wait on gevent's loop
_IP_BIND_ADDRESS_NO_PORT = 24
_MAX_ERROR_BODY_BYTES = 4 << 10
_EVIDENCE_BYTES = 400
# Of an answer, before it is taken apart; a piece counts with what it costs beside its bytes.
_GATHERED_BYTES = 64 << 10
_TLS_RECORD_BYTES = 16 << 10
_NOTHING = memoryview(b"")


class Connection:
    """Opened when made. The public attributes but `closed` are the reactor's."""

    __slots__ = (
        "_complete",
        "_descriptor",
        "_eof",
        "_error",
        "_exchange",
        "_feed",
        "_gathers",
        "_head",
        "_incoming",
        "_latest_ns",
        "_lost",
        "_outgoing",
        "_parser",
        "_reactor",
        "_seen",
        "_socket",
        "_stamped",
        "_target",
        "_tls",
        "_total_ns",
        "_unsent",
        "_waiter",
        "ancillary",
        "closed",
        "connect_us",
        "deadline_ns",
        "decrypt",
        "dns_us",
        "expired",
        "pieces",
        "reads",
        "receive",
        "room",
        "streaming",
        "tls_us",
    )

    def __init__(self, target: Target, deadline_ns: int) -> None:
        """Raises OSError (socket.gaierror, ConnectionError among them; ssl.SSLError for all of the TLS handshake;
        TimeoutError when the deadline passes)."""
        self._target = target
        self._reactor = reactor.current()
        self._waiter: gevent.Greenlet | None = None
        self._tls: ssl.SSLObject | None = None
        self.decrypt: Callable[[bytes], bytes] | None = None
        self._parser = Parser()
        self._head: Head | None = None
        self._exchange: Exchange | None = None
        self._unsent = _NOTHING
        self.streaming = False  # pieces are gathered by the reactor itself
        self.closed = False
        self.expired = False
        self.deadline_ns = deadline_ns
        self.pieces: list[bytes] = []
        self.ancillary: list[bytes] = []  # the kernel's stamp of each piece, as it gave it
        self.reads: list[int] = []
        self.room = 0

        started = time.monotonic_ns()
        addresses = target.resolve(deadline_ns)
        resolved = time.monotonic_ns()
        self._connect(addresses)
        connected = time.monotonic_ns()
        self.dns_us = (resolved - started) // 1000
        self.connect_us = (connected - resolved) // 1000
        self.tls_us: int | None = None
        if target.tls is not None:
            try:
                self._handshake(target.tls)
                self.decrypt = self._decrypt
            except BaseException:
                self.close()
                raise
            self.tls_us = (time.monotonic_ns() - connected) // 1000
        self.deadline_ns = NEVER

    # -- opening

    def _connect(self, addresses: list[Any]) -> None:
        failure: OSError | None = None
        for family, kind, protocol, _, address in addresses:
            self._socket = _socket(family, kind, protocol)
            self._socket.setblocking(False)
            self._descriptor = self._socket.fileno()
            self.receive = self._socket.recvmsg_into
            self.closed = False
            try:
                self._prepare()
                with contextlib.suppress(BlockingIOError):
                    self._socket.connect(address)
                self._reactor.add(self, self._descriptor)
            except OSError as error:
                self._socket.close()
                failure = error
                continue
            try:
                # The first event comes when the connection is there, or refused.
                self._wait()
                if number := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(number, os.strerror(number))
            except OSError as error:
                self.close()
                failure = error
                if self.expired:
                    raise
            except BaseException:
                self.close()
                raise
            else:
                return
        raise failure or OSError("the name has no address")

    def _prepare(self) -> None:
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stamped = stamps.ask(self._socket)
        if source := self._target.source():
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            self._socket.bind((source, 0))

    def _handshake(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=self._target.host, session=self._target.session
        )
        while True:
            try:
                self._tls.do_handshake()
                self._push(self._outgoing.read())
                return
            except ssl.SSLWantReadError:
                self._push(self._outgoing.read())
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._push(self._outgoing.read())  # the alert that says why
                raise
            try:
                data = self._receive()
            except TimeoutError:
                raise
            except OSError as error:
                raise ssl.SSLError(error.errno, f"connection lost in the handshake: {error.strerror}") from error
            if not data:
                raise ssl.SSLError(0, "connection closed in the handshake")
            self._incoming.write(data)

    def _receive(self) -> bytes:
        """Bytes, waited for; none at the end of the stream. An event tells of several things at once: read first."""
        while True:
            try:
                return bytes(self._socket.recv(BUFFER_BYTES))
            except BlockingIOError:
                self._wait()

    def _wait(self) -> None:
        """Until an event, or the deadline, which raises TimeoutError."""
        self._reactor.wake_at(self.deadline_ns)
        self._suspend()
        if self.expired:
            raise TimeoutError

    def _suspend(self) -> None:
        self._waiter = gevent.getcurrent()
        try:
            self._reactor.hub.switch()
        finally:
            self._waiter = None

    @property
    def waits(self) -> bool:
        return self._waiter is not None

    # -- one exchange

    def run(self, exchange: Exchange, data: bytes, feed: Feed, deadline_ns: int, first_output_ns: int = NEVER) -> None:
        """Send `data` and read the answer; returns when it has ended, with `failure` set when not well.

        Both deadlines end it with a TIMEOUT, the second when no output was seen by then. Raises what `feed` raises,
        but for Malformed, and what the greenlet is killed with: the connection must be closed then.
        """
        self._exchange, self._feed = exchange, feed
        if self._head is None:
            self._parser.begin()
        self._complete = False
        self._eof = self._seen = self._gathers = self.expired = False
        self._error: Exception | None = None
        self._lost: Failure | None = None
        self._total_ns = deadline_ns
        self.deadline_ns = min(deadline_ns, first_output_ns)
        self.room = 0
        exchange.kernel_stamps = self._stamped
        self._latest_ns = exchange.sent_ns = time.monotonic_ns()
        self._unsent = _NOTHING
        try:
            self._push(self._encrypt(data))
        except (BrokenPipeError, ConnectionResetError):
            self._unsent = memoryview(data)  # it may have said why before, with a 413 for instance
        self._reactor.wake_at(self.deadline_ns)
        self._suspend()
        if self.streaming:
            self._stream(False)
        self.deadline_ns = NEVER
        self._exchange = None
        if self._error is not None:
            raise self._error
        if exchange.failure is None and not self._complete:
            exchange.failure = self._lost or self._unfinished(exchange)
        if self._tls is not None:
            self._target.session = self._tls.session

    def _stream(self, streaming: bool) -> None:
        self.streaming = streaming
        self._reactor.move(self._descriptor, streaming)

    def _unfinished(self, exchange: Exchange) -> Failure:
        if exchange.first_byte_ns is None:
            return Failure(Outcome.RESET, "connection closed without an answer")
        return Failure(Outcome.TRUNCATED, "connection closed before the end of the answer")

    def reusable(self) -> bool:
        """After `run`: whether another request may be sent."""
        over = self._eof or self._unsent or self.closed or not self._complete
        return not over and (self._head is not None or bool(self._parser.should_keep_alive()))

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._reactor.remove(self._descriptor, self.streaming)
            self._socket.close()

    def _push(self, data: bytes | memoryview) -> None:
        """Send what the kernel takes; the reactor sends the rest."""
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._unsent = memoryview(data)[sent:]
        elif self._unsent:
            self._unsent = _NOTHING

    def _encrypt(self, data: bytes) -> bytes:
        if self._tls is None:
            return data
        self._tls.write(data)
        return self._outgoing.read()

    # -- what the reactor calls

    def on_event(self, mask: int, buffer: bytearray) -> bool:
        """Whatever is not a mere piece. True when a greenlet was switched to."""
        if self._unsent and mask & select.EPOLLOUT and not mask & reactor.ENDED:
            with contextlib.suppress(OSError):
                self._push(self._unsent)
        if self._exchange is not None:
            self._gather(buffer, bool(mask & reactor.ENDED))
            return self.settle()
        if self._waiter is not None:
            self._waiter.switch()
            return True
        self._read_idle(buffer)
        return False

    def settle(self) -> bool:
        """Take apart what was gathered. True when the answer had ended, and its greenlet was switched to."""
        self._take_apart()
        ended = self._eof or self._complete
        if self._gathers and self._seen and not ended:
            self.room = _GATHERED_BYTES
            if not self.streaming and not self._unsent:
                self._stream(True)
        if ended and self._waiter is not None:
            self._waiter.switch()
        return ended

    def lose(self, error: OSError) -> None:
        """No more can be read; what was gathered before is still looked at."""
        self._eof = True
        if isinstance(error, ssl.SSLError):
            self._lost = Failure(Outcome.TLS_ERROR, f"TLS: {tls_text(error)}")
        else:
            self._lost = Failure(Outcome.RESET, f"connection lost: {os_text(error)}")

    def expire(self) -> None:
        """The deadline has passed; that of the first output only counts when there was none."""
        if self._exchange is not None:
            if self.settle():
                return
            early = self.deadline_ns < self._total_ns
            if early and self._seen:
                self.deadline_ns = self._total_ns
                return
            silent = self._exchange.first_byte_ns is None
            what = "no output" if early else "no answer" if silent else "no complete answer"
            self._lost = Failure(Outcome.TIMEOUT, what)
        self.expired = True
        if self._waiter is not None:
            self._waiter.switch()

    # -- reading

    def _gather(self, buffer: bytearray, ended: bool) -> None:
        """What there is: until the kernel has no more, which a short read tells, or until the end of the stream."""
        view = memoryview(buffer)
        size = BUFFER_BYTES
        while not self._eof and (ended or size == BUFFER_BYTES):
            try:
                size, ancillary, _, _ = self.receive([buffer], reactor.ANCILLARY_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self.lose(error)
                return
            piece = bytes(view[:size])
            if self.decrypt is not None:
                piece = self.decrypt(piece)
            elif not size:
                self._eof = True
            if piece:
                self.pieces.append(piece)
                self.ancillary.append(ancillary[0][2] if ancillary else b"")
                self.reads.append(time.monotonic_ns())

    def _decrypt(self, piece: bytes) -> bytes:
        """The plain bytes that these complete; at the end of the stream `_eof` is set."""
        assert self._tls is not None
        if piece:
            self._incoming.write(piece)
        else:
            self._incoming.write_eof()
        plain = b""
        try:
            while self._incoming.pending or self._tls.pending() or not piece:
                data = self._tls.read(_TLS_RECORD_BYTES)
                if not data:
                    self._eof = True
                    break
                plain = plain + data if plain else data
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLEOFError:
            self._eof = True
        except ssl.SSLError as error:
            self.lose(error)
        return plain

    def _read_idle(self, buffer: bytearray) -> None:
        """Between two requests: session tickets are taken, everything else ends the connection."""
        try:
            size = self._socket.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if size and self._tls is not None:
            self._incoming.write(bytes(memoryview(buffer)[:size]))
            try:
                self._tls.read(1)
            except ssl.SSLWantReadError:
                return
            except ssl.SSLError:
                pass
        self.close()

    # -- taking apart

    def _take_apart(self) -> None:
        exchange = self._exchange
        assert exchange is not None
        try:
            self._parse(exchange)
        except Malformed as error:
            exchange.failure = error.failure()
            self._eof = True
        except Exception as error:  # of a reader that a scenario brought: it goes to the greenlet that waits
            self._error = error
            self._eof = True

    def _parse(self, exchange: Exchange) -> None:
        pieces, self.pieces = self.pieces, []
        if (head := self._head) is not None:
            piece = pieces[0] if len(pieces) == 1 else b""
            if len(piece) == head.size and exchange.bytes_in == 0 and piece.startswith(head.data):
                exchange.bytes_in = head.size
                exchange.status, exchange.headers = head.status, head.headers
                self._complete = True
                self._feed([piece[len(head.data) :]], self._stamps(exchange))
                return
            self._head = None
            self._parser.begin()
        parser = self._parser
        bodies = parser.bodies
        instants: list[int] = []  # of each of the bodies
        unread: HTTPParseError | None = None
        piece = b""
        try:
            for piece, stamp in zip(pieces, self._stamps(exchange), strict=True):
                exchange.bytes_in += len(piece)
                parser.feed(piece)
                if len(bodies) > len(instants):
                    instants += [stamp] * (len(bodies) - len(instants))
        except HTTPParseError as error:
            unread = error
            instants += [self._latest_ns] * (len(bodies) - len(instants))
        if self._eof and not parser.complete:
            with contextlib.suppress(HTTPParseError):
                parser.feed(b"")  # the end of the connection may be that of the answer
        if parser.headers_complete:
            if exchange.status is None:
                self._take_head(exchange)
            if bodies:
                taken = bodies.copy()
                bodies.clear()
                if len(pieces) == 1 and parser.complete:
                    self._head = self._head_of(exchange, pieces[0], taken)
                self._pass_on(exchange, taken, instants)
        elif exchange.bytes_in > MAX_HEADER_BYTES:
            raise Malformed(f"more than {MAX_HEADER_BYTES} bytes of headers")
        self._complete = parser.complete
        if unread is not None:
            raise Malformed(f"no HTTP: {unread.args[0]}", piece[:_EVIDENCE_BYTES]) from unread

    def _take_head(self, exchange: Exchange) -> None:
        """Status and headers. Raises Malformed for a 2xx in an encoding that was not asked for."""
        headers = self._parser.headers
        exchange.status, exchange.headers = self._parser.get_code(), headers
        well = 200 <= exchange.status < 300
        encoding = headers.get("content-encoding", "identity")
        if well and encoding.lower() != "identity":
            raise Malformed(f"answer in the encoding {encoding}, although identity was asked for")
        self._gathers = well and "content-length" not in headers

    def _head_of(self, exchange: Exchange, piece: bytes, bodies: list[bytes]) -> Head | None:
        """When the next answer may be taken apart without a parser, if it begins so: all of it, well, in one piece."""
        size = sum(map(len, bodies))
        well = 200 <= (exchange.status or 0) < 300 and exchange.bytes_in == len(piece)
        if not well or exchange.headers.get("content-length") != str(size) or not self._parser.should_keep_alive():
            return None
        return Head(piece[:-size], len(piece), exchange.status or 0, exchange.headers)

    def _pass_on(self, exchange: Exchange, bodies: list[bytes], instants: list[int]) -> None:
        if 200 <= (exchange.status or 0) < 300:
            self._seen = self._feed(bodies, instants)
        else:
            exchange.error_body = (exchange.error_body + b"".join(bodies))[:_MAX_ERROR_BODY_BYTES]

    def _stamps(self, exchange: Exchange) -> list[int]:
        """When each piece was received; what is known of that goes to the exchange."""
        ancillary, reads = self.ancillary, self.reads
        self.ancillary, self.reads = [], []
        if not reads:
            return []
        received, lags = stamps.received(ancillary, reads, self._latest_ns, self._reactor.offset_ns)
        if len(lags):
            exchange.add_lags(lags)
        if len(lags) < len(reads):
            exchange.kernel_stamps = False
        if exchange.first_byte_ns is None:
            exchange.first_byte_ns = received[0]
        exchange.end_ns = self._latest_ns = received[-1]
        return received


def tls_text(error: ssl.SSLError) -> str:
    return getattr(error, "verify_message", "") or getattr(error, "reason", "") or os_text(error)


def os_text(error: OSError) -> str:
    return (error.strerror or str(error) or type(error).__name__).lower()
