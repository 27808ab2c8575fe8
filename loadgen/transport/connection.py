"""One TCP or TLS connection on gevent's loop, with the kernel's own receive stamps where it gives them.

A TCP socket with SO_TIMESTAMPING tells in the ancillary data of `recvmsg` when the kernel received the bytes
(CLOCK_REALTIME; the last segment's, when several were merged). It is converted here, with a pair of clock readings
taken at the read, to CLOCK_MONOTONIC. Under TLS, or where the option is missing, the stamp is taken after the read.
"""

from __future__ import annotations

import contextlib
import functools
import socket as stdlib_socket
import ssl
import struct
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from gevent import socket
from gevent import ssl as gevent_ssl

_SO_TIMESTAMPING = 37
_SOFTWARE_RECEIVE = 0x18  # SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE
_TIMESPEC = struct.Struct("@ll")
_READ_BYTES = 65536
_ANCILLARY_BYTES = 128
# A stamp further away than this from the clock is a clock step, not a delay.
_MAX_LAG_NS = 60_000_000_000


@dataclass(frozen=True)
class Target:
    """Where requests go: the parts of the endpoint's URL and, for https, the one TLS context of the process."""

    host: str
    port: int
    authority: str
    base_path: str
    tls: ssl.SSLContext | None

    @classmethod
    def of(cls, url: str) -> Target:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        assert parts.hostname is not None
        return cls(
            host=parts.hostname,
            port=parts.port or (443 if secure else 80),
            authority=parts.netloc,
            base_path=parts.path.rstrip("/"),
            tls=_tls_context() if secure else None,
        )


class Connection:
    """An open connection. `*_us` are the phases of opening it; `kernel_stamps` says whose clock stamps the reads."""

    def __init__(self, target: Target) -> None:
        """Raises OSError (socket.gaierror, ConnectionError among them; ssl.SSLError for all of the TLS handshake)."""
        started = time.monotonic_ns()
        try:
            addresses = socket.getaddrinfo(target.host, target.port, 0, stdlib_socket.SOCK_STREAM)
        except UnicodeError as error:
            raise stdlib_socket.gaierror(stdlib_socket.EAI_NONAME, "not a valid host name") from error
        resolved = time.monotonic_ns()
        self._socket = _connect(addresses)
        connected = time.monotonic_ns()
        self.dns_us = (resolved - started) // 1000
        self.connect_us = (connected - resolved) // 1000
        self.tls_us: int | None = None
        self.kernel_stamps = False
        try:
            self._socket.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY, 1)
            if target.tls is not None:
                self._socket = _handshake(target.tls, self._socket, target.host)
                self.tls_us = (time.monotonic_ns() - connected) // 1000
            else:
                with contextlib.suppress(OSError):
                    self._socket.setsockopt(stdlib_socket.SOL_SOCKET, _SO_TIMESTAMPING, _SOFTWARE_RECEIVE)
                    _keep_stamping()
                    self.kernel_stamps = True
        except BaseException:
            self._socket.close()
            raise

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> tuple[bytes, int, int]:
        """Bytes (none at the end of the stream), when they were received, and how long they lay unread.

        Stamp and lag are ns; the lag is -1 where the kernel gave no stamp.
        """
        if not self.kernel_stamps:
            return self._socket.recv(_READ_BYTES), time.monotonic_ns(), -1
        data, ancillary, _, _ = self._socket.recvmsg(_READ_BYTES, _ANCILLARY_BYTES)
        now, now_real = time.monotonic_ns(), time.time_ns()
        for _, kind, payload in ancillary:
            if kind == _SO_TIMESTAMPING:
                seconds, nanoseconds = _TIMESPEC.unpack_from(payload)
                lag = now_real - (seconds * 1_000_000_000 + nanoseconds)
                if 0 <= lag < _MAX_LAG_NS:
                    return data, now - lag, lag
        return data, now, -1

    def close(self) -> None:
        self._socket.close()


def _connect(addresses: list[tuple[int, int, int, str, tuple[str, int]]]) -> socket.socket:
    failure: OSError | None = None
    for family, kind, protocol, _, address in addresses:
        attempt = socket.socket(family, kind, protocol)
        try:
            attempt.connect(address)
        except OSError as error:
            attempt.close()
            failure = error
        except BaseException:
            attempt.close()
            raise
        else:
            return attempt
    raise failure or OSError("the name has no address")


@functools.cache
def _keep_stamping() -> stdlib_socket.socket:
    """A socket that is never used: while one asks for stamps, the kernel makes them.

    It begins to some time after the first one asked, and ends with the last: what arrives before is stamped when it is
    read. A lone connection to a server that closes it after each answer would always be a new first one.
    """
    keeper = stdlib_socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM)
    keeper.setsockopt(stdlib_socket.SOL_SOCKET, _SO_TIMESTAMPING, _SOFTWARE_RECEIVE)
    return keeper


def _tls_context() -> ssl.SSLContext:
    """Verifies certificate and host name; gevent's own, so that it waits on the loop in an unpatched process too."""
    context: ssl.SSLContext = gevent_ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_default_certs()
    return context


def _handshake(context: ssl.SSLContext, plain: socket.socket, host: str) -> gevent_ssl.SSLSocket:
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLError:
        raise
    except OSError as error:
        raise ssl.SSLError(error.errno, f"connection lost in the handshake: {error.strerror}") from error
