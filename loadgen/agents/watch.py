"""Live figures of hosts, with no load and nothing kept."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

from loadgen.agents.screen import Screen
from loadgen.agents.session import config_of, lines, settle, signals_noted, started
from loadgen.errors import RunDirError
from loadgen.options import Settings


def watch(settings: Settings, duration_s: float | None, console: Console) -> None:
    """Until the time is over or Ctrl-C. Agents are attached to us, so that none outlives us.

    Raises UsageError, AgentError when no host can be watched, RunDirError.
    """
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            signals_noted() as signals,
            started(config_of(settings, Path(folder), lease_s=0)) as fleet,
            Screen(console, plain_every_s=1.0) as screen,
        ):
            settle(fleet, signals, screen.say)
            for line in lines(fleet, signals, duration_s):
                screen.show(line, {watch.agent: watch.host for watch in fleet.watches})
    except OSError as error:
        reason = error.strerror or error
        raise RunDirError(f"the temporary folder cannot be used ({reason}): make room, or set TMPDIR") from error
