"""Which class has how much of a pile-up: by its places (pileup.py), and by the resources that are full (pressure.py).

Pure. What is nobody's is given to nobody.
"""

from __future__ import annotations

from typing import NamedTuple

from analysis import pileup
from analysis.pileup import CLIENT, RUNNING, SERVED, WAITING, PileUp, Step
from analysis.pressure import Marks

# Of a batch while neither the GPU nor a CPU is busy: locks and waits of one process are seen nowhere.
_UNSEEN_CPU = 0.1
# Not in flight, or in the server's own counts: HTTP errors are the answer to others.
_OWN = (CLIENT, WAITING, RUNNING)


class Weights(dict[str, float]):
    """What each class has of the pile-up; `refused`: what server_queue has as HTTP errors were the answer."""

    refused = 0.0

    def give(self, name: str, share: float) -> None:
        self[name] = self.get(name, 0.0) + max(0.0, share)

    def best(self) -> list[str]:
        return sorted(self, key=lambda name: -self[name])


class _Facts(NamedTuple):
    marks: Marks
    gpu_bound: float  # how much of a larger batch would be lost on the GPU
    late_stamps: bool  # the client was late, and its stamps are its own


def weigh(step: Step, piled: PileUp | None, found: Marks, elasticity: float | None) -> Weights:
    """`elasticity` is that of pileup.batch_elasticity."""
    late, own_stamps = step["client_on_time"] is False, (step["kernel_stamp_share"] or 0.0) < 0.5
    facts = _Facts(found, _gpu_bound(step, found, elasticity), late and own_stamps)
    weights, refused = Weights(), _share_refused(step, piled)
    shares = {SERVED: 1.0} if piled is None else piled.shares
    for place, share in shares.items():
        if place not in _OWN:
            weights.refused += share * refused
            share *= 1 - refused
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
    weights.give("server_queue", weights.refused)
    return weights


def _outside(weights: Weights, share: float, facts: _Facts) -> None:
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


def _waiting(weights: Weights, share: float, facts: _Facts) -> None:
    """In the engine's queue: for the cache, for a place in the batch, or because the GPU gives no more."""
    found = facts.marks
    bound = facts.gpu_bound
    _or_queue(weights, share * bound, facts)
    full = max(found.kv or 0.0, found.vram or 0.0)
    weights.give("kv_capacity", share * (1 - bound) * full)
    weights.give("server_queue", share * (1 - bound) * (1 - full))


def _running(weights: Weights, share: float, facts: _Facts) -> None:
    """In the batch: its iterations take longer. While the GPU is not busy, for as much as the host's CPU is full."""
    busy, cpu = _busy(facts), facts.marks.host_cpu
    weights.give("host_cpu", share * (1 - busy) * (0.5 if cpu is None else max(cpu, _UNSEEN_CPU)))
    _on_gpu(weights, share * busy, facts)


def _busy(facts: _Facts) -> float:
    return 1.0 if facts.marks.busy is None else facts.marks.busy


def _or_queue(weights: Weights, share: float, facts: _Facts) -> None:
    """The GPU's, for as long as it works; while it does not, the engine keeps requests from it."""
    weights.give("server_queue", share * (1 - _busy(facts)))
    _on_gpu(weights, share * _busy(facts), facts)


def _on_gpu(weights: Weights, share: float, facts: _Facts) -> None:
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


def _somewhere(weights: Weights, share: float, facts: _Facts) -> None:
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


def _share_refused(step: Step, piled: PileUp | None) -> float:
    """Of the requests that the server does not count as its own."""
    refused = step.get("in_flight_http_error")
    if piled is None or not refused:
        return 0.0
    apart = sum(count for place, count in piled.requests.items() if place not in _OWN)
    return float(min(1.0, refused / apart)) if apart > 0 else 0.0
