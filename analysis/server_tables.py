"""The tables of the model server: what its metrics say in each step, and the times that its answers report. No clock.

Made from a summary alone, as text.
"""

from __future__ import annotations

from analysis.host_tables import Cell
from analysis.tables import Summary, at, count, fine, gib, per_cent, share, text, unit_of

_CELLS = (
    Cell("running", ("running",), fine),
    Cell("most running", ("running_max",), count),
    Cell("waiting", ("waiting",), fine),
    Cell("most waiting", ("waiting_max",), count),
    Cell("KV usage %", ("kv_usage_ratio",), share),
    Cell("KV tokens in use", ("kv_used_tokens",), count),
    Cell("KV pool GiB (a GPU of each engine)", ("kv_pool_bytes",), gib),
    Cell("preemptions /s", ("preemptions_per_s",), fine),
    Cell("prefix cache hits %", ("prefix_hit_pct",), per_cent),
)


def server_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the server's own metrics, without what no step tells; no rows without any."""
    told = [(step, step["server"]) for step in summary["steps"] if step["server"]]
    cells = [cell for cell in _CELLS if any(at(figures, cell.path) is not None for _, figures in told)]
    rows = [
        [str(step["level"]), *(text(at(figures, cell.path), cell.show) for cell in cells)] for step, figures in told
    ]
    return [unit_of(summary), *(cell.header for cell in cells)], rows if cells else []


def server_times_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the times that the server reported; no rows when none were asked for."""
    rows = [
        [str(step["level"]), name, *(text(figures[stat]) for stat in ("p50", "p90", "p99", "mean"))]
        for step in summary["steps"]
        for name, figures in step["server_times_ms"].items()
    ]
    return [unit_of(summary), "time", "p50 ms", "p90 ms", "p99 ms", "mean ms"], rows
