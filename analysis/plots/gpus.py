"""Figures of GPUs over the level: memory against the card's limit, and what each card did. Only cards of one source.

With few cards a line a card, else their median in a band from the lowest to the highest.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from analysis.metrics import GIB
from analysis.plots.canvas import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    RED,
    legend,
    level_axis,
    limit_line,
    line,
    panels,
    plain,
    titled,
)
from analysis.plots.concurrency import HALF, SIZE

# With more cards than this a band has them.
MOST_LINES = 4
_LOOKS = ((BLUE, "o", "-"), (ORANGE, "s", "--"), (GREEN, "D", "-."), (PINK, "^", ":"))
_TICKS = 5


class Signal(NamedTuple):
    """`top` is the end of the axis, where there is a natural one."""

    column: str
    title: str
    unit: str
    scale: float = 1.0
    top: float | None = None


_SIGNALS = (
    Signal("util_pct_mean", "A kernel runs (GPU util)", "%", top=105),
    Signal("sm_pct_mean", "SMs at work", "%", top=105),
    Signal("tensor_pct_mean", "Tensor cores at work", "%", top=105),
    Signal("dram_pct_mean", "Memory bandwidth in use", "%", top=105),
    Signal("power_w_mean", "Power", "W"),
    Signal("sm_mhz_mean", "SM clock", "MHz"),
    Signal("temp_c_max", "Hottest", "°C"),
    Signal("throttled_power_share", "Held back by power", "% of the time", 0.01, 105),
    Signal("throttled_heat_share", "Held back by heat", "% of the time", 0.01, 105),
)


def vram_vs_concurrency(
    steps: pd.DataFrame, gpus: pd.DataFrame, model: dict[str, float | None] | None = None
) -> Figure | None:
    """VRAM of a card used, effective and predicted, under its limit; beside it what moves, enlarged. None without any.

    `gpus` is host_tables.gpus_frame; the prediction is the step's, shared out evenly. `model` is the summary's, which
    tells the level at which the KV cache is full.
    """
    mine = _of_one_source(steps, gpus)
    if mine.empty or mine["vram_used_bytes_mean"].isna().all() or not mine["vram_total_bytes"].max() > 0:
        return None
    count = mine[["host", "uuid"]].drop_duplicates().shape[0]
    levels = pd.Series(steps["level"].to_numpy(dtype=float))
    predicted = pd.Series(steps["vram_predicted_b"].to_numpy(dtype=float)) / count / GIB
    moving = [(name, *looks) for name, *looks in _MEMORY if mine[f"vram_{name}_bytes_mean"].notna().any()]
    figure, (whole, close) = panels(1, 2, SIZE)
    for axes in (whole, close):
        for name, label, color, marker, style in moving[-1:] if axes is close else moving:
            _spread(axes, mine, f"vram_{name}_bytes_mean", 1 / GIB, label, color, marker, style)
        if predicted.notna().any():
            line(axes, levels, predicted, "predicted", color=GREEN, marker="^", linestyle=":")
        level_axis(axes, steps["level"], steps["unit"].iloc[0])
    limits = sorted({float(total) / GIB for total in mine["vram_total_bytes"] if total > 0})
    for limit in dict.fromkeys((limits[0], limits[-1])):
        limit_line(whole, limit, f"limit: a card has {limit:.3g} GiB", RED)
    whole.set_ylim(0, 1.6 * limits[-1])
    _mark_full(whole, model or {})
    several = f", median and range of {count}" if count > 1 else ""
    whole.set_ylabel(f"GiB of a card{several}")
    close.set_ylabel("GiB of a card; not from 0")
    low, high = close.get_ylim()
    pad = max(0.0, 0.02 * high - (high - low))  # a flat line has no room of its own
    close.set_ylim(max(0.0, low - pad), high + pad + 0.25 * (high - low + 2 * pad))
    source = str(steps["gpu_source"].iloc[0])
    whole.set_title(titled("GPU memory", source))
    close.set_title(titled("Enlarged", source))
    for axes in (whole, close):
        legend(axes, infinite=False, loc="upper left")
    return figure


def _mark_full(axes: Axes, model: dict[str, float | None]) -> None:
    """The level at which the KV cache is full, with its interval; only its figure where that is beyond the axis."""
    level, low, high = (model.get(f"exhausted_at_level{end}") for end in ("", "_low", "_high"))
    if level is None:
        return
    about = f" ({low:,.0f} – {high:,.0f})" if low is not None and high is not None else ""
    label = f"KV cache full at {level:,.0f}{about}"
    begin, end = axes.get_xlim()
    if level > end:
        axes.plot([], [], ls="none", label=label)
        return
    axes.axvline(level, color=BLACK, lw=1.2, ls="--", label=label)
    if low is not None and high is not None:
        axes.axvspan(max(low, begin), min(high, end), color=BLACK, alpha=0.08, lw=0)


_MEMORY = (
    ("used", "used", BLUE, "o", "-"),
    ("effective", "effective (KV cache in use)", ORANGE, "s", "--"),
)


def gpu_vs_concurrency(steps: pd.DataFrame, gpus: pd.DataFrame) -> Figure | None:
    """Small multiples of what the cards did in each step's window; a signal without figures is left out."""
    mine = _of_one_source(steps, gpus)
    shown = [signal for signal in _SIGNALS if not mine.empty and mine[signal.column].notna().any()]
    if not shown:
        return None
    cards = [rows for _, rows in mine.groupby(["host", "index", "gi_id", "uuid"], dropna=False)]
    columns = min(len(shown), 3) if len(shown) != 4 else 2
    rows = math.ceil(len(shown) / columns)
    size = HALF if columns == 1 else (SIZE[0], 1.0 + 2.1 * rows)
    figure, places = panels(rows, columns, size)
    one_host = mine["host"].nunique() == 1
    source, unit = str(steps["gpu_source"].iloc[0]), steps["unit"].iloc[0]
    for axes, signal in zip(places, shown, strict=False):
        if len(cards) <= MOST_LINES:
            for rows_of, (color, marker, style) in zip(cards, _LOOKS, strict=False):
                values = rows_of[signal.column].astype(float) / signal.scale
                label = _name(rows_of.iloc[0], one_host)
                line(axes, rows_of["level"], values, label, color=color, marker=marker, linestyle=style)
        else:
            _spread(axes, mine, signal.column, 1 / signal.scale, "median", BLUE, "o", "-")
        top = signal.top or 1.15 * float(mine[signal.column].max()) / signal.scale or 1.0
        axes.set_ylim(-0.03 * top, top)
        axes.yaxis.set_major_formatter(FuncFormatter(plain))
        axes.set_ylabel(signal.unit)
        axes.set_title(signal.title, fontsize=10)
        level_axis(axes, steps["level"], unit, _TICKS)
        if axes not in places[len(shown) - columns : len(shown)]:
            axes.set_xlabel("")
    for axes in places[len(shown) :]:
        axes.remove()
    figure.suptitle(titled("GPUs", source), x=0.01, ha="left", fontsize=11, fontweight="bold")
    _key(figure, places[0], len(cards))
    return figure


