"""The summary of a run that has been reported already, so that it need not be made again; no clock but files' times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from analysis.analyse import SCHEMA, summarise
from loadgen import rundir

# What a summary has at the least, and each of its steps.
_KEYS = {"simulated_gpu", "steps", "damage"}
_OF_STEPS = {
    *("level", "unit", "requests", "ok", "cancelled", "success_pct", "qps", "output_tokens_per_s"),
    *("in_flight_mean", "in_flight_http_error", "resident_tokens_mean", "gpus"),
}


def summary_of(run_dir: Path) -> dict[str, Any]:
    """That of report/summary.json when it is of this version and younger than the run; else it is made.

    Raises RunDirError when run.json is unusable.
    """
    path = run_dir / rundir.REPORT / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        age_ns = path.stat().st_mtime_ns
        stale = any(age_ns < (run_dir / name).stat().st_mtime_ns for name in (rundir.MANIFEST, rundir.STEPS))
    except (OSError, ValueError, RecursionError):
        return summarise(run_dir)
    if stale or not _whole(summary):
        return summarise(run_dir)
    return dict(summary)


def _whole(summary: Any) -> bool:
    """Is it of this version, and has it what is read of summaries? A file may be cut short, or somebody's own."""
    if not isinstance(summary, dict) or summary.get("schema") != SCHEMA or not summary.keys() >= _KEYS:
        return False
    steps = summary["steps"]
    return (
        isinstance(steps, list)
        and all(isinstance(step, dict) and step.keys() >= _OF_STEPS for step in steps)
        and all(isinstance(step["level"], int | float) for step in steps)
    )
