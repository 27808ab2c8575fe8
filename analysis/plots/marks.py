"""What is marked on an axis of time: the steps, and events as numbers. No figure. Seconds since the run's start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.plots.canvas import plain
from analysis.windows import Window

# With more steps than this only every n-th is labelled.
LABELS = 12
SHADED = "shaded: steps; darker: measured"
BORDERS = "lines: steps"
# The unit of an axis of time that is longer than so many of them, the longest first.
_UNITS = ((3 * 3600.0, 3600.0, "hours"), (3600.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
_TICKS = 9
_SHADE = "#0072B2"
_EVENT = "#444444"
# Marks that are closer than this share of the axis are in two rows; of one kind, they have one number.
_CLOSE = 0.014
_MOST_KINDS = 12
# So many kinds are named in a line of the legend.
_IN_LINE = 4


class Lane(NamedTuple):
    """Events of a run as numbers in rows: (instant, number, row), and what the numbers mean."""

    marks: tuple[tuple[float, int, int], ...]
    names: tuple[str, ...]

    @property
    def rows(self) -> int:
        return max(row for _, _, row in self.marks) + 1


def lane(events: Sequence[tuple[float, str]], length_s: float) -> Lane | None:
    """Events by kind, the rarest kind first; one number for those of a kind that are close. None without any inside."""
    inside = sorted((at_s, kind) for at_s, kind in events if 0 <= at_s <= length_s)
    counts = Counter(kind for _, kind in inside)
    kinds = sorted(counts, key=lambda kind: (counts[kind], kind))
    numbers = {kind: number for number, kind in enumerate(kinds[:_MOST_KINDS], 1)}
    last: dict[int, float] = {}
    ends: list[float] = []
    marks = []
    for at_s, kind in inside:
        number = numbers.get(kind)
        if number is None or at_s - last.get(number, -np.inf) < _CLOSE * length_s:
            continue
        last[number] = at_s
        row = next((n for n, end_s in enumerate(ends) if at_s - end_s > _CLOSE * length_s), len(ends))
        ends[row : row + 1] = [at_s]
        marks.append((at_s, number, row))
    names = [f"{number} {kind} ×{counts[kind]}" for kind, number in numbers.items()]
    beyond = len(counts) - len(numbers)
    names += [f"and {beyond} kinds more" if beyond > 1 else "and one kind more"] if beyond else []
    return Lane(tuple(marks), tuple(names)) if marks else None


def draw_lane(figure: Figure, axes: Axes, others: Sequence[Axes], found: Lane) -> None:
    """The numbers in a panel of their own, a line at each through the others, and their meaning below the figure."""
    times = [at_s for at_s, _, _ in found.marks]
    for place in (*others, axes):
        transform = place.get_xaxis_transform()
        place.vlines(times, 0, 1, transform=transform, color=_EVENT, lw=0.7, ls=(0, (1, 2)), zorder=1.5)
    looks = {"boxstyle": "circle,pad=0.2", "fc": _EVENT, "ec": "none"}
    for at_s, number, row in found.marks:
        axes.text(at_s, -row, str(number), ha="center", va="center", fontsize=7, color="white", bbox=looks)
    axes.set_ylim(0.7 - found.rows - 0.4, 0.7)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_title("Events", fontsize=10)
    lines = [found.names[n : n + _IN_LINE] for n in range(0, len(found.names), _IN_LINE)]
    figure.supxlabel("\n".join("      ".join(line) for line in lines), fontsize=8.5, x=0.06, ha="left")


def time_axis(axes: Axes, length_s: float, note: str = "") -> None:
    """x is the time since the start, from 0 to `length_s`; the note says what is marked on it."""
    unit_s, name = next((unit_s, name) for longer_s, unit_s, name in _UNITS if length_s >= longer_s)
    ticks = MaxNLocator(_TICKS, steps=[1, 2, 3, 6, 10] if unit_s > 1 else [1, 2, 5, 10]).tick_values(
        0, length_s / unit_s
    )
    axes.set_xticks([unit_s * tick for tick in ticks if 0 <= unit_s * tick <= length_s])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at_s, _: plain(at_s / unit_s)))
    axes.set_xlim(0, length_s)
    axes.set_xlabel(f"{name} since the start ({note})" if note else f"{name} since the start")


def shade(axes: Axes, windows: Sequence[Window]) -> None:
    """The steps' holds, and their measuring windows darker."""
    for alpha, begins in ((0.05, [w.hold_s for w in windows]), (0.08, [w.begin_s for w in windows])):
        spans = [(begin_s, window.end_s - begin_s) for begin_s, window in zip(begins, windows, strict=True)]
        axes.broken_barh(spans, (0, 1), transform=axes.get_xaxis_transform(), color=_SHADE, alpha=alpha, lw=0)


def borders(axes: Axes, windows: Sequence[Window]) -> None:
    """A line where each step's hold begins, and where the last one ends."""
    at_s = [*(window.hold_s for window in windows), *(window.end_s for window in windows[-1:])]
    lw = 0.7 if len(windows) <= LABELS else 0.4
    axes.vlines(at_s, 0, 1, transform=axes.get_xaxis_transform(), color="#777777", lw=lw)


def label_steps(axes: Axes, windows: Sequence[Window]) -> None:
    """The level in each step, at the top; with many steps in every n-th. Leave room for it."""
    every = max(1, -(-len(windows) // LABELS))
    for number, window in enumerate(windows[::every]):
        level = plain(window.level)
        axes.annotate(
            f"{level} {window.unit}" if number == 0 and len(windows) <= LABELS // 2 else level,
            xy=((window.hold_s + window.end_s) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -4),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=9,
            color="#222222",
        )
