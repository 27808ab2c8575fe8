"""The figures of a capacity plan: the curve with its knee, the objectives, what replicas hold, energy."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.capacity import Capacity
from analysis.operating import Working, outlook
from analysis.plots.canvas import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    RED,
    SKY,
    headroom,
    legend,
    level_axis,
    limit_line,
    line,
    panels,
    titled,
    value_axis,
)
from analysis.plots.concurrency import SIZE
from analysis.ranges import read
from analysis.tables import as_number, gpu_source
from analysis.within_slo import measured
from loadgen.slo import Objective

_PLACES = 160


def curve(capacity: Capacity) -> Figure:
    """QPS and mean latency over the level: steps, the fitted curve with its band, the knee and the load of the SLO."""
    at, plan = capacity.working, capacity.plan
    figure, (rate, latency) = panels(1, 2, SIZE)
    levels = pd.Series([step.level for step in at.steps], dtype=float)
    qps = pd.Series([step.qps for step in at.steps])
    mean_ms = pd.Series([1000 * step.seconds for step in at.steps])
    value_axis(rate, [qps], "successful requests per second")
    value_axis(latency, [mean_ms], "mean latency (Little's law), ms", log=True)
    for axes, values in ((rate, qps), (latency, mean_ms)):
        line(axes, levels, values, "measured", color=BLUE, marker="o", linestyle="none", zorder=4)
    _fitted(at, rate, latency)
    for axes in (rate, latency):
        level_axis(axes, levels, at.unit)
        _mark(axes, plan, "knee", "knee", ORANGE, "--")
        _mark(axes, plan, "max_level_within_slo", "largest load within the SLO", GREEN, "-")
    rate.set_title(titled("Throughput", gpu_source(plan)))
    latency.set_title(titled("Latency", gpu_source(plan)))
    handles, labels = rate.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles))
    return figure


def _fitted(at: Working, rate: Axes, latency: Axes) -> None:
    if at.curve is None:
        return
    lowest, highest = at.steps[0].level, at.last.level
    levels = np.unique(np.concatenate([np.geomspace(lowest, highest, _PLACES), [s.level for s in at.steps]]))
    found = [(level, seen) for level in levels.tolist() if (seen := outlook(at, level)) is not None]
    known = [level for level, _ in found]
    name = f"fit: {at.curve.law.title}"
    for axes, ranges in ((rate, [seen.qps for _, seen in found]), (latency, [seen.mean_ms for _, seen in found])):
        values, low, high = (np.array(column, dtype=float) for column in zip(*ranges, strict=True))
        axes.plot(known, values, color=SKY, lw=1.6, label=name)
        axes.fill_between(known, low, high, color=SKY, alpha=0.25, lw=0, label="95 % of the fit")


def _mark(axes: Axes, plan: dict[str, float | None], name: str, label: str, color: str, style: str) -> None:
    """A level and its interval; an interval without an upper end goes to the edge."""
    value, low, high = read(plan, name)
    edge = axes.get_xlim()[1]
    seen = value is not None and value <= edge
    if value is not None and seen:
        axes.axvline(value, color=color, lw=1.4, ls=style, label=label)
    if low and (value is not None or high is None):
        end = edge if high is None else min(high, edge)
        axes.axvspan(low, end, color=color, alpha=0.12, lw=0, label=None if seen else f"{label}: above")


def objectives(capacity: Capacity) -> Figure:
    """Each objective's figure over the level, its limit, and the highest level within it."""
    at, demand = capacity.working, capacity.demand
    columns = min(len(demand.slo), 2)
    rows = math.ceil(len(demand.slo) / columns)
    figure, every = panels(rows, columns, (SIZE[0] if columns == 2 else 0.62 * SIZE[0], SIZE[1] * rows))
    held = {entry["objective"]: entry for entry in capacity.plan["objectives"]}
    for axes, objective in zip(every, demand.slo, strict=False):
        _objective(axes, at, objective, held[str(objective)], gpu_source(capacity.plan))
    for axes in every[len(demand.slo) :]:
        axes.remove()
    return figure


