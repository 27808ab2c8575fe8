"""The page of a report: what its sections show, in the order in which they are read. Made of a summary and pictures."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from analysis import (
    clocks,
    finding_tables,
    host_tables,
    interval_tables,
    metrics,
    reconciliation,
    recording,
    server_tables,
    tables,
    trend_words,
)
from analysis.checks import SIMULATED_GPU
from analysis.interval_tables import interval
from analysis.load import Run
from analysis.report.embedded import Picture
from analysis.report.templates import template
from analysis.tables import Summary
from analysis.windows import RATE

# Section -> its name among the contents; those that a page has not are left out.
_SECTIONS = {
    "verdict": "Verdict",
    "caveats": "Before you read on",
    "curves": "Figures",
    "steps": "Steps",
    "intervals": "Intervals",
    "certificate": "Client",
    "failures": "Failures",
    "gpus": "GPUs",
    "hosts": "Hosts",
    "server": "Server",
    "telemetry": "Telemetry",
    "bottleneck": "What binds",
    "trends": "Leaks and drift",
    "vram": "VRAM",
    "damage": "Damage",
    "events": "Events",
    "definitions": "Definitions",
    "reconciliation": "Other tools",
    "environment": "Environment",
}
# What a recording has figures of; the other metrics are those of requests.
_OF_TELEMETRY = frozenset({"GPU util", "SM, tensor, DRAM", "throttled", "VRAM used", "VRAM effective", "power"})
TOPICS = {
    "capacity": "Capacity",
    "bottleneck": "Bottleneck",
    "slo": "SLO",
    "failures": "Failures",
    "trends": "Leaks, drift",
    "client": "Client",
    "load": "Load",
    "sample": "Sample",
    "time": "Telemetry",
    "record": "Record",
    "simulated": "Simulated",
}
# State -> class, symbol and word: told without colours too.
STATES = {
    "good": ("good", "✓", "good"),
    "warn": ("check", "!", "check"),
    "bad": ("bad", "✗", "bad"),
    "unknown": ("unknown", "?", "not known"),
}


class Said(NamedTuple):
    """A line of the verdict as the page shows it."""

    kind: str
    symbol: str
    word: str
    name: str
    text: str
    link: str


def said(summary: Summary) -> list[Said]:
    return [
        Said(*STATES[entry["state"]], TOPICS[entry["topic"]], entry["text"], entry["link"])
        for entry in summary["verdict"]
    ]


def page(run: Run, summary: Summary, pictures: list[Picture], ttft_protocol: bool) -> str:
    """The HTML page of a report."""
    gpus, hosts = host_tables.gpu_table(summary), host_tables.host_table(summary)
    server = server_tables.server_table(summary)
    is_recording = recording.is_one(run)
    if is_recording:
        gpus, hosts, server = ((names[1:], [row[1:] for row in rows]) for names, rows in (gpus, hosts, server))
        pictures = [
            picture._replace(caption="The whole recording.") if picture.name == "timeline" else picture
            for picture in pictures
        ]
    shares = [step["itl_share"] for step in summary["steps"] if step["itl_share"] is not None]
    events = [[f"{at_s:.1f}", event.get("kind", ""), event.get("text", "")] for at_s, event in clocks.events(run)]
    parts: dict[str, Any] = {
        "steps": tables.step_table(summary, wide=True),
        "intervals": interval_tables.interval_table(summary),
        "windows": interval_tables.window_table(summary),
        "protocol": interval_tables.protocol_table(summary) if ttft_protocol else None,
        "certificate": tables.certificate_table(summary),
        "failures": tables.failure_table(summary),
        "gpu_table": gpus,
        "host_table": hosts,
        "server_table": server,
        "server_times": server_tables.server_times_table(summary),
        "clock_table": host_tables.clock_table(summary),
        "bottlenecks": finding_tables.bottleneck_table(summary),
        "energy": finding_tables.energy_table(summary),
        "roofline": finding_tables.roofline_table(summary),
        "vram": finding_tables.vram_table(summary),
        "trends": trend_words.trend_table(summary),
        "events": (["second", "kind", "what happened"], events),
        "reconciliation": reconciliation.reconciliation_table(summary),
    }
    return template("report.html.j2").render(
        **parts,
        manifest=run.manifest,
        summary=summary,
        verdict=said(summary),
        headline=headline(summary),
        unit=tables.unit_of(summary),
        rate=RATE,
        slo=", ".join(entry["text"] for entry in summary["slo"] or ()),
        itl_share=min(shares, default=None),
        recorded_s=summary["steps"][0]["window_s"] if is_recording else None,
        without_trend=trend_words.without_trend(summary),
        sensor_lag=host_tables.sensor_lag(summary),
        outcomes=tables.outcomes_table(summary),
        definitions=[metric for metric in metrics.METRICS if not is_recording or metric.name in _OF_TELEMETRY],
        environment=_facts(run),
        pictures=pictures,
        simulated=SIMULATED_GPU if summary["simulated_gpu"] else "",
        sections=_SECTIONS,
    )


def headline(summary: Summary) -> list[tuple[str, str, str]]:
    """(name, figure, condition) of what a reader looks for first: the step with the highest QPS."""
    best = tables.peak(summary)
    if best is None:
        return []
    at = f"at {best['level']} {best['unit']}"
    ttft = best["ttft_ms_ci95"]

    def condition(ends: Any) -> str:
        within = interval(ends)
        return at if within == tables.DASH else f"{within}, {at}"

    return [
        ("peak QPS", tables.text(best["qps"]), condition(best["qps_ci95"])),
        ("output tokens/s", tables.text(best["output_tokens_per_s"]), condition(best["output_tokens_per_s_ci95"])),
        ("TTFT p50", tables.text(best["ttft_ms"]["p50"], _milliseconds), condition(ttft["p50"])),
        ("TTFT p99", tables.text(best["ttft_ms"]["p99"], _milliseconds), condition(ttft["p99"])),
        ("success", tables.text(best["success_pct"], lambda value: f"{value:.1f} %"), at),
    ]


def _milliseconds(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value:.0f} ms"


def _facts(run: Run) -> list[tuple[str, str]]:
    """The manifest, one row a fact; nested facts get a dotted name."""
    rows: list[tuple[str, str]] = []

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, entry in value.items():
                walk(f"{name}.{key}" if name else key, entry)
        elif value is not None and value != "" and value != []:
            rows.append((name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))

    walk("", run.manifest)
    return rows
