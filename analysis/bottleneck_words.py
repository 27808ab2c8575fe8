"""What is said of a bottleneck: the figures beside their limits, and what to try next. Pure; no clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis.pileup import (
    AFTER,
    BEFORE,
    CLIENT,
    KNEE,
    OUTSIDE,
    RUNNING,
    SERVED,
    WAITING,
    Growth,
    PileUp,
    got_through,
    stuck,
)
from analysis.pressure import Marks, Step, clock_lost, gpu_mean, host_most, kv_usage

NEXT = {
    "client": "give the load generator more workers (--workers) or a machine of its own, and repeat",
    "network": "repeat from a client beside the server: if that gets more, look at the link and at proxies between",
    "host_cpu": "give the server's front end more CPU or processes (API servers, tokenizer workers, cgroup quota), or "
    "move preprocessing to another host",
    "io_wait": "look at what a request makes the server read (disk, object store, database): cache it, or read more at "
    "once",
    "server_queue": "raise the engine's limit of sequences or tokens a batch (--max-num-seqs, --max-num-batched-tokens "
    "in vLLM) while latency allows, or add replicas",
    "kv_capacity": "make room for more tokens: KV cache in 8 bits, more GPU memory for it, shorter contexts, prefix "
    "caching, tensor parallelism, or more replicas",
    "memory_bandwidth": "move fewer bytes a token: weights or KV cache in 8 bits, shorter contexts, speculative "
    "decoding; or a GPU with more bandwidth, or more replicas",
    "compute": "compute less a token: 8-bit matrix products, prefix caching, shorter prompts; or a faster GPU, or more "
    "replicas",
    "power_thermal": "raise the power limit or cool the GPUs, and look at their clocks; else plan with what they give",
    "none": "raise the load: at this step more of it still brings more throughput",
}
ALONE = "add a lighter and a heavier step: one alone does not tell whether more load brings more"
LIGHTEST = "look at the heavier steps: they tell whether more load than here brings more"
SHED = (
    "the server, or a gateway before it, refuses requests: see which of them and why (limits of rate, of requests that "
    "wait, of connections), raise that limit while latency allows, or add replicas"
)
NOT_MEASURED = {
    "server": "the server's requests running and waiting (--metrics-url, --metrics-map)",
    "running": "the server's requests running (--metrics-map)",
    "waiting": "the server's requests waiting (--metrics-map)",
    "hosts": "the server's CPUs and disks (--agents)",
    "gpus": "GPUs (--agents)",
    "gpm": "tensor cores and memory bandwidth of the GPUs (GPM: Hopper and later, or give --model-config)",
    "kv": "use of the KV cache",
    "client": "the client's own delay",
}

# A share of what is in flight, or of the pile-up, that is worth a line.
_MUCH = 0.05


def row(name: str, text: str, strength: float) -> dict[str, Any]:
    return {"for": name, "text": text, "strength": round(float(min(1.0, max(0.0, strength))), 2)}


def mark_rows(
    step: Step, found: Marks, batch: float | None, cards: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A row for each figure that was measured and says something for or against a class."""
    server = step["server"] or {}
    if batch is not None:
        text = f"throughput went with the running batch by an elasticity of {batch:.2f}: a larger batch would bring "
        yield row("server_queue", text + ("more" if batch > 0.5 else "little"), abs(batch - 0.5) * 2)
    usage = kv_usage(step)
    if found.kv is not None and usage is not None:
        often = server.get("preemptions_per_s")
        text = f"the KV cache is {100 * usage:.0f} % full" + (f", {often:.2g} preemptions/s" if often else "")
        text += ", as at the lightest step, where nobody waited for it: what it keeps counts" if found.kv_before else ""
        yield row("kv_capacity", text, found.kv)
    if found.vram:
        yield row("kv_capacity", "GPU memory in use grew with the load, up to the card's limit", found.vram)
    yield from _gpu_rows(step, found, cards)
    yield from _host_rows(step, found)
    lag, limit = step["client_lag_ms"]["p99"], step["client_lag_limit_ms"]
    if lag is not None and limit:
        late = step["client_on_time"] is False
        yield row("client", f"the client's lag was {lag:.1f} ms at p99 (limit {limit:.1f} ms)", 0.5 if late else 0.0)
    if (cpu := step["worker_cpu_pct"]) is not None:
        yield row("client", f"the busiest worker used {cpu:.0f} % of a core", max(0.0, (cpu - 70) / 25))


