"""The user's ssh agent (ssh-agent, gpg-agent, a password manager): which keys it holds, and their signatures.

The agent protocol over a Unix socket, each answer awaited until a limit of CLOCK_MONOTONIC seconds.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from types import TracebackType

import paramiko

from remote_agents.ssh_options import left

_LIST, _LISTED, _SIGN, _SIGNED = 11, 12, 13, 14
_FLAGS = {"rsa-sha2-256": 2, "rsa-sha2-512": 4}
_MAX_ANSWER_B = 256 << 10


class KeyAgent:
    """Its `keys` are public halves or certificates, each with its comment; without keys `problem` may say why."""

    def __init__(self, path: str | None, limit: float) -> None:
        self.keys: dict[bytes, str] = {}
        self.problem = ""
        self.limit = limit
        self._socket = socket.socket(socket.AF_UNIX)
        if path is None:
            return
        try:
            self._socket.settimeout(left(limit))
            self._socket.connect(path)
            answer = self._ask(_LIST, b"", _LISTED)
            for _ in range(answer.get_int()):
                blob = answer.get_binary()
                self.keys[blob] = answer.get_binary().decode(errors="replace")
        except OSError as error:
            self.problem = f"the ssh agent at {path}, which does not answer ({error.strerror or error})"

    def __enter__(self) -> KeyAgent:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with contextlib.suppress(OSError):  # it is not connected
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes who waits for a signature
        self._socket.close()

    def sign(self, blob: bytes, data: bytes, algorithm: str) -> bytes:
        """Waits for a user who is asked, or for the touch of a token. Raises OSError."""
        request = paramiko.Message()
        request.add_string(blob)
        request.add_string(data)
        request.add_int(_FLAGS.get(algorithm.partition("-cert-")[0], 0))
        return self._ask(_SIGN, request.asbytes(), _SIGNED).get_binary()

    def _ask(self, kind: int, request: bytes, expected: int) -> paramiko.Message:
        self._socket.settimeout(left(self.limit))
        self._socket.sendall(struct.pack(">IB", len(request) + 1, kind) + request)
        (size,) = struct.unpack(">I", self._receive(4))
        if size > _MAX_ANSWER_B:
            raise OSError("this is no ssh agent")
        answer = self._receive(size)
        if answer[:1] != bytes([expected]):
            raise OSError("the agent refused")
        return paramiko.Message(answer[1:])

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            self._socket.settimeout(left(self.limit))
            more = self._socket.recv(size - len(data))
            if not more:
                raise OSError("the agent hung up")
            data += more
        return data
