"""A capacity plan as words and rows, for the text of `loadgen plan` and for its page. Pure, made of the plan alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from analysis.ranges import read
from analysis.tables import DASH, count, fine, share, text

Plan = dict[str, Any]
Row = tuple[str, str, str]


def shown(figures: dict[str, Any], name: str, show: Callable[[float], str] = fine) -> tuple[str, str]:
    """A figure and its interval as text."""
    value, low, high = read(figures, name)
    return text(value, show), between([text(low, show), text(high, show)])


def between(ends: Sequence[str]) -> str:
    """An interval as text; an end that is not known is left open."""
    low, high = ends
    if low == high == DASH:
        return DASH
    if high == DASH:
        return f"{low} or more"
    return f"{high} or less" if low == DASH else f"{low} to {high}"


def verdict(plan: Plan) -> str:
    """The plan in one sentence."""
    asked = plan["asked"]
    slo, target = ", ".join(asked["slo"]), f"{asked['target_qps']:g} requests/s"
    if plan["replicas"] is None:
        return f"No plan for {target} within {slo}: what a replica holds is not known, and the warnings say why."
    gpus = "" if plan["gpus"] is None else f" ({count(plan['gpus'])} GPUs)"
    number, within = shown(plan, "replicas", count)
    noun = "replica" if plan["replicas"] == 1 else "replicas"
    return (
        f"{target} within {slo} need {number} {noun}{gpus}, 95 %: {within}, with {100 * asked['headroom']:g} % "
        f"headroom and {asked['spare']} spare."
    )


def headline(plan: Plan) -> list[Row]:
    """Name, figure and interval of what a reader looks for first."""
    unit = plan["unit"]
    rows = [
        ("replicas", *shown(plan, "replicas", count)),
        ("GPUs", *shown(plan, "gpus", count)),
        ("max QPS within SLO", *shown(plan, "max_qps_within_slo")),
        (f"knee, {unit}", *shown(plan, "knee", fine if unit != "users" else count)),
    ]
    if plan["cost_per_hour"] is not None:
        rows.append(("cost per hour", *shown(plan, "cost_per_hour")))
    return rows


def sizing_rows(plan: Plan) -> list[Row]:
    """Every figure of the plan with its interval."""
    unit = plan["unit"]
    level = fine if unit != "users" else count
    return [
        (f"knee, {unit}", *shown(plan, "knee", level)),
        ("QPS at the knee", *shown(plan, "knee_qps")),
        (f"largest load within the SLO, {unit}", *shown(plan, "max_level_within_slo", level)),
        ("max QPS within the SLO", *shown(plan, "max_qps_within_slo")),
        ("QPS that one replica holds within the SLO", *shown(plan, "replica_max_qps")),
        ("replicas", *shown(plan, "replicas", count)),
        ("GPUs", *shown(plan, "gpus", count)),
        ("QPS of a replica at the target", *shown(plan, "qps_per_replica")),
        ("that of what it holds, %", *shown(plan, "replica_load_share", share)),
        ("output tokens/s at the target", *shown(plan, "output_tokens_per_s")),
        ("cost per hour", *shown(plan, "cost_per_hour")),
        ("cost per million output tokens", *shown(plan, "cost_per_million_output_tokens", "{:.3g}".format)),
        ("GPU power, W", *shown(plan, "power_w", count)),
        ("kWh per hour", *shown(plan, "kwh_per_hour", "{:.3g}".format)),
        ("J per output token", *shown(plan, "j_per_output_token", "{:.3g}".format)),
    ]


def losing_text(plan: Plan) -> str:
    """What is left when one replica is lost; empty without a plan."""
    left = plan["after_losing_one"]
    if left is None:
        return ""
    if not left["replicas"]:
        return "With its only replica lost, nothing is left."
    holds, within = shown(left, "max_qps_within_slo")
    target = f"{plan['asked']['target_qps']:g}"
    if left["target_held_surely"]:
        held = f"the target of {target} is held, at {share(left['load_share'])} % of that"
    elif left["target_held"]:
        held = f"the target of {target} is held, but not at the low end of the interval"
    else:
        held = f"the target of {target} is not held"
    return f"With one replica lost, {left['replicas']} hold {holds} requests/s within the SLO ({within}): {held}."


def objective_rows(plan: Plan) -> list[Row]:
    """Each objective and the highest level within it, the tightest first."""
    return [
        (
            entry["objective"] + (" (extrapolated)" if entry["extrapolated"] else ""),
            *shown(entry, "max_level", fine if plan["unit"] != "users" else count),
        )
        for entry in plan["objectives"]
    ]


def step_table(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Headers and rows: what was measured, the curve beside it, and whether the SLO held."""
    names = list(plan["steps"][0]["slo_figures"])
    headers = [plan["unit"], "in flight", "QPS", "QPS of the curve", "95 %", "E2E p50 ms"]
    headers += [f"{name.replace('_', ' ')} {'%' if name == 'error_rate' else 'ms'}" for name in names]
    headers += ["SLO", "power W", "J per token"]
    rows = []
    for step in plan["steps"]:
        figures = [step["slo_figures"][name] for name in names]
        rows.append(
            [
                f"{step['level']:g}",
                text(step["in_flight"]),
                text(step["qps"]),
                *shown(step, "qps_fitted"),
                text(step["e2e_p50_ms"]),
                *map(text, figures),
                "holds" if step["slo_held"] else "broken",
                text(step["power_w"], count),
                text(step["j_per_output_token"], "{:.3g}".format),
            ]
        )
    return headers, rows


