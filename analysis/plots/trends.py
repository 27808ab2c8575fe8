"""What changed while the load stood still: each signal over its window, the fitted line, and its interval shaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.metrics import GIB
from analysis.plots.canvas import BLACK, BLUE, RED, SKY, panels, titled
from analysis.trend_words import name_of
from analysis.trends import Trend

# With more trends than this the figure has those that are most sure of each signal first.
MOST = 8
_COLUMNS = 2


def trends(found: Sequence[Trend], source: str) -> Figure | None:
    """A panel for each signal that rises, falls, or whose level jumps. None without any."""
    changed = [one for one in found if one.figures["verdict"] in ("rising", "falling") or one.figures["jumps_s"]]
    if not changed:
        return None
    shown = _most_telling(changed)
    columns = min(_COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure, axes = panels(rows, columns, (9.6 if columns == 2 else 6.4, 0.7 + 2.3 * rows))
    for place, trend in zip(axes, shown, strict=False):
        _panel(place, trend, source)
    for place in axes[len(shown) :]:
        place.remove()
    keys = {label: key for place in figure.axes for key, label in zip(*place.get_legend_handles_labels(), strict=True)}
    figure.legend(list(keys.values()), list(keys), loc="outside lower center", ncols=len(keys))
    return figure


def _most_telling(changed: Sequence[Trend]) -> list[Trend]:
    """MOST of them: of each signal the largest change first, then the next of each; memory before load."""
    ranks: dict[str, int] = {}
    order: list[tuple[int, bool, int, Trend]] = []
    for trend in sorted(changed, key=lambda one: -_size(one)):
        signal = trend.figures["signal"]
        ranks[signal] = ranks.get(signal, -1) + 1
        order.append((ranks[signal], trend.series.unit != "B", len(order), trend))
    return [trend for _, _, _, trend in sorted(order, key=lambda each: each[:3])[:MOST]]


def _size(trend: Trend) -> float:
    """The change over the window, as so many times what is material."""
    figures = trend.figures
    change = (figures["slope_per_h"] or 0) * (figures["end_s"] - figures["begin_s"]) / 3600
    return abs(change) / figures["material"] if figures["material"] else 0.0


def _panel(axes: Axes, trend: Trend, source: str) -> None:
    figures, series = trend.figures, trend.series
    scale, unit = (GIB, "GiB") if series.unit == "B" else (1.0, series.unit)
    values = pd.Series(series.values).replace(np.inf, np.nan) / scale
    axes.plot(series.t_s, values, ".", ms=3.5, color=BLUE, label="measured")
    low, high = float(values.min()), float(values.max())
    if not figures["why"]:
        ends = np.array([figures["begin_s"], figures["end_s"]])
        line, *around = (
            (figures["at_end"] + (ends - ends[1]) / 3600 * each) / scale
            for each in (figures["slope_per_h"], *_ends(figures))
        )
        middle = float(line.mean())
        below, above = (each - each.mean() + middle for each in around)  # they turn about the middle of the line
        axes.fill_between(ends, below, above, color=SKY, alpha=0.3, lw=0, label="95 % of the slope")
        axes.plot(ends, line, color=RED, lw=1.6, label="trend (Theil-Sen)")
    for at in figures["jumps_s"]:
        axes.axvline(at, color=BLACK, lw=1.2, ls=":", label="level jumps")
    pad = 0.15 * (high - low) or 0.05 * abs(high) or 1.0
    axes.set_ylim(low - pad, high + pad)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_ylabel(unit)
    level = f", at {figures['level']:g} {figures['level_unit']}" if figures["level"] else ""
    axes.set_xlabel(f"seconds since the start{level}")
    name = name_of(figures)
    axes.set_title(titled(name, source) if series.signal.startswith("vram") else name, fontsize=9)


def _ends(figures: dict[str, Any]) -> list[float]:
    """The ends of the slope's interval; one that is open is the slope."""
    return [figures["slope_per_h"] if end is None else end for end in figures["slope_per_h_ci95"]]
