"""How a system scales over its cards: speed-up beside the ideal, efficiency and its factors, use, and links."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.checks import SIMULATED_GPU
from analysis.plots.canvas import BLACK, BLUE, GREEN, ORANGE, PINK, RED, SKY, line, panels, titled, value_axis
from analysis.scaling_tables import MEASURES, Scaling
from analysis.tables import as_number

_FACTORS = {
    "fed": ("fed: requests reach the cards", ORANGE, "s", "--"),
    "balance": ("balance: mean / most used", GREEN, "^", "-."),
    "clock": ("clock", PINK, "D", ":"),
    "work": ("work done while busy", SKY, "v", "--"),
}


def scaling(found: Scaling) -> Figure:
    """Four panels; that of traffic shows what each card did where no link was measured."""
    figure, (speedup, efficiency, use, last) = panels(2, 2, (9.6, 7.4))
    cards = pd.Series([run["cards"] for run in found["runs"]], dtype=float)
    source = SIMULATED_GPU if found["simulated_gpu"] else ""
    _speedup(speedup, found, cards)
    _efficiency(efficiency, found, cards)
    _use(use, found, cards)
    if any(size is not None for run in found["runs"] for size in run["bytes_per_token"].values()):
        title = _traffic(last, found, cards)
    else:
        title = _per_card(last, found, cards)
    titles = ("Speed-up", "Efficiency and its factors", "Use of the cards", title)
    for axes, name in zip((speedup, efficiency, use, last), titles, strict=True):
        axes.set_title(titled(name, source))
        _card_axis(axes, cards)
    return figure


def _card_axis(axes: Axes, cards: pd.Series[float]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(cards.min() / 1.25, cards.max() * 1.25)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(cards))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("cards")


def _column(found: Scaling, name: str) -> pd.Series[float]:
    return pd.Series([as_number(run[name]) for run in found["runs"]], dtype=float)


def _with_interval(axes: Axes, found: Scaling, cards: pd.Series[float], name: str, **style: Any) -> None:
    """Points and their intervals, times `scale`; without one a point is alone."""
    scale = style.pop("scale", 1.0)
    value, low, high = (scale * _column(found, name + end) for end in ("", "_low", "_high"))
    axes.vlines(cards, low, high, color=style["color"], lw=1.4, alpha=0.8)
    line(axes, cards, value, **style)


def _speedup(axes: Axes, found: Scaling, cards: pd.Series[float]) -> None:
    ideal, law = cards / cards.min(), found["usl"]
    axes.set_yscale("log", base=2)
    axes.plot(cards, ideal, color=BLACK, lw=1.2, ls=":", label="ideal")
    if law:
        n = np.geomspace(cards.min(), cards.max(), 100)
        grown = n / (1 + law["sigma"] * (n - 1) + law["kappa"] * n * (n - 1))
        axes.plot(n, grown / grown[0], color=SKY, lw=1.6, label="Universal Scalability Law")
    _with_interval(
        axes, found, cards, "speedup", label=MEASURES[found["measure"]], color=BLUE, marker="o", linestyle="none"
    )
    axes.yaxis.set_major_locator(FixedLocator(sorted(set(ideal))))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(min(ideal) / 1.3, max(ideal) * 1.4)
    axes.set_ylabel(f"times that of {cards.min():g}")
    axes.legend(loc="upper left")


def _efficiency(axes: Axes, found: Scaling, cards: pd.Series[float]) -> None:
    axes.axhline(100, color=BLACK, lw=1.2, ls=":")
    product = {"label": "efficiency: their product", "color": RED, "lw": 5, "alpha": 0.55, "solid_capstyle": "round"}
    _with_interval(axes, found, cards, "efficiency", scale=100, zorder=1.9, **product)
    for name, (label, color, marker, dashes) in _FACTORS.items():
        values = 100 * pd.Series([as_number(run["factors"][name]) for run in found["runs"]], dtype=float)
        if values.notna().any():
            line(axes, cards, values, label, color=color, marker=marker, linestyle=dashes, lw=1.3)
    most = max([100.0, *(100 * _column(found, "efficiency_high")).dropna()])
    axes.set_ylim(0, 1.12 * most)
    axes.set_ylabel("%")
    axes.legend(loc="lower left")


def _use(axes: Axes, found: Scaling, cards: pd.Series[float]) -> None:
    known = [run["util_pct"] or dict.fromkeys(("least", "mean", "most")) for run in found["runs"]]
    least, middle, most = (
        pd.Series([as_number(of[name]) for of in known], dtype=float) for name in ("least", "mean", "most")
    )
    axes.fill_between(cards, least, most, color=SKY, alpha=0.3, lw=0, label="least to most used card")
    line(axes, cards, middle, "mean", color=GREEN, marker="s")
    axes.set_ylim(0, 112)
    axes.set_ylabel("GPU utilisation, %")
    axes.legend(loc="lower left")


def _traffic(axes: Axes, found: Scaling, cards: pd.Series[float]) -> str:
    sizes = {
        name: pd.Series([as_number(run["bytes_per_token"][link]) for run in found["runs"]], dtype=float) / 1024
        for name, link in (("NVLink", "nvlink"), ("PCIe", "pcie"))
    }
    value_axis(axes, list(sizes.values()), "KiB for an output token")
    for (name, values), color, marker in zip(sizes.items(), (BLUE, ORANGE), ("o", "s"), strict=True):
        if values.notna().any():
            line(axes, cards, values, name, color=color, marker=marker)
    axes.legend(loc="upper left")
    return "Traffic on the links, both ways"


def _per_card(axes: Axes, found: Scaling, cards: pd.Series[float]) -> str:
    value_axis(
        axes, [_column(found, "per_card"), _column(found, "per_card_high")], f"{MEASURES[found['measure']]} a card"
    )
    _with_interval(axes, found, cards, "per_card", label="measured", color=BLUE, marker="o")
    axes.axhline(found["runs"][0]["per_card"], color=BLACK, lw=1.2, ls=":", label="as with the fewest")
    axes.legend(loc="lower left")
    return "What a card does"
