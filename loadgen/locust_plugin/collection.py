"""The collector process of a run, as the master sees it: started, listened to, stopped.

Its standard input is its lifeline; its standard output is a JSON line of live telemetry each second. It alone gets
the passphrases of the user's SSH keys.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gevent
from gevent import subprocess

from loadgen import rundir
from loadgen.agents.passphrases import PASSPHRASES

logger = logging.getLogger(__name__)

_START_S = 15.0  # the first line comes when all agents have settled, or after 10 s
_STOP_S = 5.0


class Collection:
    """Started when made; returns when the first telemetry came, or did not in time. `latest` is the last live line."""

    def __init__(self, run: Path, config: dict[str, Any], on_loss: Callable[[], None]) -> None:
        self.latest: dict[str, Any] = {}
        self._on_loss = on_loss
        self._stopping = False
        with (run / rundir.LOGS / "collector.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "remote_agents.collector"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **_passphrases()},
            )
        self._tell(json.dumps({"run_dir": str(run), **config}))
        gevent.spawn(self._read)
        with gevent.Timeout(_START_S, False):
            while not self.latest and self._process.poll() is None:
                gevent.sleep(0.05)

    def missing(self, agents: Sequence[str]) -> list[str]:
        """Why not, of each of these agents that does not sample."""
        states = self.latest.get("agents", {})
        return [
            f"{agent}: {states.get(agent, 'nothing was heard of it, see logs/collector.log')}"
            for agent in agents
            if states.get(agent) != "ok"
        ]

    def _tell(self, line: str) -> None:
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it is gone; its reader says so

    def _read(self) -> None:
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # cut: the collector was killed meanwhile
                self.latest = json.loads(line)
        self.latest = {}
        if not self._stopping:
            self._on_loss()

    def stop(self) -> None:
        """End it in order; returns when it has ended."""
        self._stopping = True
        self._tell("stop")
        try:
            self._process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            logger.error("the collector did not end in time")
            self._process.terminate()


@functools.cache
def _passphrases() -> dict[str, str]:
    """Taken out of the environment, so that nothing else is started with them; kept for the runs to come."""
    found = os.environ.pop(PASSPHRASES, None)
    return {} if found is None else {PASSPHRASES: found}
