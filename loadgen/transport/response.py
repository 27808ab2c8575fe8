"""One HTTP/1.1 answer: the exchange that it belongs to, and llhttp, which takes it apart."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from geventhttpclient._parser import HTTPResponseParser

from loadgen.endpoints import Failure, Malformed
from loadgen.transport.stamps import Lags

MAX_HEADER_BYTES = 64 << 10


class Exchange:
    """What happened on the wire. `None` is "did not happen" or "not measured"; stamps are CLOCK_MONOTONIC ns."""

    sent_ns: int | None = None
    first_byte_ns: int | None = None
    end_ns: int = 0
    status: int | None = None
    headers: Mapping[str, str] = MappingProxyType({})  # names in lower case; values of equal names joined
    failure: Failure | None = None
    error_body: bytes = b""
    attempts: int = 1
    dns_us: int | None = None
    connect_us: int | None = None
    tls_us: int | None = None
    bytes_out: int = 0
    bytes_in: int = 0
    read_lag_us: int = -1  # the worst
    lags_us: Lags = ()  # of every read that has a kernel's stamp
    kernel_stamps: bool = False

    def add_lags(self, lags_us: Lags) -> None:
        self.read_lag_us = max(self.read_lag_us, int(max(lags_us) if isinstance(lags_us, list) else np.max(lags_us)))
        self.lags_us = lags_us if len(self.lags_us) == 0 else np.concatenate([self.lags_us, lags_us])


class Head(NamedTuple):
    """The bytes of a head as they came, and what they say: the next answer of a connection often begins with the same.

    `size` is that of the whole answer.
    """

    data: bytes
    size: int
    status: int
    headers: Mapping[str, str]


class Parser(HTTPResponseParser):
    """llhttp, with the few facts that we need; body bytes gather in `bodies` until they are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[bytes] = []
        self._on_body = self.bodies.append
        self.begin()

    def begin(self) -> None:
        """Before the next answer of the connection."""
        self.headers: dict[str, str] = {}
        self.headers_complete = False
        self.complete = False
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

    def _on_message_complete(self) -> None:
        self.complete = self.get_code() >= 200