def parameter_rows(plan: Plan) -> list[tuple[str, str, str, str, str]]:
    """Name, value, interval, unit and meaning of the parameters of the fit."""
    if plan["fit"] is None:
        return []
    rows = []
    for name, entry in plan["fit"]["parameters"].items():
        value, within = shown(entry, "value", "{:.4g}".format)
        # A limit on the concurrency that no step reached is infinite.
        rows.append((name, "not reached" if value == DASH else value, within, entry["unit"], entry["meaning"]))
    return rows


def fit_text(plan: Plan) -> str:
    """Which law was fitted, how well, and against what it was chosen."""
    fit = plan["fit"]
    if fit is None:
        return f"No curve: {plan['fit_refused']}."
    told = f"{fit['title']}, {fit['formula']}, fitted to {fit['steps']} steps; a step lies "
    told += f"{fit['step_error_pct']:.1f} % off it"
    crossed = fit["cross_validation_error_pct"]
    if not crossed:
        return told + "; too few steps for a cross-validation."
    errors = ", ".join(f"{name} {error:.2g} %" for name, error in crossed.items())
    return f"{told}. Error of steps that were left out: {errors}; the law with the smaller one is taken."


def check_text(plan: Plan) -> str:
    """How the curve of the lower steps foretells the highest; empty without one."""
    check = plan["check"]
    if check is None or check["qps_error_pct"] is None:
        return ""
    told = (
        f"Fitted to the {check['fitted_steps']} steps up to {check['fitted_up_to']:g}, the curve foretells for "
        f"{check['level']:g} {plan['unit']} {text(check['qps'])} requests/s; measured {text(check['qps_measured'])} "
        f"({check['qps_error_pct']:+.1f} %)"
    )
    if check["e2e_p50_error_pct"] is None:
        return told + "."
    return (
        f"{told}, and E2E p50 of {text(check['e2e_p50_ms'])} ms; measured {text(check['e2e_p50_measured_ms'])} ms "
        f"({check['e2e_p50_error_pct']:+.1f} %)."
    )


def as_text(plan: Plan) -> str:
    """The whole plan for a terminal."""
    lines = [verdict(plan)]
    if losing := losing_text(plan):
        lines.append(losing)
    lines += ["", *aligned(["", "", "95 %"], sizing_rows(plan), words=1)]
    objectives = [(name, value, within) for name, value, within in objective_rows(plan)]
    lines += ["", *aligned(["objective", plan["unit"], "between"], objectives, words=1)]
    lines += ["", *aligned(*step_table(plan), words=0), "", fit_text(plan)]
    lines += [
        f"  {name} = {value} {unit} ({within}): {meaning}"
        for name, value, within, unit, meaning in parameter_rows(plan)
    ]
    if told := check_text(plan):
        lines.append(told)
    lines += ["", *(f"warning: {warning}" for warning in plan["warnings"])]
    lines += [f"assumed: {assumption}" for assumption in plan["assumptions"]]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def aligned(headers: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """Lines of a table: the first `words` columns to the left, numbers to the right."""
    table = [headers, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(headers))]
    return [
        "  ".join(
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]
