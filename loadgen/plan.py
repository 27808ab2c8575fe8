"""What load, when: `Step` and `LoadPlan`, and their validation, which reports every problem at once.

Pure: no clock, no Locust. Durations are seconds, levels are users (closed model).
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from loadgen.errors import UsageError

# The share of a step's hold time that is left out of its figures.
WARMUP_SHARE = 0.25
# The longest wait for answers still due after the last step.
MAX_DRAIN_S = 60.0

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


def parse_duration(text: str) -> float:
    """Seconds of "90", "1.5s", "500ms", "2m", "1h30m"; a bare number is seconds.

    Raises UsageError.
    """
    total, position = 0.0, 0
    for match in _DURATION.finditer(text.strip()):
        if match.start() != position:
            break
        total += float(match[1]) * _UNIT_S[match[2]]
        position = match.end()
    if position == 0 or position != len(text.strip()):
        raise UsageError(f"{text!r} is no duration: give seconds, or a number with ms, s, m or h, such as 90 or 1h30m")
    return total


def parse_levels(text: str) -> tuple[int, ...]:
    """Levels of "100,1000,5000".

    Raises UsageError.
    """
    try:
        levels = tuple(int(part) for part in text.split(","))
    except ValueError:
        levels = ()
    if not levels or min(levels) < 1:
        raise UsageError(f"{text!r} are no steps: give whole numbers above 0 and commas, such as 100,1000,5000")
    return levels


def default_levels(concurrency: int) -> tuple[int, ...]:
    """1/50, 1/10, 1/5, 1/2 and 1 of `concurrency`, rounded, without zeros and doubles."""
    levels = (round(concurrency / share) for share in (50, 10, 5, 2, 1))
    return tuple(dict.fromkeys(level for level in levels if level > 0))


@dataclass(frozen=True)
class Step:
    """One level of load. It ends after `duration_s` or after `requests` have ended, whichever comes first."""

    level: int
    unit: str  # users
    duration_s: float | None
    requests: int | None


@dataclass(frozen=True)
class LoadPlan:
    steps: tuple[Step, ...]
    arrival: str  # closed
    timeout_s: float
    drain_s: float
    warmup_share: float
    seed: int

    @property
    def peak(self) -> int:
        return max((step.level for step in self.steps), default=0)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def closed_plan(
    levels: tuple[int, ...], duration_s: float | None, requests: int | None, timeout_s: float, seed: int
) -> LoadPlan:
    """Closed-model plan of user levels.

    Raises UsageError with every problem, one a line.
    """
    problems = []
    if duration_s is not None and duration_s <= 0:
        problems.append(f"step time {duration_s:g} s: must be above 0")
    if requests is not None and requests < 1:
        problems.append(f"step requests {requests}: must be 1 or more")
    if duration_s is None and requests is None:
        problems.append("a step needs an end: give a step time or a number of requests")
    if timeout_s <= 0:
        problems.append(f"timeout {timeout_s:g} s: must be above 0")
    if problems:
        raise UsageError("\n".join(problems))
    return LoadPlan(
        steps=tuple(Step(level, "users", duration_s, requests) for level in levels),
        arrival="closed",
        timeout_s=timeout_s,
        drain_s=min(timeout_s, MAX_DRAIN_S),
        warmup_share=WARMUP_SHARE,
        seed=seed,
    )
