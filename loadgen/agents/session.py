"""Agents for as long as a command lasts: started, flushed each second, ended in order when time or patience is over.

Runs in the command's own process. Times are CLOCK_MONOTONIC seconds of this host.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loadgen.errors import AgentError
from loadgen.options import Settings
from remote_agents.collector import FLEET_S, Config, Fleet, parse_config

_TURN_S = 0.05
_QUIET_S = 2.0  # a start that takes no longer needs no words


class Signals:
    """Whether Ctrl-C, or a signal to the same end, has come."""

    def __init__(self) -> None:
        self.came = False

    def note(self, *_: object) -> None:
        self.came = True


@contextmanager
def signals_noted() -> Iterator[Signals]:
    """Instead of tearing us out of the work. Agents have sessions of their own: Ctrl-C does not reach them."""
    signals = Signals()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, signals.note) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def config_of(settings: Settings, run_dir: Path, **others: Any) -> Config:
    """What the options say of agents, checked as a run's collector checks it. Raises UsageError."""
    values = {
        **settings.watching.config(),
        "run_dir": str(run_dir),
        "endpoint": settings.host,
        "metrics_token_env": settings.api_key_env,
    }
    return parse_config(json.dumps(values | others))


@contextmanager
def started(config: Config) -> Iterator[Fleet]:
    """The agents of the configuration, until the end of the block. Raises OSError when nothing can be written."""
    fleet = Fleet(config)
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.end()


def settle(fleet: Fleet, signals: Signals, say: Callable[[str], None]) -> None:
    """Wait until each agent has started or failed to, but not for ever. Raises AgentError when none can be started."""
    began = time.monotonic()
    told = _QUIET_S
    while not fleet.settled and not signals.came and (waited_s := time.monotonic() - began) < FLEET_S:
        if waited_s >= told:
            told += 1
            ready = sum(watch.settled.is_set() for watch in fleet.watches)
            say(f"agents: {ready} of {len(fleet.watches)} started")
        time.sleep(_TURN_S)
    if not any(watch.hello or watch.problem is None for watch in fleet.watches):
        raise AgentError("\n".join(f"{watch.agent}: {watch.problem}" for watch in fleet.watches))


def lines(fleet: Fleet, signals: Signals, duration_s: float | None) -> Iterator[dict[str, Any]]:
    """The live line of each second, flushed to the disk before, until the time is over or a signal has come.

    Raises AgentError when every agent has ended, and OSError when the disk is full.
    """
    began = due = time.monotonic()
    end = began + duration_s if duration_s is not None else float("inf")
    while not signals.came and (now := time.monotonic()) < end:
        if now >= due:
            due += max(1.0, now - due)
            fleet.flush()
            yield fleet.live.line(False, fleet.states())
            if not any(watch.is_alive() for watch in fleet.watches):
                states = "; ".join(f"{name}: {state}" for name, state in fleet.states().items())
                raise AgentError(f"no host is watched any more: {states}")
        time.sleep(max(min(_TURN_S, end - time.monotonic()), 0))
    fleet.flush()
