"""The stream under a first hop: TCP to the first of its addresses that answers, or a proxy command.

Limits are CLOCK_MONOTONIC seconds; nothing here waits beyond them. A socket that is given back is the caller's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from typing import Any

from remote_agents.ssh_config import Hop
from remote_agents.ssh_options import SshError, left

_STAGGER_S = 0.25  # an address that is silent for so long is not waited for alone
_IDLE_S, _PROBE_S, _PROBES = 5, 5, 2
_UNANSWERED_MS = 15_000
_END_S = 0.5


def dial(hop: Hop, limit: float) -> socket.socket:
    """A connected socket: no delay of small packets, and dead within 15 s of its peer's silence. Raises SshError."""
    addresses = _resolve(hop, limit)
    reasons: list[str] = []
    with selectors.DefaultSelector() as pending:
        try:
            while (addresses or pending.get_map()) and time.monotonic() < limit:
                if addresses:
                    _begin(hop, addresses.pop(0), pending, reasons)
                wait_s = min(left(limit), _STAGGER_S) if addresses else left(limit)
                for key, _ in pending.select(wait_s) if pending.get_map() else ():
                    tried = pending.unregister(key.fileobj).fileobj
                    assert isinstance(tried, socket.socket)
                    code = tried.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if not code:
                        return _tuned(tried)
                    reasons.append(f"{key.data}: {os.strerror(code).lower()}")
                    tried.close()
            reasons += [f"{key.data}: no answer in time" for key in pending.get_map().values()]
        finally:
            for key in pending.get_map().values():
                assert isinstance(key.fileobj, socket.socket)
                key.fileobj.close()
    reasons = reasons or ["no time was left for it"]
    refused = all(reason.endswith("refused") for reason in reasons)
    remedy = "start sshd there, or correct the port" if refused else "check its address, the network and firewalls"
    raise SshError(f"{hop} cannot be reached ({'; '.join(dict.fromkeys(reasons))}): {remedy}", passing=True)


def _begin(hop: Hop, entry: Any, pending: selectors.BaseSelector, reasons: list[str]) -> None:
    family, kind, protocol, _, address = entry
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    try:
        if hop.bind_address is not None:
            made.bind((hop.bind_address, 0))
        code = made.connect_ex(address)
    except OSError as error:
        code = error.errno or errno.EINVAL
    if code in (0, errno.EINPROGRESS):
        pending.register(made, selectors.EVENT_WRITE, address[0])
    else:
        made.close()
        reasons.append(f"{address[0]}: {os.strerror(code).lower()}")


def _resolve(hop: Hop, limit: float) -> list[Any]:
    """What getaddrinfo says; it knows no limit of its own, so a resolver that hangs is left behind in a thread."""
    found: list[Any] = []
    problem: list[Exception] = []

    def ask() -> None:
        try:
            found.extend(socket.getaddrinfo(hop.host, hop.port, hop.family, socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:  # the latter for a name that is none
            problem.append(error)

    asking = threading.Thread(target=ask, name=f"resolve {hop.host}", daemon=True)
    asking.start()
    asking.join(left(limit))
    if asking.is_alive():
        raise SshError(
            f"the name of {hop} was not resolved in time: look at the resolver of this machine", passing=True
        )
    if problem:
        reason = problem[0].strerror if isinstance(problem[0], OSError) else "it is not a name"
        raise SshError(
            f"the name of {hop} cannot be resolved ({str(reason).lower()}): correct it, or the resolver, or give it a "
            "HostName in ssh's configuration",
            passing=getattr(problem[0], "errno", None) == socket.EAI_AGAIN,
        )
    return found


def _tuned(connected: socket.socket) -> socket.socket:
    connected.setblocking(True)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNANSWERED_MS)
    return connected


class ProxyCommand:
    """A process of the user's whose standard input and output are the stream. It ends with `close`."""

    def __init__(self, hop: Hop, command: str) -> None:
        self._hop = hop
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # as long-lived as the process
        self.socket, theirs = socket.socketpair()
        shell = os.environ.get("SHELL") or shutil.which("sh") or "/bin/sh"
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [shell, "-c", f"exec {command}"],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=self._errors,
                    start_new_session=True,
                )
        except OSError as error:
            self.socket.close()
            self._errors.close()
            raise SshError(f"the ProxyCommand of {hop} cannot be started ({error}): look at SHELL") from error

    def last_words(self) -> str:
        """Of its error output, to be added to an error; the command itself may hold a secret and is not shown."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        self._errors.seek(0)
        said = self._errors.read()[-1000:].decode(errors="replace").strip().rpartition("\n")[2]
        code = self._process.returncode
        ended = "still runs" if code is None else f"ended with {code}"
        return f"; the ProxyCommand {ended}" + (f" and says {said!r}" if said else "")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                os.killpg(self._process.pid, number)  # what its shell has started, too
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_END_S)
        self._errors.close()
