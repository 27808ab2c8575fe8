"""The tables of a report: one list of columns for the step table in CSV, in text and in HTML.

Made from a summary (report/build.py) alone, or from summary.json read back; no clock. A figure that is infinite
because requests failed is "inf"; one that was not measured is empty, or a dash in text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd

from analysis.checks import SIMULATED_GPU
from analysis.metrics import GIB
from analysis.windows import RATE

DASH = "–"
Summary = dict[str, Any]


class StepColumn(NamedTuple):
    """`path` leads into a step of the summary, by keys and by places in lists.

    `header` and `show` are for the text table, which has some columns: those of the open model when the plan is open,
    `known` ones where some step has the figure, and `wide` ones where there is room.
    """

    name: str
    path: tuple[str | int, ...]
    header: str | None = None
    show: Callable[[Any], str] = str
    gpu: bool = False
    open: bool = False
    known: bool = False
    wide: bool = False


def count(value: float) -> str:
    return f"{value:.0f}"


def fine(value: float) -> str:
    """Three digits at least: 0.123, 1.23, 12.3, 123, 1234."""
    size = abs(value)
    return f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2}f}"


def per_cent(value: float) -> str:
    return f"{value:.0f}" if value in (0, 100) else f"{min(value, 99.99):.2f}" if value > 99 else f"{value:.1f}"


def share(value: float) -> str:
    """A share of 1 in %."""
    return per_cent(100 * value)


def gib(value: float) -> str:
    return f"{value / GIB:.1f}"


_BINDS = {
    "client": "the client",
    "network": "the network",
    "host_cpu": "host CPU",
    "io_wait": "I/O wait",
    "server_queue": "server queue or batch limit",
    "kv_capacity": "KV cache",
    "memory_bandwidth": "memory bandwidth",
    "compute": "compute",
    "power_thermal": "power or heat",
    "none": "none yet",
}


def bottleneck_name(verdict: str) -> str:
    """A class of bottleneck in words."""
    return _BINDS.get(verdict, verdict)


def _short(verdict: str) -> str:
    return bottleneck_name(verdict).partition(" or ")[0]


STEP_COLUMNS = (
    StepColumn("level", ("level",), "", str),
    StepColumn("unit", ("unit",)),
    StepColumn("begin_s", ("begin_s",)),
    StepColumn("end_s", ("end_s",)),
    StepColumn("requests", ("requests",)),
    StepColumn("ok", ("ok",)),
    StepColumn("cancelled", ("cancelled",)),
    StepColumn("in_flight_mean", ("in_flight_mean",)),
    StepColumn("asked_rate", ("rate", "asked")),
    StepColumn("due_rate", ("rate", "due")),
    StepColumn("delivered_rate", ("rate", "delivered"), "sent /s", fine, open=True),
    StepColumn("dropped", ("dropped",), "dropped", count, open=True),
    StepColumn("qps", ("qps",), "QPS", fine),
    StepColumn("goodput_qps", ("goodput_qps",), "goodput /s", fine, known=True),
    StepColumn("good_pct", ("good_pct",)),
    StepColumn("attempted_qps", ("attempted_qps",)),
    StepColumn("failed_qps", ("failed_qps",)),
    StepColumn("success_pct", ("success_pct",), "success %", per_cent),
    *(
        StepColumn(
            f"{metric}_{stat}_ms",
            (f"{metric}_ms", stat),
            f"{metric.upper()} {stat} ms" if stat in shown else None,
            fine,
        )
        for metric, shown in (("ttft", ("p50", "p90", "p99")), ("itl", ("p50", "p99")), ("e2e", ("p50", "p99")))
        for stat in ("p50", "p90", "p95", "p99", "mean")
    ),
    *(
        StepColumn(
            f"service_{stat}_ms",
            ("service_ms", stat),
            "service p99 ms" if stat == "p99" else None,
            fine,
            open=True,
        )
        for stat in ("p50", "p90", "p95", "p99", "mean")
    ),
    *(StepColumn(f"tpot_{stat}_ms", ("tpot_ms", stat)) for stat in ("p50", "p90", "p95", "p99", "mean")),
    *(
        StepColumn(f"{metric}_ok_{stat}_ms", (f"{metric}_ms_ok", stat))
        for metric in ("ttft", "tpot", "e2e", "service")
        for stat in ("p50", "p90", "p95", "p99", "mean")
    ),
    *(
        StepColumn(f"{name}_ci95_{end}", (f"{name}_ci95", place))
        for name in ("qps", "goodput_qps", "attempted_qps", "failed_qps", "output_tokens_per_s", "success_pct")
        for place, end in enumerate(("low", "high"))
    ),
    *(
        StepColumn(f"{metric}_{stat}_ms_ci95_{end}", (f"{metric}_ms_ci95", stat, place))
        for metric in ("ttft", "itl", "tpot", "e2e", "service")
        for stat in ("p50", "p90", "p95", "p99", "mean")
        for place, end in enumerate(("low", "high"))
    ),
    StepColumn("warmup_s", ("warmup_s",)),
    StepColumn("warmup_by", ("warmup_by",)),
    StepColumn("steady", ("steady",)),
    StepColumn("little_in_flight", ("little", "in_flight")),
    StepColumn("little_difference", ("little", "difference")),
    *(StepColumn(f"ttft_protocol_{stat}_ms", ("ttft_protocol", f"{stat}_ms")) for stat in ("p50", "p90")),
    StepColumn("itl_share", ("itl_share",)),
    StepColumn("output_tokens_per_s", ("output_tokens_per_s",), "output tok/s", fine),
    *(
        StepColumn(f"{what}_tokens_mean", ("tokens", f"{what}_mean"), f"{what} tokens", fine, known=True, wide=True)
        for what in ("prompt", "output")
    ),
    StepColumn("prompt_tokens_per_s", ("tokens", "prompt_per_s")),
    StepColumn("resident_tokens_mean", ("resident_tokens_mean",)),
    StepColumn("gpu_util_pct", ("gpu_total", "util_pct"), "GPU util %", count, gpu=True),
    StepColumn("vram_used_b", ("gpu_total", "vram_used_bytes"), "VRAM used GiB", gib, gpu=True),
    StepColumn("vram_effective_b", ("gpu_total", "vram_effective_bytes"), "VRAM effective GiB", gib, gpu=True),
    StepColumn("power_w", ("gpu_total", "power_w"), "power W", count, gpu=True),
    StepColumn("vram_predicted_b", ("vram_predicted_bytes",)),
    *(StepColumn(name, ("energy", name)) for name in ("j_per_output_token", "j_per_request", "output_tokens_per_j")),
    StepColumn("running", ("server", "running")),
    StepColumn("waiting", ("server", "waiting")),
    StepColumn("kv_usage_ratio", ("server", "kv_usage_ratio")),
    *(
        StepColumn(f"{lag}_lag_{stat}_ms", (f"{lag}_lag_ms", stat))
        for lag in ("read", "send")
        for stat in ("p50", "p99", "max")
    ),
    StepColumn("send_lag_limit_ms", ("send_lag_limit_ms",)),
    StepColumn("loop_stall_ms", ("loop_stall_ms",)),
    StepColumn("gc_pause_ms", ("gc_pause_ms",)),
    StepColumn("coalesced_share", ("coalesced_share",)),
    StepColumn("kernel_stamp_share", ("kernel_stamp_share",)),
    StepColumn("client_on_time", ("client_on_time",)),
    StepColumn("loop_lag_p50_ms", ("loop_lag_ms", "p50")),
    StepColumn("loop_lag_p99_ms", ("loop_lag_ms", "p99")),
    StepColumn("client_lag_limit_ms", ("client_lag_limit_ms",)),
    StepColumn("client_lag_source", ("client_lag_source",)),
    StepColumn("worker_cpu_pct", ("worker_cpu_pct",)),
    StepColumn("client_lag_p50_ms", ("client_lag_ms", "p50")),
    StepColumn("client_lag_p99_ms", ("client_lag_ms", "p99"), "client lag p99 ms", fine),
    StepColumn("bottleneck", ("bottleneck", "verdict"), "bottleneck", _short, known=True),
    StepColumn("bottleneck_confidence", ("bottleneck", "confidence")),
)


def at(step: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        step = (step[key] if isinstance(key, int) else step.get(key)) if step else None
    return step


def step_table(summary: Summary, wide: bool = False) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the step table as text; headers of GPU figures say so when they are simulated."""
    unit = unit_of(summary)
    shown = [
        column
        for column in STEP_COLUMNS
        if column.header is not None
        and (not column.open or unit == RATE)
        and (not column.wide or wide)
        and (not column.known or any(at(step, column.path) is not None for step in summary["steps"]))
    ]
    prefix = f"{SIMULATED_GPU} " if summary["simulated_gpu"] else ""
    headers = [prefix + (c.header or "").removeprefix("GPU ") if c.gpu and prefix else c.header or unit for c in shown]
    return headers, [[text(at(step, column.path), column.show) for column in shown] for step in summary["steps"]]


