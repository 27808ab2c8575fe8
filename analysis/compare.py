"""NEW against BASE: effects of every step and figure, what the gates say, one verdict, and what to know of the runs.

    sides -> effects (Benjamini-Hochberg over all of them)
          -> gates (judgement.py)                           -> verdict

The table of effects is for looking: of what it calls different a share of 5 % may be none. No clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from analysis import effects, judgement, sides
from analysis.compared import COMPARED, better, bounded, is_ratio, side_of, typical, value_of
from analysis.effects import ALPHA
from analysis.environment import differences
from analysis.judgement import FAIL, PASS, change, plain
from analysis.sides import RunSet
from loadgen.errors import Incomparable
from loadgen.gates import Gate

# 1  first version
SCHEMA = 1
INDICATIVE = "indicative"
GOODPUT = "goodput_qps"
# With fewer repeats a side than these, small differences are missed.
REPEATS = 5

Comparison = dict[str, Any]


def compare(base: RunSet, new: RunSet, gates: Sequence[Gate], allowed: Sequence[str] = ()) -> Comparison:
    """Everything that a comparison says, for JSON: infinite is "inf", null was not measured or is not known.

    Raises Incomparable, and UsageError for keys that cannot be allowed.
    """
    sides.check(base, new, allowed)
    _check_goodput(base, new, gates)
    steps = [name for name in _steps(base) if name in _steps(new)]
    found = [_effect(base, new, step, name) for step in steps for name in _shown(base, new, gates)]
    _adjust([effect for effect in found if effect["p"] is not None])
    results = judgement.of_gates(base, new, gates, steps)
    why = _why_indicative(base, new, gates)
    indication = judgement.overall(results)
    return {
        "schema": SCHEMA,
        "base": _side(base),
        "new": _side(new),
        "steps": steps,
        "levels": [sides.steps_of(base, step)[0]["level"] for step in steps],
        "unit": base.runs[0].summary["steps"][0]["unit"],
        "left_out": [name for name in dict.fromkeys([*_steps(base), *_steps(new)]) if name not in steps],
        "simulated_gpu": bool(base.runs[0].summary["simulated_gpu"] or new.runs[0].summary["simulated_gpu"]),
        "allowed": list(allowed),
        "verdict": INDICATIVE if why and indication in (PASS, FAIL) else indication,
        "indication": indication,
        "indicative": why,
        "gates": results,
        "effects": found,
        "environment": [fact._asdict() for fact in differences(base, new)],
        "notes": _notes(base, new, steps, why),
    }


def _check_goodput(base: RunSet, new: RunSet, gates: Sequence[Gate]) -> None:
    """Raises Incomparable where a gate asks for goodput of runs by several objectives: an absolute one of NEW alone."""
    asked = [gate for gate in gates if gate.figure == GOODPUT]
    of = (base, new) if any(gate.relative for gate in asked) else (new,)
    if asked and len(found := _objectives(*of)) > 1:
        raise Incomparable(
            f"slo differs: {' and '.join(found)}: {', '.join(map(str, asked))} cannot be judged of goodput by "
            "different objectives: make the reports with the same ones, loadgen report RUN --slo"
        )


def _objectives(*of: RunSet) -> list[str]:
    """The objectives that goodput was counted by, in words: one entry where all runs have the same."""
    return list(dict.fromkeys(sides.objectives(member.summary) or "none" for side in of for member in side.runs))


def _steps(side: RunSet) -> list[str]:
    return sides.levels(side.runs[0].summary)


def _side(side: RunSet) -> dict[str, Any]:
    first = side.runs[0].manifest
    return {
        "asked": side.asked,
        "label": first["label"],
        "model": first["target"].get("model"),
        "scenario": (first["scenario"] or {}).get("name"),
        "runs": [{"run_id": run.path.name, "created": run.manifest["created"]} for run in side.runs],
    }


def _shown(base: RunSet, new: RunSet, gates: Sequence[Gate]) -> list[str]:
    """The figures of the table of effects: those that some step of either side has."""
    gated = {gate.figure for gate in gates}
    unequal = {GOODPUT} if len(_objectives(base, new)) > 1 else set()
    every = [step for side in (base, new) for run in side.runs for step in run.summary["steps"]]
    return [
        name
        for name, figure in COMPARED.items()
        if (figure.shown or name in gated) and any(value_of(step, name) is not None for step in every)
        if name not in unequal
    ]


def _effect(base: RunSet, new: RunSet, step: str, name: str) -> dict[str, Any]:
    ratio = is_ratio(name)
    before, after = (side_of(sides.steps_of(side, step), name, logarithms=ratio) for side in (base, new))
    estimate = effects.difference(before, after)
    low, high = effects.interval(estimate)
    if not ratio:
        low, high = bounded(name, (low, high), change=True)
    return {
        "step": step,
        "figure": name,
        "title": COMPARED[name].title,
        "unit": COMPARED[name].unit,
        "base": figure_of(base, step, name),
        "new": figure_of(new, step, name),
        "relative": ratio,
        "change": change(estimate.value if estimate else None, ratio),
        "change_ci95": [change(low, ratio), change(high, ratio)],
        "p": effects.p_differs(estimate) if estimate else None,
        "p_adjusted": None,
        "differs": None,
        "direction": _direction(name, estimate.value) if estimate else None,
    }


def figure_of(side: RunSet, step: str, name: str) -> dict[str, Any]:
    """What a side has: one value, its interval (between runs, or within the only one), and the values of its runs."""
    steps = sides.steps_of(side, step)
    back = math.exp if is_ratio(name) else float
    sampled = side_of(steps, name, logarithms=is_ratio(name))
    known = bool(sampled.values) and not any(map(math.isinf, sampled.values))
    low, high = effects.mean_interval(sampled) if known else sampled.only()
    ends = bounded(name, (None if low is None else back(low), None if high is None else back(high)))
    return {
        "value": plain(typical(steps, name)),
        "ci95": [plain(end) for end in ends],
        "runs": [plain(value_of(one, name)) for one in steps],
    }


def _direction(name: str, value: float) -> str:
    sign = better(name)
    if value == 0 or math.isnan(value) or not sign:
        return "changed"
    return "worse" if (value > 0) == (sign == "<") else "better"


def _adjust(found: list[dict[str, Any]]) -> None:
    for effect, p in zip(found, effects.benjamini_hochberg([effect["p"] for effect in found]), strict=True):
        effect |= {"p_adjusted": p, "differs": p <= ALPHA}


def _single(*of: RunSet) -> list[str]:
    return [side.name for side in of if len(side.runs) == 1]


def _why_indicative(base: RunSet, new: RunSet, gates: Sequence[Gate]) -> str | None:
    """BASE plays no part where all gates are absolute."""
    single = _single(base, new) if any(gate.relative for gate in gates) or not gates else _single(new)
    if not single:
        return None
    has = "has one run" if len(single) == 1 else "have one run each"
    return (
        f"{' and '.join(single)} {has}: how much runs of one configuration differ among themselves is not known, so a "
        f"difference may be chance that the intervals within a run do not show; repeat with loadgen run --repeat "
        f"{REPEATS} on both sides"
    )


def _notes(base: RunSet, new: RunSet, steps: list[str], indicative: str | None) -> list[str]:
    """What a reader should know of the runs before believing the figures."""
    notes = []
    if not indicative and _single(base, new):
        notes.append("BASE has one run: the gates ask nothing of it, but what differs from it is indicative only")
    if len(found := _objectives(base, new)) > 1:
        notes.append(f"slo differs: {' and '.join(found)}: goodput by different objectives is left out")
    fewest = min(len(base.runs), len(new.runs))
    if 1 < fewest < REPEATS:
        notes.append(f"{fewest} repeats on a side: differences are missed that {REPEATS} or more would show")
    created = [[str(run.manifest["created"]) for run in side.runs] for side in (base, new)]
    if max(created[0]) < min(created[1]) or max(created[1]) < min(created[0]):
        notes.append(
            "all runs of one side were made before those of the other: what changed on the machine in between counts "
            "as a difference, often 1 to 2 %; make repeats of both in turn, or give gates a limit well above that"
        )
    for side in (base, new):
        for step in steps:
            late = sum(one.get("client_on_time") is False for one in sides.steps_of(side, step))
            unsteady = sum(one.get("steady") is False for one in sides.steps_of(side, step))
            of = f"in {{}} of {len(side.runs)} runs" if len(side.runs) > 1 else ""
            if late:
                notes.append(f"{side.name}, {step}: the client was late {of.format(late)}".rstrip() + _LATE)
            if unsteady:
                notes.append(f"{side.name}, {step}: no steady state {of.format(unsteady)}".rstrip() + _UNSTEADY)
    return notes + sides.damaged(run for side in (base, new) for run in side.runs)


_LATE = ": its latencies are partly the load generator's own; use more workers, or another machine"
_UNSTEADY = ": its figures depend on how long it ran; make the steps longer"
