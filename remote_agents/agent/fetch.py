"""One kept-alive HTTP connection for repeated GETs of one URL: what model server, exporter and simulator are read with.

Standard library only, no proxy, no cookie. The token goes into the request and nowhere else. CLOCK_MONOTONIC ns.
"""

import http.client
import socket
import time
from typing import List, NamedTuple, Optional, Tuple
from urllib.parse import urljoin, urlsplit

MAX_BODY = 16 << 20
FETCH_ERRORS = (OSError, http.client.HTTPException)

_PIECE = 1 << 16


class Answer(NamedTuple):
    """`t0_ns`: before the request was sent on the open connection; `t1_ns`: its head was there; then the body came."""

    status: int
    body: bytes
    t0_ns: int
    t1_ns: int
    end_ns: int
    round_trip_ns: int  # of the network, when the connection was opened


class Fetcher:
    """GETs one URL again and again; reconnects when the server has closed the connection."""

    def __init__(self, url: str, token: Optional[str] = None, timeout_s: float = 5.0) -> None:
        self.timeout_s = timeout_s
        self._url = url
        self._headers = {"Accept": "text/plain, application/json"}
        if token:
            self._headers["Authorization"] = "Bearer " + token
        self._connection: Optional[http.client.HTTPConnection] = None
        self._round_trip_ns = 0

    def get(self) -> Tuple[int, bytes]:
        """(status, body). Raises one of FETCH_ERRORS."""
        answer = self.fetch()
        return answer.status, answer.body

    def fetch(self) -> Answer:
        """The answer with its times. Raises one of FETCH_ERRORS."""
        answer, location = self._fetch_once()
        if answer.status in (301, 302, 307, 308) and location:
            target = urljoin(self._url, location)
            if urlsplit(target)[:2] == urlsplit(self._url)[:2]:  # the token stays with its server
                self._url = target
                answer, location = self._fetch_once()
        return answer

    def _fetch_once(self) -> Tuple[Answer, Optional[str]]:
        reused = self._connection is not None
        try:
            return self._exchange()
        except FETCH_ERRORS as error:
            self.close()
            if reused and isinstance(error, (ConnectionError, http.client.BadStatusLine)):
                return self._fetch_once()  # the server had closed it meanwhile
            raise

    def _exchange(self) -> Tuple[Answer, Optional[str]]:
        parts = urlsplit(self._url)
        if self._connection is None:
            kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            self._connection = kind(parts.netloc, timeout=self.timeout_s)
        connection = self._connection
        if connection.sock is None:
            started_ns = time.monotonic_ns()
            connection.connect()
            round_trips = 2 if parts.scheme == "https" else 1
            self._round_trip_ns = (time.monotonic_ns() - started_ns) // round_trips
        path = (parts.path or "/") + ("?" + parts.query if parts.query else "")
        t0_ns = time.monotonic_ns()
        connection.request("GET", path, headers=self._headers)
        response = connection.getresponse()
        t1_ns = time.monotonic_ns()
        body = self._body(response, t0_ns)
        answer = Answer(response.status, body, t0_ns, t1_ns, time.monotonic_ns(), self._round_trip_ns)
        return answer, response.getheader("Location")

    def _body(self, response: http.client.HTTPResponse, t0_ns: int) -> bytes:
        """The socket's time limit is for each read, ours for the whole answer."""
        pieces: List[bytes] = []
        size = 0
        while True:
            piece = response.read1(_PIECE)
            if not piece:
                break
            pieces.append(piece)
            size += len(piece)
            if size > MAX_BODY:
                raise http.client.HTTPException(f"the answer is longer than {MAX_BODY >> 20} MiB")
            if time.monotonic_ns() - t0_ns > self.timeout_s * 1e9:
                raise socket.timeout("timed out")
        if response.length:
            raise http.client.HTTPException("the answer ended too early")
        response.close()  # an old Python does not see by itself that it was the last piece
        return b"".join(pieces)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
