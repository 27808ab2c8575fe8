"""A run directory's figures, all of them: the order of things, and the shape of summary.json.

    load -> clocks -> join -> windows -> steady -> metrics + checks -> summary

Times in a summary are ms, or seconds since the run's start. Not here: what is written of it (report/).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from analysis import clocks, failures, hosts, join, metrics, recording
from analysis.checks import client_lag_limit, client_on_time, run_caveats, send_lag_limit, step_caveats
from analysis.gpus import cards
from analysis.lag import sensor_lags
from analysis.load import Run, load
from analysis.steady import settle
from analysis.windows import Window, step_windows
from loadgen.slo import Objective

# 1  first version
SCHEMA = 1


class Asked(NamedTuple):
    """What a report is asked for beside the run: objectives (None: those that the run was given), a model's config."""

    slo: tuple[Objective, ...] | None = None
    model_config: Path | None = None


NOTHING_ASKED = Asked()


class Analysed(NamedTuple):
    run: Run
    requests: metrics.Requests
    telemetry: join.Telemetry
    windows: list[Window]
    summary: dict[str, Any]


def summarise(run_dir: Path, asked: Asked = NOTHING_ASKED) -> dict[str, Any]:
    """What summary.json would hold, without writing anything.

    Raises RunDirError when run.json is unusable.
    """
    return analyse(run_dir, asked).summary


def analyse(run_dir: Path, asked: Asked = NOTHING_ASKED) -> Analysed:
    """Raises RunDirError when run.json is unusable."""
    run, worker_clocks = clocks.align(load(run_dir))
    requests, telemetry = metrics.derive(run), join.telemetry(run)
    if recording.is_one(run):
        run = recording.as_step(run, telemetry)
    gpus = cards(telemetry)
    held, unreached = step_windows(run)
    settled = [settle(window, requests.frame) for window in held]
    windows = [window for window, _ in settled]
    simulated_gpu = telemetry.simulated or bool(run.manifest["target"].get("simulated"))
    timed = clocks.events(run)
    agents = hosts.agent_figures(telemetry)
    known_clocks = [_clock(clock) for clock in (*worker_clocks, *telemetry.clocks)]
    steps = []
    of_run: list[dict[str, str]] = []
    for window, steadiness in settled:
        step = metrics.step_figures(run, requests, telemetry, gpus, window) | steadiness.figures()
        step["client_lag_limit_ms"] = client_lag_limit(step)[0]
        step["send_lag_limit_ms"] = send_lag_limit(step)
        step["client_on_time"] = client_on_time(step)
        caveats = step_caveats(step, window, run.manifest, timed)
        if not window.level:  # a recording: what is to be known of it is so of the whole run
            of_run += [caveat for caveat in caveats if caveat["code"] != "no_requests"]
            caveats = []
        steps.append(step | {"caveats": caveats})
    damaged = [finding.file for finding in run.damage]
    summary = {
        "schema": SCHEMA,
        "run_id": run.manifest["run_id"],
        "status": run.manifest["status"],
        "reason": run.manifest.get("reason"),
        "target": run.manifest["target"],
        "simulated_gpu": simulated_gpu,
        "steps": steps,
        "clocks": known_clocks,
        "sensor_lag_ms": sensor_lags(requests, gpus, windows),
        "agents": agents,
        "failures": failures.kinds(run, requests),
        "damage": [finding._asdict() for finding in run.damage],
        "caveats": of_run
        + run_caveats(
            run.manifest, run.events, agents, known_clocks, telemetry.problems, damaged, unreached, simulated_gpu
        ),
    }
    return Analysed(run, requests, telemetry, windows, _plain(summary))


def _clock(clock: clocks.HostClock) -> dict[str, Any]:
    differ_ns, limit_ns = clock.time_of_day or (None, None)
    return {
        "host": clock.host,
        "bound_ms": clock.bound_ns / 1e6,
        "bound_median_ms": clock.median_ns / 1e6,
        "drift_ppm": clock.fit.drift_ppm if clock.fit else None,
        "steps": [{"at_s": at_s, "size_ms": size_ns / 1e6} for at_s, size_ns in clock.steps],
        "synchronised": clock.synchronised,
        "time_of_day_ms": None if differ_ns is None else differ_ns / 1e6,
        "time_of_day_limit_ms": None if limit_ns is None else limit_ns / 1e6,
    }


def _plain(value: Any) -> Any:
    """The same for JSON: +infinity is the string "inf", NaN is null."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf"
    return value
