"""Whether more load still brings more throughput, and where the requests wait that it adds. Pure; entries of a summary.

    users = at the client + outside the engine + in the engine's queue + in its running batch        (Little's law)

What a place holds beyond what the same throughput needed of it at the lightest step is its pile-up: it lies before
what limits the server. Throughput has stopped growing where its elasticity, d ln X / d ln load, is below 1/2: there
latency grows faster than throughput, which is past the knee of power X / R (Kleinrock 1979). Between two steps time in
flight is taken to grow as R = a + b load, as it does in a batch; then the elasticity at the heavier one is

    a / R  =  (times the throughput - 1) / (times the load - 1)        the share of proportional growth
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

from analysis.steady import CHANGED

Step = Mapping[str, Any]

KNEE = 0.5
CLIENT, OUTSIDE, WAITING, RUNNING, BEFORE, AFTER = "client", "outside", "waiting", "running", "before", "after"
SERVED = "served"
# Two steps are told apart when one has this share of the other's load at most.
_LIGHTER = 0.8
# In the open model requests in flight may hardly differ: then their growth tells nothing.
_LEAST_MORE = 0.1
# The error of an elasticity is no less than this: steps differ by more than their own noise.
_LEAST_ERROR = 0.05
# The open model: what got through of what was due, from where it may be chance down to where it is not.
_THROUGH, _STUCK = 0.9, 0.8
# Of a throughput without an interval.
_ASSUMED_ERROR = 0.1
_Z95 = NormalDist().inv_cdf(0.975)


class Growth(NamedTuple):
    """Of throughput with load from a lighter step; `probability` that it has stopped growing in proportion."""

    since: float
    times_load: float
    times_qps: float
    elasticity: float
    probability: float


class PileUp(NamedTuple):
    """Requests at each place, and the shares of the pile-up that are there. `known`: the server told of its own.

    `baseline` is the step that told what the places need; None without one.
    """

    requests: dict[str, float]
    shares: dict[str, float]
    total: float
    baseline: float | None
    known: bool


def lighter_than(step: Step, steps: Sequence[Step]) -> list[Step]:
    """The steps of less load that had throughput, the lightest first."""
    found = [other for other in steps if 0 < other["level"] <= _LIGHTER * step["level"] and other["qps"]]
    return sorted(found, key=lambda other: float(other["level"]))


def growth(step: Step, lighter: Sequence[Step]) -> Growth | None:
    """Since the next lighter step; None without one. In the open model load is what is due and not ended."""
    for other in reversed(lighter):
        load, before = _load(step), _load(other)
        if load is None or before is None or load <= before or not step["qps"]:
            continue
        times_load, times_qps = load / before, step["qps"] / other["qps"]
        more = times_load - 1
        if more < _LEAST_MORE:
            continue
        error = times_qps * math.hypot(_relative_error(step), _relative_error(other)) / more
        elasticity = (times_qps - 1) / more
        stopped = NormalDist(elasticity, max(error, _LEAST_ERROR)).cdf(KNEE)
        return Growth(other["level"], times_load, times_qps, elasticity, stopped)
    return None


def _load(step: Step) -> float | None:
    load = step["level"]
    if step["rate"]:
        flying = step["in_flight_mean"]
        load = None if flying is None else flying + _unsent(step)
    return float(load) if load else None


def _unsent(step: Step) -> float:
    """Requests of the open model that are due and not sent, by Little's law."""
    return float((step["send_lag_ms"]["p50"] or 0.0) / 1e3 * step["rate"]["delivered"])


def got_through(step: Step) -> float | None:
    """Of what was due in the open model, the share that was sent, or that succeeded where that is less.

    Not what ended meanwhile, as answers that take long end later, all of them; but where each takes longer than those
    before it, what did not end piles up. None in the closed model.
    """
    if not step["rate"] or not step["rate"]["due"]:
        return None
    due, slower = step["rate"]["due"], (step.get("drift_pct") or {}).get("e2e")
    shares = [step["rate"]["delivered"] / due, 1.0 if step["success_pct"] is None else step["success_pct"] / 100]
    if slower and slower[0] > 100 * CHANGED:
        shares.append((step["qps"] or 0.0) / due)
    return float(min(shares))


def stuck(step: Step) -> float:
    """How sure it is, 0 to 1, that less got through than was due in the open model; 0 in the closed model."""
    through = got_through(step)
    return 0.0 if through is None else min(1.0, max(0.0, (_THROUGH - through) / (_THROUGH - _STUCK)))


def _relative_error(step: Step) -> float:
    interval = step.get("qps_ci95")
    if not interval or None in interval or not step["qps"]:
        return _ASSUMED_ERROR
    return float(interval[1] - interval[0]) / 2 / _Z95 / float(step["qps"])


def batch_elasticity(step: Step, lighter: Sequence[Step]) -> float | None:
    """How throughput went with the running batch: would a larger one bring more? None: the batch did not grow."""
    batch = _server(step, "running")
    for other in reversed(lighter):
        before = _server(other, "running")
        if batch and before and before <= 0.7 * batch and step["qps"]:
            return math.log(step["qps"] / other["qps"]) / math.log(batch / before)
    return None


def _server(step: Step, name: str) -> float | None:
    value = (step["server"] or {}).get(name)
    return None if value is None else float(value)


def pile_up(step: Step, lighter: Sequence[Step]) -> PileUp | None:
    """Without a lighter step all that is in flight; None when nothing is known of that."""
    now = _places(step)
    if now is None:
        return None
    base = next(
        (other for other in lighter if (places := _places(other)) is not None and places.keys() == now.keys()), None
    )
    before = _places(base) if base is not None else None
    needs = dict.fromkeys(now, 0.0)
    if base is not None and before is not None:
        needs = {place: count * step["qps"] / base["qps"] if step["qps"] else 0.0 for place, count in before.items()}
    else:
        needs[CLIENT] = now[CLIENT]  # a user's pause between requests cannot be told from the client's delay
    if step["rate"]:
        needs[CLIENT] = 0.0  # there is no pause: what waits at the client was due
    excess = {place: max(0.0, count - needs[place]) for place, count in now.items()}
    total = sum(excess.values())
    shares = {place: count / total if total > 0 else 0.0 for place, count in excess.items()}
    known = WAITING in now or RUNNING in now
    return PileUp(now, shares, total, None if base is None else base["level"], known)


def _places(step: Step) -> dict[str, float] | None:
    """Mean requests at each place; with what the server tells, all, its batch or its queue, else the stream, or as one.

    Where the server does not tell its queue, what is not in its batch is in one place: before it.
    """
    flying = step["in_flight_mean"]
    if flying is None:
        return None
    at_client = _unsent(step) if step["rate"] else max(0.0, step["level"] - flying)
    running, waiting = _server(step, "running"), _server(step, "waiting")
    if running is not None and waiting is not None:
        outside = max(0.0, flying - running - waiting)
        return {CLIENT: at_client, OUTSIDE: outside, WAITING: waiting, RUNNING: min(running, flying)}
    if running is not None:
        return {CLIENT: at_client, BEFORE: max(0.0, flying - running), RUNNING: min(running, flying)}
    if waiting is not None:
        queued = min(waiting, flying)
        return {CLIENT: at_client, WAITING: queued, SERVED: flying - queued}
    first, whole = (step[f"{name}_ms_ok"]["mean"] for name in ("ttft", "e2e"))
    if isinstance(first, int | float) and isinstance(whole, int | float) and whole > 0:
        before = flying * min(1.0, first / whole)
        return {CLIENT: at_client, BEFORE: before, AFTER: flying - before}
    return {CLIENT: at_client, SERVED: flying}
