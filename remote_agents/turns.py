"""Who may connect now: a few at once, so that many hosts do not starve each other of our CPU. CLOCK_MONOTONIC seconds.

Whoever takes long waits for the network, which costs nothing: after `patience_s` its turn is given to the next too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from loadgen.errors import AgentError


class Turns:
    def __init__(self, at_once: int, patience_s: float) -> None:
        self._at_once = at_once
        self._patience_s = patience_s
        self._begun: list[float] = []  # by those who are not done
        self._ended = False
        self._changed = threading.Condition()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Raises AgentError when there are no turns any more."""
        with self._changed:
            while not self._ended and (wait_s := self._wait_s()) > 0:
                self._changed.wait(wait_s)
            if self._ended:
                raise AgentError("the run has ended before a connection was begun", passing=True)
            began = time.monotonic()
            self._begun.append(began)
        try:
            yield
        finally:
            with self._changed:
                self._begun.remove(began)
                self._changed.notify_all()

    def end(self) -> None:
        """Whoever waits is sent away."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _wait_s(self) -> float:
        """Until a turn is free, if nobody is done before."""
        now = time.monotonic()
        quick = [began for began in self._begun if now - began < self._patience_s]
        return 0 if len(quick) < self._at_once else min(quick) + self._patience_s - now
