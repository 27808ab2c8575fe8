"""What gates say of a comparison: of each gate and step one verdict, of a gate one, and of all of them one. No clock.

A gate fails where NEW is shown to be beyond its limit with 95 % confidence, passes where NEW is shown to be within it,
and is not shown where the interval straddles the limit. Holm's correction goes over all gates and steps together,
because one false alarm stops a release: the chance of any is 5 % at most. That all pass needs no correction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

from analysis import effects
from analysis.compared import COMPARED, side_of, typical
from analysis.effects import ALPHA, Estimate
from analysis.sides import RunSet, steps_of
from loadgen.gates import Gate

FAIL, PASS, NOT_SHOWN, NOT_MEASURED, NOT_KNOWN = "fail", "pass", "not shown", "not measured", "not known"
# With this power, runs are said to be needed, up to so many.
POWER = 0.9
_MOST_RUNS = 100


class _Judged(NamedTuple):
    """A gate at one step: the estimate that it is held against, and the limit on its scale.

    Without an estimate `why` says so; `measured`: the figure is there all the same.
    """

    gate: Gate
    step: str
    estimate: Estimate | None
    limit: float = math.nan
    measured: bool = True
    why: str | None = None


def of_gates(base: RunSet, new: RunSet, gates: Sequence[Gate], steps: Sequence[str]) -> list[dict[str, Any]]:
    """An entry a gate: its verdict, and those of its steps."""
    judged = {(gate, step): _judged(base, new, gate, step) for gate in gates for step in steps}
    known = {key: _p(one.estimate, one, beyond=True) for key, one in judged.items() if one.estimate is not None}
    adjusted = dict(zip(known, effects.holm(list(known.values())), strict=True))
    repeats = min(len(base.runs), len(new.runs))
    results = []
    for gate in gates:
        mine = []
        for step in steps:
            entry = _result(judged[gate, step], known.get((gate, step)), adjusted.get((gate, step)), repeats)
            mine.append(entry | {side.name.lower(): plain(_typical(side, step, gate)) for side in (base, new)})
        results.append(
            {
                "gate": str(gate),
                "figure": gate.figure,
                "title": COMPARED[gate.figure].title,
                "relative": gate.relative,
                "sign": gate.sign,
                "limit": gate.limit,
                "verdict": _of_gate([step["verdict"] for step in mine]),
                "steps": mine,
            }
        )
    return results


def overall(results: Sequence[dict[str, Any]]) -> str | None:
    """Of all gates; None without any."""
    verdicts = [gate["verdict"] for gate in results]
    if not verdicts:
        return None
    if FAIL in verdicts:
        return FAIL
    return PASS if all(verdict == PASS for verdict in verdicts) else NOT_KNOWN


def _judged(base: RunSet, new: RunSet, gate: Gate, step: str) -> _Judged:
    before, after = (side_of(steps_of(side, step), gate.figure, logarithms=gate.relative) for side in (base, new))
    if not after.values or (gate.relative and not before.values):
        lacks = new.name if not after.values else base.name
        return _Judged(gate, step, None, measured=False, why=f"{lacks}: {COMPARED[gate.figure].title} was not measured")
    if not gate.relative:
        return _Judged(gate, step, effects.level(after, gate.limit), gate.limit)
    if (estimate := effects.difference(before, after)) is None:
        return _Judged(gate, step, None, why="it is infinite, or 0, on both sides")
    return _Judged(gate, step, estimate, math.log(gate.limit))


def _typical(side: RunSet, step: str, gate: Gate) -> float | None:
    return typical(steps_of(side, step), gate.figure)


def _p(estimate: Estimate, one: _Judged, *, beyond: bool) -> float:
    """Of "NEW is not beyond the limit", or of "NEW is not within it"."""
    upward = (one.gate.sign == "<") == beyond
    return estimate.p_above(one.limit) if upward else estimate.p_below(one.limit)


def _result(one: _Judged, p: float | None, p_adjusted: float | None, repeats: int) -> dict[str, Any]:
    """The value that is held against the limit, in % of BASE or in the figure's unit, and what comes of it."""
    estimate, why = one.estimate, one.why
    verdict = NOT_SHOWN if one.measured else NOT_MEASURED
    ends: tuple[float | None, float | None] = (None, None)
    if estimate is not None and p_adjusted is not None:
        ends = estimate.interval()
        if p_adjusted <= ALPHA:
            verdict = FAIL
        elif _p(estimate, one, beyond=False) <= ALPHA:
            verdict = PASS
        elif estimate.infinite is None and ends == (None, None):
            why = "one run has no interval of it"
        if not one.gate.relative and ends[0] is not None:
            ends = max(ends[0], 0.0), ends[1]
    relative = one.gate.relative
    return {
        "step": one.step,
        "verdict": verdict,
        "value": change(estimate.value, relative) if estimate else None,
        "value_ci95": [change(end, relative) for end in ends],
        "p": p,
        "p_adjusted": p_adjusted,
        "runs_needed": _runs_needed(estimate, one.limit, repeats) if estimate and verdict == NOT_SHOWN else None,
        "why": why,
    }


def _runs_needed(estimate: Estimate, limit: float, repeats: int) -> int | None:
    """How many runs a side would decide it with a probability of 90 %, were all as it seems; None: more than 100."""
    if repeats < 2 or not math.isfinite(estimate.value) or estimate.value == limit:
        return None
    reach = NormalDist().inv_cdf(1 - ALPHA) + NormalDist().inv_cdf(POWER)
    needed = repeats * (reach * estimate.above / (estimate.value - limit)) ** 2
    return max(math.ceil(needed), repeats + 1) if needed <= _MOST_RUNS else None


def _of_gate(verdicts: list[str]) -> str:
    """Of several steps: one that fails decides, and all have to pass; one that was not measured leaves it open."""
    if all(verdict == NOT_MEASURED for verdict in verdicts):
        return NOT_MEASURED
    if FAIL in verdicts:
        return FAIL
    return PASS if all(verdict == PASS for verdict in verdicts) else NOT_SHOWN


def change(value: float | None, ratio: bool) -> float | str | None:
    """In % of BASE, or in the figure's unit."""
    if value is None:
        return None
    return plain(100 * math.expm1(min(value, 700)) if ratio and value != math.inf else value)


def plain(value: float | None) -> float | str | None:
    return None if value is None or math.isnan(value) else "inf" if value == math.inf else value
