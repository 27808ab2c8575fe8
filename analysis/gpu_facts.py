"""What the GPUs of a run are: facts that agents told at the start (hello.json), kept with the run. No clock."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from loadgen import rundir

_NUMBERS = ("mem_total_b", "sm_max_mhz", "dram_peak_b_s")


def gpu_facts(run_dir: Path) -> list[dict[str, Any]]:
    """An entry a GPU: host, uuid, index, name, mem_total_b, sm_max_mhz, dram_peak_b_s; null is not told.

    A host whose file is missing or damaged has none: its figures do not depend on it.
    """
    found = []
    for path in sorted((run_dir / rundir.TELEMETRY).glob("*/hello.json")):
        try:
            gpus = json.loads(path.read_text())["gpus"]
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            continue
        if isinstance(gpus, list):
            found += [_entry(path.parent.name, gpu) for gpu in gpus if isinstance(gpu, dict)]
    return found


def _entry(host: str, gpu: dict[str, Any]) -> dict[str, Any]:
    name, index = gpu.get("name"), gpu.get("index")
    return {
        "host": host,
        "uuid": str(gpu.get("uuid")),
        "index": index if isinstance(index, int) else None,
        "name": name if isinstance(name, str) else None,
        **{key: _amount(gpu.get(key)) for key in _NUMBERS},
    }


def _amount(value: Any) -> int | float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and 0 < value < math.inf else None
