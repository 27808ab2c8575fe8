"""A recording: telemetry without a load, which is reported on as one step of no users."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from analysis import clocks, join
from analysis.load import Run


def is_one(run: Run) -> bool:
    """Whether it is telemetry without a load."""
    return bool(run.manifest["plan"].get("arrival") == "none")


def as_step(run: Run, telemetry: join.Telemetry) -> Run:
    """A recording as one step of no users, from its first sample to its last."""
    times = pd.concat([frame["t_s"] for frame in (telemetry.gpus, telemetry.hosts, telemetry.servers)])
    zero = clocks.start_ns(run)
    first, last = (zero, zero) if times.empty else (zero + int(1e9 * t_s) for t_s in (times.min(), times.max()))
    steps = [
        {"step": 0, "level": 0, "unit": "users", "what": what, "t_ns": t_ns}
        for what, t_ns in (("ramp", zero), ("begin", first), ("end", last))
    ]
    return replace(run, steps=steps)
