"""The figures of the steps: throughput, latency, one over the other. Each takes tables.steps_frame.

`slo` is that of the summary: an entry an objective; those of a latency are lines in its panel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.plots.canvas import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    RED,
    SKY,
    label_points,
    legend,
    level_axis,
    limit_line,
    line,
    panels,
    rate_axis,
    titled,
    value_axis,
)
from analysis.windows import RATE

SIZE = (9.6, 4.0)
HALF = (0.55 * SIZE[0], SIZE[1])
# How far above a figure the mark reaches that says it has no upper bound, as a share of the axis.
STUB = 0.1
Objectives = Sequence[dict[str, Any]]
_LOOKS = (("p99", RED, "^", "-."), ("p90", ORANGE, "s", "--"), ("p50", BLUE, "o", "-"))
_COLORS = {"p99": RED, "p95": PINK, "p90": ORANGE, "p50": BLUE}


def qps_vs_concurrency(steps: pd.DataFrame) -> Figure | None:
    """Successful and failed requests per second, and output tokens per second, with 95 % bands. None without steps.

    With objectives, the good ones (goodput) too; in the open model, what was delivered (sent) against what was asked
    for.
    """
    if steps.empty:
        return None
    figure, (rate, tokens) = panels(1, 2, SIZE)
    x, unit = steps["level"], steps["unit"].iloc[0]
    asked = [steps["asked_rate"], steps["delivered_rate"]] if unit == RATE else []
    value_axis(rate, [steps["qps"], steps["qps_ci95_high"], steps["failed_qps"], *asked], "requests per second")
    if unit == RATE:
        line(rate, x, steps["asked_rate"], "asked for", color=BLACK, marker=".", linestyle=":")
        line(rate, x, steps["delivered_rate"], "delivered (sent)", color=SKY, marker="D", linestyle="--")
    line(rate, x, steps["qps"], "successful", color=BLUE, marker="o")
    _band(rate, x, steps, "qps", BLUE)
    if steps["goodput_qps"].notna().any():
        line(rate, x, steps["goodput_qps"], "good: within the SLO", color=GREEN, marker="^", linestyle="-.")
        _band(rate, x, steps, "goodput_qps", GREEN)
    if (steps["failed_qps"] > 0).any():
        line(rate, x, steps["failed_qps"], "failed", color=RED, marker="s", linestyle="--")
    if len(rate.get_lines()) > 1:
        legend(rate, infinite=False, loc="best")
    source = steps["gpu_source"].iloc[0]
    rate.set_title(titled("Throughput", source))
    value_axis(
        tokens, [steps["output_tokens_per_s"], steps["output_tokens_per_s_ci95_high"]], "output tokens per second"
    )
    line(tokens, x, steps["output_tokens_per_s"], "output tokens", color=GREEN, marker="D")
    _band(tokens, x, steps, "output_tokens_per_s", GREEN)
    tokens.set_title(titled("Output tokens", source))
    for axes in (rate, tokens):
        level_axis(axes, x, unit)
    return figure


def latency_vs_concurrency(steps: pd.DataFrame, slo: Objectives = ()) -> Figure | None:
    """p50, p90 and p99 of TTFT and of E2E with 95 % bands; failures count as infinite. None without steps.

    In the open model with the service time's p99 beside E2E: what is between them waited to be sent.
    """
    if steps.empty:
        return None
    figure, both = panels(1, 2, SIZE)
    _percentiles(both[0], steps, "ttft", "Time to first token", slo)
    is_open = steps["unit"].iloc[0] == RATE
    _percentiles(both[1], steps, "e2e", "End-to-end latency", slo, ("service",) if is_open else ())
    return figure


def itl_vs_concurrency(steps: pd.DataFrame, slo: Objectives = ()) -> Figure | None:
    """p50, p90 and p99 of the gaps between tokens, and of the mean gap of a request. None without any."""
    shown = [
        (metric, title)
        for metric, title in (("itl", "Gap between tokens"), ("tpot", "Time per output token"))
        if not steps.empty and steps[[f"{metric}_{stat}_ms" for stat, *_ in _LOOKS]].notna().any(axis=None)
    ]
    if not shown:
        return None
    figure, places = panels(1, len(shown), SIZE if len(shown) == 2 else HALF)
    for axes, (metric, title) in zip(places, shown, strict=True):
        _percentiles(axes, steps, metric, title, slo)
    return figure


def _percentiles(
    axes: Axes, steps: pd.DataFrame, metric: str, title: str, slo: Objectives, beside: Sequence[str] = ()
) -> None:
    """A metric's p99, p90 and p50 with bands, its objectives, and the p99 of those `beside` it with theirs."""
    unit = steps["unit"].iloc[0]
    series = [steps[f"{metric}_{stat}_ms"] for stat, *_ in _LOOKS]
    highs = [steps[f"{metric}_{stat}_ms_ci95_high"] for stat, *_ in _LOOKS]
    others = [steps[f"{other}_p99_ms"] for other in beside]
    limits = [objective for objective in slo if objective["metric"] in (metric, *beside)]
    reach = pd.Series([objective["limit"] for objective in limits], dtype=float)
    value_axis(axes, [*series, *highs, *others, reach], f"{metric.upper()}, ms", log=True)
    for other, values in zip(beside, others, strict=True):
        line(axes, steps["level"], values, f"{other} time p99", 3, color=BLACK, marker="v", linestyle=":")
    for rank, (values, (stat, color, marker, style)) in enumerate(zip(series, _LOOKS, strict=True)):
        line(axes, steps["level"], values, stat, rank, color=color, marker=marker, linestyle=style)
        _band(axes, steps["level"], steps, f"{metric}_{stat}_ms", color)
    for objective in limits:
        limit_line(axes, objective["limit"], f"SLO: {objective['text']}", _COLORS.get(objective["stat"], BLACK))
    level_axis(axes, steps["level"], unit)
    axes.set_title(titled(title, steps["gpu_source"].iloc[0]))
    legend(axes, infinite=any(np.isinf(values).any() for values in series), loc="best")


