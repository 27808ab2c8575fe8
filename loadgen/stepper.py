"""The steps of a run as a state machine: one class for each model. Pure: time and counts are handed in.

    RAMP --count is there, or it took too long--> HOLD --time or requests are up--> RAMP of the next step
                                                   '--after the last step--> DRAIN --all ended, or too long--> DONE

Nothing is drained between steps: users are added or removed, and requests run on across the border. In the open model
only the first RAMP waits for users: those that the requests in flight will need. Then the load starts, and the
schedule says when steps begin and end. All times are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol

from loadgen.plan import LoadPlan
from loadgen.schedule import Mark, Schedule

RAMP_TIMEOUT_S = 30.0
# From the last users of the open model to the start of its load: they get ready to send meanwhile.
LEAD_S = 0.5
# Users of the closed model come and go in a ramp this often.
_RAMP_TICK_S = 1.0
# What the workers report is this old at most.
REPORT_S = 1.5


class Phase(Enum):
    RAMP = "ramp"
    HOLD = "hold"
    DRAIN = "drain"
    DONE = "done"


class Stepper(Protocol):
    """What leads a run. `log` gets a line of steps.jsonl at each ramp, begin and end."""

    index: int
    phase: Phase

    @property
    def level(self) -> float:
        """The level of the step that is now, or comes first."""

    def users(self, now_ns: int) -> int:
        """The number of users that is asked for now."""

    def advance(self, now_ns: int, users: int, ended: int, in_flight: int) -> float:
        """Move on as far as the facts allow; returns the seconds until time alone may change something.

        `ended` counts the requests that ended since the start of the run.
        """

    def stop(self, now_ns: int, users: int, in_flight: int) -> None:
        """End at once; a step that was holding ends here."""


class ClosedStepper:
    """Steps of so many users, which come evenly over the plan's ramp."""

    def __init__(self, plan: LoadPlan, log: Callable[[dict[str, Any]], None]) -> None:
        self._plan = plan
        self._log = log
        self._since_ns = 0
        self._ended_before = 0
        self.index = -1
        self.phase = Phase.DONE if not plan.steps else Phase.RAMP

    @property
    def level(self) -> float:
        return self._plan.steps[max(self.index, 0)].level

    def users(self, now_ns: int) -> int:
        before = self._plan.steps[self.index - 1].level if self.index > 0 else 0
        missing_s = self._plan.ramp_s - (now_ns - self._since_ns) / 1e9
        if self.phase is not Phase.RAMP or missing_s <= 0:
            return int(self.level)
        return max(round(self.level - (self.level - before) * missing_s / self._plan.ramp_s), 1)

    def advance(self, now_ns: int, users: int, ended: int, in_flight: int) -> float:
        if self.index < 0 and self.phase is Phase.RAMP:
            self._ramp(now_ns, users)
        waited_s = (now_ns - self._since_ns) / 1e9
        if self.phase is Phase.RAMP:
            if waited_s < self._plan.ramp_s:
                return _RAMP_TICK_S
            if users != self.level and waited_s < self._plan.ramp_s + RAMP_TIMEOUT_S:
                return self._plan.ramp_s + RAMP_TIMEOUT_S - waited_s
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
            remaining_s = _drains(self._plan, waited_s, in_flight)
            if remaining_s > 0:
                return remaining_s
            self.phase = Phase.DONE
        return 0.0

    def stop(self, now_ns: int, users: int, in_flight: int) -> None:
        if self.phase is Phase.HOLD:
            self._mark("end", now_ns, users)
        self.phase = Phase.DONE

    def _ramp(self, now_ns: int, users: int) -> None:
        self.index += 1
        self.phase, self._since_ns = Phase.RAMP, now_ns
        self._mark("ramp", now_ns, users)

    def _mark(self, what: str, now_ns: int, users: int) -> None:
        self._log(_line(self._plan, self.index, what, now_ns, users))


class OpenStepper:
    """Steps of so many requests a second. `start` is called once, with the instant at which the load starts.

    The users of a line in steps.jsonl are the requests in flight; its instant is the scheduled one.
    """

    def __init__(self, plan: LoadPlan, log: Callable[[dict[str, Any]], None], start: Callable[[int], None]) -> None:
        """Raises UsageError when the trace cannot be read any more."""
        self._plan = plan
        self._log = log
        self._start = start
        self._marks = deque[Mark](Schedule(plan).marks)
        self._asked_ns: int | None = None
        self._t0_ns: int | None = None
        self._ended_ns = 0
        self.index = -1
        self.phase = Phase.RAMP

    @property
    def level(self) -> float:
        return self._plan.steps[max(self.index, 0)].level

    def users(self, now_ns: int) -> int:
        return self._plan.peak

    def advance(self, now_ns: int, users: int, ended: int, in_flight: int) -> float:
        if self._t0_ns is None:
            self._asked_ns = self._asked_ns or now_ns
            waited_s = (now_ns - self._asked_ns) / 1e9
            if users < self._plan.peak and waited_s < RAMP_TIMEOUT_S:
                return RAMP_TIMEOUT_S - waited_s
            self._t0_ns = now_ns + int(LEAD_S * 1e9)
            self._start(self._t0_ns)
        while self._marks and self._t0_ns + self._marks[0].offset_ns <= now_ns:
            self._pass(self._marks.popleft(), self._t0_ns, in_flight)
        if self._marks:
            return (self._t0_ns + self._marks[0].offset_ns - now_ns) / 1e9
        if self.phase is Phase.DRAIN:
            remaining_s = _drains(self._plan, (now_ns - self._ended_ns) / 1e9, in_flight)
            if remaining_s > 0:
                return remaining_s
            self.phase = Phase.DONE
        return 0.0

    def _pass(self, mark: Mark, t0_ns: int, in_flight: int) -> None:
        self.index = mark.step
        self._ended_ns = t0_ns + mark.offset_ns
        self.phase = {"ramp": Phase.RAMP, "begin": Phase.HOLD, "end": Phase.DRAIN}[mark.what]
        self._log(_line(self._plan, mark.step, mark.what, self._ended_ns, in_flight))

    def stop(self, now_ns: int, users: int, in_flight: int) -> None:
        if self.phase is Phase.HOLD:
            self._log(_line(self._plan, self.index, "end", now_ns, in_flight))
        self.phase = Phase.DONE


def _drains(plan: LoadPlan, waited_s: float, in_flight: int) -> float:
    """Seconds for which more answers are waited for; 0 when that is over."""
    return max((plan.drain_s if in_flight > 0 else REPORT_S) - waited_s, 0.0)


def _line(plan: LoadPlan, index: int, what: str, t_ns: int, users: int) -> dict[str, Any]:
    step = plan.steps[index]
    return {"step": index, "level": step.level, "unit": step.unit, "what": what, "t_ns": t_ns, "users": users}
