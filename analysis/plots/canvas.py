"""What every figure shares: the style, the colours, axes of levels, infinite points, and saving. No figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context, rc_params_from_file
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from analysis.checks import SIMULATED_GPU

BLUE, RED, GREEN, PINK, ORANGE, SKY, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
STYLE = rc_params_from_file(str(Path(__file__).with_name("loadgen.mplstyle")), use_default_template=False)
# A range wider than this is drawn on a logarithmic axis.
LOG_RANGE = 10
MAX_TICKS = 9
LEAST_TICKS = 4
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
    """Write `name`.png and `name`.svg; the same figure gives the same bytes.

    By the canvases, as Figure.savefig would draw it twice for each.
    """
    figure.set_dpi(STYLE["savefig.dpi"])
    png: Callable[..., None] = FigureCanvasAgg(figure).print_png
    png(folder / f"{name}.png", metadata={"Software": None})
    with rc_context({"figure.constrained_layout.use": False}):
        figure.set_layout_engine()  # none: it is laid out
    svg: Callable[..., None] = FigureCanvasSVG(figure).print_svg
    svg(folder / f"{name}.svg", metadata={"Date": None})


def level_axis(axes: Axes, levels: Iterable[float], unit: str, most: int = MAX_TICKS) -> None:
    """x is the level in its unit, logarithmic when it spans more than LOG_RANGE; `most` ticks or less, at levels."""
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
    axes.set_xticks(_apart(values, place, most))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(plain))
    axes.set_xlabel(level_label(unit))


def level_label(unit: str) -> str:
    return "concurrent users" if unit == "users" else unit


def _apart(values: list[float], place: list[float], most: int) -> list[float]:
    """The values that are far enough from each other for a label; first and last are always in."""
    least = (place[-1] - place[0]) / most
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
        axes.set_ylim(known.min() / 1.6, known.max() * 2.5)
        log_ticks(axes.yaxis, *axes.get_ylim())
    else:
        axes.set_ylim(0, 1.2 * known.max() if known.size else 1)
        if not known.size:
            axes.yaxis.set_major_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(plain))
    axes.set_ylabel(label)


def log_ticks(axis: Axis, low: float, high: float) -> None:
    """Labels at round values of a logarithmic axis: decades where they suffice, else more of them."""
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(plain))
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = np.outer(powers, steps).ravel()
        inside = ticks[(ticks >= low) & (ticks <= high)]
        if inside.size >= LEAST_TICKS:
            axis.set_major_locator(FixedLocator(inside.tolist()))
            return
    axis.set_minor_locator(NullLocator())
    axis.set_major_locator(MaxNLocator(LEAST_TICKS + 1))


def plain(value: float, _: int | None = None) -> str:
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


def headroom(axes: Axes, share: float) -> None:
    """Make y longer by this share of its length, for a legend at the top."""
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top * (top / bottom) ** share if axes.get_yscale() == "log" else top + share * (top - bottom))


def legend(axes: Axes, infinite: bool, **where: Any) -> None:
    """The legend of the labelled lines, and of the crosses when there are any."""
    handles, _ = axes.get_legend_handles_labels()
    if infinite:
        cross = Line2D([], [], color="#777777", linestyle="none", marker="X", markersize=7, markeredgewidth=0)
        cross.set_label("infinite: failures reach it")
        handles.append(cross)
    axes.legend(handles=handles, **where)


def label_points(figure: Figure, axes: Axes, places: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> None:
    """Write each text beside the first of its points where it covers no line, no other text and no legend, else not.

    The last text comes first, then the others in their order; call it when lines, limits and legend are final.
    """
    figure.draw_without_rendering()
    keys = axes.get_legend()
    taken = [keys.get_window_extent()] if keys else []
    drawn = [(line.get_transform(), np.column_stack(line.get_data()).astype(float)) for line in axes.get_lines()]
    ink = np.concatenate([_along(transform.transform(corners)) for transform, corners in drawn])
    inside = axes.get_window_extent()
    for text, points in [*places[-1:], *places[:-1]]:
        label = axes.annotate(text, (0, 0), xytext=(0, 0), textcoords="offset points", fontsize=8.5, color="#222222")
        label.set_in_layout(False)
        for point, (dx, dy, ha, va) in product(points, _BESIDE):
            label.xy = point
            label.set(position=(dx, dy), ha=ha, va=va)
            box = label.get_window_extent().padded(2)
            free = inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1)
            if free and not box.count_overlaps(taken) and not box.count_contains(ink):
                taken.append(box)
                break
        else:
            label.remove()


# Offsets in points and alignments of a label beside its point, best first.
_BESIDE = (
    *((0, 6, "center", "bottom"), (0, -6, "center", "top"), (7, 0, "left", "center"), (-7, 0, "right", "center")),
    *((5, 5, "left", "bottom"), (-5, 5, "right", "bottom"), (5, -5, "left", "top"), (-5, -5, "right", "top")),
)


def _along(corners: Any) -> Any:
    """Points of a polyline, 3 pixels apart at most."""
    corners = corners[np.isfinite(corners).all(axis=1)]
    parts = [corners]
    for begin, end in pairwise(corners):
        count = int(np.hypot(*(end - begin)) // 3) + 1
        parts.append(begin + (end - begin) * np.linspace(0, 1, count, endpoint=False)[:, None])
    return np.concatenate(parts)


def rate_axis(axes: Axes, values: pd.Series[float], label: str) -> None:
    """x is a rate from 0, or logarithmic when it spans more than LOG_RANGE."""
    known = np.asarray(values[np.isfinite(values) & (values > 0)])
    if known.size and known.max() > LOG_RANGE * known.min():
        axes.set_xscale("log")
        axes.set_xlim(known.min() / 1.5, known.max() * 1.5)
        log_ticks(axes.xaxis, *axes.get_xlim())
    else:
        axes.set_xlim(0, 1.12 * known.max() if known.size else 1)
        axes.xaxis.set_major_formatter(FuncFormatter(plain))
    axes.set_xlabel(label)


def limit_line(axes: Axes, value: float, label: str, color: str = BLACK) -> None:
    """A dotted line at a limit."""
    axes.axhline(value, color=color, lw=1.2, ls=":", label=label)
