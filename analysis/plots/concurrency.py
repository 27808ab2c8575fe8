"""The figures of the steps: throughput, latency, one over the other, GPU. Each takes tables.steps_frame."""

from __future__ import annotations

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
# How far above a figure the mark reaches that says it has no upper bound, as a share of the axis.
STUB = 0.1


def qps_vs_concurrency(steps: pd.DataFrame) -> Figure | None:
    """Successful and failed requests per second, and output tokens per second, with 95 % bands. None without steps.

    In the open model, what was delivered (sent) against what was asked for too.
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


def latency_vs_concurrency(steps: pd.DataFrame) -> Figure | None:
    """p50, p90 and p99 of TTFT and of E2E with 95 % bands; failures count as infinite. None without steps.

    In the open model with the service time's p99 beside E2E: what is between them waited to be sent.
    """
    if steps.empty:
        return None
    figure, both = panels(1, 2, SIZE)
    unit = steps["unit"].iloc[0]
    looks = (("p99", RED, "^", "-."), ("p90", ORANGE, "s", "--"), ("p50", BLUE, "o", "-"))
    for axes, metric, title in zip(both, ("ttft", "e2e"), ("Time to first token", "End-to-end latency"), strict=True):
        series = [steps[f"{metric}_{stat}_ms"] for stat, *_ in looks]
        service = [steps["service_p99_ms"]] if metric == "e2e" and unit == RATE else []
        highs = [steps[f"{metric}_{stat}_ms_ci95_high"] for stat, *_ in looks]
        value_axis(axes, [*series, *highs, *service], f"{metric.upper()}, ms", log=True)
        for values in service:
            line(axes, steps["level"], values, "service time p99", 3, color=BLACK, marker="v", linestyle=":")
        for rank, (values, (stat, color, marker, style)) in enumerate(zip(series, looks, strict=True)):
            line(axes, steps["level"], values, stat, rank, color=color, marker=marker, linestyle=style)
            _band(axes, steps["level"], steps, f"{metric}_{stat}_ms", color)
        level_axis(axes, steps["level"], unit)
        axes.set_title(titled(title, steps["gpu_source"].iloc[0]))
        legend(axes, infinite=any(np.isinf(values).any() for values in series), loc="best")
    return figure


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


def throughput_latency(steps: pd.DataFrame) -> Figure | None:
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
        value_axis(axes, series, f"{metric.upper()}, ms", log=True)
        rate_axis(axes, steps["qps"], "successful requests per second")
        for rank, (values, (stat, color, marker, style)) in enumerate(zip(series, looks, strict=True)):
            line(axes, steps["qps"], values, stat, rank, color=color, marker=marker, linestyle=style)
        axes.set_title(titled(title, steps["gpu_source"].iloc[0]))
        legend(axes, infinite, loc="best")
    for axes, metric in zip(both, ("ttft", "e2e"), strict=True):
        both_stats = steps[["qps", f"{metric}_p99_ms", f"{metric}_p50_ms", "level"]].itertuples(index=False)
        places = [
            (f"{level:g}", [(qps, y) for y in (p99, p50) if np.isfinite(y)]) for qps, p99, p50, level in both_stats
        ]
        label_points(figure, axes, places)
    return figure


def gpu_vs_concurrency(steps: pd.DataFrame, gpus: pd.DataFrame) -> Figure | None:
    """VRAM a GPU, used and effective, under the card's limit, and utilisation. None without GPU figures.

    Lines are means over the GPUs; a band spans them when there are several. `gpus` is tables.gpus_frame.
    """
    if gpus.empty:
        return None
    source = str(steps["gpu_source"].iloc[0])
    mine = gpus[gpus["gpu_source"] == source]
    by_level = mine.groupby("level")
    count = mine[["host", "uuid"]].drop_duplicates().shape[0]
    limit = mine["vram_total_bytes"].max() / GIB
    if not count or mine["vram_used_bytes_mean"].isna().all() or not limit > 0:
        return None
    figure, (memory, busy) = panels(1, 2, SIZE)

    def draw(axes: Axes, name: str, scale: float, label: str, color: str, marker: str, style: str) -> None:
        stats = (by_level[name].agg(["mean", "min", "max"]) / scale).dropna()
        if len(stats):
            x = pd.Series(stats.index, index=stats.index)
            line(axes, x, stats["mean"], label, color=color, marker=marker, linestyle=style)
            if count > 1:
                axes.fill_between(stats.index, stats["min"], stats["max"], color=color, alpha=0.2, lw=0)

    draw(memory, "vram_used_bytes_mean", GIB, "used", BLUE, "o", "-")
    draw(memory, "vram_effective_bytes_mean", GIB, "effective (KV cache in use)", ORANGE, "s", "--")
    limit_line(memory, limit, f"the card's {limit:.0f} GiB")
    memory.set_ylim(0, 1.35 * limit)
    draw(busy, "util_pct_mean", 1.0, "GPU utilisation", GREEN, "D", "-")
    busy.set_ylim(0, 105)
    several = f": mean and range of {count} GPUs" if count > 1 else ""
    memory.set_title(titled("GPU memory", source))
    memory.set_ylabel(f"GiB of a card{several}")
    busy.set_title(titled("GPU utilisation", source))
    busy.set_ylabel(f"%{several}")
    legend(memory, infinite=False, loc="upper left")
    for axes in (memory, busy):
        level_axis(axes, steps["level"], steps["unit"].iloc[0])
    return figure
