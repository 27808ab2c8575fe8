"""A run directory's figures, all of them: the order of things, and the shape of summary.json.

    load -> clocks -> overview (a first look) -> served (windows, steady; all requests, part by part) -> join -> checks

Times in a summary are ms, or seconds since the run's start. Not here: what is written of it (report/).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from analysis import clocks, hosts, join, recording, trends
from analysis.checks import client_lag_limit, client_on_time, run_caveats, send_lag_limit, step_caveats
from analysis.distributions import Distributions
from analysis.gpus import cards
from analysis.lag import sensor_lags
from analysis.load import Run, load
from analysis.model_config import config_of
from analysis.objectives import listed, objectives_of
from analysis.overview import look
from analysis.resources import resources
from analysis.served import count
from analysis.serving import idle_caveats
from analysis.step import sampled_figures
from analysis.timeline import OverTime
from analysis.trend_words import leaks
from analysis.validity import beside
from analysis.verdict import verdict
from analysis.windows import Window
from loadgen.slo import Objective

# 1  first version
SCHEMA = 1


# Told how far a report is: what is being done, and the share of the whole that is done, rising to 1.
Progress = Callable[[str, float], None]


class Asked(NamedTuple):
    """What a report is asked for beside the run: objectives (None: those that the run was given), a model's config.

    `progress` is called again and again until the report is there.
    """

    slo: tuple[Objective, ...] | None = None
    model_config: Path | None = None
    progress: Progress | None = None


NOTHING_ASKED = Asked()
# From which share of a report to which a stage goes, by the time that it takes in a long run; drawing follows.
_STAGES = {"first look": (0.0, 0.1), "requests": (0.1, 0.5), "telemetry": (0.5, 0.7), "figures": (0.7, 0.8)}
_THREADS = 2


class Analysed(NamedTuple):
    """`timeline` has a row a second of the run; `over_time` is the same for a figure, with the failures."""

    run: Run
    telemetry: join.Telemetry
    windows: list[Window]
    timeline: pd.DataFrame
    over_time: OverTime
    distributions: Distributions
    trends: list[trends.Trend]
    summary: dict[str, Any]


def summarise(run_dir: Path, asked: Asked = NOTHING_ASKED) -> dict[str, Any]:
    """What summary.json would hold, without writing anything.

    Raises RunDirError when run.json is unusable.
    """
    return analyse(run_dir, asked).summary


def analyse(run_dir: Path, asked: Asked = NOTHING_ASKED) -> Analysed:
    """Raises RunDirError when run.json is unusable, UsageError when the model's config that is asked for is."""
    tell = asked.progress or _nobody
    run, worker_clocks = clocks.align(load(run_dir))
    if recording.is_one(run):
        run = recording.as_step(run, join.telemetry(replace(run, damage=[])))
    objectives = objectives_of(run.manifest, asked.slo, run.damage)
    config = config_of(run.manifest, asked.model_config, run.damage)
    served = count(run, look(run, _stage(tell, "first look")), objectives, _stage(tell, "requests"))
    telemetry = join.telemetry(run, _stage(tell, "telemetry"))
    windows = served.windows
    gpus = cards(telemetry, windows)
    with ThreadPoolExecutor(_THREADS) as threads:  # most of the work is numpy's
        sampled = threads.map(lambda window: sampled_figures(telemetry, gpus, window), windows)
        seconds, few = threads.map(lambda each: each.beside(telemetry, gpus), (served.seconds, served.overview))
    simulated_gpu = telemetry.simulated or bool(run.manifest["target"].get("simulated"))
    timed = clocks.events(run)
    agents = hosts.agent_figures(telemetry)
    known_clocks = [_clock(clock) for clock in (*worker_clocks, *telemetry.clocks)]
    steps = []
    of_run: list[dict[str, str]] = []
    for window, of_load, of_samples in zip(windows, served.steps, sampled, strict=True):
        step = of_load | of_samples
        step["client_lag_limit_ms"] = client_lag_limit(step)[0]
        step["send_lag_limit_ms"] = send_lag_limit(step)
        step["client_on_time"] = client_on_time(step)
        caveats = step_caveats(step, window, run.manifest, timed)
        if not window.level:  # a recording: what is to be known of it is so of the whole run
            of_run += [caveat for caveat in caveats if caveat["code"] != "no_requests"]
            caveats = []
        steps.append(step | {"caveats": caveats})
    damaged = [finding.file for finding in run.damage]
    found = trends.find(telemetry, gpus, seconds, windows)
    of_trends = [trend.figures for trend in found]
    of_resources = resources(run.path, run.manifest, steps, seconds, config)
    summary = {
        "schema": SCHEMA,
        "run_id": run.manifest["run_id"],
        "status": run.manifest["status"],
        "reason": run.manifest.get("reason"),
        "target": run.manifest["target"],
        "simulated_gpu": simulated_gpu,
        "slo": listed(objectives),
        "steps": steps,
        "clocks": known_clocks,
        "sensor_lag_ms": sensor_lags(served.ramps, gpus, windows),
        "agents": agents,
        "failures": served.failures.kinds(run.examples),
        "damage": [finding._asdict() for finding in run.damage],
        "caveats": of_run
        + run_caveats(
            run.manifest, run.events, agents, known_clocks, telemetry.problems, damaged, served.unreached, simulated_gpu
        )
        + idle_caveats(steps)
        + leaks(of_trends),
        "trends": of_trends,
        **of_resources,
    }
    over_time = OverTime(
        few,
        float(served.overview.width_s),
        served.failures.over_time(served.bar_s),
        float(served.bar_s),
    )
    tell("figures", _STAGES["figures"][1])
    told = _plain(summary)
    told["verdict"] = verdict(told, beside(run.manifest, telemetry))
    return Analysed(run, telemetry, windows, seconds, over_time, served.distributions, found, told)


def _nobody(stage: str, share: float) -> None:
    """Told how far it is."""


def _stage(tell: Progress, stage: str) -> Callable[[float], None]:
    """What is told the share of one stage."""
    begin, end = _STAGES[stage]
    return lambda share: tell(stage, begin + share * (end - begin))


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
