"""The run over time, steps shaded: panels of metrics.timeline on one clock, events as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.metrics import GIB
from analysis.plots.canvas import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    RED,
    SKY,
    crosses,
    headroom,
    legend,
    panels,
    titled,
    value_axis,
)
from analysis.plots.marks import SHADED, draw_lane, label_steps, lane, shade, time_axis
from analysis.windows import Window


class Curve(NamedTuple):
    column: str
    label: str
    color: str
    style: str = "-"
    scale: float = 1.0


class Panel(NamedTuple):
    """`log` allows a logarithmic axis; `top` is the end of the axis, where there is a natural one."""

    title: str
    unit: str
    curves: tuple[Curve, ...]
    log: bool = False
    top: float | None = None


_CPU = Panel("Host CPU", "%", (Curve("busiest_cpu_pct", "busiest core of any host", BLACK),), top=105)
_POWER = Panel("GPU power, all GPUs", "W", (Curve("power_w", "mean of the bin", RED),))
_GPU = (
    Panel(
        "GPU utilisation",
        "%",
        (
            Curve("gpu_util_pct", "a kernel runs", GREEN),
            Curve("gpu_sm_pct", "SMs at work", BLUE, "--"),
            Curve("gpu_dram_pct", "memory bandwidth", ORANGE, "-."),
        ),
        top=105,
    ),
    Panel(
        "GPU memory, all GPUs",
        "GiB",
        (
            Curve("vram_used_b", "used", BLUE, scale=GIB),
            Curve("vram_effective_b", "effective (KV cache in use)", ORANGE, "--", scale=GIB),
        ),
    ),
)
_SERVER = (
    Panel("Server queue", "requests", (Curve("running", "running", SKY), Curve("waiting", "waiting", PINK, "--"))),
    Panel("KV cache", "%", (Curve("kv_usage_ratio", "in use", BLUE, scale=0.01),), top=105),
)
_LOAD = Curve("in_flight", "requests in flight", BLUE)
_ENDED = (Curve("qps", "successful", BLUE), Curve("failed_qps", "failed", RED, "--"))
_TTFT = Panel(
    "Time to first token",
    "ms",
    (Curve("ttft_p50_ms", "p50", BLUE), Curve("ttft_p99_ms", "p99", RED, "-.")),
    log=True,
)
PANELS = (
    Panel("Load", "requests", (Curve("users", "users", BLACK, "--"), _LOAD)),
    Panel("Throughput", "requests/s", _ENDED),
    *(_TTFT, *_SERVER, *_GPU, _POWER, _CPU),
)
# In the open model the number of users is a pool's size, and says nothing.
OPEN_PANELS = (
    Panel("Load", "requests", (_LOAD,)),
    Panel("Throughput", "requests/s", (Curve("due_qps", "due", BLACK, ":"), *_ENDED)),
    *PANELS[2:],
)
# Telemetry without a load: one step of no users.
RECORDED_PANELS = (_CPU, _POWER, *_GPU, *_SERVER)
_HEIGHT = 1.22
_TICKS = 4


def timeline(
    frame: pd.DataFrame, width_s: float, windows: Sequence[Window], events: Sequence[tuple[float, str]], source: str
) -> Figure | None:
    """Load, QPS, TTFT, server, GPUs and hosts over time; a panel without data is left out. None without any data.

    `frame` has bins of `width_s`; the steps' holds are shaded, their measuring windows darker. `events` are instants
    and kinds.
    """
    is_open = any(window.open for window in windows)
    is_recording = bool(windows) and not any(window.level for window in windows)
    shown = [
        panel
        for panel in (RECORDED_PANELS if is_recording else OPEN_PANELS if is_open else PANELS)
        if any(_drawable(frame, curve) for curve in panel.curves)
    ]
    if not shown:
        return None
    length_s = float(frame["t_s"].max() + width_s)
    found = lane(events, length_s)
    heights = [_HEIGHT] * len(shown) + ([0.2 + 0.17 * found.rows] if found else [])
    figure, places = panels(
        len(heights), 1, (9.6, 1.0 + sum(heights)), sharex=True, gridspec_kw={"height_ratios": heights}
    )
    for panel, place in zip(shown, places, strict=False):
        _draw(place, panel, frame, frame["t_s"] + width_s / 2)
        place.set_title(titled(panel.title, source), fontsize=10)
        shade(place, [] if is_recording else windows)
    if not is_recording:
        headroom(places[0], 0.2)
        label_steps(places[0], windows)
    if found:
        draw_lane(figure, places[-1], places[:-1], found)
    time_axis(places[-1], length_s, "" if is_recording else SHADED)
    figure.align_ylabels(places)
    return figure


def _drawable(frame: pd.DataFrame, curve: Curve) -> bool:
    values = frame[curve.column]
    return bool((values > 0).any() if curve.column == "failed_qps" else values.notna().any())


def _draw(axes: Axes, panel: Panel, frame: pd.DataFrame, middle: pd.Series[float]) -> None:
    series = {curve: frame[curve.column] / curve.scale for curve in panel.curves if _drawable(frame, curve)}
    value_axis(axes, list(series.values()), panel.unit, log=panel.log)
    if panel.top:
        axes.set_ylim(0, panel.top)
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(_TICKS, steps=[1, 2, 5, 10]))
    for curve, values in series.items():
        finite = values.replace(np.inf, np.nan)
        axes.plot(middle, finite, label=curve.label, color=curve.color, ls=curve.style, lw=1.4)
        crosses(axes, middle[np.isinf(values)], curve.color, 0.95, size=4)
    infinite = any(np.isinf(values).any() for values in series.values())
    above = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.97), "borderaxespad": 0.1, "handlelength": 2.2}
    legend(axes, infinite, ncols=4, fontsize=8.5, **above)
