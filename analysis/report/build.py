"""Builds report/ of a run directory from that directory alone; again whenever asked, whatever state the run is in.

analyse -> html: summary.json, tables/, figures/, report.html     all of it anew
           md: report.md    json: summary.json    csv: tables/     beside what is there
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import host_tables, recording, tables
from analysis.analyse import NOTHING_ASKED, Analysed, Asked, Progress, analyse
from analysis.report.artists import Artists, artists
from analysis.report.embedded import Picture
from analysis.report.markdown import markdown
from analysis.report.page import page
from analysis.report.pictures import draw
from loadgen import rundir
from loadgen.errors import RunDirError

_FILES = rundir.REPORT_FORMATS


@dataclass(frozen=True)
class Built:
    """`paths`: what was asked for, the page last; `summary` is what summary.json holds; `steps` is tables/steps.csv."""

    paths: tuple[Path, ...]
    summary: dict[str, Any]
    steps: pd.DataFrame

    @property
    def html(self) -> Path:
        return self.paths[-1]


def build(
    run_dir: Path,
    figures: bool = True,
    ttft_protocol: bool = False,
    asked: Asked = NOTHING_ASKED,
    formats: Collection[str] = ("html",),
) -> Built:
    """Write into run_dir/report/ what the run directory holds now; with html it is replaced as a whole.

    Without `figures` there are tables only. With `ttft_protocol` the page has the table of the trimmed protocol too;
    summary.json always has its figures.

    Raises RunDirError when run.json is unusable or the report cannot be written.
    """
    with artists() if "html" in formats and figures else nullcontext() as drawing:
        analysed = analyse(run_dir, asked)
        steps = tables.steps_frame(analysed.summary)
        report = run_dir / rundir.REPORT
        try:
            _write_report(report, analysed, steps, drawing, ttft_protocol, formats, asked.progress)
        except ChildProcessError as error:
            remedy = f"free memory, then: loadgen report {run_dir}"
            raise RunDirError(f"cannot draw the figures of {report}: {error}; {remedy}") from error
        except OSError as error:
            remedy = f"make room, then: loadgen report {run_dir}"
            raise RunDirError(f"cannot write the report to {report}: {error.strerror}; {remedy}") from error
    paths = [report / path for name, path in reversed(_FILES.items()) if name in formats]
    return Built(tuple(paths), analysed.summary, steps)


def _write_report(
    report: Path,
    analysed: Analysed,
    steps: pd.DataFrame,
    drawing: Artists | None,
    ttft_protocol: bool,
    formats: Collection[str],
    progress: Progress | None,
) -> None:
    """The tables are written while the figures are drawn."""
    summary, whole = analysed.summary, "html" in formats
    pictures: Callable[[], list[Picture]] = list
    if whole:
        shutil.rmtree(report, ignore_errors=True)
        (report / "figures").mkdir(parents=True)
        if drawing is not None:
            pictures = _pictures(drawing, report / "figures", analysed, steps)
    report.mkdir(exist_ok=True)
    if whole or "json" in formats:
        _write(report / _FILES["json"], json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    if whole or "csv" in formats:
        _write_tables(report / _FILES["csv"], analysed, steps)
    if "md" in formats:
        title = analysed.run.manifest.get("label") or summary["run_id"]
        _write(report / _FILES["md"], markdown(title, summary))
    if whole:
        if progress is not None:
            progress("drawing figures", 0.8)
        _write(report / _FILES["html"], page(analysed.run, summary, pictures(), ttft_protocol))
        if progress is not None:
            progress("drawing figures", 1.0)


def _write_tables(folder: Path, analysed: Analysed, steps: pd.DataFrame) -> None:
    summary = analysed.summary
    folder.mkdir(exist_ok=True)
    for name, table in (
        ("steps", steps),
        ("requests_by_outcome", tables.outcomes_frame(summary)),
        ("timeline", analysed.timeline.assign(gpu_source=tables.gpu_source(summary))),
        ("gpus", host_tables.gpus_frame(summary)),
        ("hosts", host_tables.hosts_frame(summary)),
        ("latency_cdf", analysed.distributions.cdf()),
        ("latency_heat", analysed.distributions.heat()),
        ("prompt_surface", analysed.distributions.surface()),
    ):
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.12g", errors="replace")


def _pictures(drawing: Artists, folder: Path, analysed: Analysed, steps: pd.DataFrame) -> Callable[[], list[Picture]]:
    of_steps = {**analysed.summary, "steps": []} if recording.is_one(analysed.run) else analysed.summary
    return draw(drawing, folder, of_steps, steps[steps["level"] > 0], analysed)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="replace")  # a server's text may hold half a surrogate pair
