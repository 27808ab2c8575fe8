"""What a caller may choose about SSH, the one error that all of it raises, and how its deadlines are counted.

Deadlines are instants of CLOCK_MONOTONIC in seconds, as `time.monotonic` gives them.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from loadgen.errors import AgentError


class SshError(AgentError):
    """A host that cannot be used over SSH. Names keys by path and fingerprint only: no secret is in its text."""


def default_pins() -> Path:
    """Our own file of host keys that were accepted as new: the user's known_hosts stay as they are."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state.startswith("/") else Path("~/.local/state").expanduser()) / "loadgen" / "known_hosts"


@dataclass(frozen=True)
class SshOptions:
    """`config_file` stands in for the user's and the system's ssh_config. Each step of a connect has
    `connect_timeout_s`, or what ConnectTimeout says; `passphrases` open encrypted identity files."""

    config_file: Path | None = None
    accept_new_host_keys: bool = False
    pins: Path = field(default_factory=default_pins)
    passphrases: tuple[str, ...] = field(default=(), repr=False)
    connect_timeout_s: float = 10.0


def limit_of(deadline: float | None, step_s: float) -> float:
    """When a step that begins now has to end."""
    limit = time.monotonic() + step_s
    return limit if deadline is None else min(limit, deadline)


def left(limit: float) -> float:
    """Seconds until then; never 0, which some calls take for something else."""
    return max(limit - time.monotonic(), 0.001)
