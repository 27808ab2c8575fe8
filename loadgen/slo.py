"""The grammar of service level objectives: "ttft_p99<1s, error_rate<2%". Text in, limits out; no clock.

    objectives = objective {"," objective}
    objective  = metric "_" stat "<" time  |  "error_rate" "<" number "%"
    metric     = ttft | e2e | service | itl | tpot        stat = p50 | p90 | p95 | p99 | mean

"<=" is taken for "<": measured figures are never equal to a limit by more than chance. Whether a run meets them is not
decided here (analysis/capacity.py).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from loadgen.errors import UsageError
from loadgen.plan import parse_duration

METRICS = ("ttft", "e2e", "service", "itl", "tpot")
STATS = ("p50", "p90", "p95", "p99", "mean")
ERROR_RATE = "error_rate"
EXAMPLE = "ttft_p99<1s"

_OBJECTIVE = re.compile(r"(?P<name>[^<>=]*?)\s*(?P<sign>[<>=]+)\s*(?P<limit>[^<>=]*)")


class Objective(NamedTuple):
    """`limit` is in ms; of the error rate, whose `stat` is empty, in %."""

    metric: str
    stat: str
    limit: float

    @property
    def name(self) -> str:
        return f"{self.metric}_{self.stat}" if self.stat else self.metric

    @property
    def unit(self) -> str:
        return "ms" if self.stat else "%"

    def __str__(self) -> str:
        if not self.stat:
            return f"{self.name}<{self.limit:g}%"
        return f"{self.name}<{self.limit / 1000:g}s" if self.limit >= 1000 else f"{self.name}<{self.limit:g}ms"


def parse_slo(text: str) -> tuple[Objective, ...]:
    """The objectives of a text, in its order.

    Raises UsageError with every problem, one a line.
    """
    found: list[Objective] = []
    problems = []
    for part in (part.strip() for part in text.split(",")):
        try:
            objective = _objective(part)
            if objective.name in {other.name for other in found}:
                raise UsageError(f"{objective.name} has two limits: give one")
            found.append(objective)
        except UsageError as error:
            problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))
    return tuple(found)


def _objective(text: str) -> Objective:
    match = _OBJECTIVE.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is no objective: write one such as {EXAMPLE} or {ERROR_RATE}<2%")
    name, sign, limit = match["name"].lower(), match["sign"], match["limit"]
    if sign not in ("<", "<="):
        raise UsageError(f"{text!r} has {sign!r}: an objective is an upper limit, such as {EXAMPLE}")
    if name == ERROR_RATE:
        return Objective(ERROR_RATE, "", _percent(text, limit))
    metric, _, stat = name.rpartition("_")
    if metric not in METRICS or stat not in STATS:
        raise UsageError(
            f"{name!r} is no figure of a step: give {ERROR_RATE}, or one of {', '.join(METRICS)} with one of "
            f"{', '.join(STATS)}, such as {EXAMPLE}"
        )
    if not re.search("[a-z]", limit):
        raise UsageError(f"{text!r} has no unit: give a time such as 800ms or 1s")
    time_ms = 1000 * parse_duration(limit)
    if time_ms <= 0:
        raise UsageError(f"{text!r} must have a limit above 0")
    return Objective(metric, stat, time_ms)


def _percent(text: str, limit: str) -> float:
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*%", limit)
    if match is None or not 0 < float(match[1]) <= 100:
        raise UsageError(f"{text!r} needs a limit above 0 % and up to 100 %, such as {ERROR_RATE}<2%")
    return float(match[1])
