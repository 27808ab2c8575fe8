"""The server's KV cache: bytes on all of its GPUs, tokens that it holds, and so what a token costs. Pure.

A server tells the bytes of one GPU; an engine has that on each of its GPUs. These are the cards that have so much in
use and ran something in the run, shared evenly among the engines. Where no card was watched, an engine has one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from analysis.gpus import idle_gpus
from analysis.pressure import serving_gpus

Step = Mapping[str, Any]


def pool_bytes(step: Step, idle: Collection[str]) -> float | None:
    """On all GPUs of all engines; `idle` are none of theirs."""
    server = step["server"] or {}
    if not server.get("kv_pool_bytes"):
        return None
    engines = int(server.get("engines") or 1)
    each = float(server["kv_pool_bytes"]) / engines
    return each * max(_holding(step, each, idle), engines)


def _holding(step: Step, each: float, idle: Collection[str]) -> int:
    """GPUs that may hold such a part: with so much in use; MIG devices where their GPU tells nothing."""
    known = [gpu for gpu in serving_gpus(step) if gpu["uuid"] not in idle and gpu["vram_used_bytes"]]
    found = [gpu for gpu in known if gpu["vram_used_bytes"]["max"] >= each]
    whole = {(gpu["host"], gpu["index"]) for gpu in found if gpu["gi_id"] is None}
    return sum(gpu["gi_id"] is None or (gpu["host"], gpu["index"]) not in whole for gpu in found)


def largest_pool(steps: Sequence[Step]) -> float | None:
    """Bytes, in the step that tells most: a GPU without figures there counts for less."""
    idle = {gpu["uuid"] for gpu in idle_gpus(steps)}
    return max((size for step in steps if (size := pool_bytes(step, idle)) is not None), default=None)


def pool_tokens(steps: Sequence[Step]) -> float | None:
    """Of all engines, by what they use."""
    sizes = [
        server["kv_used_tokens"] / server["kv_usage_ratio"]
        for server in (step["server"] or {} for step in steps)
        if server.get("kv_used_tokens") and server.get("kv_usage_ratio")
    ]
    return float(np.median(sizes)) if sizes else None


def bytes_per_token(steps: Sequence[Step]) -> float | None:
    """As the server tells, on all GPUs together."""
    size, tokens = largest_pool(steps), pool_tokens(steps)
    return size / tokens if size and tokens else None
