"""How near each resource of a server was to its limit in a step: marks from 0 to 1. Pure; entries of a summary.

A mark rises between a figure that is common without harm and one at which the resource can give no more; both are in
_RAMPS with their reason. None: not measured. Not here: whether that mattered (bottleneck.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from analysis.serving import of_kind

Step = Mapping[str, Any]

# Beside a core of the server's host that is this much busier, in %, a worker of the load generator explains nothing.
_SAME_CORE = 5.0
# A cache that is this much fuller than at the lightest step is as full; so few that wait for each that runs are none.
_AS_FULL = 0.02
_NO_QUEUE = 0.1

# Figure -> where its mark begins to rise, and where it is 1.
_RAMPS = {
    # A core that serves alone is full near 100 %; waits for it double at 70 % and are tenfold at 95 % (1 / (1 - u)).
    "core": (70.0, 95.0),
    # Some task waited for a CPU in so much of the time: half of it is no burst.
    "psi_cpu": (20.0, 60.0),
    # The cgroup's quota held the server back for so much of the time.
    "quota": (5.0, 25.0),
    # The server's main thread was ready to run, and had no CPU.
    "run_delay": (10.0, 50.0),
    # A disk's queue grows as a core's does.
    "disk": (70.0, 95.0),
    "psi_io": (20.0, 60.0),
    "iowait": (10.0, 40.0),
    "retransmitted": (1.0, 5.0),
    # What kernels reach of the peak at best: matrix products near 70 %, reading memory near 90 %.
    "tensor": (0.0, 70.0),
    "dram": (0.0, 90.0),
    # Kernels ran for so much of the time.
    "busy": (40.0, 80.0),
    # The clock was held down for so much of the time, and was so much lower: less costs less than a tenth of the work.
    "throttled": (0.1, 0.5),
    "clock_lost": (0.02, 0.1),
    # An engine admits nothing more when what a sequence needs is not free, a little below 100 %.
    "kv": (80.0, 95.0),
    "vram": (95.0, 99.0),
}


class Marks(NamedTuple):
    client_cpu: float  # of a worker that keeps a core of the server's host, or its own, busy
    shared_core: bool  # the busiest core of the server's host may be that worker's
    host_cpu: float | None
    core_before: float | None  # % of the busiest core at the lightest step, where that was much already
    io_wait: float | None
    blocked: float | None  # of what the CPUs and the disks keep waiting: the disks' share
    retransmitted: float | None
    tensor: float | None
    dram: float | None
    busy: float | None
    held_back: float | None
    kv: float | None
    kv_before: bool  # as full at the lightest step, where nobody waited
    vram: float | None


def ramp(figure: str, value: float | None) -> float | None:
    if value is None:
        return None
    low, high = _RAMPS[figure]
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def serving_hosts(step: Step) -> list[Mapping[str, Any]]:
    """Those of the server: with GPUs or its process, where any is; real ones beside simulated ones are the client's."""
    simulated = any(host["simulated"] for host in step["hosts"])
    found = [host for host in step["hosts"] if host["simulated"] == simulated]
    with_gpus = {gpu.get("host") for gpu in of_kind(step["gpus"])}
    return [host for host in found if host.get("server") or host.get("host") in with_gpus] or found


def gpu_mean(step: Step, *path: str) -> float | None:
    """Mean of a figure over the GPUs that have it."""
    found = []
    for gpu in of_kind(step["gpus"]):
        value: Any = gpu
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, int | float):
            found.append(float(value))
    return sum(found) / len(found) if found else None


def host_most(step: Step, *path: str) -> float | None:
    """Largest of a figure over the hosts that have it."""
    found = []
    for host in serving_hosts(step):
        value: Any = host
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, int | float):
            found.append(float(value))
    return max(found, default=None)


