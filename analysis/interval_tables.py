"""Tables of how well a step's figures are known: 95 % intervals, its window, and TTFT by the trimmed protocol.

Made from a summary (report/build.py) alone, as text; no clock.
"""

from __future__ import annotations

from typing import Any

from analysis.tables import DASH, Summary, fine, per_cent, text, unit_of

_SHOWN = (("ttft", ("p50", "p99")), ("itl", ("p99",)), ("e2e", ("p50", "p99")))


def interval_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the 95 % intervals: of rates, of the success ratio, and of percentiles."""
    headers = [unit_of(summary), "QPS", "output tok/s", "success %"]
    headers += [f"{metric.upper()} {stat} ms" for metric, stats in _SHOWN for stat in stats]
    rows = [
        [
            str(step["level"]),
            *(interval(step[f"{name}_ci95"]) for name in ("qps", "output_tokens_per_s")),
            interval(step["success_pct_ci95"], per_cent),
            *(interval(step[f"{metric}_ms_ci95"][stat]) for metric, stats in _SHOWN for stat in stats),
        ]
        for step in summary["steps"]
    ]
    return headers, rows


def interval(ends: Any, show: Any = fine) -> str:
    """ "12.1 – 12.9"; "≥ 12.1" where the upper bound is beyond the sample, "≤" where the lower one is."""
    low, high = ends or (None, None)
    if low is None and high is None:
        return DASH
    if high is None:
        return f"≥ {text(low, show)}"
    if low == high == "inf":
        return "inf"
    return f"≤ {text(high, show)}" if low is None else f"{text(low, show)} – {text(high, show)}"


def window_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of each step's window: what was left out, whether it was steady, Little's law."""
    headers = [unit_of(summary), "warm-up s", "found by", "window s", "steady", "why", "in flight", "Little's law"]
    rows = [
        [
            str(step["level"]),
            text(step["warmup_s"]),
            {"plan": "plan", "qps": "QPS", "e2e": "E2E latency"}[step["warmup_by"]],
            text(step["window_s"]),
            {True: "yes", False: "no", None: DASH}[step["steady"]],
            step["steady_why"],
            text(step["in_flight_mean"]),
            DASH if step["little"] is None else fine(step["little"]["in_flight"]),
        ]
        for step in summary["steps"]
    ]
    return headers, rows


def protocol_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of TTFT by the trimmed protocol."""
    headers = [unit_of(summary), "requests", "left out at each end", "P50 ms", "P90 ms", ""]
    rows = []
    for step in summary["steps"]:
        of = step["ttft_protocol"]
        figures = (text(of["left_out"], str), text(of["p50_ms"]), text(of["p90_ms"]))
        rows.append([str(step["level"]), str(of["requests"]), *figures, of["reason"] or ""])
    return headers, rows
