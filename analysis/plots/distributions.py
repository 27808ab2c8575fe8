"""How latencies are spread: curves of each step, a map over time, and by the length of the prompt.

Each takes a table of analysis/distributions.py. A latency of a failure is infinite.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from analysis.plots.canvas import BLACK, RED, crosses, level_label, log_ticks, panels, plain, titled
from analysis.plots.concurrency import SIZE
from analysis.plots.marks import BORDERS, borders, label_steps, time_axis
from analysis.stats import Floats
from analysis.windows import Window

TITLES = {"ttft": "Time to first token", "e2e": "End-to-end latency"}
# With more steps than this a colour bar names the curves, and they differ in colour alone.
MOST_NAMED = 8
# With more levels than this cells are not written in, and only every n-th level is named.
MOST_WRITTEN = 12
# A line over time breaks where so many of its bins are empty.
_GAP = 2.5
# Counts above this have labels at powers of ten.
_DECADES = 1000
# A percentile of fewer requests is hardly one.
LEAST = {50: 10, 99: 100}
_STYLES = ("-", "--", "-.", ":")
# Without its light end, which is not seen on white.
_RAMP = ListedColormap(colormaps["viridis_r"](np.linspace(0.12, 1.0, 256)), "levels")
_HEAT = ListedColormap(colormaps["Blues"](np.linspace(0.15, 1.0, 256)), "requests")
_SURFACE = ListedColormap(colormaps["cividis_r"](np.linspace(0.0, 1.0, 256)), "latency")
_INFINITE = "#D55E00"


def latency_cdf(cdf: pd.DataFrame, source: str) -> Figure | None:
    """The share of each step's requests that took so long or less: TTFT and E2E. None without any.

    Failures keep a curve below 100 %: it goes on level to the edge.
    """
    shown = _metrics(cdf)
    if not shown:
        return None
    steps = sorted(cdf["step"].unique())
    named = len(steps) <= MOST_NAMED
    figure, places = panels(1, len(shown), (SIZE[0] if len(shown) == 2 else 0.6 * SIZE[0], SIZE[1] + 0.4))
    for axes, metric in zip(places, shown, strict=True):
        mine = cdf[cdf["metric"] == metric]
        finite = mine["latency_ms"]
        low, high = finite.min() / 1.3, finite.max() * 1.3
        for (step, rows), style in zip(mine.groupby("step"), cycle(_STYLES), strict=False):
            x = np.concatenate([[low], rows["latency_ms"], [high]])
            share = 100 * np.concatenate([[0.0], rows["share"], rows["share"].iloc[-1:]])
            axes.step(
                x,
                share,
                where="post",
                color=_RAMP(steps.index(step) / max(1, len(steps) - 1)),
                ls=style if named else "-",
                lw=1.6 if named else 1.2,
                label=plain(rows["level"].iloc[0]),
            )
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        log_ticks(axes.xaxis, low, high)
        axes.set_ylim(0, 102)
        axes.set_yticks([0, 25, 50, 75, 90, 99])
        axes.set_xlabel(f"{metric.upper()}, ms")
        axes.set_title(titled(TITLES[metric], source))
    places[0].set_ylabel("% of the requests, failures too")
    unit = level_label(str(cdf["unit"].iloc[0]))
    if named:
        handles, labels = max((axes.get_legend_handles_labels() for axes in places), key=lambda both: len(both[1]))
        figure.legend(handles, labels, title=unit, loc="outside right upper")
    else:
        _step_bar(figure, places, cdf.drop_duplicates("step").sort_values("step")["level"].tolist(), unit)
    return figure


def _step_bar(figure: Figure, places: Sequence[Axes], levels: Sequence[float], unit: str) -> None:
    """A colour bar of the steps in their order, with the levels of some."""
    count = len(levels)
    every = -(-count // MOST_NAMED)
    bar = figure.colorbar(ScalarMappable(Normalize(-0.5, count - 0.5), _steps_of(_RAMP, count)), ax=places, pad=0.02)
    chosen = [*range(0, count - every // 2 - 1, every), count - 1]
    bar.set_ticks(chosen, labels=[plain(levels[number]) for number in chosen])
    bar.set_label(unit)


def _steps_of(ramp: Colormap, count: int) -> Colormap:
    return ListedColormap(ramp(np.arange(count) / max(1, count - 1)))


def latency_heat(
    heat: pd.DataFrame, over_time: pd.DataFrame, windows: Sequence[Window], length_s: float, source: str
) -> Figure | None:
    """How many requests, by when they were intended, took how long; with p50 and p99 of each bin. None without any.

    The map itself is an image in the SVG.
    """
    shown = _metrics(heat)
    if not shown:
        return None
    figure, places = panels(len(shown), 1, (SIZE[0], 0.8 + 2.7 * len(shown)), sharex=True)
    norm = LogNorm(1, max(2, heat.loc[np.isfinite(heat["high_ms"]), "requests"].max()))
    for axes, metric in zip(places, shown, strict=True):
        mine = heat[heat["metric"] == metric]
        _map(axes, mine[np.isfinite(mine["high_ms"])], norm)
        width_s = mine["width_s"].iloc[0]
        lines = over_time[over_time["metric"] == metric]
        for stat, color, style in (("p99", RED, "-."), ("p50", BLACK, "-")):
            x, y = _broken(lines["t_s"] + lines["width_s"] / 2, lines[f"{stat}_ms"], _GAP * lines["width_s"].max())
            axes.plot(x, y, color="white", lw=2.6)
            axes.plot(x, y, color=color, ls=style, lw=1.3, label=stat)
            alone = _alone(y)
            axes.plot(x[alone], y[alone], ".", color=color, ms=4)
        failed = mine[np.isinf(mine["high_ms"])]
        crosses(axes, failed["t_s"] + width_s / 2, "#777777", 0.86, size=4)
        axes.set_ylabel(f"{metric.upper()}, ms")
        axes.set_title(titled(TITLES[metric], source), fontsize=10)
        borders(axes, windows)
        handles, _ = axes.get_legend_handles_labels()
        if len(failed):
            handles.append(Line2D([], [], color="#777777", ls="none", marker="X", ms=6, mew=0, label="failures"))
        axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 0.98), borderaxespad=0.1, ncols=3)
    label_steps(places[0], windows)
    time_axis(places[-1], length_s, BORDERS)
    bar = figure.colorbar(ScalarMappable(norm, _HEAT), ax=places, pad=0.02, aspect=40)
    most = norm.vmax or 1
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most < _DECADES else (1,)))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(plain))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.set_label(f"requests in a cell of {plain(heat['width_s'].iloc[0])} s")
    return figure


def _broken(x: pd.Series[float], y: pd.Series[float], gap: float) -> tuple[Floats, Floats]:
    """With a break where there is nothing for longer than `gap`, and where a figure is infinite."""
    after = np.flatnonzero(np.diff(x) > gap) + 1
    finite = y.replace(np.inf, np.nan).to_numpy()
    return np.insert(x.to_numpy(), after, np.nan), np.insert(finite, after, np.nan)


def _alone(y: Floats) -> NDArray[np.bool_]:
    """Which values have no neighbour that a line would lead to."""
    there = np.concatenate([[False], ~np.isnan(y), [False]])
    return np.asarray(there[1:-1] & ~there[:-2] & ~there[2:])


def _map(axes: Axes, cells: pd.DataFrame, norm: LogNorm) -> None:
    """The cells as an image on a logarithmic axis, with room above them for labels."""
    width_s, first, last = cells["width_s"].iloc[0], cells["t_s"].min(), cells["t_s"].max()
    x = first + width_s * np.arange(round((last - first) / width_s) + 2)
    y = np.unique(np.round(cells[["low_ms", "high_ms"]].to_numpy(), 12))
    table = np.zeros((y.size - 1, x.size - 1))
    at_row = np.searchsorted(y, cells["low_ms"] * (1 + 1e-6), side="right") - 1
    table[at_row, np.rint((cells["t_s"] - first) / width_s).astype(int)] = cells["requests"]
    axes.pcolormesh(x, y, np.ma.masked_equal(table, 0), norm=norm, cmap=_HEAT, rasterized=True)
    axes.set_yscale("log")
    low, high = y[0] / 1.1, y[-1] * 1.1 * (1.2 * y[-1] / y[0]) ** 0.2
    axes.set_ylim(low, high)
    log_ticks(axes.yaxis, low, high)
    axes.grid(visible=False)


def prompt_surface(surface: pd.DataFrame, source: str) -> Figure | None:
    """p50 and p99 of TTFT by the prompt's length and the level. None when prompts are alike.

    Hatched: fewer than LEAST requests.
    """
    if surface.empty:
        return None
    steps = surface.drop_duplicates("step")
    lengths = surface.drop_duplicates("prompt_low").sort_values("prompt_low")
    known = surface[["ttft_p50_ms", "ttft_p99_ms"]].to_numpy(dtype=float)
    known = known[np.isfinite(known)]
    norm = LogNorm(known.min(), max(known.max(), 1.01 * known.min())) if known.size else LogNorm(1, 10)
    figure, places = panels(1, 2, (SIZE[0], 1.6 + 0.36 * max(len(lengths), 5)), sharey=True)
    for axes, p in zip(places, LEAST, strict=True):
        _cells(axes, surface, p, norm, [*steps["step"]], [*lengths["prompt_low"]])
        every = -(-len(steps) // MOST_WRITTEN)
        axes.set_xticks(range(0, len(steps), every), [plain(level) for level in steps["level"]][::every])
        axes.set_xlabel(level_label(str(steps["unit"].iloc[0])))
        axes.set_title(titled(f"TTFT p{p}", source))
    names = [f"{low:,} – {high - 1:,}" for low, high in lengths[["prompt_low", "prompt_high"]].to_numpy(dtype=int)]
    places[0].set_yticks(range(len(names)), names)
    places[0].set_ylabel("prompt tokens")
    bar = figure.colorbar(ScalarMappable(norm, _SURFACE), ax=places, pad=0.02)
    log_ticks(bar.ax.yaxis, norm.vmin or 1, norm.vmax or 1)
    bar.set_label("TTFT, ms")
    few, infinite = any(_few(surface, p).any() for p in LEAST), np.isinf(surface["ttft_p99_ms"]).any()
    keys = (
        [Patch(fc="white", ec="#555555", hatch="///", label="fewer than 10 (p50) or 100 (p99) requests")] if few else []
    )
    keys += [Patch(fc=_INFINITE, label="infinite: failures reach it")] if infinite else []
    if keys:
        figure.legend(handles=keys, loc="outside lower center", ncols=2)
    return figure


def _few(surface: pd.DataFrame, p: int) -> pd.Series[bool]:
    return surface["requests"] < LEAST[p]


def _cells(
    axes: Axes, surface: pd.DataFrame, p: int, norm: LogNorm, steps: Sequence[int], lengths: Sequence[int]
) -> None:
    for few, (_, cell) in zip(_few(surface, p), surface.iterrows(), strict=True):
        x, y = steps.index(cell["step"]), lengths.index(cell["prompt_low"])
        value = float(cell[f"ttft_p{p}_ms"])
        color = _SURFACE(norm(value)) if np.isfinite(value) else _INFINITE
        edge = 0.8 if len(steps) <= MOST_WRITTEN else 0
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fc=color, ec="white", lw=edge))
        if few:
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, ec="#FFFFFF80", lw=0, hatch="///"))
        if len(steps) <= MOST_WRITTEN:
            dark = np.isfinite(value) and norm(value) > 0.5
            text = f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
            axes.text(x, y, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_xlim(-0.5, len(steps) - 0.5)
    axes.set_ylim(-0.5, len(lengths) - 0.5)
    axes.grid(visible=False)


def _metrics(table: pd.DataFrame) -> list[str]:
    """Those of which something finite was measured."""
    column = "latency_ms" if "latency_ms" in table.columns else "high_ms"
    return [name for name in TITLES if np.isfinite(table.loc[table["metric"] == name, column].astype(float)).any()]
