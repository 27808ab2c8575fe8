"""Runs of one configuration, one after the other (`--repeat`): each is a run of its own, and they know of each other.

The run is the unit of replication: what differs between runs of one configuration is what a difference between two
configurations is measured against. Each has the next seed, so that prompts and arrivals are a sample too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from loadgen import conductor, rundir
from loadgen.errors import Interrupted, RunDirError
from loadgen.manifest import Repeat
from loadgen.options import Settings

Summary = dict[str, Any]


def seeds(settings: Settings) -> range:
    """Those of the runs, in their order."""
    return range(settings.plan.seed, settings.plan.seed + settings.repeat)


def conduct(
    scenario: Path,
    settings: Settings,
    say: Callable[[str], None],
    report: Callable[[Path], Summary],
    judge: Callable[[Path, Summary], None],
) -> list[Path]:
    """The run directories, once every run has ended. Each has its `report`, whatever became of it.

    What is raised ends the series: by a run (see `conductor`), or by `judge` of one that was conducted to its end.
    Raises Interrupted at Ctrl-C in between. However a series ends too early, `say` gets how many runs are complete.
    """
    made: list[Path] = []
    ended = 0
    try:
        for number, seed in enumerate(seeds(settings), start=1):
            repeat = None
            if settings.repeat > 1:
                repeat = Repeat(number, settings.repeat, made[0].name if made else None)
                say(f"repeat {number} of {settings.repeat}, seed {seed}")
            plan = replace(settings.plan, seed=seed)
            run, its_own = conductor.prepare(scenario, replace(settings, plan=plan), say, repeat)
            made.append(run)
            say(f"run directory: {run}")
            try:
                conductor.conduct(run, scenario, its_own)
            finally:
                summary = report(run)
            judge(run, summary)
            ended += 1
    except KeyboardInterrupt:
        raise Interrupted(_interrupted(made[ended:])) from None
    finally:
        if ended < settings.repeat > 1:
            say(f"{sum(map(_is_complete, made))} of {settings.repeat} runs are complete")
    return made


def _is_complete(run: Path) -> bool:
    try:
        return bool(rundir.read_manifest(run)["status"] == rundir.COMPLETE)
    except RunDirError:
        return False


def _interrupted(unfinished: list[Path]) -> str:
    """Of the run that had begun, if one had: its report is what is missing."""
    if not unfinished:
        return "interrupted"
    (run,) = unfinished
    state = "is complete, but" if _is_complete(run) else "is not complete, and"
    return f"interrupted; {run.name} {state} its report may be missing: make it with loadgen report {run}"
