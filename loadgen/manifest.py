"""The manifest of a new run: everything that is known before the first request."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from loadgen import rundir, shards
from loadgen.options import Settings
from remote_agents.agent.kernel_clock import kernel_clock

_PACKAGES = ("gpu-loadgen", "locust", "gevent", "geventhttpclient", "pandas", "pyarrow", "nvidia-ml-py")


class Repeat(NamedTuple):
    """Which of several runs of one configuration a run is; `group` is the first one's name, None: it is that itself."""

    number: int
    of: int
    group: str | None


def new_manifest(
    run: Path,
    scenario: Path,
    target: dict[str, Any],
    settings: Settings,
    workers: int | None,
    repeat: Repeat | None = None,
) -> dict[str, Any]:
    """Content of run.json with the status "running". `target` has url, model, simulated and simulator."""
    plan = settings.plan.to_dict()
    return {
        "schema": rundir.SCHEMA,
        "run_id": run.name,
        "status": rundir.RUNNING,
        "reason": None,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "label": settings.label,
        "notes": settings.notes,
        "repeat": None if repeat is None else repeat._replace(group=repeat.group or run.name)._asdict(),
        "scenario": {"name": scenario.stem, "path": str(scenario), "sha256": _digest(scenario)},
        "target": target,
        "plan": plan,
        "options": settings.public_texts(),
        "model_config": None if settings.model_config is None else json.loads(Path(settings.model_config).read_text()),
        "workers": workers,
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in _PACKAGES},
        "source_revision": _source_revision(),
        "host": {"name": platform.node(), "cpus": os.cpu_count(), "kernel": platform.release()},
        "clock": _clock(),
        # Two runs can be compared when these are equal; the server is what may differ.
        "comparable": {
            "scenario": scenario.stem,
            "arrival": plan["arrival"],
            "cv": plan["cv"],
            "think_time_s": list(settings.think_time_s),
            "reuse": settings.reuse,
            "cancel_rate": settings.cancel_rate,
            "prompt_tokens": settings.prompt_tokens,
            "output_tokens": settings.output_tokens,
            "extra_body": dict(settings.extra_body),
            "method": settings.method,
            "url_path": settings.url_path,
            "body_template": settings.body_template,
            "simulated": target["simulated"],
        },
    }


def _digest(scenario: Path) -> str | None:
    try:
        return hashlib.sha256(scenario.read_bytes()).hexdigest()
    except OSError:
        return None


def _clock() -> dict[str, Any]:
    """This host's; how far its time of day may be off is told where NTP steers it."""
    clock: dict[str, Any] = dict(shards.clock_identity())
    unsynchronised, maxerror_us, _ = kernel_clock()
    told = {} if unsynchronised is None or unsynchronised else {"maxerror_us": maxerror_us}
    return {key: int(value) if key.endswith("_ns") else value for key, value in clock.items()} | told


def _source_revision() -> str | None:
    root = Path(__file__).resolve().parent.parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=5
        )
    except OSError:
        return None
    return answer.stdout.strip() or None
