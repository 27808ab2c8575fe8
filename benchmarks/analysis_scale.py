"""How long a report takes, and how much memory: runs of millions of requests with a day of telemetry of 8 GPUs.

    python -m benchmarks.analysis_scale                     10 million requests and 24 hours
    python -m benchmarks.analysis_scale --requests 100e6    bounded memory; 60 GB of disk
    python -m benchmarks.analysis_scale --write             and into RESULTS-scale.md

The report is made in a process of its own, whose time and peak memory (ru_maxrss) are measured; its stages are those
that the progress bar shows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.analyse import Asked
from analysis.report.artists import MOST
from analysis.report.build import build
from benchmarks import long_run
from benchmarks.long_run import Size

RESULTS = Path(__file__).with_name("RESULTS-scale.md")
HEADERS = (
    "requests",
    "hours of 8 GPUs",
    "workers",
    "steps",
    "run directory GB",
    "report s",
    "peak memory GB",
    "page MB",
)


def report(run: Path) -> dict[str, Any]:
    """Build the report of a run here and now: seconds and peak memory of each stage, and of the whole.

    The peak of the whole is that of this process and of those that draw, as if all had theirs at once.
    """
    begun = time.monotonic()
    stages: dict[str, list[float]] = {}

    def progress(stage: str, share: float) -> None:
        stages[stage] = [time.monotonic() - begun, _peak_gb(), share]

    built = build(run, asked=Asked(progress=progress))
    took = time.monotonic() - begun
    artists = min(MOST, len(os.sched_getaffinity(0)))
    peak_gb = _peak_gb() + artists * _peak_gb(resource.RUSAGE_CHILDREN)
    return {"stages": stages, "report_s": took, "peak_gb": peak_gb, "page_mb": built.html.stat().st_size / 1e6}


def _peak_gb(who: int = resource.RUSAGE_SELF) -> float:
    return resource.getrusage(who).ru_maxrss * 1024 / 1e9


def measure(run: Path) -> dict[str, Any]:
    """`report` in a process of its own; its time includes starting it."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.analysis_scale", "--report", str(run)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout)) | {"report_s": time.monotonic() - begun}


def row(size: Size, run: Path, found: dict[str, Any]) -> str:
    disk_gb = sum(path.stat().st_size for path in run.rglob("*") if path.is_file()) / 1e9
    cells = (f"{size.requests:,}", f"{size.hours:g}", size.workers, size.steps, f"{disk_gb:.1f}")
    figures = (f"{found['report_s']:.0f}", f"{found['peak_gb']:.2f}", f"{found['page_mb']:.1f}")
    return "| " + " | ".join(map(str, (*cells, *figures))) + " |"


def stage_rows(found: dict[str, Any]) -> list[str]:
    """A row a stage: how long it took, and the peak so far."""
    rows, before = [], 0.0
    for stage, (at_s, peak_gb, _) in found["stages"].items():
        rows.append(f"| {stage} | {at_s - before:.1f} | {peak_gb:.2f} |")
        before = at_s
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=float, action="append", help="how many (10e6); may be repeated")
    parser.add_argument("--hours", type=float, default=24, help="of load and telemetry (24)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1, help="1: one long soak")
    parser.add_argument("--tokens", type=int, default=100, help="of an answer, on average (100)")
    parser.add_argument("--keep", type=Path, help="a folder for the runs: what is there is not made again")
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    if options.report:
        print(json.dumps(report(options.report)))
        return
    lines = [f"| {' | '.join(HEADERS)} |", "|" + "---|" * len(HEADERS)]
    stages: list[str] = []
    for requests in options.requests or [10e6]:
        size = Size(int(requests), options.hours, options.workers, options.steps, options.tokens)
        with tempfile.TemporaryDirectory() as folder:
            run = (options.keep or Path(folder)) / f"{size.requests}-{size.hours:g}h-{size.workers}w-{size.steps}s"
            if not run.exists():
                long_run.make(run, size)
            found = measure(run)
            lines.append(row(size, run, found))
        stages += ["", f"Stages of {size.requests:,} requests:", "", "| stage | s | peak so far GB |", "|---|---|---|"]
        stages += stage_rows(found)
    text = "\n".join([*lines, *stages]) + "\n"
    print(text)
    if options.write:
        RESULTS.write_text(page(text, options.requests or [10e6]))


def page(text: str, sizes: Sequence[float]) -> str:
    command = "python -m benchmarks.analysis_scale " + " ".join(f"--requests {size:g}" for size in sizes) + " --write"
    return (
        "# Reports of long runs\n\n"
        "Time and peak memory of `loadgen report`, figures and page and the processes that draw included: requests "
        "with a worker's records of a flush of half a second each, and telemetry of a host with 8 GPUs at 10 Hz. "
        f"{os.cpu_count()} cores, {time.strftime('%Y-%m-%d', time.gmtime())}.\n\n"
        f"`{command}`\n\n{text}"
    )


if __name__ == "__main__":
    main()
