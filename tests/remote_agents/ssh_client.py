"""Our side of an SSH connection in tests: connect by an ssh_config, run a command, be refused, leave nothing behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from sshd import children

from remote_agents.hosts import parse_agent
from remote_agents.ssh import Connection, SshError, SshOptions, connect


def options(config: Path, **more: Any) -> SshOptions:
    return SshOptions(**{"config_file": config, "pins": config.with_name("pins")} | more)


def connected(config: Path, name: str = "gpu1", deadline: float | None = None, **more: Any) -> Connection:
    return connect(parse_agent(name), options(config, **more), deadline)


def said(connection: Connection, command: str = "echo here") -> str:
    """What a command wrote; the connection is closed."""
    try:
        channel = connection.execute(command)
        channel.settimeout(10)
        data = b""
        while more := channel.recv(65536):
            data += more
        return data.decode().strip()
    finally:
        connection.close()


def refusal(config: Path, name: str = "gpu1", deadline: float | None = None, **more: Any) -> SshError:
    with pytest.raises(SshError) as raised:
        connected(config, name, deadline, **more).close()
    assert str(raised.value).count("\n") == 0
    return raised.value


@contextmanager
def nothing_left() -> Iterator[None]:
    """No thread, socket or child process of this process is there afterwards that was not there before."""
    before = _own()
    yield
    until(lambda: _own() <= before, 5)


def _own() -> set[str]:
    threads = {f"thread {thread.name} {thread.ident}" for thread in threading.enumerate()}
    sockets = {
        name for path in Path("/proc/self/fd").iterdir() if path.is_symlink() and "socket:" in (name := _target(path))
    }
    return threads | sockets | {f"child {pid}" for pid in children(os.getpid())}


def _target(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""  # that of this very look
