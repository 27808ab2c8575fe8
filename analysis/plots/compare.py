"""The figures of a comparison: both sides over the level, what changed and how surely, and a label's runs over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.checks import SIMULATED_GPU
from analysis.compare_tables import Comparison
from analysis.compared import COMPARED
from analysis.history import History
from analysis.metrics import GIB
from analysis.plots.canvas import BLACK, BLUE, CROWDED, GREEN, ORANGE, RED, level_axis, panels, titled, value_axis
from analysis.tables import as_number
from loadgen.gates import FIGURES

# Side, label, colour, marker, its size, and line: so that of two equal curves both are seen.
_SIDES = (("base", "BASE", BLUE, "o", 7.5, "-"), ("new", "NEW", RED, "s", 4.5, "--"))
_NAMES = ("base", "new")
_UNITS = {"/s": "per second"}
_CURVES = ("qps", "output_tokens_per_s", "ttft_p50", "ttft_p95", "itl_p95", "e2e_p95", "error_rate", "vram", "power")
_GPU = ("vram", "vram_effective", "power", "gpu_util", "j_per_output_token")
# Changes are drawn of so many steps at most: the last ones.
_MOST_STEPS = 4
_KINDS = {"worse": (RED, "worse"), "better": (GREEN, "better"), "changed": (ORANGE, "differs")}
_GREY = "#888888"


def source(told: Comparison | History) -> str:
    return SIMULATED_GPU if told["simulated_gpu"] else ""


def curves(comparison: Comparison) -> Figure:
    """Each main figure over the level, of BASE and of NEW, with the interval of each point; of one step its runs."""
    drawn = [name for name in _CURVES if any(_points(comparison, name, side)[1].notna().any() for side in _NAMES)]
    single = len(comparison["levels"]) == 1
    columns = min(5 if single else 3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure, every = panels(rows, columns, (((2.5 if single else 4.2) * columns), 3.3 * rows + 0.4))
    for axes, name in zip(every, drawn, strict=False):
        highs = [high.fillna(values) for _, values, _, high in (_points(comparison, name, side) for side in _NAMES)]
        value_axis(axes, highs, _UNITS.get(COMPARED[name].unit, COMPARED[name].unit))
        (_runs if single else _curve)(axes, comparison, name)
        axes.set_title(titled(COMPARED[name].title, source(comparison) if name in _GPU else ""))
    for axes in every[len(drawn) :]:
        axes.remove()
    handles, labels = every[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles))
    return figure


def _curve(axes: Axes, comparison: Comparison, name: str) -> None:
    for side, label, color, marker, size, style in _SIDES:
        levels, values, low, high = _points(comparison, name, side)
        finite = np.isfinite(values)
        ms = size if len(levels) <= CROWDED else 0.6 * size
        axes.plot(levels[finite], values[finite], style, color=color, marker=marker, ms=ms, label=label)
        _infinite(axes, levels[np.isposinf(values)], color, lower=side == "base")
        known = finite & low.notna() & high.notna()
        if known.any():
            top = axes.get_ylim()[1]
            axes.fill_between(levels[known], low[known], np.minimum(high[known], top), color=color, alpha=0.18, lw=0)
    level_axis(axes, comparison["levels"], comparison["unit"])


def _infinite(axes: Axes, places: Sequence[float] | pd.Series[float], color: str, *, lower: bool = False) -> None:
    """What is infinite: arrows at the upper edge of the axes; `lower`: below those of another side."""
    across, height = axes.get_xaxis_transform(), 0.9 if lower else 0.96
    for place in places:
        axes.plot([place], [height], "^", color=color, ms=6, transform=across)
        axes.annotate(
            "inf",
            (place, height),
            (-6, 0),
            across,
            "offset points",
            color=color,
            ha="right",
            va="center",
            fontsize="small",
        )


def _runs(axes: Axes, comparison: Comparison, name: str) -> None:
    """Of the only step each run beside the mean of its side and the interval of it."""
    bottom, top = axes.get_ylim()
    for place, (side, label, color, marker, *_) in enumerate(_SIDES):
        _, values, low, high = (float(column.iloc[0]) for column in _points(comparison, name, side))
        found = next(effect[side]["runs"] for effect in comparison["effects"] if effect["figure"] == name)
        size = GIB if FIGURES[name].unit == "B" else 1
        each = np.array([as_number(value) for value in found], dtype=float) / size
        if len(each) > 1:
            beside = place + 0.22 + np.linspace(0, 0.12, len(each))
            axes.plot(beside, each, "o", color=color, ms=3.5, mfc="none", label=f"runs of {label}")
        axes.plot([place], [values], marker, color=color, ms=6, label=label)
        _infinite(axes, [place] if np.isposinf(each).any() or np.isposinf(values) else [], color)
        if np.isfinite(low) and not np.isnan(high):
            axes.vlines(place, max(low, bottom), min(high, top), color=color, lw=1.6)
    axes.set_xlim(-0.5, 1.7)
    axes.set_xticks([0, 1], ["BASE", "NEW"])
    axes.set_xlabel(f"at {comparison['steps'][0]}")


def _points(comparison: Comparison, name: str, side: str) -> tuple[pd.Series, pd.Series, pd.Series, pd.Series]:
    """Level, value and ends of the interval of each step."""
    found = {effect["step"]: effect[side] for effect in comparison["effects"] if effect["figure"] == name}
    size = GIB if FIGURES[name].unit == "B" else 1
    rows = []
    for step, level in zip(comparison["steps"], comparison["levels"], strict=True):
        entry: dict[str, Any] = found.get(step, {"value": None, "ci95": [None, None]})
        rows.append([level, *(as_number(value) for value in (entry["value"], *entry["ci95"]))])
    frame = pd.DataFrame(rows, columns=["level", "value", "low", "high"], dtype=float).sort_values("level")
    return frame["level"], frame["value"] / size, frame["low"] / size, frame["high"] / size


def changes(comparison: Comparison) -> Figure | None:
    """The relative change of each figure with its interval, and the limits of gates; None when nothing is a ratio."""
    steps = comparison["steps"][-_MOST_STEPS:]
    effects = [
        effect
        for effect in comparison["effects"]
        if effect["relative"] and effect["step"] in steps and effect["change"] is not None
    ]
    names = list(dict.fromkeys(effect["figure"] for effect in effects))
    if not names:
        return None
    height = 0.27 * len(names) + 1.7
    figure, every = panels(1, len(steps), (3.4 + 2.6 * len(steps), height), sharey=True, sharex=True)
    reach = _reach(effects)
    for axes, step in zip(every, steps, strict=True):
        _forest(axes, [effect for effect in effects if effect["step"] == step], names, reach)
        _limits(axes, comparison, names, reach)
        axes.set_title(titled(step, source(comparison)) if axes is every[0] else step)
        axes.set_xlabel("NEW against BASE, %")
    every[0].set_yticks(range(len(names)), [COMPARED[name].title for name in names])
    every[0].set_ylim(len(names) - 0.5, -0.5)
    handles = {label: handle for axes in every for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    return figure


def _reach(effects: list[dict[str, Any]]) -> tuple[float, float]:
    """From where to where the axis goes: every change, and of the intervals what is not far beyond."""
    values = [effect["change"] for effect in effects if effect["change"] != "inf"]
    ends = [end for effect in effects for end in effect["change_ci95"] if isinstance(end, float)]
    widest = 2.5 * max([1.0, *(abs(value) for value in values)])
    low, high = min([0.0, *values, *(max(end, -widest) for end in ends)]), max([0.0, *values, *ends])
    high = min(high, max([widest, *values]))
    if len(values) < len(effects):  # room for the word
        high += 0.45 * (high - low)
    pad = 0.06 * (high - low)
    return low - pad, high + pad


def _forest(axes: Axes, effects: list[dict[str, Any]], names: list[str], reach: tuple[float, float]) -> None:
    axes.axvline(0, color=BLACK, lw=1)
    axes.grid(axis="y", visible=False)
    for effect in effects:
        color, label = _KINDS[effect["direction"]] if effect["differs"] else (_GREY, "no difference shown")
        place = names.index(effect["figure"])
        ends = effect["change_ci95"]
        unsure = ends == [None, None] and not effect["differs"]
        if unsure:
            label = "interval not known"
        elif ends != [None, None]:
            low, high = (end if isinstance(end, float) else edge for end, edge in zip(ends, reach, strict=True))
            axes.hlines(place, max(low, reach[0]), min(high, reach[1]), color=color, lw=1.8)
        infinite = effect["change"] == "inf"
        if infinite:
            axes.annotate(
                "infinite", (reach[1], place), (-8, 0), "data", "offset points", color=color, ha="right", va="center"
            )
        known = axes.get_legend_handles_labels()[1]
        at, marker, fill = (
            reach[1] if infinite else effect["change"],
            ">" if infinite else "o",
            "none" if unsure else color,
        )
        axes.plot([at], [place], marker, color=color, ms=5.5, mfc=fill, label=_once(label, known), clip_on=False)
    axes.set_xlim(*reach)


def _once(label: str, known: Sequence[Any]) -> str | None:
    return None if label in known else label


def _limits(axes: Axes, comparison: Comparison, names: list[str], reach: tuple[float, float]) -> None:
    """A tick at the limit of each relative gate that is in sight."""
    for gate in comparison["gates"]:
        limit = 100 * (gate["limit"] - 1)
        if gate["relative"] and gate["figure"] in names and reach[0] < limit < reach[1]:
            place = names.index(gate["figure"])
            known = axes.get_legend_handles_labels()[1]
            label = _once("limit of a gate", known)
            axes.plot([limit, limit], [place - 0.4, place + 0.4], color=BLACK, lw=1.6, ls=(0, (2, 1)), label=label)


def over_time(history: History) -> Figure:
    """Each main figure of a label's runs from point to point: the mean, its interval, and every run."""
    points = history["points"]
    drawn = [name for name in _CURVES if any(name in point["figures"] for point in points)]
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure, every = panels(rows, columns, (4.2 * columns, 3.1 * rows + 0.4), sharex=True)
    for axes, name in zip(every, drawn, strict=False):
        found = [point["figures"][name] for point in points]
        size = GIB if FIGURES[name].unit == "B" else 1
        columns_of = [[as_number(f["value"]), *(as_number(end) for end in f["ci95"])] for f in found]
        frame = pd.DataFrame(columns_of, columns=["value", "low", "high"], dtype=float) / size
        value_axis(axes, [frame["high"].fillna(frame["value"])], _UNITS.get(COMPARED[name].unit, COMPARED[name].unit))
        places = pd.Series(range(1, len(points) + 1), dtype=float)
        top = axes.get_ylim()[1]
        for place, entry in zip(places, found, strict=True):
            each = np.array([as_number(value) for value in entry["runs"]], dtype=float) / size
            axes.plot(np.full(len(each), place), each, "o", color=BLUE, ms=3, mfc="none", alpha=0.6)
            _infinite(axes, [place] if np.isposinf(each).any() else [], RED)
        finite = np.isfinite(frame["value"])
        axes.plot(places[finite], frame["value"][finite], "-o", color=BLUE, ms=5.5)
        known = finite & frame["low"].notna() & frame["high"].notna()
        axes.vlines(places[known], frame["low"][known], np.minimum(frame["high"][known], top), color=BLUE, lw=1.4)
        other = [place for place, entry in zip(places, found, strict=True) if entry["differs"]]
        axes.plot(other, [frame["value"][round(place) - 1] for place in other], "o", color=RED, ms=7)
        axes.set_title(titled(COMPARED[name].title, source(history) if name in _GPU else ""))
    for axes in every[len(drawn) :]:
        axes.remove()
    for axes in every[: len(drawn)]:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("point")
        axes.xaxis.set_tick_params(labelbottom=True)
    return figure