def _band(axes: Axes, x: pd.Series[float], steps: pd.DataFrame, name: str, color: str) -> None:
    """The 95 % interval of a figure; a dotted stub upwards where it has no upper end. Call it when y has its limits."""
    bottom, top = axes.get_ylim()
    low, high = (steps[f"{name}_ci95_{end}"].clip(bottom, top) for end in ("low", "high"))
    both, beyond = low.notna() & high.notna(), low.notna() & high.isna()
    axes.fill_between(x, low, high, where=both.to_numpy(), color=color, alpha=0.15, lw=0)
    axes.vlines(x[both], low[both], high[both], color=color, lw=1.2)
    if beyond.any():
        log = axes.get_yscale() == "log"
        ends = steps[name] * (top / bottom) ** STUB if log else steps[name] + STUB * (top - bottom)
        axes.vlines(x[beyond], low[beyond], ends[beyond].clip(bottom, top), color=color, lw=1.5, ls=":")


def throughput_latency(steps: pd.DataFrame, slo: Objectives = ()) -> Figure | None:
    """p50 and p99 of TTFT and of E2E over QPS, each point labelled with its level. None without a successful request.

    The line follows the steps: where it turns back, more load brought less.
    """
    steps = steps[steps["qps"] > 0]
    if steps.empty:
        return None
    figure, both = panels(1, 2, SIZE)
    looks = (("p99", RED, "^", "-."), ("p50", BLUE, "o", "-"))
    for axes, metric, title in zip(both, ("ttft", "e2e"), ("Time to first token", "End-to-end latency"), strict=True):
        series = [steps[f"{metric}_{stat}_ms"] for stat, *_ in looks]
        infinite = any(np.isinf(values).any() for values in series)
        limits = [each for each in slo if each["metric"] == metric and each["stat"] in ("p50", "p99")]
        reach = pd.Series([each["limit"] for each in limits], dtype=float)
        value_axis(axes, [*series, reach], f"{metric.upper()}, ms", log=True)
        rate_axis(axes, steps["qps"], "successful requests per second")
        for rank, (values, (stat, color, marker, style)) in enumerate(zip(series, looks, strict=True)):
            line(axes, steps["qps"], values, stat, rank, color=color, marker=marker, linestyle=style)
        for each in limits:
            limit_line(axes, each["limit"], f"SLO: {each['text']}", _COLORS[each["stat"]])
        axes.set_title(titled(title, steps["gpu_source"].iloc[0]))
        legend(axes, infinite, loc="best")
    for axes, metric in zip(both, ("ttft", "e2e"), strict=True):
        both_stats = steps[["qps", f"{metric}_p99_ms", f"{metric}_p50_ms", "level"]].itertuples(index=False)
        places = [
            (f"{level:g}", [(qps, y) for y in (p99, p50) if np.isfinite(y)]) for qps, p99, p50, level in both_stats
        ]
        label_points(figure, axes, places)
    return figure
