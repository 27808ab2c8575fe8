"""Caveats that ship with the numbers: what a reader must know before believing one, and what to do about it.

Here are the rules of the load and their limits; those of GPUs, hosts and clocks are in telemetry_checks.py, and the
evidence comes from metrics.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from analysis.answers import hung
from analysis.caveat import Caveat, caveat
from analysis.damage import never_watched
from analysis.stats import PERCENTILES, minimum_samples
from analysis.telemetry_checks import agent_caveats, clock_caveats, telemetry_caveats
from analysis.windows import Window
from loadgen import rundir

CLIENT_LAG_MS = 5.0
# Stamps of the kernel do not suffer from a late read, but the user's next request does: a share of a request's length.
CLIENT_LAG_OF_E2E = 0.05
# Without them a late read is a late stamp: a share of the shortest latency that is reported.
CLIENT_LAG_OF_TTFT = 0.02
# Open model: lateness of a send is part of every latency, which counts from when the request was due.
SEND_LAG_MS = 2.0
SEND_LAG_OF_E2E = 0.02
WORKER_CPU_PCT = 90.0
SIMULATOR_LATE = 0.01
DELIVERED = 0.95
# What arrives by chance differs from its mean by fewer standard deviations than this.
CHANCE = 3.0
CANCELLED = 0.05
ENDED_AFTER = 0.5
FAILED = 0.01
COALESCED = 0.05
TOKENS_PER_EVENT = 0.05
# Little's law holds within this, of so many requests, in a window of so many times the mean time in flight.
LITTLE = 0.1
LITTLE_REQUESTS = 100
LITTLE_RESIDENCES = 5
SIMULATED_GPU = "simulated GPU"

# Events that spoil the step they fall into, and what to do.
_FAULTS = {
    "worker_lost": "the load of that worker is missing from then on: repeat the run and see logs/",
    "collector_lost": "GPU and server figures end there: see logs/",
    "agent_lost": "figures of that host end there: see logs/",
    "nvml_hang": "figures of that GPU are missing: look at the driver on that host",
    "gpu_thread_lost": "figures of that host's GPUs end there: see logs/",
    "bad_rows": "samples of that host are missing: this is a fault of ours, keep the run directory and report it",
    "samples_lost": "samples of that host are missing: see events for how long its link was down",
    "agent_restarted": "samples of that host are missing until then: see logs/ for why it had ended",
    "gpu_lost": "a GPU fell off the bus: look at the driver on that host",
    "gpu_reset_required": "the GPU has to be reset: look at the driver on that host",
    "gpu_unavailable": "look at the driver's messages on that host",
    "xid": "look up that XID, and the driver's messages on that host",
    "ecc": "the GPU's memory is failing: look at the driver's messages on that host",
}


def step_caveats(
    step: dict[str, Any], window: Window, manifest: dict[str, Any], events: list[tuple[float, dict[str, Any]]]
) -> list[Caveat]:
    """Caveats of one step; `events` are (seconds since the run's start, line of events.jsonl)."""
    faults = [
        caveat(kind, f"{event.get('text', kind)} ({at:.1f} s)", _FAULTS[kind])
        for at, event in events
        if (kind := event.get("kind", "")) in _FAULTS and window.ramp_s <= at <= window.end_s
    ]
    return [
        *faults,
        *_client(step),
        *_simulator(step, manifest),
        *_load(step, window, manifest),
        *_state(step),
        *_sample(step),
        *_tokens(step),
        *telemetry_caveats(step),
    ]


def client_lag_limit(step: dict[str, Any]) -> tuple[float, float, str]:
    """The p99 of the client's lag that is tolerated, in ms, the share of a latency that it is, and which latency."""
    by_kernel = step["client_lag_source"] == "read_lag"
    share, metric = (CLIENT_LAG_OF_E2E, "e2e") if by_kernel else (CLIENT_LAG_OF_TTFT, "ttft")
    return max(CLIENT_LAG_MS, share * (step[f"{metric}_ms_ok"]["p50"] or 0.0)), share, metric


def send_lag_limit(step: dict[str, Any]) -> float | None:
    """The p99 of the send lag that is tolerated, in ms. None in the closed model, which has no schedule."""
    return max(SEND_LAG_MS, SEND_LAG_OF_E2E * (step["e2e_ms_ok"]["p50"] or 0.0)) if step["rate"] else None


def client_on_time(step: dict[str, Any]) -> bool | None:
    """The verdict on the client: whether it read, and in the open model sent, within the limits. None: not measured."""
    limits = (
        (step["client_lag_ms"]["p99"], client_lag_limit(step)[0]),
        (step["send_lag_ms"]["p99"], send_lag_limit(step)),
    )
    within = [lag <= limit for lag, limit in limits if lag is not None and limit is not None]
    return all(within) if within else None


def _client(step: dict[str, Any]) -> Iterator[Caveat]:
    lag = step["client_lag_ms"]["p99"]
    limit, share, metric = client_lag_limit(step)
    if lag is not None and lag > limit:
        rule = f"the larger of {CLIENT_LAG_MS:g} ms and {share:.0%} of {metric.upper()} p50"
        yield caveat(
            "client_late",
            f"the client read late: p99 {lag:.1f} ms (limit {limit:.1f} ms, {rule})",
            "use more workers, or a machine of their own for them",
        )
    sent, limit_ = step["send_lag_ms"]["p99"], send_lag_limit(step)
    if sent is not None and limit_ is not None and sent > limit_:
        rule = f"the larger of {SEND_LAG_MS:g} ms and {SEND_LAG_OF_E2E:.0%} of E2E p50"
        yield caveat(
            "client_late",
            f"the client sent late: p99 {sent:.1f} ms after a request was due (limit {limit_:.1f} ms, {rule})",
            "use more workers, or a machine of their own for them",
        )
    if (cpu := step["worker_cpu_pct"]) is not None and cpu > WORKER_CPU_PCT:
        yield caveat(
            "worker_cpu",
            f"a worker used {cpu:.0f} % of its core: it may have held the load back",
            "use more workers with --workers, or more machines",
        )


def _simulator(step: dict[str, Any], manifest: dict[str, Any]) -> Iterator[Caveat]:
    if not manifest["target"].get("simulated"):
        return
    late = step["simulator_late_share"]
    if late is None and step["requests"]:
        yield caveat(
            "no_truth",
            "the simulator's truth log has no token of this step: whether the simulator was on time is not known",
            "see logs/ for the simulator's end",
        )
    elif late is not None and late > SIMULATOR_LATE:
        yield caveat(
            "simulator_late",
            f"the simulator wrote {100 * late:.1f} % of its tokens more than 5 ms late: its latencies are too long",
            "lower the concurrency, or run it on a machine with more free cores",
        )


def _load(step: dict[str, Any], window: Window, manifest: dict[str, Any]) -> Iterator[Caveat]:
    flying = step["in_flight_mean"]
    closed = manifest["plan"].get("arrival") == "closed" and not (manifest["options"] or {}).get("think_time")
    if closed and flying is not None and flying < DELIVERED * step["level"]:
        yield caveat(
            "load_not_delivered",
            f"{flying:.1f} requests were in flight on average, {step['level']} were asked for",
            "look for connection errors, busy workers and lost workers; give the step more time",
        )
    if (rate := step["rate"]) is not None and rate["delivered"] is not None:
        wanted = max(DELIVERED * rate["due"], _least_due(rate["asked"], window.length_s, manifest["plan"]))
        if rate["delivered"] < wanted:
            yield caveat(
                "load_not_delivered",
                f"{rate['delivered']:.1f} requests/s were sent, {step['level']} were asked for",
                "look for dropped requests, busy workers and lost workers",
            )
    if step["dropped"]:
        yield caveat(
            "dropped",
            f"{step['dropped']} of {step['requests']} requests were due and never sent, as too many were in flight: "
            "they count as infinite in the percentiles",
            "raise --max-in-flight, or the server does not hold this rate",
        )
    if not window.ended:
        yield caveat(
            "no_step_end",
            "the step has no end: it was cut by a kill, and its window ends with the last record",
            "repeat the run",
        )
    if (counted := step["requests"] - step["cancelled"]) and not step["ok"]:
        yield caveat("all_failed", f"all {counted} requests failed", "see the outcomes and logs/")
    elif counted and (failed := sum(step["errors"].values()) - step["dropped"]) > FAILED * counted:
        yield caveat(
            "failures",
            f"{failed} of {counted} requests failed: they count as infinite in the percentiles",
            "see the outcomes; figures of the survivors are in summary.json as …_ok",
        )
    if hung(step):
        yield caveat(
            "hung",
            f"{flying:.1f} requests were in flight on average, and none was answered in {step['window_s']:.0f} s: "
            "every latency counts as infinite",
            "see why the server does not answer; if it takes so long, make the step several times as long as an answer",
        )
    if step["cancelled"] > (CANCELLED + _hung_up(manifest)) * step["requests"]:
        yield caveat(
            "many_cancelled",
            f"the run's end cut {step['cancelled']} of {step['requests']} requests: percentiles miss the slowest",
            "make the step longer than the slowest answers",
        )
    if step["ended_after_window"] > ENDED_AFTER * counted:
        yield caveat(
            "many_ended_after",
            f"{step['ended_after_window']} of {counted} requests ended after the window: QPS and latencies describe "
            "different requests",
            "make the step several times as long as an answer",
        )


def _state(step: dict[str, Any]) -> Iterator[Caveat]:
    if step["steady"] is False:
        yield caveat(
            "not_steady",
            f"no steady state: {step['steady_why']}",
            "make the step longer; if it goes on changing, the load is more than the server holds, or something leaks",
        )
    little = step["little"]
    if (
        little is not None
        and little["requests"] >= LITTLE_REQUESTS
        and step["window_s"] >= LITTLE_RESIDENCES * little["residence_ms"] / 1e3
        and abs(little["difference"]) > LITTLE
    ):
        yield caveat(
            "littles_law",
            f"{step['in_flight_mean']:.1f} requests were in flight, by rate and time in flight (Little's law) it were "
            f"{little['in_flight']:.1f}: the step's begin and end differ, or records are missing",
            "make the step longer; look for lost workers and damage",
        )


def _hung_up(manifest: dict[str, Any]) -> float:
    """The share of the requests that the client was told to cancel."""
    try:
        return float((manifest["options"] or {}).get("cancel_rate") or 0)
    except (TypeError, ValueError):
        return 0.0


def _least_due(asked: float, length_s: float, plan: dict[str, Any]) -> float:
    """The rate that a window of the schedule reaches, but for rare chance; 0 for a trace, which need not be even."""
    cv = {"constant": 0.0, "poisson": 1.0}.get(str(plan.get("arrival")), plan.get("cv"))
    if not isinstance(cv, int | float):
        return 0.0
    return asked * (DELIVERED - CHANCE * cv / math.sqrt(asked * length_s))


def _sample(step: dict[str, Any]) -> Iterator[Caveat]:
    counted = step["requests"] - step["cancelled"]
    short = [f"p{p} needs {minimum_samples(p)}" for p in PERCENTILES if counted < minimum_samples(p)]
    if not counted and not hung(step):
        yield caveat("no_requests", "no request of the window ended: it has no latencies", "make the step longer")
    elif counted and short:
        yield caveat(
            "few_requests",
            f"{counted} requests are too few to bound every percentile: {', '.join(short)}",
            "make the step longer, or raise --step-requests",
        )
    if (every := step["kept_every"]) > 1:
        yield caveat(
            "every_kth",
            f"the run is so long that percentiles and intervals are those of every {every}th request; counts and rates "
            "are of all",
            "nothing: so many requests bound every percentile",
        )
    alike = [
        f"{metric.upper()} {stat} ({step[f'{metric}_ms_effective'][stat]})"
        for metric in ("ttft", "e2e")
        for stat, (low, high) in step[f"{metric}_ms_ci95"].items()
        if stat != "mean" and low is not None and high is None and counted >= minimum_samples(float(stat[1:]))
    ]
    if alike:
        yield caveat(
            "few_independent",
            f"requests that follow each other are alike: {counted} tell as much as the independent ones in brackets, "
            f"too few for an upper bound of {', '.join(alike)}",
            "make the step longer: what makes them alike has to come and go several times",
        )


def _tokens(step: dict[str, Any]) -> Iterator[Caveat]:
    if (share := step["coalesced_share"]) is not None and share > COALESCED:
        yield caveat(
            "coalesced",
            f"{100 * share:.0f} % of the output events shared a read: TTFT is an upper limit, ITL is coarse",
            "use more workers, or look for a proxy that buffers the stream",
        )
    if (share := step["tokens_from_events_share"]) is not None and share > 0:
        yield caveat(
            "tokens_from_events",
            f"for {100 * share:.0f} % of the requests the server gave no usage: output events were counted as tokens",
            "let the server report usage (stream_options.include_usage)",
        )
    if (ratio := step["tokens_per_event"]) is not None and abs(ratio - 1) > TOKENS_PER_EVENT:
        yield caveat(
            "tokens_per_event",
            f"an output event carried {ratio:.2f} tokens: ITL and tokens per second spread them evenly",
            "read ITL as an estimate; TPOT is exact",
        )


def run_caveats(
    manifest: dict[str, Any],
    events: list[dict[str, Any]],
    agents: list[dict[str, Any]],
    clocks: list[dict[str, Any]],
    problems: list[str],
    damaged: list[str],
    unreached: list[str],
    simulated_gpu: bool,
) -> list[Caveat]:
    """Caveats of the whole run."""
    found = []
    status, reason = manifest["status"], manifest.get("reason")
    if simulated_gpu:
        found.append(
            caveat(
                "simulated_gpu",
                f"{SIMULATED_GPU}: the endpoint is the embedded simulator, and GPU and server figures are its model's",
                "give --host to measure an endpoint of yours",
            )
        )
    if status == rundir.RUNNING:
        found.append(caveat("not_finished", "the run has not ended, or was killed", "report again when it has ended"))
    elif status != rundir.COMPLETE:
        found.append(caveat(str(status), f"the run was {status}: {reason or 'no reason given'}", "repeat the run"))
    found += [
        caveat("step_not_reached", f"the step of {step} never reached its level", "see events and logs/")
        for step in unreached
    ]
    theirs, ours = manifest.get("locust"), manifest.get("recorded")
    if theirs and ours and theirs != ours:
        found.append(
            caveat(
                "locust_mismatch",
                f"Locust counted {_counts(theirs)}, the records hold {_counts(ours)}",
                "a worker was lost, or this is a fault of ours: keep the run directory and report it",
            )
        )
    else:
        found += [
            caveat("locust_mismatch", event.get("text", "Locust's count differs"), "keep the run directory")
            for event in events
            if event.get("kind") == "locust_mismatch"
        ]
    found += [
        caveat("user_error", event.get("text", "a task raised an exception"), "mend the scenario; see events.jsonl")
        for event in events
        if event.get("kind") == "user_error"
    ]
    found += [
        caveat("not_watched", text, f"`loadgen agents check {name}` says what stands in the way")
        for name, text in never_watched(events).items()
    ]
    found += [*agent_caveats(agents), *clock_caveats(clocks)]
    if damaged:
        parts = list(dict.fromkeys(damaged))
        names = ", ".join(parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")
        found.append(
            caveat(
                "damage",
                f"parts of the run directory are missing or damaged: {names}",
                "what could be read is in the figures, the report's Damage section says what could not; "
                "look for a copy, or repeat the run",
            )
        )
    found += [
        caveat("data_problem", problem, "what could be read is in the figures; see logs/") for problem in problems
    ]
    return found


def _counts(counts: dict[str, int]) -> str:
    return f"{counts.get('requests')} requests with {counts.get('failures')} failures"
