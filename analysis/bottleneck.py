"""What limits a step: one verdict, its evidence, how sure it is, and the next thing to try. Pure; a summary's entries.

    has throughput stopped growing in proportion? (pileup.growth)   no -> none
    where are the requests that it added?         (pileup.pile_up)  client | outside the engine | its queue | its batch
    which resource is full there?                 (pressure.marks)  classes get shares of the pile-up (blame.weigh)

A full resource alone is no bottleneck: a GPU is at 100 % long before it gives all that it can. What was not measured
lowers the confidence, and is in the evidence.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from analysis import bottleneck_words as words
from analysis import pileup
from analysis.blame import weigh
from analysis.bottleneck_words import NEXT, NOT_MEASURED, row
from analysis.pileup import BEFORE, CLIENT, OUTSIDE, RUNNING, SERVED, WAITING, Growth, PileUp, Step
from analysis.pressure import Marks, marks
from analysis.serving import idle_gpus

NONE = "none"
CLASSES = (
    *("client", "network", "host_cpu", "io_wait", "server_queue", "kv_capacity"),
    *("memory_bandwidth", "compute", "power_thermal", NONE),
)
# What `judge` reads of a step.
NEEDED = (
    *("level", "unit", "qps", "qps_ci95", "in_flight_mean", "rate", "ttft_ms_ok", "e2e_ms_ok", "send_lag_ms"),
    *("client_on_time", "client_lag_ms", "client_lag_limit_ms", "worker_cpu_pct", "kernel_stamp_share"),
    *("simulator_late_share", "gpus", "server", "hosts", "roofline"),
    *("success_pct", "in_flight_http_error"),
)
# What is as sure as this is said, and not only that it may be.
SURE = 0.5
# One figure that is missing makes the place it would have told of so much less certain.
_BLIND = 0.6
# Without a lighter step nobody knows whether more load brings more.
_ALONE = 0.45
# A pile-up of less than this share of what is in flight is none.
_NO_PILE = 0.1
# A simulator or a client that is late blurs what is between them.
_LATE = 0.9

Card = dict[str, Any]


def judge(step: Step, steps: Sequence[Step], cards: Sequence[Card] = ()) -> dict[str, Any] | None:
    """The verdict on one of `steps`; None for one without load or throughput. `cards` as gpu_facts.py tells them."""
    if not step["level"] or not step["qps"]:
        return None
    idle = {gpu["uuid"] for gpu in idle_gpus([*steps, step])}
    step, steps = _without(step, idle), [_without(other, idle) for other in steps]
    lighter = pileup.lighter_than(step, steps)
    grown, piled = pileup.growth(step, lighter), pileup.pile_up(step, lighter)
    found = marks(step, lighter, cards)
    elasticity = pileup.batch_elasticity(step, lighter)
    stuck = pileup.stuck(step)
    stopped = max(_stopped(grown, piled), stuck)
    if piled is not None and piled.total < _NO_PILE * sum(piled.requests.values()):
        piled = pileup.pile_up(step, ())  # nothing piles up, or the lightest step is past a limit, too
    weights = weigh(step, piled, found, elasticity)
    order = [name for name in weights.best() if weights[name] > 0]
    seen, missing = _seen(step, piled, found)
    if stopped < SURE or not order:
        verdict, sure, runner_up = NONE, 1 - stopped, order[0] if order else None
    else:
        verdict, sure = order[0], stopped * weights[order[0]]
        rival = order[1] if len(order) > 1 else None
        runner_up = NONE if rival is None or 1 - stopped > stopped * weights[rival] else rival
    sheds = verdict == "server_queue" and 2 * weights.refused >= weights[verdict]
    sure = min(0.99, max(0.05, sure * seen))
    if not lighter and stuck < SURE:
        sure = min(_ALONE, sure)
    evidence = [*words.of_rate(step), *words.of_growth(grown, step, lighter), *words.of_failures(step)]
    evidence += [*words.of_places(piled), *(words.of_idle(piled, found) if stopped >= SURE else ())]
    evidence += words.mark_rows(step, found, elasticity, cards)
    if idle:
        evidence.append(row(NONE, f"{len(idle)} GPUs beside ran nothing in any step, and do not count", 0.0))
    evidence += [row(NONE, f"not measured: {NOT_MEASURED[name]}", 0.0) for name in missing]
    return {
        "verdict": verdict,
        "confidence": round(float(sure), 2),
        "runner_up": runner_up,
        "evidence": evidence,
        "next": words.SHED if sheds else _alone(step, steps) if verdict == NONE and not lighter else NEXT[verdict],
    }


def _without(step: Step, idle: Collection[str]) -> Step:
    return {**step, "gpus": [gpu for gpu in step["gpus"] if gpu["uuid"] not in idle]} if idle else step


def _alone(step: Step, steps: Sequence[Step]) -> str:
    return words.LIGHTEST if any(other["level"] > step["level"] and other["qps"] for other in steps) else words.ALONE


def judge_all(steps: list[dict[str, Any]], cards: Sequence[Card] = ()) -> dict[str, Any] | None:
    """Gives each step its `bottleneck`. What limits the run: that of the lightest step that surely has one.

    Without such a step, of the lightest that may have one: then no heavier one is surely without.
    """
    for step in steps:
        step["bottleneck"] = judge(step, steps, cards)
    judged = sorted((step for step in steps if step["bottleneck"]), key=lambda step: float(step["level"]))
    free = max((step["level"] for step in judged if _is_sure(step) and not _is_limited(step)), default=0)
    limited = [step for step in judged if _is_limited(step) and (_is_sure(step) or step["level"] > free)]
    if not limited:
        return None
    first = next(filter(_is_sure, limited), limited[0])
    found, text = first["bottleneck"], first["bottleneck"]["evidence"][0]["text"]
    if first is not limited[0] and limited[0]["bottleneck"]["verdict"] == found["verdict"]:
        lightest = ", the lightest step" if limited[0] is judged[0] else ""
        text += f"; it may be so at {limited[0]['level']:g} {first['unit']} already{lightest}"
    return {
        "level": first["level"],
        "unit": first["unit"],
        "verdict": found["verdict"],
        "confidence": found["confidence"],
        "text": text,
        "next": found["next"],
    }


def _is_limited(step: Step) -> bool:
    return bool(step["bottleneck"]["verdict"] != NONE)


def _is_sure(step: Step) -> bool:
    return bool(step["bottleneck"]["confidence"] >= SURE)


def _stopped(grown: Growth | None, piled: PileUp | None) -> float:
    """Probability that throughput no longer grows in proportion; without a lighter step, by how much of it queues."""
    if grown is not None:
        return grown.probability
    if piled is None or WAITING not in piled.requests:
        return 0.0
    served = piled.requests.get(RUNNING, piled.requests.get(SERVED, 0.0))
    return piled.requests[WAITING] / max(piled.requests[WAITING] + served, 1e-9)


def _seen(step: Step, piled: PileUp | None, found: Marks) -> tuple[float, list[str]]:
    """How much of what matters here was measured, 0 to 1, and what was not."""
    missing = []
    shares = piled.shares if piled else {}
    seen = 1.0

    def lacks(name: str, matters: float) -> None:
        nonlocal seen
        missing.append(name)
        seen *= 1 - (1 - _BLIND) * matters

    if piled is None or not piled.known:
        lacks("server", 1.0)
    elif RUNNING not in piled.requests:
        lacks("running", shares.get(SERVED, 0.0))
    elif WAITING not in piled.requests:
        lacks("waiting", shares.get(BEFORE, 0.0))
    if found.host_cpu is None and found.io_wait is None:
        lacks("hosts", shares.get(OUTSIDE, 0.0) + shares.get(BEFORE, 0.5 if not shares else 0.0))
    on_gpu = 1 - shares.get(OUTSIDE, 0.0) - shares.get(CLIENT, 0.0) if shares else 1.0
    if found.tensor is None and found.dram is None:
        lacks("gpm" if found.busy is not None else "gpus", on_gpu)
    if found.kv is None:
        lacks("kv", shares.get(WAITING, shares.get(BEFORE, 0.5)))
    if step["client_on_time"] is None:
        lacks("client", 0.5)
    if step["client_on_time"] is False:
        seen *= _LATE
    if (step["simulator_late_share"] or 0.0) > 0.05:
        seen *= _LATE
    return seen, missing
