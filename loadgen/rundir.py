"""The run directory: its names, its manifest, and the refusal to overwrite. docs/run-directory.md is the reference.

Every process of a run writes its own files here; the manifest is written first by whoever starts the run and its
status last. Times of steps.jsonl and events.jsonl are CLOCK_MONOTONIC ns of the host that runs the Locust master.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from loadgen.errors import RunDirError

# 1  first version
SCHEMA = 1

MANIFEST = "run.json"
STEPS = "steps.jsonl"
EVENTS = "events.jsonl"
CLOCKS = "clocks.jsonl"
REQUESTS = "requests"
WORKERS = "workers"
TELEMETRY = "telemetry"
SIMULATOR = "simulator"
TRUTH = "simulator/truth.csv"
LOGS = "logs"
REPORT = "report"
# What a report can be written as, and the file or folder of each in it.
REPORT_FORMATS = {"html": "report.html", "md": "report.md", "json": "summary.json", "csv": "tables"}
LATEST = "latest"
# Room that is given back when the disk is full, so that a run's end and its report can still be written.
RESERVE = ".reserve"
_RESERVE_B = 4 << 20

RUNNING, COMPLETE, INTERRUPTED, ABORTED = "running", "complete", "interrupted", "aborted"


def create(runs_dir: Path, scenario: str, label: str | None) -> Path:
    """Make `<runs_dir>/<UTC>-<scenario>-<label>` with its folders and point `latest` at it.

    Raises RunDirError.
    """
    parts = [time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), scenario, label or ""]
    name = "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", part).strip("-") for part in parts if part)
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        run = _unused(runs_dir, name)
        try:
            for folder in (REQUESTS, WORKERS, TELEMETRY, LOGS):
                (run / folder).mkdir()
            (run / RESERVE).write_bytes(bytes(_RESERVE_B))
            _point_latest(runs_dir, run.name)
        except OSError:
            shutil.rmtree(run, ignore_errors=True)
            raise
    except OSError as error:
        raise RunDirError(
            f"cannot make a run directory under {runs_dir}: {error.strerror}; choose another with --runs-dir"
        ) from error
    return run.resolve()


def file_name(text: str) -> str:
    """A name that any text makes: of a file, not of a path."""
    return re.sub(r"[^A-Za-z0-9._-]+|^\.+", "-", text)


def _unused(runs_dir: Path, name: str) -> Path:
    for number in range(1, 1000):
        run = runs_dir / (name if number == 1 else f"{name}-{number}")
        try:
            run.mkdir()
        except FileExistsError:
            continue
        return run
    raise RunDirError(f"{runs_dir / name} and 999 like it exist already; choose another label with --label")


def _point_latest(runs_dir: Path, name: str) -> None:
    link = runs_dir / f".{LATEST}.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(name)
    link.replace(runs_dir / LATEST)


def write_manifest(run: Path, manifest: dict[str, Any]) -> None:
    """Replace the manifest as a whole, so that a reader sees the old one or the new one."""
    temporary = run / f".{MANIFEST}.{os.getpid()}"
    temporary.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    temporary.replace(run / MANIFEST)


def read_manifest(run: Path) -> dict[str, Any]:
    """The manifest of a run.

    Raises RunDirError when it is missing, damaged or of an unknown schema.
    """
    path = run / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise RunDirError(f"{run} is no run directory: it has no {MANIFEST}") from None
    except OSError as error:
        raise RunDirError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RunDirError(f"{path} is damaged: {error}") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        raise RunDirError(f"{path} has schema {schema!r}, this version reads {SCHEMA}: use the version that wrote it")
    return dict(manifest)


def release_reserve(run: Path) -> None:
    """Give the reserved room back: the run is about to end."""
    (run / RESERVE).unlink(missing_ok=True)


def finish(run: Path, status: str, reason: str | None = None, **facts: Any) -> None:
    """Set the final status, unless another process already did; `facts` are added either way."""
    release_reserve(run)
    manifest = read_manifest(run)
    if manifest["status"] == RUNNING:
        manifest |= {"status": status, "reason": reason, "ended_ns": time.monotonic_ns()}
    write_manifest(run, manifest | facts)


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Append one JSON line in a single write, so that lines of several processes never mix. Raises OSError."""
    data = (json.dumps(line, ensure_ascii=False) + "\n").encode(errors="replace")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # a short write is taken back, and nobody else's line with it
        size = os.fstat(descriptor).st_size
        if os.write(descriptor, data) < len(data):
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def log_event(run: Path, kind: str, text: str, **facts: Any) -> None:
    """Append to events.jsonl: what happened, stamped now."""
    append_line(run / EVENTS, {"t_ns": time.monotonic_ns(), "kind": kind, "text": text, **facts})


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, a line each; other lines are left out, a missing file is empty."""
    lines = []
    for text in path.read_bytes().split(b"\n") if path.exists() else ():
        with contextlib.suppress(ValueError, RecursionError):
            lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict)]
