"""A run directory without a load: what agents see of their hosts, with a manifest, events and clocks as a run has them.

Its plan has the arrival "none" and no steps; there are no requests and no workers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from loadgen import rundir
from loadgen.agents.screen import Screen
from loadgen.agents.session import config_of, lines, settle, signals_noted, started
from loadgen.errors import AgentError, RunAborted
from loadgen.manifest import new_manifest
from loadgen.option_values import time_text
from loadgen.options import Settings

NAME = "telemetry"
_PLAIN_EVERY_S = 5.0


def prepare(settings: Settings, duration_s: float | None, options: frozenset[str]) -> Path:
    """Make the run directory with its manifest; `options` are the keys of those that a recording has.

    Raises RunDirError.
    """
    run = rundir.create(Path(settings.runs_dir), NAME, settings.label)
    target = {"url": settings.host, "model": None, "simulated": False, "simulator": None}
    manifest = new_manifest(run, Path(NAME), target, settings, workers=0)
    given = {key: text for key, text in manifest["options"].items() if key in options}
    duration = time_text(duration_s)
    without_load: dict[str, Any] = {
        "scenario": {"name": NAME, "path": None},
        "plan": {"arrival": "none", "steps": [], "duration_s": duration_s, "warmup_share": 0.0},
        "options": given if duration is None else given | {"duration": duration},
        "comparable": {"scenario": NAME, "arrival": "none", "simulated": False},
    }
    rundir.write_manifest(run, manifest | without_load)
    return run


def record(run: Path, settings: Settings, duration_s: float | None, console: Console) -> str:
    """Until the time is over or Ctrl-C; the final status. Without a duration Ctrl-C is the end that was meant.

    Raises UsageError, AgentError when no host can be watched (any more), RunAborted; the manifest has its status then.
    """
    try:
        with (
            signals_noted() as signals,
            started(config_of(settings, run)) as fleet,
            Screen(console, plain_every_s=_PLAIN_EVERY_S) as screen,
        ):
            settle(fleet, signals, screen.say)
            for line in lines(fleet, signals, duration_s):
                screen.show(line, {watch.agent: watch.host for watch in fleet.watches})
    except AgentError as error:
        rundir.finish(run, rundir.ABORTED, "; ".join(str(error).splitlines()))
        raise
    except OSError as error:
        reason = f"the run directory cannot be written: {error.strerror or error}"
        rundir.finish(run, rundir.ABORTED, reason)
        raise RunAborted(f"{reason}; what was recorded is kept") from error
    if signals.came and duration_s is not None:
        rundir.finish(run, rundir.INTERRUPTED, "interrupted by the user")
        return rundir.INTERRUPTED
    rundir.finish(run, rundir.COMPLETE)
    return rundir.COMPLETE
