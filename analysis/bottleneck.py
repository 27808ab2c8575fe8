"""What limits a step: one verdict, its evidence, how sure it is, and the next thing to try. Pure; a summary's entries.

    has throughput stopped growing in proportion? (pileup.growth)   no -> none
    where are the requests that it added?         (pileup.pile_up)  client | outside the engine | its queue | its batch
    which resource is full there?                 (pressure.marks)  shares of the pile-up are given to classes

A full resource alone is no bottleneck: a GPU is at 100 % long before it gives all that it can. What was not measured
lowers the confidence, and is in the evidence.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from analysis import bottleneck_words as words
from analysis import pileup
from analysis.bottleneck_words import NEXT, NOT_MEASURED, row
from analysis.gpus import idle_gpus
from analysis.pileup import BEFORE, CLIENT, OUTSIDE, RUNNING, SERVED, WAITING, Growth, PileUp, Step
from analysis.pressure import Marks, marks

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
    *("failed_qps", "errors", "service_ms_ok"),
)
# One figure that is missing makes the place it would have told of so much less certain.
_BLIND = 0.6
# Without a lighter step nobody knows whether more load brings more.
_ALONE = 0.45
# A pile-up of less than this share of what is in flight is none.
_NO_PILE = 0.1
# Of a batch while neither the GPU nor a CPU is busy: locks and waits of one process are seen nowhere.
_UNSEEN_CPU = 0.1
# A simulator or a client that is late blurs what is between them.
_LATE = 0.9

Card = dict[str, Any]


class _Weights(dict[str, float]):
    """What each class has of the pile-up."""

    def give(self, name: str, share: float) -> None:
        self[name] = self.get(name, 0.0) + max(0.0, share)

    def best(self) -> list[str]:
        return sorted(self, key=lambda name: -self[name])


class _Facts(NamedTuple):
    marks: Marks
    gpu_bound: float  # how much of a larger batch would be lost on the GPU
    late_stamps: bool  # the client was late, and its stamps are its own
    refused: float  # the share of what is not in the engine that HTTP errors were the answer to


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
    late = step["client_on_time"] is False
    own_stamps = (step["kernel_stamp_share"] or 0.0) < 0.5
    short, refused = pileup.unanswered(step), pileup.refused(step)
    stopped = max(_stopped(grown, piled), short)
    if piled is not None and stopped >= 0.5 and piled.total < _NO_PILE * sum(piled.requests.values()):
        piled = piled.as_it_is()
    facts = _Facts(found, _gpu_bound(step, found, elasticity), late and own_stamps, _share_refused(refused, piled))
    weights = _weigh(piled, facts)
    order = [name for name in weights.best() if weights[name] > 0]
    seen, missing = _seen(step, piled, found)
    if stopped < 0.5 or not order:
        verdict, sure, runner_up = NONE, 1 - stopped, order[0] if order else None
    else:
        verdict, sure = order[0], stopped * weights[order[0]]
        rival = order[1] if len(order) > 1 else None
        runner_up = NONE if rival is None or 1 - stopped > stopped * weights[rival] else rival
    sheds = verdict == "server_queue" and facts.refused >= 0.5
    sure = min(0.99, max(0.05, sure * seen))
    if not lighter and short < 0.5:
        sure = min(_ALONE, sure)
    evidence = [*words.of_rate(step, short), *words.of_growth(grown, step, lighter), *words.of_failures(step, refused)]
    evidence += [*words.of_places(piled), *(words.of_idle(piled, found) if stopped >= 0.5 else ())]
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


def _share_refused(refused: float, piled: PileUp | None) -> float:
    """Of the requests that the server does not count as its own."""
    if piled is None or not refused:
        return 0.0
    apart = sum(count for place, count in piled.requests.items() if place not in (CLIENT, WAITING, RUNNING))
    return min(1.0, refused / apart) if apart > 0 else 0.0


def judge_all(steps: list[dict[str, Any]], cards: Sequence[Card] = ()) -> dict[str, Any] | None:
    """Gives each step its `bottleneck`. What limits the run: the verdict of the lightest step that has one."""
    for step in steps:
        step["bottleneck"] = judge(step, steps, cards)
    limited = [step for step in steps if step["bottleneck"] and step["bottleneck"]["verdict"] != NONE]
    if not limited:
        return None
    first = min(limited, key=lambda step: float(step["level"]))
    found = first["bottleneck"]
    return {
        "level": first["level"],
        "unit": first["unit"],
        "verdict": found["verdict"],
        "confidence": found["confidence"],
        "text": found["evidence"][0]["text"],
        "next": found["next"],
    }


def _stopped(grown: Growth | None, piled: PileUp | None) -> float:
    """Probability that throughput no longer grows in proportion; without a lighter step, by how much of it queues."""
    if grown is not None:
        return grown.probability
    if piled is None or not piled.known:
        return 0.0
    served = piled.requests.get(RUNNING, piled.requests.get(SERVED, 0.0))
    return piled.requests[WAITING] / max(piled.requests[WAITING] + served, 1e-9)


def _weigh(piled: PileUp | None, facts: _Facts) -> _Weights:
    weights = _Weights()
    shares = {SERVED: 1.0} if piled is None else piled.shares
    for place, share in shares.items():
        if place not in (CLIENT, WAITING, RUNNING):
            weights.give("server_queue", share * facts.refused)
            share *= 1 - facts.refused
        match place:
            case pileup.CLIENT:
                weights.give("client", share)
            case pileup.OUTSIDE:
                _outside(weights, share, facts)
            case pileup.WAITING:
                _waiting(weights, share, facts)
            case pileup.RUNNING | pileup.AFTER:
                _running(weights, share, facts)
            case _:
                _somewhere(weights, share, facts)
    return weights


def _outside(weights: _Weights, share: float, facts: _Facts) -> None:
    """Received or on the way, and not in the engine: what is not the host's CPUs or disks is the network."""
    if facts.late_stamps:
        weights.give("client", share)
        return
    found = facts.marks
    weights.give("client", share * found.client_cpu)
    share *= 1 - found.client_cpu
    cpu, disks = found.host_cpu, found.io_wait
    if cpu is None and disks is None:
        weights.give("network", share / 2)
        weights.give("host_cpu", share / 2)
        return
    full = {"host_cpu": cpu or 0.0, "io_wait": disks or 0.0}
    if found.blocked is not None:  # both are full at times: which of them is what tasks wait for?
        full = {"host_cpu": full["host_cpu"] * (1 - found.blocked), "io_wait": full["io_wait"] * found.blocked}
    either = min(1.0, max(full.values()))
    total = sum(full.values())
    for name, mark in full.items():
        weights.give(name, share * either * mark / total if total else 0.0)
    weights.give("network", share * (1 - either))


