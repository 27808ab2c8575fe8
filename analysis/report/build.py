"""Builds report/ of a run directory from that directory alone; again whenever asked, whatever state the run is in.

analyse -> summary.json, tables/, figures/, report.html
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import clocks, failures, host_tables, interval_tables, join, metrics, recording, tables
from analysis.analyse import NOTHING_ASKED, Asked, analyse
from analysis.checks import SIMULATED_GPU
from analysis.load import Run
from analysis.report.pictures import OverTime, Picture, draw
from analysis.report.templates import template
from analysis.windows import RATE
from loadgen import rundir
from loadgen.errors import RunDirError

# The timeline's figure has no more points than this, its table has one a second; failures have bars.
MAX_POINTS = 1200
MAX_BARS = 90


@dataclass(frozen=True)
class Built:
    """`summary` is what summary.json holds; `steps` is tables/steps.csv."""

    html: Path
    summary: dict[str, Any]
    steps: pd.DataFrame


def build(run_dir: Path, figures: bool = True, ttft_protocol: bool = False, asked: Asked = NOTHING_ASKED) -> Built:
    """Replace run_dir/report/ with a report of what the run directory holds now; without `figures` it has tables only.

    With `ttft_protocol` the page has the table of the trimmed protocol too; summary.json always has its figures.

    Raises RunDirError when run.json is unusable or the report cannot be written.
    """
    run, requests, telemetry, windows, summary = analyse(run_dir, asked)
    steps = tables.steps_frame(summary)
    seconds = recording.timeline(run, requests, telemetry)
    report = run_dir / rundir.REPORT
    try:
        shutil.rmtree(report, ignore_errors=True)
        for folder in ("tables", "figures"):
            (report / folder).mkdir(parents=True)
        _write(report / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
        source = tables.gpu_source(summary)
        for name, table in (
            ("steps", steps),
            ("requests_by_outcome", tables.outcomes_frame(summary)),
            ("timeline", seconds.assign(gpu_source=source)),
            ("gpus", host_tables.gpus_frame(summary)),
            ("hosts", host_tables.hosts_frame(summary)),
        ):
            table.to_csv(report / "tables" / f"{name}.csv", index=False, float_format="%.12g", errors="replace")
        pictures: list[Picture] = []
        if figures:
            over_time = _over_time(run, requests, telemetry, seconds)
            of_steps = {**summary, "steps": []} if recording.is_one(run) else summary
            pictures = draw(report / "figures", of_steps, steps[steps["level"] > 0], over_time, windows)
        html = report / "report.html"
        _write(html, _page(run, summary, pictures, ttft_protocol))
    except OSError as error:
        remedy = f"make room, then: loadgen report {run_dir}"
        raise RunDirError(f"cannot write the report to {report}: {error.strerror}; {remedy}") from error
    return Built(html, summary, steps)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="replace")  # a server's text may hold half a surrogate pair


def _over_time(run: Run, requests: metrics.Requests, telemetry: join.Telemetry, seconds: pd.DataFrame) -> OverTime:
    """The run in bins that are wide enough for a figure; `seconds` has bins of 1 s."""
    width_s, bar_s = (float(max(1, math.ceil(len(seconds) / most))) for most in (MAX_POINTS, MAX_BARS))
    binned = seconds if width_s == 1 else recording.timeline(run, requests, telemetry, width_s)
    return OverTime(binned, width_s, failures.over_time(requests, metrics.bins_of(run, requests, bar_s)), bar_s)


def _page(run: Run, summary: dict[str, Any], pictures: list[Picture], ttft_protocol: bool) -> str:
    headers, rows = tables.step_table(summary)
    gpus, of_hosts = host_tables.gpu_table(summary), host_tables.host_table(summary)
    is_recording = recording.is_one(run)
    if is_recording:
        gpus, of_hosts = ((names[1:], [row[1:] for row in rows]) for names, rows in (gpus, of_hosts))
    return template("report.html.j2").render(
        manifest=run.manifest,
        summary=summary,
        headline=_headline(summary),
        headers=headers,
        rows=rows,
        unit=tables.unit_of(summary),
        rate=RATE,
        itl_share=min((s["itl_share"] for s in summary["steps"] if s["itl_share"] is not None), default=None),
        recorded_s=summary["steps"][0]["window_s"] if is_recording else None,
        intervals=interval_tables.interval_table(summary),
        windows=interval_tables.window_table(summary),
        protocol=interval_tables.protocol_table(summary) if ttft_protocol else None,
        certificate=tables.certificate_table(summary),
        gpu_table=gpus,
        host_table=of_hosts,
        clock_table=host_tables.clock_table(summary),
        sensor_lag=host_tables.sensor_lag(summary),
        server_times=tables.server_times_table(summary),
        failures=tables.failure_table(summary),
        outcomes=[row for row in tables.outcomes_frame(summary).itertuples(index=False) if row.requests],
        events=[(at_s, event.get("kind", ""), event.get("text", "")) for at_s, event in clocks.events(run)],
        definitions=metrics.METRICS,
        environment=_facts(run),
        pictures=pictures,
        simulated=SIMULATED_GPU if summary["simulated_gpu"] else "",
    )


def _headline(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, figure, condition) of what a reader looks for first: the step with the highest QPS."""
    best = tables.peak(summary)
    if best is None:
        return []
    at = f"at {best['level']} {best['unit']}"
    return [
        ("peak QPS", tables.text(best["qps"]), at),
        ("output tokens/s", tables.text(best["output_tokens_per_s"]), at),
        ("TTFT p50", tables.text(best["ttft_ms"]["p50"], _milliseconds), at),
        ("TTFT p99", tables.text(best["ttft_ms"]["p99"], _milliseconds), at),
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
