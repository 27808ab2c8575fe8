"""The steps of a closed-model run as a state machine. Pure: time and counts are handed in.

    RAMP --count is there, or it took too long--> HOLD --time or requests are up--> RAMP of the next step
                                                   '--after the last step--> DRAIN --all ended, or too long--> DONE

Nothing is drained between steps: users are added or removed, and requests run on across the border.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

from loadgen.plan import LoadPlan

RAMP_TIMEOUT_S = 30.0


class Phase(Enum):
    RAMP = "ramp"
    HOLD = "hold"
    DRAIN = "drain"
    DONE = "done"


class Stepper:
    """`log` gets a line of steps.jsonl at each ramp, begin and end. Times are CLOCK_MONOTONIC ns."""

    def __init__(self, plan: LoadPlan, log: Callable[[dict[str, Any]], None]) -> None:
        self._plan = plan
        self._log = log
        self._since_ns = 0
        self._ended_before = 0
        self.index = -1
        self.phase = Phase.DONE if not plan.steps else Phase.RAMP

    @property
    def level(self) -> int:
        """The number of users that is asked for now."""
        return self._plan.steps[max(self.index, 0)].level

    def advance(self, now_ns: int, users: int, ended: int, in_flight: int) -> float:
        """Move on as far as the facts allow; returns the seconds until time alone may change something.

        `ended` counts the requests that ended since the start of the run.
        """
        if self.index < 0 and self.phase is Phase.RAMP:
            self._ramp(now_ns, users)
        waited_s = (now_ns - self._since_ns) / 1e9
        if self.phase is Phase.RAMP:
            if users != self.level and waited_s < RAMP_TIMEOUT_S:
                return RAMP_TIMEOUT_S - waited_s
            self._mark("begin", now_ns, users)
            self.phase, self._since_ns, self._ended_before = Phase.HOLD, now_ns, ended
            waited_s = 0.0
        if self.phase is Phase.HOLD:
            step = self._plan.steps[self.index]
            remaining_s = (step.duration_s or float("inf")) - waited_s
            if remaining_s > 0 and ended - self._ended_before < (step.requests or float("inf")):
                return remaining_s
            self._mark("end", now_ns, users)
            if self.index + 1 < len(self._plan.steps):
                self._ramp(now_ns, users)
                return 0.0
            self.phase, self._since_ns = Phase.DRAIN, now_ns
            return self._plan.drain_s
        if self.phase is Phase.DRAIN:
            if in_flight > 0 and waited_s < self._plan.drain_s:
                return self._plan.drain_s - waited_s
            self.phase = Phase.DONE
        return 0.0

    def stop(self, now_ns: int, users: int) -> None:
        """End at once; a step that was holding ends here."""
        if self.phase is Phase.HOLD:
            self._mark("end", now_ns, users)
        self.phase = Phase.DONE

    def _ramp(self, now_ns: int, users: int) -> None:
        self.index += 1
        self.phase, self._since_ns = Phase.RAMP, now_ns
        self._mark("ramp", now_ns, users)

    def _mark(self, what: str, now_ns: int, users: int) -> None:
        step = self._plan.steps[self.index]
        self._log(
            {
                "step": self.index,
                "level": step.level,
                "unit": step.unit,
                "what": what,
                "t_ns": now_ns,
                "users": users,
            }
        )