def _key(figure: Figure, axes: Axes, cards: int) -> None:
    """One legend below all panels."""
    handles, labels = axes.get_legend_handles_labels()
    if cards > MOST_LINES:
        handles.append(Patch(color=BLUE, alpha=0.2, lw=0))
        labels = [f"median of {cards} GPUs", "lowest to highest"]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles))


def _of_one_source(steps: pd.DataFrame, gpus: pd.DataFrame) -> pd.DataFrame:
    """The GPUs that the steps' totals have: real ones, or simulated."""
    return gpus[:0] if steps.empty else gpus[gpus["gpu_source"] == steps["gpu_source"].iloc[0]]


def _name(card: pd.Series[Any], one_host: bool) -> str:
    name = f"GPU {card['index']}" if pd.isna(card["gi_id"]) else f"GPU {card['index']} MIG {card['gi_id']}"
    return name if one_host else f"{card['host']} {name}"


def _spread(
    axes: Axes, gpus: pd.DataFrame, column: str, factor: float, label: str, color: str, marker: str, style: str
) -> None:
    """The median over the cards at each level and, of several, a band from the lowest to the highest."""
    stats = (gpus.groupby("level")[column].agg(["median", "min", "max"]) * factor).dropna()
    x = pd.Series(stats.index, index=stats.index, dtype=float)
    line(axes, x, stats["median"], label, color=color, marker=marker, linestyle=style)
    if not np.array_equal(stats["min"], stats["max"]):
        axes.fill_between(x, stats["min"], stats["max"], color=color, alpha=0.2, lw=0)
        if len(stats) == 1:  # a band of one level is not seen
            axes.vlines(x, stats["min"], stats["max"], color=color, lw=3, alpha=0.4)
