"""Figures over the level of what bounds a run beside the GPU: the server's queue, the hosts' CPUs, the client itself.

Each takes the step table (tables.steps_frame). Real hosts and those of the simulator are never in one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.checks import WORKER_CPU_PCT
from analysis.plots.canvas import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    RED,
    SKY,
    headroom,
    legend,
    level_axis,
    limit_line,
    line,
    panels,
    titled,
    value_axis,
)
from analysis.plots.concurrency import SIZE
from analysis.windows import RATE


class Curve(NamedTuple):
    column: str
    label: str
    color: str
    marker: str
    style: str


_RUNNING = (Curve("running", "running", SKY, "o", "-"), Curve("waiting", "waiting", PINK, "s", "--"))
_CPU = (
    Curve("busiest_cpu_pct_mean", "busiest core", RED, "^", "-."),
    Curve("cpu_pct", "mean of all cores", BLUE, "o", "-"),
)
_WAITS = (
    Curve("psi_cpu_some_pct", "pressure: a task waits for a CPU", ORANGE, "s", "--"),
    Curve("iowait_pct", "iowait", GREEN, "D", "-"),
)
_LOOP_LAG = (
    Curve("loop_lag_p99_ms", "event loop p99", ORANGE, "s", "--"),
    Curve("loop_lag_p50_ms", "event loop p50", ORANGE, "o", "-"),
)
_READ_LAG = (
    Curve("client_lag_p99_ms", "read p99", BLUE, "s", "--"),
    Curve("client_lag_p50_ms", "read p50", BLUE, "o", "-"),
)
_SEND_LAG = (
    Curve("send_lag_p99_ms", "send p99", GREEN, "D", "-."),
    Curve("send_lag_limit_ms", "limit of send p99", GREEN, "", ":"),
)
_LIMIT = Curve("client_lag_limit_ms", "limit of a caveat", BLACK, "", ":")


def queue_vs_concurrency(steps: pd.DataFrame) -> Figure | None:
    """Requests running and waiting in the server, and the share of its KV cache in use. None without server figures."""
    names = ["running", "waiting", "kv_usage_ratio"]
    if steps.empty or steps[names].isna().all(axis=None):
        return None
    figure, (queue, cache) = panels(1, 2, SIZE)
    unit = steps["unit"].iloc[0]
    _lines(queue, steps, _RUNNING, "requests", unit)
    percent = steps.assign(kv_pct=100 * steps["kv_usage_ratio"])
    _lines(cache, percent, (Curve("kv_pct", "KV cache in use", BLUE, "o", "-"),), "%", unit)
    cache.set_ylim(0, 105)
    source = steps["gpu_source"].iloc[0]
    queue.set_title(titled("Server queue", source))
    cache.set_title(titled("KV cache in use", source))
    legend(queue, infinite=False, loc="best")
    return figure


def host_vs_concurrency(steps: pd.DataFrame, hosts: pd.DataFrame) -> Figure | None:
    """CPU of the hosts, and what waits for it; `hosts` is tables.hosts_frame. None without a real host's figures.

    Lines are means over the hosts; a band spans them when there are several.
    """
    mine = hosts[hosts["source"] == "measured"]
    columns = [curve.column for curve in (*_CPU, *_WAITS)]
    if steps.empty or mine.empty or mine[columns].isna().all(axis=None):
        return None
    names = sorted(mine["host"].unique())
    by_level = mine.groupby("level")[columns]
    means, lowest, highest = by_level.mean().reset_index(), by_level.min(), by_level.max()
    figure, both = panels(1, 2, SIZE)
    whose = names[0] if len(names) == 1 else f"mean and range of {len(names)} hosts"
    source, unit = steps["gpu_source"].iloc[0], steps["unit"].iloc[0]
    for axes, curves, title in zip(both, (_CPU, _WAITS), ("Host CPU", "Host pressure"), strict=True):
        _lines(axes, means, curves, f"% ({whose})", unit)
        if len(names) > 1:
            for curve in curves:
                low, high = lowest[curve.column], highest[curve.column]
                axes.fill_between(low.index, low, high, color=curve.color, alpha=0.2, lw=0)
        level_axis(axes, steps["level"], unit)
        axes.set_title(titled(title, source))
        legend(axes, infinite=False, loc="best")
    both[0].set_ylim(0, 105)
    return figure


def client_vs_concurrency(steps: pd.DataFrame) -> Figure | None:
    """How late the client read and its event loops were, and its busiest worker's CPU, with the limits of the caveats.

    And, in the open model, how late it sent. None without any.
    """
    columns = ["client_lag_p99_ms", "loop_lag_p99_ms", "worker_cpu_pct"]
    if steps.empty or steps[columns].isna().all(axis=None):
        return None
    figure, (lag, cpu) = panels(1, 2, SIZE)
    by_kernel = (steps["client_lag_source"] == "read_lag").any()
    unit = steps["unit"].iloc[0]
    sending = _SEND_LAG if unit == RATE else ()
    _lines(lag, steps, (*(_READ_LAG if by_kernel else ()), *sending, *_LOOP_LAG, _LIMIT), "ms", unit, log=True)
    if len(steps) == 1:  # a point has no line
        limit_line(lag, steps["client_lag_limit_ms"].iloc[0], "")
        if unit == RATE:
            limit_line(lag, steps["send_lag_limit_ms"].iloc[0], "", GREEN)
    _lines(cpu, steps, (Curve("worker_cpu_pct", "busiest worker", RED, "^", "-"),), "% of its core", unit)
    limit_line(cpu, WORKER_CPU_PCT, _LIMIT.label)
    cpu.set_ylim(0, max(105.0, 1.1 * steps["worker_cpu_pct"].astype(float).max()))
    source = steps["gpu_source"].iloc[0]
    lag.set_title(titled("Client lag", source))
    cpu.set_title(titled("Client CPU", source))
    headroom(lag, 0.35)
    legend(lag, infinite=False, loc="upper left", ncols=2)
    legend(cpu, infinite=False, loc="best")
    return figure


def _lines(axes: Axes, frame: pd.DataFrame, curves: Sequence[Curve], label: str, unit: str, log: bool = False) -> None:
    """The curves that have figures, over the level; only finite figures come here."""
    shown = [curve for curve in curves if np.isfinite(frame[curve.column].astype(float)).any()]
    value_axis(axes, [frame[curve.column].astype(float) for curve in shown] or [pd.Series(dtype=float)], label, log=log)
    for curve in shown:
        values = frame[curve.column].astype(float)
        line(axes, frame["level"], values, curve.label, color=curve.color, marker=curve.marker, linestyle=curve.style)
    level_axis(axes, frame["level"], unit)
