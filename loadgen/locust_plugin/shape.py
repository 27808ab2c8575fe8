"""The load shape: Locust asks it once a second, on the master, how many users there should be.

Set on the environment only when steps are given, so that users stay editable in the web UI otherwise.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import gevent
from locust import LoadTestShape

from loadgen.locust_plugin.active_run import ActiveRun
from loadgen.stepper import Phase

logger = logging.getLogger(__name__)


class SteppedShape(LoadTestShape):
    """`begin` gives the run, making it at the first tick; `drain` is called once, when nothing new may be sent.

    There are never more than `peak` users.
    """

    abstract = True

    def __init__(self, peak: int, begin: Callable[[], ActiveRun], drain: Callable[[], None]) -> None:
        super().__init__()
        self._spawn_rate = float(peak)
        self._begin = begin
        self._drain = drain
        self._draining = False
        self.failure: Exception | None = None

    def tick(self) -> tuple[int, float] | None:
        # T13: an exception here would end the shape and leave the load running.
        try:
            return self._tick()
        except Exception as error:  # whatever it is: the load must end
            logger.exception("the load shape failed")
            self.failure = error
            return None

    def _tick(self) -> tuple[int, float] | None:
        run = self._begin()
        stepper = run.stepper
        if run.phase == "stop":
            return None
        wait_s = stepper.advance(time.monotonic_ns(), *run.counts)
        # Locust comes back in a second: what is due sooner is waited for here, so that steps keep their length.
        while 0 < wait_s < 1:
            gevent.sleep(wait_s)
            wait_s = stepper.advance(time.monotonic_ns(), *run.counts)
        if stepper.phase is Phase.DONE or run.phase == "stop":
            return None
        if stepper.phase is Phase.DRAIN and not self._draining:
            self._draining = True
            self._drain()
        # T4: all that come or go now in one spawn message; users then start at random offsets.
        return stepper.users(time.monotonic_ns()), self._spawn_rate
