"""The load shape that follows a `Stepper`. Registered only when steps are given, so that users stay editable otherwise.

Locust asks it once a second on the master; a wait that ends sooner is waited out here, so that steps keep their length.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import gevent
from locust import LoadTestShape

from loadgen.stepper import Phase, Stepper

logger = logging.getLogger(__name__)


class SteppedShape(LoadTestShape):
    """`counts` gives (users, ended, in flight); `on_drain` is called once, when nothing new may be sent."""

    abstract = True

    def __init__(
        self, stepper: Stepper, counts: Callable[[], tuple[int, int, int]], on_drain: Callable[[], None]
    ) -> None:
        super().__init__()
        self._stepper = stepper
        self._counts = counts
        self._on_drain = on_drain
        self._draining = False
        self.failure: Exception | None = None

    def tick(self) -> tuple[int, float] | None:
        # T13: an exception here would end the shape and leave the load running.
        try:
            return self._tick()
        except Exception as error:
            logger.exception("the load shape failed")
            self.failure = error
            return None

    def _tick(self) -> tuple[int, float] | None:
        stepper = self._stepper
        wait_s = stepper.advance(time.monotonic_ns(), *self._counts())
        while 0 < wait_s < 1:
            gevent.sleep(wait_s)
            wait_s = stepper.advance(time.monotonic_ns(), *self._counts())
        if stepper.phase is Phase.DONE:
            return None
        if stepper.phase is Phase.DRAIN and not self._draining:
            self._draining = True
            self._on_drain()
        # T4: the whole step in one spawn message; users then start at random offsets.
        return stepper.level, float(stepper.level)
