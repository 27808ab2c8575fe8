"""The collector's end of a link to an agent: the pipes of a process here, or a channel of an SSH connection.

`read` waits; no call waits longer than it is told to, whatever the network does.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Protocol

import paramiko

from remote_agents.ssh import Connection
from remote_agents.ssh_transport import BROKEN

_READ_B = 1 << 16
_LEAVE_S = 0.9
_TERMINATE_S = 0.2
_WRITE_S = 5.0
_LOG_B = 1 << 20  # of what a host writes to its error output, more is dropped
_LAST_WORDS_B = 4096


class LinkError(Exception):
    """The link is broken."""


class Wire(Protocol):
    is_local: bool  # no network is between: silence is not a broken link
    peer: str  # where the agent is, for people

    def read(self, wait_s: float) -> bytes | None:
        """What came; None when nothing did, empty when nothing will any more. Raises LinkError."""

    def write(self, data: bytes) -> None:
        """Raises LinkError when it cannot be sent."""

    def close(self) -> str:
        """Let go of the agent, wait a second for its end, and say how it ended."""


class _Unread:
    """What was read to see whether an agent is there, and is to be read again."""

    _unread = b""

    def unread(self, data: bytes) -> None:
        self._unread = data

    def take_unread(self) -> bytes:
        data, self._unread = self._unread, b""
        return data


class PipeWire(_Unread):
    """An agent that is a process of this host; its error output goes to `log`."""

    is_local = True
    peer = "this machine"

    def __init__(self, command: list[str], log: Path) -> None:
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for the conductor
                bufsize=0,
            )
        assert self._process.stdin
        os.set_blocking(self._process.stdin.fileno(), False)

    def read(self, wait_s: float) -> bytes | None:
        if self._unread:
            return self.take_unread()
        assert self._process.stdout
        descriptor = self._process.stdout.fileno()
        if not select.select([descriptor], [], [], wait_s)[0]:
            return None
        return os.read(descriptor, _READ_B)

    def write(self, data: bytes) -> None:
        assert self._process.stdin
        descriptor = self._process.stdin.fileno()
        view = memoryview(data)
        end = time.monotonic() + _WRITE_S
        try:
            while view:
                if not select.select([], [descriptor], [], max(end - time.monotonic(), 0))[1]:
                    raise LinkError(f"it has not read for {_WRITE_S:.0f} s")
                with contextlib.suppress(BlockingIOError):
                    view = view[os.write(descriptor, view) :]
        except BrokenPipeError as error:
            raise LinkError("it does not read any more") from error

    def exit_status(self, wait_s: float) -> int | None:
        """Of the agent; None while it runs."""
        try:
            return self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> str:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        try:
            code = self._process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            try:
                code = self._process.wait(_TERMINATE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()  # only now: a killed NVML client can leave a GPU in a bad state
                code = self._process.wait()
        self._process.stdout.close()
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return _with_last_words(how, self._log)


class ChannelWire(_Unread):
    """An agent at the far end of an SSH channel; the connection is the wire's own. Its error output goes to `log`."""

    is_local = False

    def __init__(self, connection: Connection, channel: paramiko.Channel, log: Path) -> None:
        self.peer = connection.peer
        self._connection = connection
        self._channel = channel
        self._log = log

    def read(self, wait_s: float) -> bytes | None:
        if self._unread:
            return self.take_unread()
        self._channel.settimeout(wait_s)
        try:
            return self._channel.recv(_READ_B)
        except TimeoutError:
            return None
        finally:
            self._keep_errors()

    def write(self, data: bytes, wait_s: float = _WRITE_S) -> None:
        self._channel.settimeout(wait_s)
        try:
            self._channel.sendall(data)
        except BROKEN as error:
            raise LinkError(f"the connection broke: {error}") from error

    def close(self) -> str:
        how = "the connection broke"
        if self._connection.alive:
            with contextlib.suppress(*BROKEN):  # it may break now
                self._channel.shutdown_write()
            if self._channel.status_event.wait(_LEAVE_S) and self._channel.exit_status >= 0:
                how = f"exit code {self._channel.exit_status}"
        self._keep_errors()
        with contextlib.suppress(*BROKEN):
            self._channel.close()
        self._connection.close()
        return _with_last_words(how, self._log)

    def exit_status(self, wait_s: float) -> int | None:
        """Of the command; None while it runs."""
        return self._channel.exit_status if self._channel.status_event.wait(wait_s) else None

    def _keep_errors(self) -> None:
        """As much as has come, but no more than a window: a host that never stops is left after it."""
        left_b = _LOG_B
        while left_b > 0 and self._channel.recv_stderr_ready():
            errors = self._channel.recv_stderr(_READ_B)
            left_b -= len(errors)
            with self._log.open("ab") as log:
                log.write(errors[: max(_LOG_B - log.tell(), 0)])


def _with_last_words(how: str, log: Path) -> str:
    if not log.exists():
        return how
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - _LAST_WORDS_B, 0))
        errors = file.read().decode(errors="replace")
    last_words = errors.strip().rpartition("\n")[2]
    return f"{how}: {''.join(letter for letter in last_words if letter.isprintable())}" if last_words else how
