"""What a target rate needs of what one replica was measured to hold: replicas, GPUs, cost and energy. Pure, no clock.

replicas = ceil(target / ((1 - headroom) * rate of one within the SLO)) + spare
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis import tables
from analysis.operating import Step
from analysis.ranges import UNKNOWN, Figures, Range, over, read
from analysis.serving import how_many, only_serving
from loadgen.errors import UsageError
from loadgen.slo import Objective

_BILL = (
    "qps_per_replica",
    "replica_load_share",
    "output_tokens_per_s",
    "cost_per_hour",
    "cost_per_million_output_tokens",
    "power_w",
    "kwh_per_hour",
    "j_per_output_token",
)
_J_OF_A_KWH = 3.6e6


@dataclass(frozen=True)
class Demand:
    """`headroom` is the share of the capacity that ordinary operation leaves free; `spare` replicas come on top.

    `gpus_per_replica` None: the run's GPUs that serve are one replica. `gpu_hour` is a price in any currency.
    """

    target_qps: float
    slo: tuple[Objective, ...]
    headroom: float = 0.2
    spare: int = 1
    gpu_hour: float | None = None
    gpus_per_replica: int | None = None


def replicas(
    summary: dict[str, Any], demand: Demand, qps: Range, warnings: list[str], assumptions: list[str]
) -> dict[str, Any]:
    """What one replica holds, how many the target needs, and what is left when one is lost.

    Raises UsageError when the GPUs of a replica do not divide those of the run.
    """
    seen, watched = how_many(only_serving(summary["steps"])), how_many(summary["steps"])
    each = demand.gpus_per_replica or seen or None
    if each and seen:  # a replica may have idle ones
        seen = min(math.ceil(seen / each) * each, watched)
    if each and seen % each:
        raise UsageError(
            f"--gpus-per-replica: {each} does not divide the {seen} GPUs of the run: give the number that a replica had"
        )
    measured = seen // each if seen and each else 1
    if measured > 1:
        assumptions.append(f"The run's {seen} GPUs were {measured} replicas that shared its load evenly.")
    elif demand.gpus_per_replica is None:
        own = f", {seen} GPUs" if seen > 1 else ""
        assumptions.append(f"A replica is the run's whole endpoint{own}: give --gpus-per-replica when it had several.")
    elif not seen:
        assumptions.append(f"No GPU was seen in the run: its endpoint is taken to be one replica of {each} GPUs.")
    if idle := watched - seen:
        assumptions.append(f"GPUs that ran nothing in the run ({idle}) are of no replica.")
    if each is None:
        warnings.append("no GPU was seen in the run: GPUs and cost are not known; give --gpus-per-replica")
    assumptions.append(
        f"Without the spare ones ({demand.spare}) a replica carries at most {1 - demand.headroom:.0%} of what it holds "
        "within the SLO; with all at work they share the load evenly."
    )
    one = qps.rising(lambda rate: rate / measured)
    needed = one.falling(lambda rate: _needed(rate, demand))
    count = needed.rising(lambda number: number + demand.spare)
    return {
        "gpus_seen": seen,
        "gpus_per_replica": each,
        "replicas_measured": measured,
        **one.under("replica_max_qps"),
        **count.under("replicas"),
        **(count.rising(lambda number: number * each) if each else UNKNOWN).under("gpus"),
        "after_losing_one": None if count.value is None else _after_losing_one(int(count.value), one, demand, warnings),
    }


def _needed(rate: float, demand: Demand) -> float:
    share = (1 - demand.headroom) * rate
    return math.ceil(demand.target_qps / share - 1e-9) if share > 0 else math.inf


def _after_losing_one(count: int, one: Range, demand: Demand, warnings: list[str]) -> dict[str, Any]:
    """`target_held` by the figure, `target_held_surely` by the low end of its interval."""
    left = count - 1
    holds = one.rising(lambda rate: left * rate)
    held = bool(holds.value) and (holds.value or 0.0) >= demand.target_qps
    if not held:
        warnings.append(
            f"losing one replica leaves {tables.text(holds.value)} requests/s within the SLO, less than the target of "
            f"{demand.target_qps:g}: give --spare 1"
        )
    return {
        "replicas": left,
        **holds.under("max_qps_within_slo"),
        "load_share": demand.target_qps / holds.value if holds.value else None,
        "target_held": held,
        "target_held_surely": (holds.low or 0.0) >= demand.target_qps,
    }


def bill(
    steps: Sequence[Step], demand: Demand, sizes: dict[str, Any], warnings: list[str], assumptions: list[str]
) -> Figures:
    """Cost and energy an hour and a token, at the target with all replicas at work; nulls without replicas."""
    count = read(sizes, "replicas")
    found = dict.fromkeys(_BILL, UNKNOWN)
    if count.value is not None:
        each = count.falling(lambda number: demand.target_qps / number)
        found["qps_per_replica"] = each
        found["replica_load_share"] = _share(each, read(sizes, "replica_max_qps"))
        tokens = _tokens(steps, demand, assumptions)
        found["output_tokens_per_s"] = tokens
        found["cost_per_hour"], found["cost_per_million_output_tokens"] = _cost(demand, sizes, tokens)
        watts = _watts(steps, demand, count, sizes["replicas_measured"], warnings, assumptions)
        found["power_w"] = watts
        found["kwh_per_hour"] = watts.rising(lambda value: 3600 * value / _J_OF_A_KWH)
        found["j_per_output_token"] = over(watts, tokens)
    return {key: value for name, figure in found.items() for key, value in figure.under(name).items()}


def _share(each: Range, most: Range) -> Range:
    """Of what a replica holds; the more one holds the fewer there are, so like ends belong together."""
    shares = [rate / top for rate, top in zip(each, most, strict=True) if rate is not None and top]
    return Range(shares[0], min(shares), max(shares))


def _tokens(steps: Sequence[Step], demand: Demand, assumptions: list[str]) -> Range:
    """Output tokens a second at the target."""
    lengths = [step.figures["output_tokens_per_s"] / step.qps for step in steps if step.figures["output_tokens_per_s"]]
    if not lengths:
        return UNKNOWN
    length = float(np.median(lengths))
    assumptions.append(f"An answer has {tables.fine(length)} output tokens: the median of the steps, with their range.")
    return Range(length, min(lengths), max(lengths)).rising(lambda tokens: demand.target_qps * tokens)


def _cost(demand: Demand, sizes: dict[str, Any], tokens: Range) -> tuple[Range, Range]:
    """An hour, and a million output tokens, in the currency of the price."""
    price = demand.gpu_hour
    if price is None:
        return UNKNOWN, UNKNOWN
    hour = read(sizes, "gpus").rising(lambda count: price * count)
    return hour, over(hour, tokens.rising(lambda rate: 3600 * rate / 1e6))


def power_w(step: Step) -> float | None:
    """Of the GPUs that serve; of all of them where a summary does not tell these apart."""
    watts = (step.figures.get("energy") or step.figures["gpu_total"] or {}).get("power_w")
    return None if watts is None else float(watts)


def _watts(
    steps: Sequence[Step], demand: Demand, count: Range, measured: int, warnings: list[str], assumptions: list[str]
) -> Range:
    """Power of all replicas at the target, each with its share of the load."""
    points = sorted((step.qps / measured, watts / measured) for step in steps if (watts := power_w(step)) is not None)
    if not points:
        warnings.append("GPU power was not measured: energy is not known")
        return UNKNOWN
    rates, powers = np.array(points).T

    def draw(number: float) -> float:
        return number * float(np.interp(demand.target_qps / number, rates, powers))

    assumptions.append(
        "GPU power follows a replica's rate as in the run, in proportion between two steps. Idle power was not "
        f"measured: below the lowest step ({tables.fine(rates[0])} requests/s) a replica draws what it drew there, "
        f"{powers[0]:.0f} W. Hosts, network and cooling come on top."
    )
    if count.value and demand.target_qps / count.value < rates[0]:
        warnings.append("a replica's share of the target is below the lowest step: its power is taken from that step")
    ends = [draw(number) for number in count if number is not None and math.isfinite(number)]
    return Range(ends[0], min(ends), max(ends) if count.high is not None else None)
