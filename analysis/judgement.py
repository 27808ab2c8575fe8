"""What gates say of a comparison: of each gate and step one verdict, of a gate one, and of all of them one. No clock.

A gate fails where NEW is shown to be beyond its limit with 95 % confidence, passes where NEW is shown to be within it,
and is not shown where the limit lies between the bounds, each of which holds with 95 %. NEW with a run that is infinite
is not within any limit. A step at which a figure was not measured, in whichever run, leaves its gate not judged. Holm's
correction goes over all gates and steps together, because one false alarm stops a release: the chance of any is 5 % at
most. That all pass needs no correction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from analysis import effects
from analysis.compared import COMPARED, bounded, side_of, typical, value_of
from analysis.effects import ALPHA, Ends, Estimate, Found, Side
from analysis.sides import RunSet, steps_of
from loadgen.gates import Gate

FAIL, PASS, NOT_SHOWN, NOT_MEASURED, NOT_KNOWN = "fail", "pass", "not shown", "not measured", "not known"
# With this power, runs are said to be needed, up to so many.
POWER = 0.9
_MOST_RUNS = 100


class _Judged(NamedTuple):
    """A gate at one step: the estimate that it is held against, and the limit on its scale.

    Without an estimate `why` says so; `measured`: the figure is there all the same. `may_pass`: no run of NEW is
    infinite. `runs` are those that count, a side as it were; with one on a side their spread is not known.
    """

    gate: Gate
    step: str
    estimate: Found | None
    limit: float = math.nan
    measured: bool = True
    may_pass: bool = True
    why: str | None = None
    runs: tuple[int, ...] = ()


def of_gates(base: RunSet, new: RunSet, gates: Sequence[Gate], steps: Sequence[str]) -> list[dict[str, Any]]:
    """An entry a gate: its verdict, and those of its steps."""
    judged = {(gate, step): _judged(base, new, gate, step) for gate in gates for step in steps}
    known = {key: _p(one.estimate, one, beyond=True) for key, one in judged.items() if one.estimate is not None}
    adjusted = dict(zip(known, effects.holm(list(known.values())), strict=True))
    results = []
    for gate in gates:
        mine = []
        for step in steps:
            entry = _result(judged[gate, step], known.get((gate, step)), adjusted.get((gate, step)), len(known))
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
    for side in (new, base) if gate.relative else (new,):
        if lacks := _lacks(side, gate.figure, step):
            return _Judged(gate, step, None, measured=False, why=lacks)
    may_pass = (math.inf if gate.sign == "<" else -math.inf) not in after.values
    if not gate.relative:
        own, told = effects.level(after), _infinite(NEW=after)
        return _Judged(gate, step, own, gate.limit, may_pass=may_pass, why=told, runs=(len(after.values),))
    if (estimate := effects.difference(before, after)) is None:
        return _Judged(gate, step, None, why="it is infinite, or 0, in every run of both sides")
    runs, told = (len(before.values), len(after.values)), _infinite(BASE=before, NEW=after)
    return _Judged(gate, step, estimate, math.log(gate.limit), may_pass=may_pass, why=told, runs=runs)


def _lacks(side: RunSet, name: str, step: str) -> str | None:
    """Which runs lack a figure: what became of the others there is not known."""
    of = [value_of(one, name) for one in steps_of(side, step)]
    if None not in of:
        return None
    where = f" in {of.count(None)} of {len(of)} runs" if any(value is not None for value in of) else ""
    return f"{side.name}: {COMPARED[name].title} was not measured{where}"


def _infinite(**sides: Side) -> str | None:
    """How many runs of a side are infinite, or 0; where some are, but too few to be sure."""
    found = {name: [value for value in side.values if math.isinf(value)] for name, side in sides.items()}
    told = [f"{len(some)} of {len(sides[name].values)} runs of {name}" for name, some in found.items() if some]
    size = "infinite" if any(value > 0 for some in found.values() for value in some) else "0"
    return f"in {' and '.join(told)} it is {size}; too few runs to be sure" if told else None


def _typical(side: RunSet, step: str, gate: Gate) -> float | None:
    return typical(steps_of(side, step), gate.figure)


def _p(estimate: Found, one: _Judged, *, beyond: bool) -> float:
    """Of "NEW is not beyond the limit", or of "NEW is not within it"."""
    upward = (one.gate.sign == "<") == beyond
    return estimate.p_above(one.limit) if upward else estimate.p_below(one.limit)


def _result(one: _Judged, p: float | None, p_adjusted: float | None, tests: int) -> dict[str, Any]:
    """The value that is held against the limit, in % of BASE or in the figure's unit, and what comes of it."""
    estimate, why = one.estimate, one.why
    verdict = NOT_SHOWN if one.measured else NOT_MEASURED
    ends: Ends = (None, None)
    if estimate is not None and p is not None and p_adjusted is not None:
        ends = effects.interval(estimate, ALPHA)
        if p_adjusted <= ALPHA:
            verdict = FAIL
        elif one.may_pass and _p(estimate, one, beyond=False) <= ALPHA:
            verdict = PASS
        elif p <= ALPHA:
            why = f"alone it would fail, but {tests} tests are made, and one of them may by chance"
        elif why is None:
            why = "one run has no interval of it" if ends == (None, None) else "the limit lies between the bounds"
        if not one.gate.relative:
            ends = bounded(one.gate.figure, ends)
    relative = one.gate.relative
    return {
        "step": one.step,
        "verdict": verdict,
        "value": change(estimate.value, relative) if estimate else None,
        "value_bounds95": [change(end, relative) for end in ends],
        "p": p,
        "p_adjusted": p_adjusted,
        "runs_needed": _runs_needed(estimate, one, tests) if verdict == NOT_SHOWN else None,
        "why": why if verdict in (NOT_SHOWN, NOT_MEASURED) else None,
    }


def _runs_needed(estimate: Found | None, one: _Judged, tests: int) -> int | None:
    """How many runs a side would decide it with a probability of 90 %, were all as it seems; None: more than 100.

    To fail is harder than to pass: it has to hold among as many `tests` (Holm, at its strictest).
    """
    if not isinstance(estimate, Estimate) or min(one.runs) < 2 or estimate.value == one.limit:
        return None
    away = abs(estimate.value - one.limit)
    above = estimate.value > one.limit
    alpha = ALPHA / tests if above == (one.gate.sign == "<") else ALPHA
    mean = len(one.runs) / sum(1 / count for count in one.runs)  # as good as so many on each side
    runs = np.arange(min(one.runs) + 1, _MOST_RUNS + 1)
    error = (estimate.below if above else estimate.above) * np.sqrt(mean / runs)
    freedom = estimate.freedom * (runs - 1) / (mean - 1)
    enough = effects.t_tail(away / error - NormalDist().inv_cdf(POWER), freedom) <= alpha
    return int(runs[enough.argmax()]) if enough.any() else None


def _of_gate(verdicts: list[str]) -> str:
    """Of several steps: one that fails decides, one that cannot be judged leaves the gate so, and all have to pass."""
    for verdict in (FAIL, NOT_MEASURED, NOT_SHOWN):
        if verdict in verdicts:
            return verdict
    return PASS


def change(value: float | None, ratio: bool) -> float | str | None:
    """In % of BASE, or in the figure's unit."""
    if value is None:
        return None
    return plain(100 * math.expm1(min(value, 700)) if ratio and value != math.inf else value)


def plain(value: float | None) -> float | str | None:
    return None if value is None or math.isnan(value) else "inf" if value == math.inf else value
