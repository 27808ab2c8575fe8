"""The pipe that ties a child process to its parent: standard library only, safe to import before anything is patched.

A child of ours has its own session, and its standard input is the lifeline. A line on it is a message ("stop": end in
order); its end means that the parent is gone, however it died, and the child ends itself: SIGTERM first, so that what
was recorded is written, then, after a grace period, for good.
"""

from __future__ import annotations

import _thread
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import sleep

GRACE_S = 6.0
STOP = b"stop\n"
LOST = b""
_CHILD = "LOADGEN_CHILD"


def spawn(
    command: Sequence[str], log: Path, *, cwd: Path, env: Mapping[str, str], pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a child whose standard input is our lifeline to it and whose output goes to the end of `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**env, _CHILD: "1"},
            pass_fds=pass_fds,
            start_new_session=True,
        )


def tell(child: subprocess.Popen[bytes], message: bytes) -> None:
    """Send a line to a child; one that is already gone does not mind."""
    assert child.stdin is not None
    try:
        child.stdin.write(message)
        child.stdin.flush()
    except (BrokenPipeError, ValueError):
        pass


def release(child: subprocess.Popen[bytes]) -> None:
    """Let go of a child: it ends itself in order."""
    assert child.stdin is not None
    try:
        child.stdin.close()
    except BrokenPipeError:
        pass


def _ignore(_: bytes) -> None:
    """What happens to messages until somebody listens."""


_on_message: Callable[[bytes], None] = _ignore


def hold() -> None:
    """In a child: watch the lifeline from a thread of its own, and take standard input away from everyone else.

    Does nothing in a process that was not started by `spawn`.
    """
    if os.environ.pop(_CHILD, None) is None:
        return
    line = os.dup(0)
    os.set_inheritable(line, False)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    _thread.start_new_thread(_watch, (line,))


def on_message(handler: Callable[[bytes], None]) -> None:
    """Call `handler` with each line, and with LOST at the end, in the lifeline's thread."""
    global _on_message
    _on_message = handler


def _watch(line: int) -> None:
    rest = b""
    while data := os.read(line, 4096):
        *lines, rest = (rest + data).split(b"\n")
        for message in lines:
            _on_message(message + b"\n")
    _on_message(LOST)
    os.kill(os.getpid(), signal.SIGTERM)
    sleep(GRACE_S)
    os._exit(1)
