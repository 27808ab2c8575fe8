"""What an examination of hosts found, a line each thing, in the doctor's words: found, and what to do about it.

The facts come from remote_agents.checkup. What a machine does not have is no problem; what it should have and does not
tell is one. Durations are of CLOCK_MONOTONIC.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from loadgen.doctor.check import Check, Finding, Verdict, failed, not_applicable, ok, warning
from loadgen.errors import AgentError
from remote_agents.agent.gpu_rate import TOO_DEAR
from remote_agents.agent.kernel_clock import boot_id
from remote_agents.agent.pace import FAST_NS
from remote_agents.checkup import Findings
from remote_agents.collector import Config

# 1  first version
SCHEMA = 1
# Samples whose time is known worse than this cannot be told from the next ones.
_BLURRED_NS = FAST_NS // 2

_METRICS_REMEDY = "say where they are with --metrics-url, and which series mean what with --metrics-map"
_DCGM_REMEDY = "correct --dcgm-url, or leave it out: NVML is read in any case"
_DRIVER_REMEDY = "look at the driver on that host (nvidia-smi, dmesg)"
# Events that have a line of their own, or say nothing new.
_ELSEWHERE = (
    *("agent_started", "agent_failed", "gpu_absent", "server_process"),
    *("server_metrics", "no_server_metrics", "dcgm", "no_dcgm"),
)
# What to do about the others; those that are not here are no problem.
_REMEDIES = {
    "gpu_missing": "correct --gpus, or look for the GPU with nvidia-smi on that host",
    "gpu_rate": "watch fewer GPUs with --gpus, or bring the driver up to date",
    "no_xids": "look for XIDs in dmesg of that host",
    "nvml_hang": f"{_DRIVER_REMEDY}, and switch persistence mode on",
    **dict.fromkeys(("nvml_error", "gpu_lost", "gpu_reset_required", "gpu_thread_lost", "xid", "ecc"), _DRIVER_REMEDY),
    **dict.fromkeys(("agent_error", "bad_rows"), "this is a fault of ours: report it with the versions of both hosts"),
    **dict.fromkeys(("agent_lost", "agent_silent", "agent_restarted"), "look at the network, and at the host's memory"),
}


def checks(found: Findings, config: Config, gpu_required: bool) -> list[Check]:
    """The lines about one host."""
    named = [("reached", _reached(found))]
    if found.problem is None and found.hello:
        named += [
            ("GPU driver", _driver(found.hello, gpu_required)),
            *_gpus(found.hello),
            ("host counters", _host(found)),
            ("rows a second", _rows(found)),
            ("server process", _process(found, config)),
            ("server metrics", _metrics(found, config)),
            ("dcgm-exporter", _dcgm(found, config)),
            ("clock", _clock(found)),
            ("time of day", _time_of_day(found)),
        ]
    named += _said(found.events)
    return [Check(name, *finding, error=AgentError) for name, finding in named]


def as_json(found: Findings, lines: Iterable[Check]) -> dict[str, Any]:
    """Everything that is known of one host."""
    listed = list(lines)
    clock = found.clock
    return {
        "agent": found.agent,
        "ok": all(check.verdict is not Verdict.FAILED for check in listed),
        "problem": None if found.problem is None else str(found.problem),
        "started_s": found.started_s,
        "checks": [
            {"name": check.name, "verdict": check.verdict.value, "found": check.found, "remedy": check.remedy}
            for check in listed
        ],
        "hello": found.hello or None,
        "rows": found.rows,
        "rows_per_s": found.hz,
        "last_rows": found.last,
        "events": found.events,
        "clock": clock
        and {
            "same_as_ours": _is_ours(found.hello),
            "offset_ns": clock.offset_ns,
            "bound_ns": clock.bound_ns,
            "probes": clock.probes,
        },
    }


def _reached(found: Findings) -> Finding:
    if found.problem is not None:
        otherwise = "tries again and again" if found.problem.passing else "goes on without it"
        return failed(str(found.problem), f"put that right, or leave the host out: a run {otherwise}")
    if not found.hello or found.started_s is None:
        return failed("it did not begin to sample in time", "try again; look at the load of that host and the network")
    hello = found.hello
    facts = [event["peer"] for event in found.events if event["kind"] == "agent_started"]
    facts += [f"Python {hello['python']}"] if "python" in hello else []
    facts += [f"{hello['cpus']} CPUs"] if hello.get("cpus") else []
    facts += [f"named {hello['hostname']}"] if "hostname" in hello else []
    return ok(f"the agent spoke after {found.started_s:.2f} s" + (f" ({', '.join(facts)})" if facts else ""))


def _driver(hello: dict[str, Any], required: bool) -> Finding:
    nvml = hello["nvml"]
    state, count = nvml["state"], len(hello["gpus"])
    if state == "starting":
        return warning("it has not answered in time", "see whether nvidia-smi answers, and switch persistence mode on")
    if state == "nvidia-smi":
        remedy = "install Python 3.8 or later there for ten times a second, host counters and a clock of its own"
        return warning(f"{nvml['driver']}, {count} GPU(s) {nvml['reason']}", remedy)
    if state == "absent":
        found = f"there is none ({nvml['reason']}): host counters only"
    elif not count:
        found = f"{nvml['driver']}, and no GPU that is to be watched"
    else:
        return ok(f"{nvml['driver']}, NVML {nvml['version']}, {count} GPU(s) or MIG devices")
    return failed(found, "install the driver, or leave --require-gpu out") if required else not_applicable(found)


def _gpus(hello: dict[str, Any]) -> Iterator[tuple[str, Finding]]:
    for gpu in hello["gpus"]:
        name = f"GPU {gpu['index']}" + ("" if gpu.get("gi_id") is None else f" MIG {gpu['gi_id']}")
        yield name, _gpu(gpu)
        if gpu.get("absent"):
            yield f"{name} lacks", _lacks(gpu["absent"])
    if costs := hello["nvml"].get("call_us"):
        yield "NVML calls", _costs(costs, len(hello["gpus"]))


def _gpu(gpu: dict[str, Any]) -> Finding:
    parts = [f"{gpu['name'] or 'of a kind that is not told'}"]
    if gpu.get("mem_total_b"):
        parts[0] += f", {gpu['mem_total_b'] / 2**30:.0f} GiB"
    parts.append(gpu["uuid"])
    parts += [f"{what} {'on' if gpu[key] else 'off'}" for key, what in _MODES.items() if gpu.get(key) is not None]
    if gpu.get("power_means"):
        parts.append(f"power: {gpu['power_means']}")
    if gpu.get("fallbacks"):
        parts.append(f"older ways: {', '.join(gpu['fallbacks'])}")
    if gpu.get("persistence_mode") == 0:
        return warning("; ".join(parts), "nvidia-smi -pm 1, as root: else the driver starts anew with each user of it")
    return ok("; ".join(parts))


_MODES = {"mig_mode": "MIG", "persistence_mode": "persistence mode"}


def _lacks(absent: dict[str, str]) -> Finding:
    """By reason, since one reason is that of many columns."""
    reasons: dict[str, list[str]] = {}
    for column, reason in absent.items():
        reasons.setdefault(reason, []).append(column)
    found = "; ".join(f"{', '.join(columns)} ({reason})" for reason, columns in reasons.items())
    if any("ermission" in reason for reason in reasons):
        return warning(found, "let its administrator allow it to all users (NVreg_RestrictProfilingToAdminUsers=0)")
    return not_applicable(found)


def _costs(costs: dict[str, dict[str, int]], gpus: int) -> Finding:
    """Measured of one GPU, and slow rows are read once a second only: for all of them it is an upper bound."""
    typical, worst = (sum(cost[rank] for cost in costs.values()) / 1e3 for rank in ("p50", "p99"))
    slowest = max(costs, key=lambda name: costs[name]["p50"])
    named = "that of the fields, read by one call" if slowest.startswith("fields ") else slowest
    found = (
        f"all {len(costs)} of one GPU take {typical:.2f} ms (p50), {worst:.2f} ms (p99); "
        f"the slowest is {named}, {costs[slowest]['p50'] / 1e3:.2f} ms"
    )
    turn_ms, limit_ms = gpus * worst, TOO_DEAR * FAST_NS / 1e6
    if turn_ms > limit_ms:
        remedy = "watch fewer GPUs with --gpus: where a turn takes too long, all are read less often, which is said"
        return warning(f"{found}; a turn of {gpus} may take {turn_ms:.0f} ms, {limit_ms:.0f} are allowed", remedy)
    return ok(f"{found}; a turn of {gpus} fits into {limit_ms:.0f} ms: ten a second")


def _rows(found: Findings) -> Finding:
    if not found.rows:
        return warning("nothing came", "look at the load of that host")
    return ok(", ".join(f"{name} {hz:.1f}" for name, hz in found.hz.items()) or "too few to tell")


def _host(found: Findings) -> Finding:
    row = found.last.get("host")
    if row is None:
        return not_applicable("none: nvidia-smi tells of GPUs only")
    lacking = [column for column, value in row.items() if value is None and column != "cpu_max_busy_pct"]
    total = f"{row['mem_total_b'] / 2**30:.0f} GiB of memory" if row["mem_total_b"] else "memory is not told"
    if any(column.startswith("psi_") for column in lacking):
        text = f"{total}; without pressure (PSI), how long tasks wait for CPU, memory and disk"
        return warning(text, "boot that kernel with psi=1, or do without: figures of pressure stay empty")
    return ok("; ".join([total, "pressure (PSI) is told", *([f"without {', '.join(lacking)}"] if lacking else [])]))


def _process(found: Findings, config: Config) -> Finding:
    watched = [event for event in found.events if event["kind"] == "server_process" and "pid" in event]
    if watched:
        lacking = sorted({f"no {column}: {reason}" for event in watched for column, reason in event["absent"].items()})
        return ok("; ".join([*(event["text"] for event in watched), *lacking]))
    port = config.start(found.agent)["server_port"]
    if port is None:
        return not_applicable("no process uses a GPU here, and without --host no port is looked for")
    return warning(
        f"none uses a GPU here, or listens on port {port}",
        "start the server, or correct --host; what other users and containers run may be hidden from this one",
    )


def _metrics(found: Findings, config: Config) -> Finding:
    url = config.start(found.agent)["metrics_url"]
    if url is None and config.endpoint is not None:
        return not_applicable("not read from here: agents do that on the host of their server")
    if url is None:
        return not_applicable("not looked for: give --host or --metrics-url")
    return _told(found, "server_metrics", url, _METRICS_REMEDY)


def _dcgm(found: Findings, config: Config) -> Finding:
    url = config.start(found.agent)["dcgm_url"]
    if url is None:
        return not_applicable("not read from here" if config.dcgm_url else "not looked for: give --dcgm-url")
    return _told(found, "dcgm", url, _DCGM_REMEDY)


def _told(found: Findings, kind: str, url: str, remedy: str) -> Finding:
    """What an agent said of a page that it was to read."""
    texts = {event["kind"]: event["text"] for event in found.events if event["kind"] in (kind, f"no_{kind}")}
    if kind in texts:
        return ok(texts[kind])
    return warning(texts.get(f"no_{kind}", f"nothing came of {url} in time"), remedy)


def _clock(found: Findings) -> Finding:
    if _is_ours(found.hello):
        return ok("the same as that of this machine")
    if found.clock is None:
        return warning("no probe was answered: samples cannot be placed in time", "look at the network, and try again")
    bound_ms = found.clock.bound_ns / 1e6
    text = (
        f"CLOCK_MONOTONIC there is {found.clock.offset_ns / 1e9:+.3f} s from ours, known to ± {bound_ms:.3f} ms "
        f"(round trip {2 * bound_ms:.3f} ms, {found.clock.probes} probes)"
    )
    if found.clock.bound_ns > _BLURRED_NS:
        return warning(text, "run from a machine that is nearer to it, or over a less busy network")
    return ok(text)


def _time_of_day(found: Findings) -> Finding:
    """The kernel's own word: nothing but labels depends on it."""
    row = found.last.get("agent", {})
    if row.get("clock_maxerror_us") is None:
        return not_applicable("this kernel does not tell whether it is synchronised")
    error_us = row["clock_maxerror_us"]
    error = f"error up to {error_us / 1e3:.1f} ms" if error_us < 1e6 else f"error up to {error_us / 1e6:.1f} s"
    if row["clock_unsync"]:
        remedy = "start chrony or another NTP client there: no figure depends on it, but times in its own logs do"
        return warning(f"not synchronised ({error})", remedy)
    return ok(f"synchronised, {error}")


def _is_ours(hello: dict[str, Any]) -> bool:
    return bool(ours := boot_id()) and hello.get("boot_id") == ours


def _said(events: list[dict[str, Any]]) -> Iterator[tuple[str, Finding]]:
    for event in events:
        kind, text = event["kind"], event["text"]
        if kind not in _ELSEWHERE:
            remedy = _REMEDIES.get(kind)
            yield kind.replace("_", " "), ok(text) if remedy is None else warning(text, remedy)