def _waiting(weights: _Weights, share: float, facts: _Facts) -> None:
    """In the engine's queue: for the cache, for a place in the batch, or because the GPU gives no more."""
    found = facts.marks
    bound = facts.gpu_bound
    _or_queue(weights, share * bound, facts)
    full = max(found.kv or 0.0, found.vram or 0.0)
    weights.give("kv_capacity", share * (1 - bound) * full)
    weights.give("server_queue", share * (1 - bound) * (1 - full))


def _running(weights: _Weights, share: float, facts: _Facts) -> None:
    """In the batch: its iterations take longer. While the GPU is not busy, for as much as the host's CPU is full."""
    busy, cpu = _busy(facts), facts.marks.host_cpu
    weights.give("host_cpu", share * (1 - busy) * (0.5 if cpu is None else max(cpu, _UNSEEN_CPU)))
    _on_gpu(weights, share * busy, facts)


def _busy(facts: _Facts) -> float:
    return 1.0 if facts.marks.busy is None else facts.marks.busy


def _or_queue(weights: _Weights, share: float, facts: _Facts) -> None:
    """The GPU's, for as long as it works; while it does not, the engine keeps requests from it."""
    weights.give("server_queue", share * (1 - _busy(facts)))
    _on_gpu(weights, share * _busy(facts), facts)


def _on_gpu(weights: _Weights, share: float, facts: _Facts) -> None:
    """By how full the GPU's parts are."""
    found = facts.marks
    held_back = found.held_back or 0.0
    weights.give("power_thermal", share * held_back)
    rest = share * (1 - held_back)
    tensor, dram = (found.tensor or 0.0) ** 2, (found.dram or 0.0) ** 2
    if tensor + dram == 0:
        tensor = dram = 1.0
    weights.give("compute", rest * tensor / (tensor + dram))
    weights.give("memory_bandwidth", rest * dram / (tensor + dram))


def _somewhere(weights: _Weights, share: float, facts: _Facts) -> None:
    """The server does not tell its queue: before the first token, or anywhere in it, the fullest resource it is."""
    found = facts.marks
    gpu = max(found.tensor or 0.0, found.dram or 0.0)
    host = max(found.host_cpu or 0.0, found.io_wait or 0.0)
    full = max(found.kv or 0.0, found.vram or 0.0)
    total = gpu + host + full
    rest = share * max(0.0, 1 - total)
    scale = share / max(1.0, total)
    _or_queue(weights, scale * gpu, facts)
    if host:
        _outside(weights, scale * host, facts)
    weights.give("kv_capacity", scale * full)
    weights.give("server_queue", rest / 2)
    weights.give("network", rest / 2)


def _gpu_bound(step: Step, found: Marks, elasticity: float | None) -> float:
    """By how throughput went with the batch; where that did not grow, by the tensor cores.

    A preempted request is computed again: what the GPU does for that is the cache's fault, all of it at one a request.
    """
    bound = found.tensor or 0.0 if elasticity is None else _between(0.75, 0.25, elasticity)
    preempted = (step["server"] or {}).get("preemptions_per_s") or 0.0
    return bound * (1 - min(1.0, float(preempted / step["qps"])))


def _between(zero: float, one: float, value: float) -> float:
    return min(1.0, max(0.0, (value - zero) / (one - zero)))


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
