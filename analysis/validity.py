"""How far a run's figures can be trusted: a sentence a topic, made of its caveats (checks.py). No clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from analysis import tables
from analysis.checks import SIMULATED_GPU
from analysis.join import Telemetry
from analysis.tables import Summary
from loadgen import rundir

# good: nothing to mind; warn: read it with care; bad: do not trust it, or it does not hold; unknown: not measured.
GOOD, WARN, BAD, UNKNOWN = "good", "warn", "bad", "unknown"
_MOST_LEVELS = 5
_TO_THE_LETTER = frozenset({"locust_mismatch", "user_error", "damage", "data_problem"})
_LOST = frozenset({"worker_lost", "collector_lost", "agent_lost", "samples_lost", "bad_rows", "gpu_lost"})
_LOAD = ("hung", "load_not_delivered", "dropped", "simulator_late", "no_step_end")
_SAMPLE = (
    "no_requests",
    "not_steady",
    "littles_law",
    "few_requests",
    "few_independent",
    "many_cancelled",
    "many_ended_after",
)
_TIME = ("telemetry_gap", "telemetry_blurred", "server_gap")
_CLOCK = ("clock_moved", "clock_blurred", "time_of_day", "suspended")
_SAID = {
    "hung": "no request was answered",
    "no_requests": "no request ended",
    "load_not_delivered": "less load was delivered than asked for",
    "dropped": "requests that were due were never sent",
    "simulator_late": "the simulator itself was late",
    "no_step_end": "the step was cut",
    "not_steady": "no steady state",
    "littles_law": "Little's law does not hold",
    "few_requests": "too few requests to bound every percentile",
    "few_independent": "too few independent requests for an upper bound",
    "many_cancelled": "the run's end cut many requests",
    "many_ended_after": "most requests ended after the window",
    "telemetry_gap": "samples have gaps",
    "telemetry_blurred": "the samples' time is not known well enough",
    "server_gap": "the server's metrics have gaps",
}

Line = dict[str, str]


class Beside(NamedTuple):
    """What a summary does not say of its run.

    `hosts` that have samples of GPUs or of themselves, `servers`: engines that were scraped, `counted`: Locust's own
    count is there, to compare with that of the records.
    """

    hosts: frozenset[str] = frozenset()
    servers: int = 0
    counted: bool = False


NOTHING_BESIDE = Beside()


def beside(manifest: dict[str, Any], telemetry: Telemetry) -> Beside:
    """Of samples it does not matter whether they fall into a step."""
    hosts = {str(name) for rows in (telemetry.gpus, telemetry.hosts) for name in rows["host"].unique()}
    servers = len(telemetry.servers[["host", "engine"]].drop_duplicates())
    return Beside(frozenset(hosts), servers, bool(manifest.get("locust") and manifest.get("recorded")))


def line(topic: str, state: str, text: str, link: str) -> Line:
    """`text` is a sentence; `link` is the id of a section of the page."""
    return {"topic": topic, "state": state, "text": text, "link": link}


def lines(summary: Summary, has_load: bool, beside: Beside) -> Iterator[Line]:
    """`has_load`: without, nothing is said of requests."""
    if has_load and summary["steps"]:
        yield _client(summary)
        yield _load(summary)
        yield _sample(summary)
    yield _time(summary, beside)
    yield _record(summary, has_load and beside.counted)
    if summary["simulated_gpu"]:
        told = f"{SIMULATED_GPU[0].upper()}{SIMULATED_GPU[1:]}: figures of GPUs and server are its model's, no card's."
        yield line("simulated", WARN, told, "caveats")


def levels_text(summary: Summary, levels: Iterable[Any]) -> str:
    """ "100, 500 users"; of many the first ones and how many more."""
    given = [f"{level:g}" for level in levels]
    more = f" and {len(given) - _MOST_LEVELS} more" if len(given) > _MOST_LEVELS else ""
    return f"{', '.join(given[:_MOST_LEVELS])}{more} {tables.unit_of(summary)}"


def _said(summary: Summary, codes: Iterable[str]) -> list[str]:
    """What each code means, and the levels of the steps that carry it."""
    found = []
    for code in codes:
        levels = [step["level"] for step in summary["steps"] if code in _codes(step)]
        if levels:
            found.append(f"{_SAID[code]} at {levels_text(summary, levels)}")
    return found


def _codes(entry: dict[str, Any]) -> set[str]:
    return {caveat["code"] for caveat in entry["caveats"]}


def _sentence(parts: Iterable[str]) -> str:
    told = "; ".join(parts)
    return f"{told[0].upper()}{told[1:]}."


def _client(summary: Summary) -> Line:
    steps = summary["steps"]
    late = [step["level"] for step in steps if step["client_on_time"] is False]
    busy = [step["level"] for step in steps if "worker_cpu" in _codes(step)]
    lags = [step["client_lag_ms"]["p99"] for step in steps if step["client_lag_ms"]["p99"] is not None]
    if late:
        told = (
            f"The client was late at {levels_text(summary, late)}: figures there may be its own and not the server's."
        )
        return line("client", BAD, told, "certificate")
    if not lags:
        return line("client", UNKNOWN, "How late the client was is not known: it was not measured.", "certificate")
    told = f"The client was on time: the p99 of its lag is {tables.fine(max(lags))} ms at most"
    if busy:
        told += f", but a worker had no CPU time left at {levels_text(summary, busy)}"
    return line("client", WARN if busy else GOOD, f"{told}.", "certificate")


def _load(summary: Summary) -> Line:
    unreached = [caveat["text"] for caveat in summary["caveats"] if caveat["code"] == "step_not_reached"]
    found = [*_said(summary, _LOAD), *unreached]
    if found:
        return line("load", BAD, _sentence(found), "step-caveats" if _said(summary, _LOAD) else "caveats")
    steps = len(summary["steps"])
    where = f"at all {steps} steps" if steps > 1 else "at its only step"
    return line("load", GOOD, f"The load that was asked for was delivered {where}.", "steps")


def _sample(summary: Summary) -> Line:
    if not any(step["requests"] for step in summary["steps"]):
        return line("sample", BAD, "No step has a request.", "steps")
    found = _said(summary, _SAMPLE)
    if found:
        return line("sample", WARN, _sentence(found), "intervals")
    unsure = [step["level"] for step in summary["steps"] if step["steady"] is None]
    if unsure:
        told = f"Whether it was steady is not known at {levels_text(summary, unsure)}."
        return line("sample", UNKNOWN, told, "intervals")
    return line("sample", GOOD, "Every step was steady, with enough requests for its percentiles.", "intervals")


def _time(summary: Summary, beside: Beside) -> Line:
    found = _said(summary, _TIME)
    found += [caveat["text"] for caveat in summary["caveats"] if caveat["code"] in _CLOCK]
    if found:
        return line("time", WARN, _sentence(found), "telemetry")
    hosts = beside.hosts
    if not hosts and not beside.servers:
        told = "No GPU, host or server was watched: what the endpoint did inside is not known."
        return line("time", UNKNOWN, told, "telemetry")
    bounds = [clock["bound_ms"] for clock in summary["clocks"]]
    what = f"Samples of {len(hosts)} hosts" if len(hosts) > 1 else f"Samples of {min(hosts, default='')}"
    if not hosts:
        what = f"Samples of {beside.servers} servers" if beside.servers > 1 else "Samples of the server's metrics"
    if not bounds:
        return line("time", GOOD, f"{what} are on the controller's own clock.", "telemetry")
    return line("time", GOOD, f"{what} are within {max(bounds):.2g} ms of the controller's clock.", "telemetry")


def _record(summary: Summary, counted: bool) -> Line:
    """Whether the record of the run is whole; `counted`: by Locust, too."""
    status, reason = summary["status"], summary["reason"]
    found = [caveat["text"] for caveat in summary["caveats"] if caveat["code"] in _TO_THE_LETTER]
    of_run = bool(found) or status != rundir.COMPLETE
    found += sorted(
        {caveat["text"] for step in summary["steps"] for caveat in step["caveats"] if caveat["code"] in _LOST}
    )
    if status != rundir.COMPLETE:
        ended = "it has not ended, or was killed" if status == rundir.RUNNING else f"it was {status}"
        found.insert(0, f"the run is not complete: {ended}{f' ({reason})' if reason else ''}")
    if found:
        link = "damage" if summary["damage"] else "caveats" if of_run else "step-caveats"
        return line("record", BAD if of_run and status == rundir.COMPLETE else WARN, _sentence(found), link)
    agreed = ", and Locust's own count agrees" if counted else ""
    return line("record", GOOD, f"The run is complete, nothing of it is missing{agreed}.", "environment")
