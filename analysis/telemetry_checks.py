"""Caveats of GPUs, hosts, agents and clocks: rules over entries of summary.json, and their limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from analysis.caveat import Caveat, caveat
from analysis.overlap import MAX_BLUR, MIN_COVERAGE

STEAL_PCT = 5.0
AGENT_CPU_PCT = 5.0
AGENT_SKIPPED = 0.05
SUSPENDED_S = 0.1


def telemetry_caveats(step: dict[str, Any]) -> Iterator[Caveat]:
    """Of a step: where the samples of its window are too few, or too uncertain in time."""
    for gpu in step["gpus"]:
        if gpu["coverage"] < MIN_COVERAGE:
            yield caveat(
                "telemetry_gap",
                f"samples cover {100 * gpu['coverage']:.0f} % of the window on GPU {gpu['index']} of {gpu['host']}: "
                "it has no figures",
                "see events and logs/ for the agent's end",
            )
    for host in step["hosts"]:
        if host["coverage"] < MIN_COVERAGE:
            yield caveat(
                "telemetry_gap",
                f"samples of {host['host']} cover {100 * host['coverage']:.0f} % of the window: it has no figures",
                "see events and logs/ for the agent's end",
            )
    bounds = {entry["host"]: entry["bound_ms"] for entry in (*step["gpus"], *step["hosts"])}
    for name, bound_ms in bounds.items():
        if bound_ms > MAX_BLUR * 1e3 * step["window_s"]:
            yield caveat(
                "telemetry_blurred",
                f"the time of {name}'s samples is known to {_time(bound_ms)} only, more than half of the window: "
                "it has no figures",
                "see the section Telemetry and events for what happened to its clock or its link",
            )
    if step["server"] is not None and all(value is None for value in step["server"].values()):
        yield caveat(
            "server_gap",
            "the server's metrics do not cover the window: it has no figures of the server",
            "see events and logs/ for why they could not be read",
        )
    for host in step["hosts"]:
        if (steal := host["steal_pct"]) is not None and steal > STEAL_PCT:
            yield caveat(
                "steal",
                f"other machines took {steal:.1f} % of the CPU time of {host['host']}",
                "measure on a machine whose cores are its own",
            )


def _time(ms: float) -> str:
    return f"{ms / 1e3:.1f} s" if ms >= 1e3 else f"{ms:.3g} ms"


def clock_caveats(clocks: list[dict[str, Any]]) -> Iterator[Caveat]:
    """Of how well each host's clock is known: entries of summary.json."""
    for clock in clocks:
        host = clock["host"]
        for step in clock["steps"]:
            way = "ahead" if step["size_ms"] > 0 else "back"
            yield caveat(
                "clock_moved",
                f"the clock of {host} moved {_time(abs(step['size_ms']))} {way} around second {step['at_s']:.0f}, "
                "against the controller's: samples around then have no certain time",
                "look for sleep, a live migration or a fast correction of the time on either host",
            )
        if clock["bound_ms"] > MAX_BLUR * 1e3:
            yield caveat(
                "clock_blurred",
                f"the time of some of {host}'s samples is known to {_time(clock['bound_ms'])} only: "
                "seconds of the timeline that this blurs have no figures of it",
                "see the section Telemetry; a nearer or quieter link to the host gives closer times",
            )
        difference = clock["time_of_day_ms"]
        if difference is not None and abs(difference) > clock["time_of_day_limit_ms"]:
            yield caveat(
                "time_of_day",
                f"the time of day of {host} differs from the controller's by {_time(abs(difference))}; by what both "
                f"kernels say of theirs it can be {_time(clock['time_of_day_limit_ms'])} at most",
                "figures do not use them; do not compare their log files before the time service is mended",
            )


def agent_caveats(agents: list[dict[str, Any]]) -> Iterator[Caveat]:
    """Of what watching cost, and whether the host slept: figures of hosts.agent_figures."""
    for agent in agents:
        if (cpu := agent["cpu_pct"]) is not None and cpu > AGENT_CPU_PCT:
            yield caveat(
                "agent_cpu",
                f"the agent on {agent['host']} used {cpu:.1f} % of a core: it may have slowed the server",
                "watch fewer GPUs with --gpus, or repeat with --agents none and compare",
            )
        if (share := agent["skipped_share"]) is not None and share > AGENT_SKIPPED:
            yield caveat(
                "agent_late",
                f"the agent on {agent['host']} skipped {100 * share:.1f} % of its ticks: GPU figures are coarse",
                "look for a busy host or a slow driver on it",
            )
        if (slept := agent["suspended_s"]) is not None and slept > SUSPENDED_S:
            yield caveat(
                "suspended",
                f"{agent['host']} slept for {slept:.1f} s during the run: nothing ran on it meanwhile",
                "keep the hosts of a test awake, and repeat the run",
            )
