"""One kept-alive HTTP connection for repeated GETs of one URL: what the model server and the simulator are read with.

Standard library only, no proxy, no cookie. The token goes into the request and nowhere else. Speaks no clock.
"""

import http.client
from typing import Optional, Tuple
from urllib.parse import urljoin, urlsplit

MAX_BODY = 16 << 20
FETCH_ERRORS = (OSError, http.client.HTTPException)


class Fetcher:
    """GETs one URL again and again; reconnects when the server has closed the connection."""

    def __init__(self, url: str, token: Optional[str] = None, timeout_s: float = 5.0) -> None:
        self._url = url
        self._headers = {"Accept": "text/plain, application/json"}
        if token:
            self._headers["Authorization"] = "Bearer " + token
        self._timeout_s = timeout_s
        self._connection: Optional[http.client.HTTPConnection] = None

    def get(self) -> Tuple[int, bytes]:
        """(status, body). Raises one of FETCH_ERRORS."""
        status, body, location = self._get_once()
        if status in (301, 302, 307, 308) and location:
            target = urljoin(self._url, location)
            if urlsplit(target)[:2] == urlsplit(self._url)[:2]:  # the token stays with its server
                self._url = target
                status, body, location = self._get_once()
        return status, body

    def _get_once(self) -> Tuple[int, bytes, Optional[str]]:
        reused = self._connection is not None
        try:
            return self._exchange()
        except FETCH_ERRORS as error:
            self.close()
            if reused and isinstance(error, (ConnectionError, http.client.BadStatusLine)):
                return self._get_once()  # the server had closed it meanwhile
            raise

    def _exchange(self) -> Tuple[int, bytes, Optional[str]]:
        parts = urlsplit(self._url)
        if self._connection is None:
            kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            self._connection = kind(parts.netloc, timeout=self._timeout_s)
        path = (parts.path or "/") + ("?" + parts.query if parts.query else "")
        self._connection.request("GET", path, headers=self._headers)
        response = self._connection.getresponse()
        body = response.read(MAX_BODY + 1)
        if len(body) > MAX_BODY:
            self.close()
            raise http.client.HTTPException(f"the answer is longer than {MAX_BODY >> 20} MiB")
        return response.status, body, response.getheader("Location")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
