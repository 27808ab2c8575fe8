"""Tables of what was found out: what binds in each step and the evidence, roofline, energy, GPU memory. No clock.

Made from a summary alone, as text.
"""

from __future__ import annotations

from typing import Any

from analysis.interval_tables import interval
from analysis.metrics import GIB
from analysis.tables import DASH, Summary, bottleneck_name, count, fine, text, unit_of

Table = tuple[list[str], list[list[str]]]
# The strongest rows of a step; summary.json has them all.
_MOST_EVIDENCE = 3
_SOURCES = {"config": "of the model's config", "server": "as the server tells", "fit": "slope over resident tokens"}


def bottleneck_table(summary: Summary) -> Table:
    """Headers and rows of what binds in each step; no rows where nobody looked for it."""
    headers = [unit_of(summary), "what binds", "confidence %", "else", "evidence", "what to try next"]
    rows = []
    for step in summary["steps"]:
        if found := step.get("bottleneck"):
            rows.append(
                [
                    str(step["level"]),
                    bottleneck_name(found["verdict"]),
                    text(100 * found["confidence"], "{:.0f}".format),
                    bottleneck_name(found["runner_up"]) if found["runner_up"] else DASH,
                    "; ".join(_evidence(found)) or DASH,
                    found["next"] or DASH,
                ]
            )
    return headers, rows


def _evidence(found: dict[str, Any]) -> list[str]:
    """What speaks for the verdict first, the strongest row first."""
    order = sorted(found["evidence"], key=lambda row: (row["for"] != found["verdict"], -row["strength"]))
    return [str(row["text"]) for row in order[:_MOST_EVIDENCE]]


def roofline_table(summary: Summary) -> Table:
    """Headers and rows of what the GPUs did of what they can; no rows without a model's config and a known card."""
    headers = [unit_of(summary), "MFU %", "MBU %", "peak TFLOP/s", "peak TB/s", "prompt tok/s", "output tok/s"]
    rows = [
        [
            str(step["level"]),
            *(text(found[f"{name}_pct"]) for name in ("mfu", "mbu")),
            *(text(found[f"peak_{name}"], lambda value: fine(value / 1e12)) for name in ("flops", "bytes_per_s")),
            *(text(found[f"{name}_tokens_per_s"]) for name in ("prompt", "output")),
        ]
        for step in summary["steps"]
        if (found := step.get("roofline"))
    ]
    return headers, rows


def energy_table(summary: Summary) -> Table:
    """Headers and rows of what the GPUs that serve drew for what came out; no rows where power was not measured."""
    headers = [unit_of(summary), "power W", "J per output token", "J per request", "output tokens per J"]
    rows = [
        [
            str(step["level"]),
            text(found["power_w"], count),
            *(
                text(found[name], "{:.3g}".format)
                for name in ("j_per_output_token", "j_per_request", "output_tokens_per_j")
            ),
        ]
        for step in summary["steps"]
        if (found := step.get("energy"))
    ]
    return headers, rows


def vram_table(summary: Summary) -> Table:
    """Headers and rows of where GPU memory goes and when it is full; no rows where nothing of it is known."""
    headers = ["figure", "value", "95 %", "unit", ""]
    found = summary.get("vram")
    if not found:
        return headers, []

    def row(name: str, key: str, unit: str, note: str = "") -> list[str]:
        scale = GIB if unit == "GiB" else 1
        ends = [None if (end := found.get(f"{key}{side}")) is None else end / scale for side in ("_low", "_high")]
        value = None if found[key] is None else found[key] / scale
        show = fine if unit == "GiB" else count
        within = DASH if ends == [value, value] else interval(ends, show)
        return [name, text(value, show), within, unit, note]

    unit = unit_of(summary)
    rows = [
        row("KV cache of a token", "bytes_per_token", "B", _SOURCES.get(found["source"], "")),
        row("the same, fitted", "fitted_bytes_per_token", "B", _fitted(found)),
        row("weights", "weights_bytes", "GiB", found["model"] or ""),
        row("used without any token", "base_bytes", "GiB", "weights, and what the server takes beside them"),
        row("KV pool", "pool_bytes", "GiB"),
        row("tokens that it holds", "pool_tokens", "tokens"),
        row("the cards' memory", "limit_bytes", "GiB"),
        row("tokens of a request", "tokens_per_request", "tokens", "mean while it runs"),
        row("full at", "exhausted_at_running", "running requests", "predicted"),
        row("full at", "exhausted_at_level", unit, "predicted"),
        row("full from", "full_from", unit, "measured"),
        row("requests queue from", "queue_from", unit, "measured"),
        row("preemptions from", "preemptions_from", unit, "measured"),
        row("past the knee from", "knee_from", unit, "measured"),
    ]
    return headers, [cells for cells in rows if cells[1] != DASH or cells[2] != DASH]


def _fitted(found: dict[str, Any]) -> str:
    return f"to {found['fitted_from']} in {found['fitted_seconds']} s" if found["fitted_from"] else ""
