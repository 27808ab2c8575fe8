from __future__ import annotations

import threading
import time

import pytest
from conftest import until

from loadgen.errors import AgentError
from remote_agents.turns import Turns


class Comers:
    """Threads that take a turn each; `free` lets go of those that have one."""

    def __init__(self, turns: Turns, number: int) -> None:
        self.began: list[float] = []
        self.sent_away = 0
        self.free = threading.Event()
        self._turns = turns
        for _ in range(number):
            threading.Thread(target=self._come, daemon=True).start()

    def _come(self) -> None:
        try:
            with self._turns.turn():
                self.began.append(time.monotonic())
                self.free.wait()
        except AgentError:
            self.sent_away += 1


def test_the_next_begin_when_others_are_done() -> None:
    comers = Comers(Turns(2, patience_s=60), 5)
    until(lambda: len(comers.began) == 2)
    time.sleep(0.1)
    assert len(comers.began) == 2
    comers.free.set()
    until(lambda: len(comers.began) == 5, 1)


def test_who_takes_long_is_not_waited_for() -> None:
    comers = Comers(Turns(2, patience_s=0.2), 6)
    until(lambda: len(comers.began) == 6, 2)
    waited = [began - comers.began[0] for began in comers.began]
    assert max(waited[:2]) < 0.15
    assert waited[2] > 0.15
    assert 0.35 < waited[5] < 1
    comers.free.set()


def test_at_the_end_who_waits_is_sent_away_and_nobody_begins() -> None:
    turns = Turns(1, patience_s=60)
    comers = Comers(turns, 4)
    until(lambda: comers.began)
    turns.end()
    until(lambda: comers.sent_away == 3, 1)
    with pytest.raises(AgentError, match="the run has ended"), turns.turn():
        pass
    comers.free.set()
