"""The server's KV cache: bytes on all of its GPUs, tokens that it holds, and so what a token costs. Pure.

A server tells the bytes of one GPU; an engine has that on each of its GPUs. These are the GPUs that serve (serving.py)
with so much in use, shared evenly among the engines. Where no GPU was watched, an engine has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.serving import only_serving

Step = Mapping[str, Any]


def _pool_bytes(step: Step) -> float | None:
    """On all GPUs of all engines."""
    server = step["server"] or {}
    if not server.get("kv_pool_bytes"):
        return None
    engines = int(server.get("engines") or 1)
    each = float(server["kv_pool_bytes"]) / engines
    holding = sum(bool(used) and used["max"] >= each for used in (gpu["vram_used_bytes"] for gpu in step["gpus"]))
    return each * float(max(holding, engines))


def largest_pool(steps: Sequence[Step]) -> float | None:
    """Bytes, in the step that tells most: a GPU without figures there counts for less."""
    return max((size for step in only_serving(steps) if (size := _pool_bytes(step)) is not None), default=None)


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