def clock_lost(step: Step, cards: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of the highest clock that the GPUs went without; None when either is not known."""
    highest = {card["uuid"]: card["sm_max_mhz"] for card in cards}
    lost = [
        1 - gpu["sm_mhz"] / highest[gpu["uuid"]]
        for gpu in of_kind(step["gpus"])
        if gpu["sm_mhz"] is not None and highest.get(gpu["uuid"])
    ]
    return sum(lost) / len(lost) if lost else None


def kv_usage(step: Step) -> float | None:
    """Of the fullest engine, 0 to 1."""
    server = step["server"] or {}
    usage = server.get("kv_usage_max")
    usage = server.get("kv_usage_ratio") if usage is None else usage
    return None if usage is None else float(usage)


def marks(step: Step, lighter: Sequence[Step], cards: Sequence[Mapping[str, Any]]) -> Marks:
    client_cpu, core_before = _client_cpu(step), _core(lighter[0]) if lighter else None
    shared_core = client_cpu > 0 and not _worker_elsewhere(step)
    host_cpu = _most(
        (
            _beyond(ramp("core", None if shared_core else _core(step)), ramp("core", core_before)),
            ramp("core", host_most(step, "cpu_pct")),
            ramp("psi_cpu", host_most(step, "psi_cpu_some_pct")),
            ramp("quota", host_most(step, "server", "throttled_pct")),
            ramp("run_delay", host_most(step, "server", "run_delay_pct")),
        )
    )
    io_wait = _most(
        (
            ramp("disk", host_most(step, "disk_busy_pct")),
            ramp("psi_io", host_most(step, "psi_io_some_pct")),
            ramp("iowait", host_most(step, "iowait_pct")),
        )
    )
    usage, kv_before = kv_usage(step), _kv_before(step, lighter)
    roofline = step.get("roofline") or {}
    tensor, dram = gpu_mean(step, "tensor_pct", "mean"), gpu_mean(step, "dram_pct", "mean")
    if tensor is None and dram is None:
        tensor, dram = roofline.get("mfu_pct"), roofline.get("mbu_pct")
    sm = gpu_mean(step, "sm_pct", "mean")
    return Marks(
        client_cpu=client_cpu,
        shared_core=shared_core,
        host_cpu=0.0 if host_cpu is None and _core(step) is not None else host_cpu,
        core_before=core_before if ramp("core", core_before) else None,
        io_wait=io_wait,
        blocked=_blocked(step, lighter),
        retransmitted=ramp("retransmitted", host_most(step, "tcp_retrans_pct")),
        tensor=ramp("tensor", tensor),
        dram=ramp("dram", dram),
        busy=ramp("busy", gpu_mean(step, "util_pct", "mean") if sm is None else sm),
        held_back=_held_back(step, cards),
        kv=ramp("kv", None if usage is None else 0.0 if kv_before else 100 * usage),
        kv_before=kv_before,
        vram=ramp("vram", _vram_pct(step, lighter)) if usage is None else None,
    )


def _core(step: Step) -> float | None:
    return host_most(step, "busiest_cpu_pct", "mean")


def _beyond(now: float | None, before: float | None) -> float | None:
    """A mark, less that of the lightest step: engines poll, and keep a core busy without any work.

    A core that really is full has tasks that wait for it, which has marks of its own.
    """
    if now is None or not before:
        return now
    return max(0.0, now - before) / (1 - before) if before < 1 else 0.0


def _client_cpu(step: Step) -> float:
    """Of the busiest worker; 0 where the server's host has a core that is busier than that explains.

    A worker on another host explains no core of the server's: it counts beyond that.
    """
    worker, core = step["worker_cpu_pct"], _core(step)
    if worker is None or (core is not None and core > worker + _SAME_CORE):
        return 0.0
    explained = ramp("core", core) if _worker_elsewhere(step) else None
    return max(0.0, (ramp("core", worker) or 0.0) - (explained or 0.0))


def _worker_elsewhere(step: Step) -> bool:
    """Whether a host that is watched beside those of the server has a core that is as busy as the worker."""
    worker, serving = step["worker_cpu_pct"], serving_hosts(step)
    cores = [host["busiest_cpu_pct"] for host in step["hosts"] if host not in serving]
    return worker is not None and any(core and core["mean"] >= worker - _SAME_CORE for core in cores)


def _kv_before(step: Step, lighter: Sequence[Step]) -> bool:
    """A prefix cache counts as used: full without anybody who waits for it, and nobody was put out since."""
    now, before = kv_usage(step), kv_usage(lighter[0]) if lighter else None
    if now is None or before is None or not ramp("kv", 100 * now) or now > before + _AS_FULL:
        return False
    server, at_first = step["server"] or {}, lighter[0]["server"] or {}
    put_out = server.get("preemptions_per_s") or at_first.get("preemptions_per_s")
    queue, waiting = _NO_QUEUE * max(1.0, at_first.get("running") or 0.0), at_first.get("waiting")
    return not put_out and waiting is not None and waiting < queue


def _held_back(step: Step, cards: Sequence[Mapping[str, Any]]) -> float | None:
    """Power or heat kept the clock down, and it was down."""
    throttled = _most(gpu_mean(step, "throttled_share", cause) for cause in ("power", "heat"))
    if throttled is None:
        return None
    lost = ramp("clock_lost", clock_lost(step, cards))
    return (ramp("throttled", throttled) or 0.0) * (1.0 if lost is None else lost)


def _vram_pct(step: Step, lighter: Sequence[Step]) -> float | None:
    """Of the fullest card, if its use grew with the load: a pool that is taken at the start is full from the start."""
    used = [gpu for gpu in of_kind(step["gpus"]) if gpu["vram_used_bytes"] and gpu["vram_total_bytes"]]
    before = gpu_mean(lighter[0], "vram_used_bytes", "mean") if lighter else None
    now = gpu_mean(step, "vram_used_bytes", "mean")
    if not used or before is None or now is None or now < 1.02 * before:
        return None
    return max(100 * float(gpu["vram_used_bytes"]["max"]) / float(gpu["vram_total_bytes"]) for gpu in used)


def _blocked(step: Step, lighter: Sequence[Step]) -> float | None:
    """Tasks that came to wait for I/O since the lightest step, as a share of them and those that came to want a CPU."""
    grown = []
    for name in ("procs_blocked", "procs_running"):
        now = host_most(step, name)
        if now is None:
            return None
        before = host_most(lighter[0], name) if lighter else None
        grown.append(max(0.0, now - (before or 0.0)))
    return grown[0] / sum(grown) if sum(grown) > 0 else None
