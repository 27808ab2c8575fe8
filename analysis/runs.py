"""The runs under a directory, newest first: a row each, from its manifest and, where there is one, its summary.json.

Nothing is analysed and nothing is written here. A run that cannot be read has a row too, with the reason.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from analysis import damage
from analysis.tables import DASH, peak, text
from analysis.windows import readable
from loadgen import rundir
from loadgen.errors import RunDirError

DAMAGED = "damaged"
# With more steps than this their number is shown, and the first and the last level.
_LISTED = 6


@dataclass(frozen=True)
class RunRow:
    """`status` is that of the manifest, or "damaged" with the `problem`; `report`: there is one that can be read.

    Figures are those of the step with the highest QPS, in 1/s, ms and %; `inf` where failures reach that far, null
    where not measured or without a report.
    """

    run_id: str
    status: str
    label: str | None = None
    target: str | None = None
    scenario: str | None = None
    levels: tuple[float, ...] = ()
    unit: str | None = None
    peak_qps: float | None = None
    ttft_p50_ms: float | str | None = None
    ttft_p99_ms: float | str | None = None
    success_pct: float | None = None
    duration_s: float | None = None
    report: bool = False
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def list_runs(runs_dir: Path) -> list[RunRow]:
    """A row a run directory; links to them, such as `latest`, are left out.

    Raises RunDirError when `runs_dir` cannot be read.
    """
    try:
        entries = [entry for entry in runs_dir.iterdir() if entry.is_dir() and not entry.is_symlink()]
    except OSError as error:
        raise RunDirError(f"cannot list the runs in {runs_dir}: {error.strerror}; give --runs-dir") from error
    rows = [_row(entry) for entry in entries if not entry.name.startswith(".") and _is_run(entry)]
    return [row for _, row in sorted(rows, key=lambda item: (item[0], item[1].run_id), reverse=True)]


def _is_run(entry: Path) -> bool:
    return any((entry / name).exists() for name in (rundir.MANIFEST, rundir.STEPS, rundir.REQUESTS))


def _row(run: Path) -> tuple[str, RunRow]:
    """When it began, as digits that sort, and the row."""
    named = re.match(r"\d{8}T\d{6}Z", run.name)
    began = named[0] if named else ""
    findings: list[damage.Damage] = []
    try:
        manifest = damage.read_manifest(run, findings)
    except RunDirError as error:
        return began, RunRow(run.name, DAMAGED, problem=damage.sentence(error))
    if manifest["created"]:
        began = re.sub(r"[-:]|\+00:00$", "", manifest["created"]).removesuffix("Z") + "Z"
    best, problem = _best(run / rundir.REPORT / "summary.json")
    findings += [damage.Damage(rundir.REPORT, problem)] if problem else []
    scenario = (manifest["scenario"] or {}).get("name")
    levels, unit = _levels(manifest["plan"].get("steps", []))
    first, ended = manifest["clock"]["monotonic_ns"], manifest["ended_ns"]
    return began, RunRow(
        run_id=run.name,
        status=manifest["status"],
        label=manifest["label"],
        target=_target(manifest["target"]),
        scenario=scenario if isinstance(scenario, str) else None,
        levels=levels,
        unit=unit,
        peak_qps=best["qps"] if best else None,
        ttft_p50_ms=best["ttft_ms"]["p50"] if best else None,
        ttft_p99_ms=best["ttft_ms"]["p99"] if best else None,
        success_pct=best["success_pct"] if best else None,
        duration_s=(ended - first) / 1e9 if ended is not None and ended >= first else None,
        report=not problem and (run / rundir.REPORT / "report.html").exists(),
        problem="; ".join(f"{finding.file}: {finding.text}" for finding in findings) or None,
    )


def _best(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The step with the highest QPS of a summary, and what is wrong with the file."""
    try:
        summary = json.loads(path.read_text())
        best = peak(summary)
        if best is not None:
            best = {"qps": best["qps"], "ttft_ms": best["ttft_ms"], "success_pct": best["success_pct"]}
            figures = [best["qps"], best["success_pct"], best["ttft_ms"]["p50"], best["ttft_ms"]["p99"]]
            if not all(figure in (None, "inf") or isinstance(figure, int | float) for figure in figures):
                raise ValueError("a figure is no number")
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None, "summary.json is damaged: build the report again"
    return best, None


def _target(target: dict[str, Any]) -> str | None:
    url = target.get("url")
    if target.get("simulated"):
        return "simulator"
    return (urlsplit(url).netloc or url) if isinstance(url, str) else None


def _levels(steps: list[Any]) -> tuple[tuple[float, ...], str | None]:
    """The levels of a plan and their unit, of steps that are none nothing."""
    known = [step for step in steps if isinstance(step, dict) and damage.number(step.get("level"))]
    unit = known[0].get("unit") if known else None
    return tuple(readable(step["level"]) for step in known), unit if isinstance(unit, str) else None


def runs_table(rows: list[RunRow]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows as text."""
    headers = ["run", "status", "label", "target", "scenario", "load", "peak QPS", "TTFT p50 ms", "TTFT p99 ms"]
    headers += ["success %", "duration", "report"]
    return headers, [
        [
            row.run_id,
            row.status,
            row.label or DASH,
            row.target or DASH,
            row.scenario or DASH,
            _steps(row.levels, row.unit or ""),
            *(text(figure) for figure in (row.peak_qps, row.ttft_p50_ms, row.ttft_p99_ms)),
            text(row.success_pct, lambda value: f"{value:.4g}"),
            text(row.duration_s, lambda value: f"{value // 60:.0f}:{value % 60:02.0f}"),
            "yes" if row.report else "no",
        ]
        for row in rows
    ]


def _steps(levels: tuple[float, ...], unit: str) -> str:
    if len(levels) > _LISTED:
        return f"{levels[0]} … {levels[-1]} {unit} ({len(levels)} steps)"
    return f"{','.join(map(str, levels))} {unit}" if levels else DASH
