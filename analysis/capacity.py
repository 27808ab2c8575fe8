"""The capacity plan of a run: knee, largest load within the SLO, and what a target rate needs. Pure, no clock.

    summary.json -> usable steps, curve, knee (operating.py, scalability.py)
                 -> largest load within the SLO (within_slo.py)
                 -> replicas, GPUs, cost and energy for the target (sizing.py)

Here: the shape of the plan, and what makes it doubtful. A figure has its interval beside it as `_low` and `_high`; null
is "not known", with its reason in `warnings`; what was taken for granted is in `assumptions`.
"""

from __future__ import annotations

import math
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from analysis import scalability, tables
from analysis.checks import SIMULATED_GPU
from analysis.operating import Working, forecast, knee, usable_steps, working
from analysis.ranges import UNKNOWN, Range
from analysis.scalability import Curve
from analysis.sizing import Demand, bill, power_w, replicas
from analysis.within_slo import Limit, largest_load, limits, value_of
from loadgen.errors import RunDirError

# 1  first version
SCHEMA = 1
# Caveats of a step that make its part of the curve doubtful; of the client's own there is one warning for all steps.
_DOUBTS = frozenset(
    {
        *("worker_cpu", "simulator_late", "load_not_delivered", "dropped", "no_step_end", "failures"),
        *("many_cancelled", "many_ended_after", "few_requests", "few_independent", "not_steady", "littles_law"),
    }
)

Plan = dict[str, Any]
Summary = dict[str, Any]


class Capacity(NamedTuple):
    """`plan` is what is printed; figures are drawn of `working` too."""

    plan: Plan
    working: Working
    demand: Demand


def plan(summary: Summary, demand: Demand) -> Capacity:
    """The plan of a run's summary (report/build.py).

    Raises RunDirError when no step is usable, and UsageError when an objective's figure was not measured, or the GPUs
    of a replica do not divide those of the run.
    """
    steps, left_out = usable_steps(summary)
    if not steps:
        reason = f": {left_out[0]['reason']}" if left_out else ""
        raise RunDirError(
            f"{summary['run_id']} has no step to plan with{reason}; run the scenario with several steps that succeed"
        )
    at = working(steps, tables.unit_of(summary), summary["steps"])
    warnings = _doubts(summary, at, left_out)
    assumptions = [
        "Throughput and latency follow from the requests in flight, as in the run: same model, settings, prompts and "
        "answers.",
        "Replicas do not slow each other down: N of them hold N times the rate of one.",
    ]
    at_knee = knee(at, warnings)
    found = limits(at, demand.slo, warnings)
    level, qps = largest_load(at, found, warnings)
    sizes = replicas(summary, demand, qps, warnings, assumptions)
    costs = bill(steps, demand, sizes, warnings, assumptions)
    below = [step for step in steps if step.level < at.last.level]
    whole: Plan = {
        "schema": SCHEMA,
        "run_id": summary["run_id"],
        "target": summary["target"],
        "simulated_gpu": summary["simulated_gpu"],
        "unit": at.unit,
        "asked": demand.__dict__ | {"slo": [str(objective) for objective in demand.slo]},
        **at_knee,
        **level.under("max_level_within_slo"),
        **qps.under("max_qps_within_slo"),
        "slo_bound_by": None if found[0].beyond else str(found[0].objective),
        "slo_extrapolated": found[0].beyond,
        "objectives": [_objective(limit) for limit in found],
        **sizes,
        **costs,
        "fit": None if at.curve is None else _fit(at.curve, len(steps)),
        "fit_refused": at.refused,
        "check": forecast(below, at.last, at.unit) if below else None,
        "steps": _steps(at, demand),
        "left_out": left_out,
        "assumptions": assumptions,
        "warnings": warnings,
    }
    return Capacity(whole, at, demand)


def _doubts(summary: Summary, at: Working, left_out: list[dict[str, Any]]) -> list[str]:
    """What the run says of itself that makes its capacity doubtful."""
    warnings: list[str] = []
    doubts: dict[str, list[tuple[str, str]]] = {}
    if summary["simulated_gpu"]:
        warnings.append(f"{SIMULATED_GPU}: this is the capacity of the simulator's model, not of a card")
    if at.refused:
        warnings.append(f"there is no fitted curve, so no knee: {at.refused}")
    elif at.curve is not None and at.curve.error_assumed:
        warnings.append(
            f"{len(at.steps)} steps leave nothing over to tell their noise by: the curve's intervals assume "
            f"{scalability.ASSUMED_ERROR:.0%} a step, and no cross-validation chose the law; measure more levels"
        )
    if summary["status"] != "complete":
        warnings.append(f"the run is not complete ({summary['status']}): steps may be missing")
    warnings += [f"{entry['reason']}: it tells no capacity, but can break an objective" for entry in left_out]
    for step in at.steps:
        for caveat in step.figures["caveats"]:
            doubts.setdefault(caveat["code"], []).append((f"{step.level:g}", caveat["text"]))
    for code, found in doubts.items():
        levels = ", ".join(dict.fromkeys(level for level, _ in found))
        if code == "client_late":
            warnings.append(
                f"the client was late at {levels} {at.unit}: what was measured there may be the client's capacity and "
                "not the server's; use more workers"
            )
        elif code in _DOUBTS:
            which = f"{at.unit}; of the last" if len(found) > 1 else at.unit
            warnings.append(f"at {levels} {which}: {found[-1][1]}")
    return warnings


def _objective(limit: Limit) -> dict[str, Any]:
    figures = limit.level.under("max_level")
    return {"objective": str(limit.objective), **figures, "extrapolated": limit.beyond}


def _fit(curve: Curve, steps: int) -> dict[str, Any]:
    """The law, its parameters and how well it foretold steps that it was not fitted to."""
    parameters = {}
    for place, (name, unit, meaning) in enumerate(curve.law.parameters):
        found = Range(*curve.figure(itemgetter((slice(None), place))))
        parameters[name] = {**found.under("value"), "unit": unit, "meaning": meaning}
    return {
        "law": curve.law.name,
        "title": curve.law.title,
        "formula": curve.law.formula,
        "steps": steps,
        "parameters": parameters,
        **Range(*curve.figure(curve.law.limit)).under("limit_qps"),
        "step_error_pct": 100 * curve.error,
        "cross_validation_error_pct": {name: 100 * error for name, error in curve.cross_validation.items()},
    }


def _steps(at: Working, demand: Demand) -> list[dict[str, Any]]:
    """What was measured, beside the curve and the objectives."""
    rows = []
    for step in at.steps:
        fitted = UNKNOWN
        if at.curve is not None:
            fitted = Range(*(float(figure[0]) for figure in at.curve.qps(np.array([step.in_flight]))))
        watts, tokens = power_w(step), step.figures["output_tokens_per_s"]
        values = {objective: value_of(step.figures, objective) for objective in demand.slo}
        rows.append(
            {
                "level": step.level,
                "in_flight": step.in_flight,
                "qps": step.qps,
                **fitted.under("qps_fitted"),
                "e2e_p50_ms": step.figures["e2e_ms"]["p50"],
                "slo_figures": {
                    objective.name: None if found is None else "inf" if math.isinf(found.value) else found.value
                    for objective, found in values.items()
                },
                "slo_held": all(found is not None and found.value < slo.limit for slo, found in values.items()),
                "power_w": watts,
                "j_per_output_token": watts / tokens if watts is not None and tokens else None,
            }
        )
    return rows
