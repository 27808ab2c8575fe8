"""All requests of a run, read twice: a first look finds the windows, then everything is counted part by part.

    overview -> windows -> settled -> tally a window, seconds, failures, distributions, what is kept -> figures

When this is done nothing of a single request is left in memory.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

from analysis import timeline, workers
from analysis.ahead import ahead
from analysis.distributions import Distributions
from analysis.failures import Failures
from analysis.kept import Kept
from analysis.load import Run
from analysis.memory import give_back
from analysis.objectives import Objectives
from analysis.overview import Overview
from analysis.requests import Tell, parts, server_time, server_time_names
from analysis.stats import Floats
from analysis.steady import Steadiness, settle
from analysis.step import load_figures
from analysis.tally import Tally
from analysis.timeline import MAX_BARS, MAX_POINTS, Seconds, Timeline
from analysis.windows import Window, step_windows


class Served(NamedTuple):
    """What the requests of a run say: of each step, in bins of time, and of failures.

    `steps` are the figures of each of the `windows`, `ramps` the requests in flight around its ramp (lag.py).
    """

    windows: list[Window]
    unreached: list[str]
    steps: list[dict[str, Any]]
    ramps: list[Floats]
    seconds: Timeline
    overview: Timeline
    failures: Failures
    bar_s: int
    distributions: Distributions


def count(run: Run, seen: Overview, objectives: Objectives | None, tell: Tell) -> Served:
    """Reads all requests; `seen` is what the first look found, and its frame is not needed any more."""
    held, unreached = step_windows(run, seen.last_s)
    settled: list[tuple[Window, Steadiness]] = [settle(window, seen.frame, seen.stride) for window in held]
    seen = seen._replace(frame=seen.frame[:0])
    windows = [window for window, _ in settled]
    edges = timeline.bins_of(run, seen.last_s)
    seconds, failures = Seconds(edges), Failures(edges)
    distributions = Distributions(windows, float(edges.size - 1))
    tallies = [Tally(window, objectives, seen.gap_stride) for window in windows]
    kept = Kept(seen.stride, [server_time(name) for name in server_time_names(run)])
    with ThreadPoolExecutor(1) as beside:
        theirs = replace(run, damage=[])
        of_workers = beside.submit(lambda: (workers.health(theirs), workers.read_lags(theirs, windows)))
        for part in ahead(parts(run, seen.requests, tell)):
            for tally in tallies:
                tally.add(part)
            for counts in (seconds, kept):
                counts.add(part)
            failures.add(part.frame)
            distributions.add(part.frame)
        give_back()
        frame = kept.frame()
        health, reads = of_workers.result()
        run.damage.extend(theirs.damage)
    steps = [
        load_figures(run, tally, frame, health, read, seconds.prompt_mean)
        | steadiness.figures()
        | {"kept_every": seen.stride}
        for tally, read, (_, steadiness) in zip(tallies, reads, settled, strict=True)
    ]
    return Served(
        windows=windows,
        unreached=unreached,
        steps=steps,
        ramps=[tally.ramp for tally in tallies],
        seconds=timeline.of_load(seconds, frame, health, 1),
        overview=timeline.of_load(seconds, frame, health, timeline.wide(seconds, MAX_POINTS)),
        failures=failures,
        bar_s=timeline.wide(seconds, MAX_BARS),
        distributions=distributions,
    )