def unit_of(summary: Summary) -> str:
    """What the levels of the steps are: users, or requests/s."""
    return summary["steps"][0]["unit"] if summary["steps"] else "users"


def text(value: Any, show: Callable[[Any], str] = fine) -> str:
    """A figure of a summary as a reader sees it."""
    return DASH if value is None else "inf" if value == float("inf") or value == "inf" else show(value)


_LAGS = ("p50", "p99", "max")


def certificate_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Headers and rows, as text, of what tells whether the client was on time; the verdict first."""
    headers = [unit_of(summary), "client", *(f"{lag} lag {stat} ms" for lag in ("read", "send") for stat in _LAGS)]
    headers += ["loop lag p99 ms", "longest loop stall ms", "longest GC pause ms"]
    headers += ["busiest worker CPU %", "coalesced events %", "kernel stamps %"]
    rows = [
        [
            str(step["level"]),
            {True: "on time", False: "late", None: DASH}[step["client_on_time"]],
            *(text(step[f"{lag}_lag_ms"][stat]) for lag in ("read", "send") for stat in _LAGS),
            text(step["loop_lag_ms"]["p99"]),
            *(text(step[name]) for name in ("loop_stall_ms", "gc_pause_ms")),
            text(step["worker_cpu_pct"], count),
            *(text(step[name], share) for name in ("coalesced_share", "kernel_stamp_share")),
        ]
        for step in summary["steps"]
    ]
    return headers, rows


def gpu_source(summary: Summary) -> str:
    return SIMULATED_GPU if summary["simulated_gpu"] else "NVML"


def steps_frame(summary: Summary) -> pd.DataFrame:
    """A row a step, all columns of STEP_COLUMNS, numbers (inf, NaN); `gpu_source` says whether GPUs were simulated."""
    rows = [{column.name: as_number(at(step, column.path)) for column in STEP_COLUMNS} for step in summary["steps"]]
    return pd.DataFrame(rows, columns=[column.name for column in STEP_COLUMNS]).assign(gpu_source=gpu_source(summary))


def as_number(value: Any) -> Any:
    return float("nan") if value is None else float("inf") if value == "inf" else value


def outcomes_frame(summary: Summary) -> pd.DataFrame:
    """step, level, outcome, requests: the requests intended in each step's window by how they ended."""
    rows = [
        (number, step["level"], outcome, count)
        for number, step in enumerate(summary["steps"])
        for outcome, count in {"OK": step["ok"], **step["errors"], "CANCELLED": step["cancelled"]}.items()
    ]
    return pd.DataFrame(rows, columns=["step", "level", "outcome", "requests"])


def outcomes_table(summary: Summary) -> list[list[str]]:
    """Rows of the same as text, without what did not happen."""
    return [
        [str(row.level), str(row.outcome), str(row.requests)]
        for row in outcomes_frame(summary).itertuples()
        if row.requests
    ]


def peak(summary: Summary) -> dict[str, Any] | None:
    """The step with the highest QPS; None when no request succeeded."""
    measured = [step for step in summary["steps"] if step["qps"]]
    return max(measured, key=lambda step: float(step["qps"])) if measured else None


# Kinds of failure that the report's table shows; summary.json has them all.
_MOST_KINDS = 50


def failure_table(summary: Summary) -> tuple[list[str], list[list[str]], int]:
    """Headers and rows of the table of failures as text, and how many kinds are not in it."""
    headers = ["outcome", "error", "requests", "first s", "last s", "an example as it came"]
    rows = [
        [
            kind["outcome"],
            kind["error"] or DASH,
            str(kind["requests"]),
            f"{kind['first_s']:.1f}",
            f"{kind['last_s']:.1f}",
            kind["example"] or DASH,
        ]
        for kind in summary["failures"]
    ]
    return headers, rows[:_MOST_KINDS], max(len(rows) - _MOST_KINDS, 0)
