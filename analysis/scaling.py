"""How a system gains from more cards: runs with 1, 2, 4, … of them side by side. Pure, no clock.

    speed-up = peak / peak of the run with the fewest cards          efficiency = speed-up / how many times the cards

Speed-ups over cards are fitted by the USL (scalability.py) with the intervals of the peaks; all intervals are of these
runs as they were: what differs from run to run is not in them. What eats the rest is told by scaling_losses.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from analysis.operating import Step, usable_steps, working
from analysis.ranges import UNKNOWN, Range
from analysis.scalability import SAMPLES, SEED, USL
from analysis.scaling_losses import LINKS, eaten_by, factors, traffic, utilisations
from analysis.serving import how_many, only_serving
from analysis.stats import Floats
from analysis.tables import Summary
from analysis.within_slo import largest_load, limits
from loadgen.errors import RunDirError, UsageError
from loadgen.slo import Objective

# 1  first version
SCHEMA = 1
# Over the last steps throughput grew by less than this share of what the load did: more load brings no more.
FLAT = 0.3
# A step counts as a lower one where its load was at most this share of the last one's.
LOWER = 0.8
LEAST_POINTS = 3
_NORMAL = 1.96


class Asked(NamedTuple):
    """Objectives, how many cards each run had (None: as the runs tell), and what makes each comparable (run.json)."""

    slo: tuple[Objective, ...] = ()
    cards: tuple[int, ...] | None = None
    comparable: tuple[Mapping[str, Any], ...] = ()


class _Seen(NamedTuple):
    """A run, by the step with its highest rate."""

    summary: Summary
    cards: int
    counted_by: str
    peak: Step
    saturated: bool | None
    within_slo: Range
    warnings: list[str]


def scaling(summaries: Sequence[Summary], asked: Asked) -> dict[str, Any]:
    """The whole: an entry a run, by cards, and the law fitted to them.

    Raises UsageError for runs that cannot be set side by side, RunDirError for one without a usable step.
    """
    answered = [step["output_tokens_per_s"] for summary in summaries for step in summary["steps"] if step["qps"]]
    measure = "output_tokens_per_s" if all(answered) else "qps"
    seen = sorted((_look(summary, k, asked, measure) for k, summary in enumerate(summaries)), key=lambda run: run.cards)
    if len({run.cards for run in seen}) < 2:
        raise UsageError(
            f"all runs have {seen[0].cards} card(s), so nothing scales: give runs with different numbers of them, or "
            "say how many each had with --gpus"
        )
    units = {run.peak.figures["unit"] for run in seen}
    if len(units) > 1:
        raise UsageError(f"the levels of the runs are {' and '.join(sorted(units))}: give runs of one kind")
    simulated = {bool(run.summary["simulated_gpu"]): run.summary["run_id"] for run in seen}
    if len(simulated) > 1:
        raise UsageError(
            f"{simulated[True]} has simulated GPUs and {simulated[False]} has not: a model is never set beside real "
            "cards, so give runs of one kind"
        )
    base = seen[0]
    fitted, refused = _usl(seen, measure)
    return {
        "schema": SCHEMA,
        "unit": units.pop(),
        "simulated_gpu": True in simulated,
        "slo": [str(objective) for objective in asked.slo],
        "measure": measure,
        "base": base.summary["run_id"],
        "runs": [_entry(run, base, measure) for run in seen],
        "usl": fitted,
        "usl_refused": refused,
        "warnings": _differences(seen, asked.comparable),
    }


def _look(summary: Summary, place: int, asked: Asked, measure: str) -> _Seen:
    name = summary["run_id"]
    told, counted_by = _told(summary, asked.cards[place] if asked.cards else None)
    watched, summary = how_many(summary["steps"]), {**summary, "steps": only_serving(summary["steps"], told or 0)}
    seen = how_many(summary["steps"])
    steps, left_out = usable_steps(summary)
    if not steps:
        reason = f": {left_out[0]['reason']}" if left_out else ""
        raise RunDirError(f"{name} has no step to tell its peak by{reason}; run it again with steps that succeed")
    cards = told or seen
    if not cards:
        raise UsageError(f"{name} does not tell how many cards it had: say so for each run, as --gpus 1,2,4")
    peak = max(steps, key=lambda step: float(step.figures[measure]))
    saturated = _saturated(steps, measure)
    warnings = [entry["reason"] + ": it is left out" for entry in left_out]
    if not told and watched > seen:
        warnings.append(f"cards that ran nothing ({watched - seen}) do not count: give --gpus if they should serve")
    if summary["status"] != "complete":
        warnings.append(f"the run is not complete ({summary['status']}): steps may be missing")
    if saturated is None:
        warnings.append("a single level does not tell whether more load would have brought more: measure several")
    elif not saturated:
        warnings.append(
            f"it did not saturate: at {steps[-1].level:g} {steps[-1].figures['unit']} more load still brought more, so "
            "its peak is a lower bound; measure higher levels"
        )
    if peak.figures.get("client_on_time") is False:
        warnings.append("the client was late at its peak: this may be the client's limit; use more workers")
    within = UNKNOWN
    if asked.slo:
        at = working(steps, peak.figures["unit"], summary["steps"])
        _, within = largest_load(at, limits(at, asked.slo, warnings), warnings)
    return _Seen(summary, cards, counted_by, peak, saturated, within, warnings)


def _told(summary: Summary, given: int | None) -> tuple[int | None, str]:
    """How many cards a run is told to have had, and who says so: without anybody, those that telemetry tells."""
    if given is not None:
        return given, "given"
    simulator = summary["target"].get("simulator") or {}
    return (int(simulator["replicas"]), "simulator") if "replicas" in simulator else (None, "telemetry")


def _saturated(steps: Sequence[Step], measure: str) -> bool | None:
    """Whether throughput had stopped to grow with the load; None with a single level."""
    last = max(steps, key=lambda step: step.in_flight)
    lower = [step for step in steps if step.in_flight <= LOWER * last.in_flight]
    if not lower:
        return None
    before = max(lower, key=lambda step: step.in_flight)
    grown = last.figures[measure] / before.figures[measure]
    return math.log(grown) < FLAT * math.log(last.in_flight / before.in_flight)


def _entry(run: _Seen, base: _Seen, measure: str) -> dict[str, Any]:
    figures, first = run.peak.figures, base.peak.figures
    times = run.cards / base.cards
    rates = {name: _rate(figures, name) for name in ("qps", "output_tokens_per_s")}
    speedup = Range(1.0, 1.0, 1.0) if run is base else _quotient(rates[measure], _rate(first, measure))
    efficiency = speedup.rising(lambda value: value / times)
    lost = factors(figures, first, efficiency.value, times)
    utils = utilisations(figures)
    return {
        "run_id": run.summary["run_id"],
        "cards": run.cards,
        "cards_counted_by": run.counted_by,
        "level": run.peak.level,
        "saturated": run.saturated,
        **{key: figure for name, rate in rates.items() for key, figure in rate.under(name).items()},
        **rates[measure].rising(lambda value: value / run.cards).under("per_card"),
        **speedup.under("speedup"),
        "ideal_speedup": times,
        **efficiency.under("efficiency"),
        "serial_share": _serial_share(speedup.value, times),
        **run.within_slo.under("max_qps_within_slo"),
        **_quotient(run.within_slo, base.within_slo).rising(lambda value: value / times).under("efficiency_within_slo"),
        "util_pct": {"least": min(utils), "mean": float(np.mean(utils)), "most": max(utils)} if utils else None,
        "running": (figures["server"] or {}).get("running"),
        "waiting": (figures["server"] or {}).get("waiting"),
        "bytes_per_token": {link: traffic(figures, link) for link in LINKS},
        "factors": lost,
        "eaten_by": None if run is base else eaten_by(figures, first, efficiency, lost, run.saturated),
        "warnings": run.warnings,
    }


def _rate(figures: dict[str, Any], name: str) -> Range:
    return Range(figures[name], *(figures.get(f"{name}_ci95") or (None, None)))


def _quotient(above: Range, below: Range) -> Range:
    """With the interval of independent figures, whose relative errors add up as squares."""
    if not above.value or not below.value:
        return UNKNOWN
    value = above.value / below.value
    if None in (above.low, above.high, below.low, below.high) or not above.low or not below.low:
        return Range(value, None, None)
    down = math.hypot(math.log(above.value / above.low), math.log((below.high or 0) / below.value))
    up = math.hypot(math.log((above.high or 0) / above.value), math.log(below.value / below.low))
    return Range(value, value * math.exp(-down), value * math.exp(up))


def _serial_share(speedup: float | None, times: float) -> float | None:
    """What share of the work cannot be divided, were that all (Karp and Flatt); below 0 where it gained more."""
    return None if not speedup or times <= 1 else (1 / speedup - 1 / times) / (1 - 1 / times)


def _usl(seen: Sequence[_Seen], measure: str) -> tuple[dict[str, Any] | None, str | None]:
    """The law over cards, with the intervals that those of the peaks make; None, and the reason, where it cannot be."""
    cards = np.array([run.cards for run in seen], dtype=np.float64)
    if len(set(cards)) < LEAST_POINTS:
        return (
            None,
            f"the law has three parameters: runs with at least {LEAST_POINTS} different numbers of cards are needed",
        )
    found = [_rate(run.peak.figures, measure) for run in seen]
    rates = np.array([each.value for each in found], dtype=np.float64)
    low, high = (
        np.array([each.value if end is None else end for each, end in zip(found, ends, strict=True)], dtype=np.float64)
        for ends in ([each.low for each in found], [each.high for each in found])
    )
    error = np.log(np.maximum(high, rates) / np.minimum(low, rates)) / (2 * _NORMAL)
    random = np.random.default_rng(SEED)
    (fitted,) = USL.fit(cards, (cards / rates)[None])
    apart = np.log(USL.residence(fitted[None], cards)[0] * rates / cards)
    if free := cards.size - fitted.size:  # that it is not the law is noise too, known from so few points
        spread = np.sqrt(apart @ apart / random.chisquare(free, (SAMPLES, 1)))
        error = np.hypot(error, spread)
    noise = random.standard_normal((SAMPLES, cards.size)) * error
    sampled = USL.fit(cards, cards / (rates * np.exp(noise)))
    ends = np.quantile(sampled, (0.025, 0.975), axis=0)
    law: dict[str, Any] = {}
    for place, name in enumerate(("rate_of_one", "sigma", "kappa")):
        law |= Range(*(float(each[place]) for each in (fitted, *ends))).under(name)
    return law | {"most_cards": _most_cards(fitted), "apart_pct": 100 * float(np.abs(apart).max())}, None


def _most_cards(parameters: Floats) -> float | None:
    """With more of them the law falls again; None when it does not."""
    _, sigma, kappa = parameters
    return float(math.sqrt((1 - sigma) / kappa)) if kappa > 1e-9 and sigma < 1 else None


def _differences(seen: Sequence[_Seen], comparable: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the runs differ in beside the cards."""
    facts = {"model": [run.summary["target"].get("model") for run in seen]}
    facts |= {
        key: [each.get(key) for each in comparable] for key in sorted({key for each in comparable for key in each})
    }
    warnings = [
        f"the runs differ in {key} ({', '.join(sorted(set(map(str, values))))}): what they gain is not the cards' alone"
        for key, values in facts.items()
        if len(set(map(str, values))) > 1
    ]
    lengths = [of["output_mean"] for run in seen if (of := run.peak.figures.get("tokens")) and of["output_mean"]]
    if lengths and max(lengths) > 1.05 * min(lengths):
        warnings.append(
            f"answers have {min(lengths):.3g} to {max(lengths):.3g} tokens on average: a request is not the same "
            "work in each run"
        )
    return warnings
