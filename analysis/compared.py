"""The figures that a comparison is made of: where each is in a step of a summary, and how it is compared.

The names are those of loadgen/gates.py. Most are compared as a ratio; those that are 0 where all is well as a
difference. Made from summaries alone; a figure that a summary lacks was not measured. No clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from analysis.answers import error_pct, hung, latency_ms, unanswered
from analysis.effects import Ends, Side
from analysis.intervals import LEAST_FOR_PERCENTILE, share_interval
from analysis.ranks import centre
from analysis.tables import at, count, fine, gib
from loadgen.gates import ABSOLUTE_ONLY, FIGURES
from loadgen.slo import ERROR_RATE, METRICS, STATS

Step = dict[str, Any]
# Runs never agree better than this: relative standard deviation.
_RESOLUTION = 0.001


class Figure(NamedTuple):
    """`shown`: it is in the table of effects; the others are there for gates. `show` has its value in `unit`."""

    title: str
    unit: str
    path: tuple[str | int, ...]
    shown: bool = True
    show: Callable[[float], str] = fine


def joules(value: float) -> str:
    return f"{value:.3g}"


COMPARED: dict[str, Figure] = {
    "qps": Figure("QPS", "/s", ("qps",)),
    "goodput_qps": Figure("goodput", "/s", ("goodput_qps",)),
    "output_tokens_per_s": Figure("output tokens/s", "/s", ("output_tokens_per_s",)),
    **{
        f"{metric}_{stat}": Figure(
            f"{metric.upper() if metric != 'service' else metric} {stat}",
            "ms",
            (f"{metric}_ms", stat),
            metric != "service" and stat in ("p50", "p95", "p99"),
        )
        for metric in METRICS
        for stat in STATS
    },
    ERROR_RATE: Figure("error rate", "%", ("success_pct",)),
    "vram": Figure("VRAM used", "GiB", ("gpu_total", "vram_used_bytes"), show=gib),
    "vram_effective": Figure("VRAM effective", "GiB", ("gpu_total", "vram_effective_bytes"), show=gib),
    "power": Figure("GPU power", "W", ("gpu_total", "power_w"), show=count),
    "j_per_output_token": Figure("energy per output token", "J", ("energy", "j_per_output_token"), show=joules),
    "gpu_util": Figure("GPU util", "%", ("gpu_total", "util_pct"), show=count),
    "prompt_tokens": Figure("prompt tokens per request", "tokens", ("tokens", "prompt_mean")),
    "output_tokens": Figure("output tokens per request", "tokens", ("tokens", "output_mean")),
    "queue": Figure("server queue", "requests", ("server", "waiting")),
}


def is_ratio(name: str) -> bool:
    return name not in ABSOLUTE_ONLY


def better(name: str) -> str:
    return FIGURES[name].better


def value_of(step: Step, name: str) -> float | None:
    """The figure of a step; infinite where failures reach it, None where it was not measured."""
    if name == ERROR_RATE:
        return error_pct(step)
    if _is_latency(name):
        metric, _, stat = name.rpartition("_")
        return latency_ms(step, metric, stat)
    return _number(at(step, COMPARED[name].path))


def bounded(name: str, ends: Ends, *, change: bool = False) -> Ends:
    """The ends of an interval, not beyond what the figure can be, or what it can `change` by: shares end at 100 %."""
    most = 100.0 if COMPARED[name].unit == "%" else math.inf
    low, high = ends
    least = -most if change else 0.0
    return None if low is None else max(low, least), None if high is None else min(high, most)


def _is_latency(name: str) -> bool:
    return FIGURES[name].unit == "ms"


def within_of(step: Step, name: str) -> Ends:
    """The 95 % interval of a step's figure within its run."""
    *folder, last = COMPARED[name].path
    found = at(step, (*folder[:-1], f"{folder[-1]}_ci95", last)) if folder else None
    if found is None:
        found = at(step, (*folder, f"{last}_ci95"))
    low, high = map(_number, found) if isinstance(found, list | tuple) and len(found) == 2 else (None, None)
    if low is None and high is None and unanswered(step):
        return _of_nothing(step, name)
    if name == ERROR_RATE:
        return (None if high is None else 100 - high), (None if low is None else 100 - low)
    return low, high


def _of_nothing(step: Step, name: str) -> Ends:
    """Of a step without answers every latency is infinite for sure, unless there were so few requests that it may be
    chance; and its error rate is as well known as that of as many failures."""
    requests = _judged(step)
    if name == ERROR_RATE and (share := share_interval(np.ones(requests))) is not None:
        return 100 * share[0], 100 * share[1]
    return (math.inf, math.inf) if _is_latency(name) and requests >= LEAST_FOR_PERCENTILE else (None, None)


def _judged(step: Step) -> int:
    """How many requests tell of a step: those that ended, or were in flight where it hung."""
    return int(step["in_flight_mean"] if hung(step) else step["requests"] - step["cancelled"])


def side_of(steps: Sequence[Step], name: str, *, logarithms: bool) -> Side:
    """The figure of the same step of every run of a side. Of several runs those count that have it, two at least."""
    having = [(step, value) for step in steps if (value := value_of(step, name)) is not None]
    if not having or (len(having) == 1 < len(steps)):
        return Side(())
    scale = _log if logarithms else float
    known = [value for _, value in having]
    within = [within_of(step, name) for step, _ in having]
    return Side(
        tuple(map(scale, known)),
        _least_error(steps, name, known, logarithms=logarithms),
        tuple((None if low is None else scale(low), None if high is None else scale(high)) for low, high in within),
        silent=all(unanswered(step) for step, _ in having),
    )


def typical(steps: Sequence[Step], name: str) -> float | None:
    """One value of a side: the geometric mean of its runs where ratios are compared, else the mean; see `centre`."""
    values = side_of(steps, name, logarithms=is_ratio(name)).values
    if not values:
        return None
    value = centre(values)
    return math.exp(value) if is_ratio(name) else value


def _least_error(steps: Sequence[Step], name: str, known: list[float], *, logarithms: bool) -> float:
    """The least standard error of a mean: what is counted is no surer than its number, however alike the runs are."""
    if name == ERROR_RATE:
        judged = sum(map(_judged, steps))
        failed = sum(_judged(step) * (value_of(step, name) or 0) / 100 for step in steps)
        share = (failed + 2) / (judged + 4)
        return 100 * math.sqrt(share * (1 - share) / (judged + 4))
    if name in ABSOLUTE_ONLY:
        return 0.0
    finite = [value for value in known if math.isfinite(value)]
    size = 1.0 if logarithms else sum(finite) / max(len(finite), 1)
    return _RESOLUTION * size / math.sqrt(len(known))


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _number(value: Any) -> float | None:
    if value == "inf":
        return math.inf
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
