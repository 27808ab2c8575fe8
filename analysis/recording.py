"""A recording: telemetry without a load, which is reported on as one step of no users."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from analysis import clocks, join, metrics
from analysis.load import Run
from analysis.overlap import overlap_mean


def timeline(run: Run, requests: metrics.Requests, telemetry: join.Telemetry, width_s: float = 1.0) -> pd.DataFrame:
    """That of the metrics; of a recording with the busiest core of any host in each bin."""
    frame = metrics.timeline(run, requests, telemetry, width_s)
    if not is_one(run):
        return frame
    edges = np.append(frame["t_s"], frame["t_s"].size * width_s)
    busiest = [
        overlap_mean(rows["t_s"].to_numpy(), rows["cpu_max_busy_pct"].to_numpy(), edges)[0]
        for _, rows in telemetry.hosts.groupby("host")
    ]
    return frame.assign(busiest_cpu_pct=np.fmax.reduce(busiest) if busiest else np.nan)


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
