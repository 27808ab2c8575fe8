"""All requests of a run, read twice: a first look finds the windows, then everything is counted part by part.

    overview -> windows -> settled -> tally a window, seconds, failures, distributions, what is kept -> figures

When this is done nothing of a single request is left in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from threading import Thread
from typing import Any, NamedTuple

from analysis import timeline, workers
from analysis.distributions import Distributions
from analysis.failures import Failures
from analysis.kept import Kept
from analysis.load import Run
from analysis.memory import give_back
from analysis.objectives import Objectives
from analysis.overview import Overview
from analysis.requests import Requests, Tell, parts, server_time, server_time_names
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
    for part in _ahead(parts(run, tell)):
        for tally in tallies:
            tally.add(part)
        for counts in (seconds, kept):
            counts.add(part)
        failures.add(part.frame)
        distributions.add(part.frame)
    give_back()
    with ThreadPoolExecutor(1) as beside:
        of_workers = beside.submit(lambda: (workers.health(run), workers.read_lags(run, windows)))
        frame = kept.frame()
        health, reads = of_workers.result()
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


def _ahead(source: Iterator[Requests]) -> Iterator[Requests]:
    """The same, read by a thread of its own while the last one is counted."""
    waiting: Queue[Requests | BaseException | None] = Queue(1)

    def read() -> None:
        try:
            for part in source:
                waiting.put(part)
            waiting.put(None)
        except BaseException as error:  # is raised where it is waited for
            waiting.put(error)

    Thread(target=read, daemon=True).start()
    while (part := waiting.get()) is not None:
        if isinstance(part, BaseException):
            raise part
        yield part
