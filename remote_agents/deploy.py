"""Starts an agent: a process here, or over SSH on another host, where it is sent through stdin and runs from memory.

On the host: any login shell, a POSIX sh, Python 3.8 or later found by itself. Nothing is written there, unless a folder
is named for hosts that forbid code from memory: then an archive, which the agent removes at its end. Where there is no
such Python, nvidia-smi's own stream is read instead (smi.py).
"""

from __future__ import annotations

import contextlib
import functools
import io
import secrets
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import paramiko
import pynvml

import remote_agents
from loadgen.errors import AgentError
from remote_agents.agent.protocol import MAGIC, START, encode
from remote_agents.smi import SMI_COMMAND, SmiWire
from remote_agents.ssh import Connection
from remote_agents.wire import ChannelWire, LinkError, PipeWire, Wire

_PYTHONS = (
    "python3 python3.14 python3.13 python3.12 python3.11 python3.10 python3.9 python3.8 /usr/bin/python3 "
    "/usr/local/bin/python3 /usr/libexec/platform-python /opt/conda/bin/python3 python"
)
_NO_PYTHON = 97
_STATUS_S = 1.0
_TURN_S = 0.1
_MAX_NOISE = 256 << 10
_ROOT = Path(remote_agents.__file__).parent
_MAIN = "import sys\n\nfrom remote_agents.agent.__main__ import main\n\nmain(sys.argv[0])\n"


@functools.cache
def archive() -> bytes:
    """A zip of the agent and pynvml: what the standard library of the host lacks."""
    files = {f"remote_agents/agent/{path.name}": path for path in (_ROOT / "agent").glob("*.py")}
    files |= {"remote_agents/__init__.py": _ROOT / "__init__.py", "pynvml.py": Path(pynvml.__file__)}
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, path in files.items():
            packed.writestr(name, path.read_bytes())
        packed.writestr("__main__.py", _MAIN)
    return data.getvalue()


def bootstrapped() -> tuple[str, bytes]:
    """A command for a login shell, and what to feed it: then the agent reads on, from memory."""
    bootstrap = (_ROOT / "agent" / "bootstrap.py").read_bytes()
    command = _command(f'-c "import os;exec(bytes().join(os.read(0,1)for i in range({len(bootstrap)})))"')
    return command, bootstrap + b"%08d" % len(archive()) + archive()


def start_local(start: dict[str, Any], log: Path, deadline: float) -> Wire:
    """Raises AgentError."""
    wire = PipeWire([sys.executable, "-m", "remote_agents.agent"], log)
    try:
        wire.write(MAGIC + encode(START, start))
    except LinkError:
        pass  # it has ended: that is seen now
    _await_magic(wire, "this machine", deadline)
    return wire


def start_remote(connection: Connection, start: dict[str, Any], log: Path, folder: str | None, deadline: float) -> Wire:
    """The connection becomes the wire's own; it is closed when no agent can be started. Raises AgentError."""
    try:
        if folder is None:
            command, before = bootstrapped()
        else:
            command, before = _command(_leave_archive(connection, folder)), b""
        wire = ChannelWire(connection, connection.execute(command), log)
        try:
            wire.write(before + MAGIC + encode(START, start), _left(deadline))
        except LinkError:
            pass  # it has ended: that is seen now
        if _await_magic(wire, connection.peer, deadline) == _NO_PYTHON:
            return _read_smi(connection, start["name"], deadline)
        return wire
    except BaseException:
        connection.close()
        raise


def _await_magic(wire: PipeWire | ChannelWire, where: str, deadline: float) -> int | None:
    """Read on to the agent's first frame, which stays unread; _NO_PYTHON when it can't run there. Raises AgentError."""
    came = b""
    while MAGIC not in came:
        data = wire.read(_TURN_S)
        is_late = time.monotonic() > deadline
        if data is None and not is_late:
            continue
        came += data or b""
        status = wire.exit_status(_STATUS_S) if data == b"" else None
        if status == _NO_PYTHON:
            return _NO_PYTHON
        if not data or is_late or len(came) > _MAX_NOISE:
            how = wire.close()
            said = came[:200].decode(errors="replace").strip()
            raise AgentError(
                f"the agent cannot be started on {where}: {'it did not answer in time' if is_late else how}"
                + (f"; what came instead begins with {said!r}" if said else ""),
                passing=is_late or (data == b"" and (status is None or status < 0)),  # it was killed, or its link broke
            )
    wire.unread(came)
    return None


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.1)


def _command(arguments: str) -> str:
    """For any login shell: one line, in single quotes that hold neither single quotes nor backslashes."""
    new_enough = "import sys; sys.exit(sys.version_info < (3, 8))"
    loop = (
        f'for p in {_PYTHONS}; do if $p -c "{new_enough}" >/dev/null 2>&1; then exec $p -uIB {arguments}; fi; done; '
        f"exit {_NO_PYTHON}"
    )
    return f"sh -c '{loop}'"


def _leave_archive(connection: Connection, folder: str) -> str:
    """Put the archive into the folder, readable by its owner alone; its path. Raises AgentError."""
    try:
        with connection.sftp() as sftp:
            path = f"{folder.replace('~', sftp.normalize('.'), 1).rstrip('/')}/gpu-agent-{secrets.token_hex(8)}.zip"
            try:
                with sftp.open(path, "wx") as file:
                    file.chmod(0o600)
                    file.write(archive())
            except OSError:
                with contextlib.suppress(OSError):
                    sftp.remove(path)  # a full disk has it in part
                raise
    except (OSError, paramiko.SSHException) as error:
        raise AgentError(
            f"the agent cannot be put into {folder} of {connection.peer} ({error}): name a folder that exists and can "
            "be written with --agent-dir, or leave it out"
        ) from error
    return path


def _read_smi(connection: Connection, name: str, deadline: float) -> Wire:
    wire = SmiWire(connection, connection.execute(SMI_COMMAND), name)
    if not wire.await_row(_left(deadline)):
        if not connection.alive:
            raise AgentError(f"the connection to {connection.peer} broke before nvidia-smi said anything", passing=True)
        raise AgentError(
            f"{connection.peer} has neither Python 3.8 or later nor a working nvidia-smi: install Python there"
        )
    return wire
