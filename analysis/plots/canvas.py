"""What every figure shares: the style, the colours, axes of users, infinite points, and saving. No figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context, rc_params_from_file
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from analysis.checks import SIMULATED_GPU

BLUE, RED, GREEN, PINK, ORANGE, SKY, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
STYLE = rc_params_from_file(str(Path(__file__).with_name("loadgen.mplstyle")), use_default_template=False)
# A range wider than this is drawn on a logarithmic axis.
LOG_RANGE = 10
MAX_TICKS = 9
# With more points than this their marks are smaller.
CROWDED = 12


def styled() -> AbstractContextManager[None]:
    """The style of all figures, while they are made and saved."""
    return rc_context(STYLE)


def titled(text: str, source: str) -> str:
    """The title of a panel: it says so when what is seen comes from the simulator."""
    return f"{text} ({source})" if source == SIMULATED_GPU else text


def panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with its axes in a flat list."""
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.ravel())


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write `name`.png and `name`.svg; the same figure gives the same bytes."""
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def users_axis(axes: Axes, levels: Iterable[float]) -> None:
    """x is the steps' level, logarithmic when it spans more than LOG_RANGE; ticks at levels, as many as fit."""
    values = sorted(set(levels))
    wide = values[-1] > LOG_RANGE * values[0]
    if wide:
        axes.set_xscale("log")
        place = [float(np.log10(value / values[0])) for value in values]
        axes.set_xlim(values[0] / 1.25, values[-1] * 1.25)
    else:
        place = [value - values[0] for value in values]
        pad = 0.06 * (values[-1] - values[0]) or 1.0
        axes.set_xlim(max(0.0, values[0] - pad), values[-1] + pad)
    axes.set_xticks(_apart(values, place))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.set_xlabel("concurrent users")


def _apart(values: list[float], place: list[float]) -> list[float]:
    """The values that are far enough from each other for a label; first and last are always in."""
    least = (place[-1] - place[0]) / MAX_TICKS
    kept = [0]
    for index in range(1, len(values) - 1):
        if place[index] - place[kept[-1]] >= least and place[-1] - place[index] >= least:
            kept.append(index)
    return [values[index] for index in dict.fromkeys([*kept, len(values) - 1])]


def value_axis(axes: Axes, series: Sequence[pd.Series[float]], label: str, log: bool = False) -> None:
    """y from 0; or logarithmic, when asked and the finite values span more than LOG_RANGE."""
    known = np.concatenate([np.asarray(values, dtype=float) for values in series])
    known = known[np.isfinite(known) & (known > 0)]
    if log and known.size and known.max() > LOG_RANGE * known.min():
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(known.min() / 1.6, known.max() * 2.5)
    else:
        axes.set_ylim(0, 1.2 * known.max() if known.size else 1)
        if not known.size:
            axes.yaxis.set_major_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.set_ylabel(label)


def _plain(value: float, _: int | None) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def line(axes: Axes, x: pd.Series[float], y: pd.Series[float], label: str, rank: int = 0, **style: Any) -> None:
    """A line through the finite points; an infinite one is a cross near the top edge, lower for a higher `rank`."""
    finite = np.isfinite(y)
    size = 6.5 if len(x) <= CROWDED else 4.5
    axes.plot(x[finite], y[finite], label=label, ms=size, markeredgecolor="white", markeredgewidth=0.6, **style)
    crosses(axes, x[np.isinf(y)], style["color"], 0.975 - 0.055 * rank)


def crosses(axes: Axes, x: pd.Series[float], color: str, height: float, size: float = 8) -> None:
    """Marks at `height` (share of the axes) where a figure is infinite."""
    if len(x):  # an empty line without clipping upsets the layout
        marks = axes.plot(x, np.full(len(x), height), "X", color=color, markersize=size, markeredgewidth=0)
        marks[0].set(transform=axes.get_xaxis_transform(), clip_on=False)


def legend(axes: Axes, infinite: bool, **where: Any) -> None:
    """The legend of the labelled lines, and of the crosses when there are any."""
    handles, _ = axes.get_legend_handles_labels()
    if infinite:
        cross = Line2D([], [], color="#777777", linestyle="none", marker="X", markersize=7, markeredgewidth=0)
        cross.set_label("infinite: failures reach it")
        handles.append(cross)
    axes.legend(handles=handles, **where)
