"""Builds report/ of a run directory from that directory alone; again whenever asked, whatever state the run is in.

    load -> join -> windows -> metrics + checks -> summary.json, tables/, figures/, report.html

Here: the order of things and the shape of summary.json. Times in it are ms, or seconds since the run's start.
"""

from __future__ import annotations

import base64
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd

from analysis import join, metrics, tables
from analysis.checks import SIMULATED_GPU, run_caveats, step_caveats
from analysis.load import Run, load
from analysis.plots import canvas, concurrency
from analysis.plots import timeline as over_time
from analysis.windows import Window, step_windows
from loadgen import rundir
from loadgen.errors import RunDirError

# 1  first version
SCHEMA = 1
# The timeline's figure has no more points than this, its table has one a second.
MAX_POINTS = 1200


@dataclass(frozen=True)
class Built:
    """`summary` is what summary.json holds; `steps` is tables/steps.csv."""

    html: Path
    summary: dict[str, Any]
    steps: pd.DataFrame


class Picture(NamedTuple):
    name: str
    caption: str
    source: str


_CAPTIONS = {
    "qps_vs_concurrency": "Requests and output tokens a second in each step's measuring window.",
    "latency_vs_concurrency": "Percentiles of requests that were intended in the window; failures count as infinite.",
    "gpu_vs_concurrency": "Effective VRAM leaves out what the server reserved for its KV cache and does not use.",
    "timeline": "The whole run; TTFT is that of requests intended in the bin.",
}


class Analysed(NamedTuple):
    run: Run
    requests: metrics.Requests
    telemetry: join.Telemetry
    windows: list[Window]
    summary: dict[str, Any]


def summarise(run_dir: Path) -> dict[str, Any]:
    """What summary.json would hold, without writing anything.

    Raises RunDirError when run.json is unusable.
    """
    return _analyse(run_dir).summary


def build(run_dir: Path) -> Built:
    """Replace run_dir/report/ with a report of what the run directory holds now.

    Raises RunDirError when run.json is unusable or the report cannot be written.
    """
    run, requests, telemetry, windows, summary = _analyse(run_dir)
    steps = tables.steps_frame(summary)
    seconds = metrics.timeline(run, requests, telemetry)
    width_s = float(max(1, math.ceil(len(seconds) / MAX_POINTS)))
    binned = seconds if width_s == 1 else metrics.timeline(run, requests, telemetry, width_s)
    report = run_dir / rundir.REPORT
    try:
        shutil.rmtree(report, ignore_errors=True)
        for folder in ("tables", "figures"):
            (report / folder).mkdir(parents=True)
        (report / "summary.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
        source = tables.gpu_source(summary)
        for name, table in (
            ("steps", steps),
            ("requests_by_outcome", tables.outcomes_frame(summary)),
            ("timeline", seconds.assign(gpu_source=source)),
            ("gpus", tables.gpus_frame(summary)),
        ):
            table.to_csv(report / "tables" / f"{name}.csv", index=False, float_format="%.12g")
        pictures = _draw(report / "figures", summary, steps, binned, width_s, windows)
        html = report / "report.html"
        html.write_text(_page(run, telemetry, summary, pictures))
    except OSError as error:
        raise RunDirError(f"cannot write the report to {report}: {error.strerror}; look at the disk") from error
    return Built(html, summary, steps)


def _analyse(run_dir: Path) -> Analysed:
    run = load(run_dir)
    requests, telemetry = metrics.derive(run), join.telemetry(run)
    windows, unreached = step_windows(run)
    simulated_gpu = telemetry.simulated or bool(run.manifest["target"].get("simulated"))
    zero = join.start_ns(run)
    timed = [((int(event["t_ns"]) - zero) / 1e9, event) for event in run.events if "t_ns" in event]
    steps = []
    for window in windows:
        step = metrics.step_figures(run, requests, telemetry, window)
        steps.append(step | {"caveats": step_caveats(step, window, run.manifest, timed)})
    problems = [*run.problems, *telemetry.problems]
    summary = {
        "schema": SCHEMA,
        "run_id": run.manifest["run_id"],
        "status": run.manifest["status"],
        "reason": run.manifest.get("reason"),
        "target": run.manifest["target"],
        "simulated_gpu": simulated_gpu,
        "steps": steps,
        "clocks": [
            {"host": c.host, "bound_ms": c.bound_ns / 1e6, "drift_ppm": c.fit.drift_ppm if c.fit else None}
            for c in telemetry.clocks
        ],
        "caveats": run_caveats(run.manifest, run.events, problems, unreached, simulated_gpu),
    }
    return Analysed(run, requests, telemetry, windows, _plain(summary))


def _plain(value: Any) -> Any:
    """The same for JSON: +infinity is the string "inf", NaN is null."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf"
    return value


def _draw(
    folder: Path,
    summary: dict[str, Any],
    steps: pd.DataFrame,
    seconds: pd.DataFrame,
    width_s: float,
    windows: list[Window],
) -> list[Picture]:
    """Save each figure that there are data for."""
    pictures = []
    with canvas.styled():
        figures = {
            "qps_vs_concurrency": concurrency.qps_vs_concurrency(steps),
            "latency_vs_concurrency": concurrency.latency_vs_concurrency(steps),
            "gpu_vs_concurrency": concurrency.gpu_vs_concurrency(steps, tables.gpus_frame(summary)),
            "timeline": over_time.timeline(seconds, width_s, windows, tables.gpu_source(summary)),
        }
        for name, figure in figures.items():
            if figure is not None:
                canvas.save(figure, folder, name)
                data = base64.b64encode((folder / f"{name}.svg").read_bytes()).decode()
                pictures.append(Picture(name, _CAPTIONS[name], f"data:image/svg+xml;base64,{data}"))
    return pictures


def _page(run: Run, telemetry: join.Telemetry, summary: dict[str, Any], pictures: list[Picture]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    headers, rows = tables.step_table(summary)
    zero = join.start_ns(run)
    return environment.get_template("report.html.j2").render(
        manifest=run.manifest,
        summary=summary,
        headline=_headline(summary),
        headers=headers,
        rows=rows,
        gpu_table=tables.gpu_table(summary),
        outcomes=[row for row in tables.outcomes_frame(summary).itertuples(index=False) if row.requests],
        events=[
            ((int(event["t_ns"]) - zero) / 1e9, event.get("kind", ""), event.get("text", ""))
            for event in run.events
            if "t_ns" in event
        ],
        definitions=metrics.METRICS,
        environment=_facts(run, telemetry),
        pictures=pictures,
        simulated=SIMULATED_GPU if summary["simulated_gpu"] else "",
    )


def _headline(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, figure, condition) of what a reader looks for first: the step with the highest QPS."""
    measured = [step for step in summary["steps"] if step["qps"]]
    if not measured:
        return []
    best = max(measured, key=lambda step: step["qps"])
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


def _facts(run: Run, telemetry: join.Telemetry) -> list[tuple[str, str]]:
    """The manifest and the clocks, one row a fact; nested facts get a dotted name."""
    rows: list[tuple[str, str]] = []

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, entry in value.items():
                walk(f"{name}.{key}" if name else key, entry)
        elif value is not None and value != "" and value != []:
            rows.append((name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))

    walk("", run.manifest)
    for clock in telemetry.clocks:
        walk(f"telemetry.{clock.host}.clock_error_bound_ms", clock.bound_ns / 1e6)
    return rows