def _gpu_rows(step: Step, found: Marks, cards: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for name, part, label in (
        ("compute", "tensor_pct", "tensor cores worked"),
        ("memory_bandwidth", "dram_pct", "memory bandwidth was used for"),
    ):
        value, mark = gpu_mean(step, part, "mean"), found.tensor if name == "compute" else found.dram
        if value is not None and mark is not None:
            yield row(name, f"{label} {value:.0f} % of the time", mark)
    roofline = step.get("roofline") or {}
    for name, figure, label in (("compute", "mfu_pct", "MFU"), ("memory_bandwidth", "mbu_pct", "MBU")):
        if roofline.get(figure) is not None:
            yield row(name, f"{label} is {roofline[figure]:.0f} % by the model's shapes", roofline[figure] / 100)
    if found.held_back is None:
        return
    shares = {cause: gpu_mean(step, "throttled_share", cause) for cause in ("power", "heat")}
    cause = max(shares, key=lambda name: shares[name] or 0.0)
    lost = clock_lost(step, cards)
    text = f"{cause} held the clock back for {100 * (shares[cause] or 0.0):.0f} % of the time"
    if lost is not None:
        text += f"; it was {100 * lost:.0f} % below its highest"
    yield row("power_thermal", text, found.held_back)


def _host_rows(step: Step, found: Marks) -> Iterator[dict[str, Any]]:
    core, whole, psi = (
        host_most(step, *path) for path in (("busiest_cpu_pct", "mean"), ("cpu_pct",), ("psi_cpu_some_pct",))
    )
    if found.host_cpu is not None:
        parts = [
            f"{label} {value:.0f} %"
            for label, value in (("busiest core", core), ("all CPUs", whole), ("pressure", psi))
            if value is not None
        ]
        text = f"CPU of the server's host: {', '.join(parts)}"
        if found.shared_core:
            text += "; its busiest core may be that of the load generator's worker"
        elif found.core_before is not None:
            text += f"; its busiest core was {found.core_before:.0f} % busy at the lightest step, too"
        yield row("host_cpu", text, found.host_cpu)
    if found.io_wait is not None:
        parts = [
            f"{label} {value:.0f} %"
            for label, value in (
                ("busiest disk", host_most(step, "disk_busy_pct")),
                ("iowait", host_most(step, "iowait_pct")),
                ("pressure", host_most(step, "psi_io_some_pct")),
            )
            if value is not None
        ]
        yield row("io_wait", f"I/O of the server's host: {', '.join(parts)}", found.io_wait)
    sent = host_most(step, "tcp_retrans_pct")
    if sent is not None and found.retransmitted:
        yield row("network", f"{sent:.1f} % of the TCP segments were sent again", found.retransmitted)


def of_rate(step: Step) -> Iterator[dict[str, Any]]:
    """What was due in the open model and did not get through, where that is much."""
    through, sure = got_through(step), stuck(step)
    if through is not None and sure > 0:
        due = step["rate"]["due"]
        text = f"{_few(due)} requests/s were due, and {_few(due * through)} got through: more load brings nothing more"
        yield row("none", text, sure)


def of_failures(step: Step) -> Iterator[dict[str, Any]]:
    refused, flying = step.get("in_flight_http_error"), step["in_flight_mean"]
    if refused and flying and refused >= _MUCH * flying:
        yield row("server_queue", f"{_few(refused)} requests in flight were answered by HTTP errors", refused / flying)


def of_idle(piled: PileUp | None, found: Marks) -> Iterator[dict[str, Any]]:
    """What of the batch's time neither the GPU nor the host's CPU explains."""
    if piled is None or found.busy is None or found.host_cpu is None:
        return
    rest = piled.shares.get(RUNNING, 0.0) * (1 - found.busy) * (1 - found.host_cpu)
    if rest >= _MUCH:
        text = "neither the GPU nor the host's CPUs are full: what the batch waits for is not known for "
        yield row("none", f"{text}{100 * rest:.0f} % of the pile-up", rest)


def of_growth(grown: Growth | None, step: Step, lighter: Sequence[Step]) -> Iterator[dict[str, Any]]:
    if grown is None:
        why = "no more requests in flight than at lighter steps" if lighter else "no lighter step to compare with"
        yield row("none", f"{why}: whether throughput still grows is not known", 0.2)
        return
    stopped = grown.elasticity < KNEE
    yield row(
        "none",
        f"{grown.times_load:.2g} times the {'unanswered requests' if step['rate'] else 'users'} of the step of "
        f"{grown.since:g} brought {grown.times_qps:.2f} times the throughput: {100 * grown.elasticity:.0f} % of "
        f"proportional growth (below {100 * KNEE:.0f} % is past the knee)",
        grown.probability if stopped else 1 - grown.probability,
    )


_PLACES = {
    CLIENT: "at the client, and not sent yet",
    OUTSIDE: "outside the engine: on the way, or in the host's front end",
    WAITING: "in the engine's queue",
    RUNNING: "in the engine's batch",
    BEFORE: "on the way, in a queue, or before their first token",
    AFTER: "after their first token",
    SERVED: "in flight",
}


def of_places(piled: PileUp | None) -> Iterator[dict[str, Any]]:
    if piled is None or piled.total <= 0:
        return
    since = "" if piled.baseline is None else f" beyond what this throughput needed at the step of {piled.baseline:g}"
    for place, share in sorted(piled.shares.items(), key=lambda item: -item[1]):
        if share >= _MUCH:
            count = _few(piled.requests[place])
            text = f"{count} requests are {_PLACES[place]}: {100 * share:.0f} % of the pile-up{since}"
            yield row(_FOR_PLACE[place], text, share)


_FOR_PLACE = {
    CLIENT: "client",
    OUTSIDE: "network",
    WAITING: "server_queue",
    RUNNING: "compute",
    BEFORE: "server_queue",
    AFTER: "compute",
    SERVED: "none",
}


def _few(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
