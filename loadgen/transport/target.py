"""Where requests go, and how: address, TLS context, local addresses. One `Target` serves a process's connections."""

from __future__ import annotations

import itertools
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import gevent
from gevent.socket import getaddrinfo

# A resolved name is used for so long before it is asked for again.
_RESOLVED_NS = 10_000_000_000


@dataclass
class Target:
    """The parts of the endpoint's URL and, for https, the one TLS context.

    Without `reuse` each request has a connection of its own. `sources` are local addresses to connect from, in turn.
    """

    host: str
    port: int
    authority: str
    base_path: str
    tls: ssl.SSLContext | None
    reuse: bool = True
    sources: Sequence[str] = ()
    # Of the last TLS connection, resumed by the next one: a handshake without certificates.
    session: ssl.SSLSession | None = None
    _addresses: list[Any] = field(default_factory=list)
    _resolved_ns: int = 0
    _turns: Iterator[str] | None = None

    @classmethod
    def of(
        cls,
        url: str,
        *,
        insecure: bool = False,
        ca_file: str | None = None,
        reuse: bool = True,
        sources: Sequence[str] = (),
    ) -> Target:
        """Raises OSError (ssl.SSLError among them) when `ca_file` cannot be read."""
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        assert parts.hostname is not None
        return cls(
            host=parts.hostname,
            port=parts.port or (443 if secure else 80),
            authority=parts.netloc,
            base_path=parts.path.rstrip("/"),
            tls=_tls_context(insecure, ca_file) if secure else None,
            reuse=reuse,
            sources=sources,
        )

    def resolve(self, deadline_ns: int) -> list[Any]:
        """What getaddrinfo says, asked in a thread; addresses as such and recent answers cost nothing.

        Raises socket.gaierror, TimeoutError.
        """
        now = time.monotonic_ns()
        if not self._addresses or now - self._resolved_ns > _RESOLVED_NS:
            self._resolved_ns = now  # others go on with the old answer meanwhile
            with gevent.Timeout(max(deadline_ns - now, 0) / 1e9, TimeoutError):
                try:
                    self._addresses = getaddrinfo(self.host, self.port, 0, socket.SOCK_STREAM)
                except UnicodeError as error:
                    raise socket.gaierror(socket.EAI_NONAME, "not a valid host name") from error
        return self._addresses

    def source(self) -> str | None:
        """The local address to connect from; None for the kernel's choice."""
        if not self.sources:
            return None
        self._turns = self._turns or itertools.cycle(self.sources)
        return next(self._turns)


def _tls_context(insecure: bool, ca_file: str | None) -> ssl.SSLContext:
    """Verifies certificate and host name unless told otherwise."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca_file is not None:
        context.load_verify_locations(ca_file)
    else:
        context.load_default_certs()
    return context
