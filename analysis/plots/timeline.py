"""The run over time, steps shaded: panels of metrics.timeline on one clock, and what failed (failures.over_time)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    legend,
    panels,
    titled,
    value_axis,
)
from analysis.windows import Window
from loadgen.record import Outcome


class Curve(NamedTuple):
    column: str
    label: str
    color: str
    style: str = "-"
    scale: float = 1.0


class Panel(NamedTuple):
    """`log` allows a logarithmic axis."""

    title: str
    unit: str
    curves: tuple[Curve, ...]
    log: bool = False


PANELS = (
    Panel("Load", "requests", (Curve("users", "users", BLACK, "--"), Curve("in_flight", "requests in flight", BLUE))),
    Panel("Throughput", "requests/s", (Curve("qps", "successful", BLUE), Curve("failed_qps", "failed", RED, "--"))),
    Panel(
        "Time to first token",
        "ms",
        (Curve("ttft_p50_ms", "p50", BLUE), Curve("ttft_p99_ms", "p99", RED, "-.")),
        log=True,
    ),
    Panel(
        "GPU utilisation",
        "%",
        (
            Curve("gpu_util_pct", "a kernel runs", GREEN),
            Curve("gpu_sm_pct", "SMs at work", BLUE, "--"),
            Curve("gpu_dram_pct", "memory bandwidth", ORANGE, "-."),
        ),
    ),
    Panel(
        "GPU memory",
        "GiB",
        (
            Curve("vram_used_b", "used", BLUE, scale=GIB),
            Curve("vram_effective_b", "effective (KV cache in use)", ORANGE, "--", scale=GIB),
        ),
    ),
    Panel(
        "Server queue",
        "requests",
        (Curve("running", "running", SKY), Curve("waiting", "waiting", PINK, "--")),
    ),
)
# In the open model the number of users is a pool's size, and says nothing.
OPEN_PANELS = (
    Panel("Load", "requests", (Curve("in_flight", "requests in flight", BLUE),)),
    Panel("Throughput", "requests/s", (Curve("due_qps", "due", BLACK, ":"), *PANELS[1].curves)),
    *PANELS[2:],
)
# Telemetry without a load: one step of no users.
RECORDED_PANELS = (
    Panel("Hosts", "%", (Curve("busiest_cpu_pct", "busiest core of any", BLACK),)),
    Panel("GPU power", "W", (Curve("power_w", "all GPUs", RED),)),
    *PANELS[3:],
)
# With more steps than this only every n-th is labelled.
LABELS = 12
SHADE = "#0072B2"
_SECONDS = "seconds since the start (shaded: steps; darker: measured)"
# Colour and hatch of each way to fail, the same in every report.
OUTCOME_LOOKS = {
    Outcome.HTTP_ERROR: (RED, ""),
    Outcome.TIMEOUT: (BLUE, ""),
    Outcome.CONNECT_ERROR: (ORANGE, ""),
    Outcome.RESET: (PINK, ""),
    Outcome.STREAM_ERROR: (GREEN, ""),
    Outcome.TRUNCATED: (SKY, ""),
    Outcome.MALFORMED: (BLACK, ""),
    Outcome.EMPTY: (RED, "//"),
    Outcome.TLS_ERROR: (BLUE, "//"),
    Outcome.DROPPED: (ORANGE, "//"),
}


def timeline(frame: pd.DataFrame, width_s: float, windows: Sequence[Window], source: str) -> Figure | None:
    """Load, QPS, TTFT, GPU, VRAM and queue over time; a panel without data is left out. None without any data.

    `frame` has bins of `width_s`; the steps' holds are shaded, their measuring windows darker.
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
    figure, axes = panels(len(shown), 1, (9.6, 0.8 + 1.5 * len(shown)), sharex=True)
    for panel, place in zip(shown, axes, strict=True):
        _draw(place, panel, frame, frame["t_s"] + width_s / 2)
        place.set_title(titled(panel.title, source), fontsize=10)
        _shade(place, [] if is_recording else windows)
    if not is_recording:
        _label_steps(axes[0], windows)
    axes[0].set_xlim(0, frame["t_s"].max() + width_s)
    axes[-1].set_xlabel("seconds since the start" if is_recording else _SECONDS)
    figure.align_ylabels(axes)
    return figure


def errors(frame: pd.DataFrame, width_s: float, windows: Sequence[Window], source: str) -> Figure | None:
    """Failed requests a second, stacked by outcome, in bins of `width_s`. None when nothing failed."""
    outcomes = [name for name in frame.columns if name != "t_s"]
    if not outcomes:
        return None
    figure, (axes,) = panels(1, 1, (9.6, 3.4))
    base = np.zeros(len(frame))
    for outcome in outcomes:
        color, hatch = OUTCOME_LOOKS[Outcome(outcome)]
        rate = frame[outcome].to_numpy() / width_s
        bars = axes.bar(frame["t_s"], rate, width_s, base, align="edge", label=outcome, color=color, hatch=hatch)
        for bar in bars:
            bar.set(edgecolor="white", linewidth=0.4, zorder=2)
        base += rate
    value_axis(axes, [pd.Series(base)], "failed requests/s")
    axes.set_title(titled("Failures", source))
    _shade(axes, windows)
    _label_steps(axes, windows)
    axes.set_xlim(0, frame["t_s"].max() + width_s)
    axes.set_xlabel(_SECONDS)
    legend(axes, infinite=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), reverse=True)
    return figure


def _shade(axes: Axes, windows: Sequence[Window]) -> None:
    for window in windows:
        axes.axvspan(window.hold_s, window.end_s, color=SHADE, alpha=0.05, lw=0)
        axes.axvspan(window.begin_s, window.end_s, color=SHADE, alpha=0.08, lw=0)


def _drawable(frame: pd.DataFrame, curve: Curve) -> bool:
    values = frame[curve.column]
    return bool((values > 0).any() if curve.column == "failed_qps" else values.notna().any())


def _draw(axes: Axes, panel: Panel, frame: pd.DataFrame, middle: pd.Series[float]) -> None:
    series = {curve: frame[curve.column] / curve.scale for curve in panel.curves if _drawable(frame, curve)}
    value_axis(axes, list(series.values()), panel.unit, log=panel.log)
    for curve, values in series.items():
        finite = values.replace(np.inf, np.nan)
        axes.plot(middle, finite, label=curve.label, color=curve.color, ls=curve.style, lw=1.4)
        crosses(axes, middle[np.isinf(values)], curve.color, 0.95, size=4)
    infinite = any(np.isinf(values).any() for values in series.values())
    above = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.97), "borderaxespad": 0.1, "handlelength": 2.2}
    legend(axes, infinite, ncols=4, fontsize=8.5, **above)


def _label_steps(axes: Axes, windows: Sequence[Window]) -> None:
    """The level in each step; with many steps in every n-th."""
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top * 1.2)
    every = max(1, -(-len(windows) // LABELS))
    for number, window in enumerate(windows[::every]):
        axes.annotate(
            f"{window.level} {window.unit}" if number == 0 and len(windows) <= LABELS // 2 else f"{window.level}",
            xy=((window.hold_s + window.end_s) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -4),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=9,
            color="#222222",
        )