def _objective(axes: Axes, at: Working, objective: Objective, held: dict[str, float | None], source: str) -> None:
    found = measured(at, objective)
    levels = pd.Series([value.level for value in found])
    values = pd.Series([value.value for value in found])
    name = objective.name.replace("_", " ")
    limit = pd.Series([objective.limit])
    value_axis(axes, [values, limit], f"{name}, {objective.unit}", log=bool(objective.stat))
    line(axes, levels, values, "measured", color=BLUE, marker="o")
    low, high = (np.array([getattr(value, end) for value in found]) for end in ("low", "high"))
    if (low < high).any():
        top = axes.get_ylim()[1]
        axes.vlines(levels, low, np.minimum(high, top), color=BLUE, lw=1.2, alpha=0.7, label="95 % of the step")
    limit_line(axes, objective.limit, f"objective: {objective}", RED)
    level_axis(axes, levels, at.unit)
    headroom(axes, 0.38)
    _mark(axes, held, "max_level", "highest level within it", GREEN, "-")
    legend(axes, infinite=bool(np.isinf(values).any()), loc="upper left", fontsize=8.5)
    axes.set_title(titled(name, source))


def replicas(capacity: Capacity) -> Figure | None:
    """What so many replicas hold within the SLO, and how many a rate needs. None when that is not known."""
    plan, demand = capacity.plan, capacity.demand
    one, chosen = read(plan, "replica_max_qps"), read(plan, "replicas")
    if one.value is None or one.low is None or one.high is None or chosen.value is None:
        return None
    figure, (holds, needs) = panels(1, 2, SIZE)
    most = math.ceil(1.25 * chosen.value) + 1
    counts = np.array([0, most])
    holds.fill_between(counts, one.low * counts, one.high * counts, color=SKY, alpha=0.3, lw=0, label="95 %")
    holds.plot(counts, one.value * counts, color=BLUE)
    for count, color, marker, label in (
        (chosen.value, RED, "o", f"plan: {chosen.value:.0f}"),
        (chosen.value - 1, ORANGE, "s", f"one lost: {chosen.value - 1:.0f}"),
    ):
        ends = [[count * (one.value - one.low)], [count * (one.high - one.value)]]
        holds.errorbar([count], [one.value * count], ends, fmt=marker, color=color, ms=7, capsize=4, label=label)
    value_axis(holds, [pd.Series(one.high * counts)], "requests per second within the SLO")
    limit_line(holds, demand.target_qps, f"target: {demand.target_qps:g}/s")
    holds.set_xlim(0, most)
    holds.set_xlabel("replicas")
    holds.xaxis.set_major_locator(MaxNLocator(integer=True))
    rates = np.linspace(0, 2 * demand.target_qps, 400)[1:]
    share = 1 - demand.headroom
    value, low, high = (
        np.ceil(rates / (share * rate) - 1e-9) + demand.spare if rate else np.full_like(rates, np.nan)
        for rate in (one.value, one.high, one.low)
    )
    needs.fill_between(rates, low, high, step="mid", color=SKY, alpha=0.3, lw=0, label="95 %")
    needs.step(
        rates, value, where="mid", color=BLUE, label=f"with {demand.headroom:.0%} headroom, {demand.spare} spare"
    )
    needs.plot([demand.target_qps], [chosen.value], "o", color=RED, ms=7, label="plan")
    value_axis(needs, [pd.Series(value), pd.Series(high)], "replicas")
    needs.set_xlim(0, 2 * demand.target_qps)
    needs.set_xlabel("target, requests per second")
    needs.yaxis.set_major_locator(MaxNLocator(integer=True))
    for axes, title in ((holds, "What replicas hold"), (needs, "What a rate needs")):
        axes.set_title(titled(title, gpu_source(plan)))
        legend(axes, infinite=False, loc="upper left")
    return figure


def energy(capacity: Capacity) -> Figure | None:
    """GPU power and energy a token over the rate of the run's steps. None when power was not measured."""
    plan = capacity.plan
    rows = [step for step in plan["steps"] if step["power_w"] is not None]
    if not rows:
        return None
    figure, (power, token) = panels(1, 2, SIZE)
    rates = pd.Series([step["qps"] for step in rows])
    watts = pd.Series([step["power_w"] for step in rows])
    joules = pd.Series([as_number(step["j_per_output_token"]) for step in rows], dtype=float)
    for axes, values, label, title in (
        (power, watts, "W, all GPUs of the run", "GPU power"),
        (token, joules, "J per output token", "Energy"),
    ):
        value_axis(axes, [values], label)
        line(axes, rates, values, "measured", color=GREEN, marker="D", linestyle="none")
        axes.set_xlim(0, 1.12 * rates.max())
        axes.set_xlabel("successful requests per second")
        axes.set_title(titled(title, gpu_source(plan)))
    share = plan["qps_per_replica"]
    if share is not None:
        run_rate = share * plan["replicas_measured"]
        for axes in (power, token):
            axes.axvline(run_rate, color=BLACK, lw=1.2, ls=":", label="a replica's share of the target")
            legend(axes, infinite=False, loc="best")
    return figure
