"""A server on a real socket that sends the very bytes it was told to, for tests of what reads them."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

Script = Callable[[socket.socket, bytes], bool]
"""Answers one request on a connection; True: the connection is kept."""


def send(*pieces: bytes, gap_s: float = 0.0, keep: bool = True) -> Script:
    """Send pieces, `gap_s` apart, each in a segment of its own."""

    def script(connection: socket.socket, _: bytes) -> bool:
        for number, piece in enumerate(pieces):
            if number:
                time.sleep(gap_s)
            connection.sendall(piece)
        return keep

    return script


def reset(*pieces: bytes) -> Script:
    """Send pieces, then reset the connection."""

    def script(connection: socket.socket, _: bytes) -> bool:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.05)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    return script


def stall(seconds: float) -> Script:
    def script(connection: socket.socket, _: bytes) -> bool:
        time.sleep(seconds)
        return False

    return script


class Server:
    """`requests` are those that arrived, `connections` how many connections were made."""

    def __init__(self, scripts: Sequence[Script], tls: ssl.SSLContext | None, unread: bytes) -> None:
        self._scripts = iter(scripts)
        self._tls = tls
        self._unread = unread
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[bytes] = []
        self.connections = 0
        self.peers: list[str] = []  # addresses that they came from
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, (peer, _) = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self.peers.append(peer)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                if self._tls is not None:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                if self._unread:
                    connection.recv(1000)
                    connection.sendall(self._unread)
                while not self._unread and (request := _read_request(connection)) is not None:
                    self.requests.append(request)
                    if not next(self._scripts)(connection, request):
                        break
            except OSError:
                pass
            finally:
                connection.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _read_request(connection: socket.socket) -> bytes | None:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return None
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@contextmanager
def serving(*scripts: Script, tls: ssl.SSLContext | None = None, unread: bytes = b"") -> Iterator[Server]:
    """A server that answers its first request by the first script, and so on, one connection at a time.

    With `unread` it answers that to the beginning of a request, and hangs up.
    """
    server = Server(scripts, tls, unread)
    try:
        yield server
    finally:
        server.close()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
