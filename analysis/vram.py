"""GPU memory: what a token costs, what the model takes without any, and the load that fills the KV cache.

    memory = base + bytes a token x resident tokens         base = weights + rest (activations, graphs, context)
    cache is full at  pool tokens / tokens that a running request holds                   requests in the engine

Bytes a token: by the model's config; by the server's own pool (its bytes / its tokens); or as the slope of memory over
resident tokens in the run's seconds. Memory is effective VRAM (without the empty part of the pool), used VRAM where it
grows with the tokens, or usage x pool. Seconds in which requests were preempted, or the cache was full, are left out:
there the client's tokens are not the server's. Servers take blocks: half a block a request is added to its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis import pileup
from analysis.intervals import student
from analysis.model_config import ModelConfig
from analysis.ranges import UNKNOWN, Figures, Range, over
from analysis.stats import Floats

# Tokens of a KV block: the default of vLLM and of TensorRT-LLM's paged cache is 16 to 64; the smallest errs least.
BLOCK_TOKENS = 16
# An engine that puts back what does not fit is never quite full on average.
FULL = 0.9
# Fewer seconds make no line; and tokens that differ by less than this tell of noise.
LEAST_SECONDS = 6
LEAST_SPREAD = 1.3
# A queue has begun where so much of what is in the engine waits.
QUEUED = 0.05
_GROWS = 1.01

Step = dict[str, Any]


class Fit(NamedTuple):
    """A line of memory over resident tokens: bytes a token, bytes without any, and which memory it is."""

    slope: Range
    base: Range
    signal: str
    seconds: int


def assess(
    steps: Sequence[Step], timeline: pd.DataFrame, config: ModelConfig | None, cards: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    """The summary's `vram`; each step gets `vram_predicted_bytes`. None when nothing of memory was measured or told."""
    held_by = engines(steps)
    found = fit(timeline, steps)
    pool_bytes, pool_tokens = _pool(steps)
    told = pool_bytes / pool_tokens if pool_bytes and pool_tokens else None
    computed = None if config is None else config.kv_bytes_per_token
    source = "config" if computed else "server" if told else "fit" if found else None
    known = computed or told
    per_token = _exactly(known) if known else found.slope if found else UNKNOWN
    if computed and pool_bytes:
        pool_tokens = pool_bytes / computed
    weights = None if config is None else float(config.weights_bytes) * held_by
    base = _base(steps, per_token, found, weights, pool_bytes)
    for step in steps:
        step["vram_predicted_bytes"] = _predicted(base, per_token.value, resident(step))
    held = tokens_per_request(steps)
    at = _exhausted(pool_tokens, held)
    if source is None and base is None:
        return None
    return {
        **per_token.under("bytes_per_token"),
        "source": source,
        "config_bytes_per_token": computed,
        "server_bytes_per_token": told,
        **(found.slope if found else UNKNOWN).under("fitted_bytes_per_token"),
        "fitted_from": found.signal if found else None,
        "fitted_seconds": found.seconds if found else 0,
        "model": config.name if config else None,
        "parameters": config.parameters if config else None,
        "weights_bytes": weights,
        "base_bytes": base,
        "rest_bytes": base - weights if base is not None and weights is not None and base > weights else None,
        "pool_bytes": pool_bytes,
        "pool_tokens": pool_tokens,
        "engines": held_by,
        "limit_bytes": sum(card["mem_total_b"] for card in cards) if cards and _all_told(cards) else None,
        **held.under("tokens_per_request"),
        **at.under("exhausted_at_running"),
        **_as_level(at, steps),
        **measured(steps),
    } | {"text": _text(at, held, steps)}


def _predicted(base: float | None, per_token: float | None, tokens: float | None) -> float | None:
    return None if base is None or per_token is None or tokens is None else base + per_token * tokens


def fit(timeline: pd.DataFrame, steps: Sequence[Step]) -> Fit | None:
    """A straight line through the seconds inside the steps' windows; None where they do not tell of one."""
    seconds = timeline["t_s"].to_numpy()
    inside = np.zeros(seconds.size, bool)
    blocks = np.zeros(seconds.size)
    for step in steps:
        server = step["server"] or {}
        if (server.get("preemptions_per_s") or 0.0) > 0:
            continue
        mine = (seconds >= step["begin_s"]) & (seconds + 1 <= step["end_s"])
        inside |= mine
        blocks[mine] = BLOCK_TOKENS / 2 if server.get("kv_pool_bytes") else 0.0
    tokens = timeline["resident_tokens"].to_numpy() + blocks * np.nan_to_num(timeline["running"].to_numpy())
    usage = timeline["kv_usage_ratio"].to_numpy()
    inside &= ~(usage > FULL) & ~np.isnan(tokens)
    pool_bytes, _ = _pool(steps)
    signals = {
        "effective VRAM": timeline["vram_effective_b"].to_numpy(),
        "KV usage x pool": usage * (pool_bytes or np.nan),
        "used VRAM": timeline["vram_used_b"].to_numpy(),
    }
    for name, memory in signals.items():
        use = inside & ~np.isnan(memory)
        x, y = tokens[use], memory[use]
        if x.size < LEAST_SECONDS or not x.max() > LEAST_SPREAD * max(x.min(), 1.0):
            continue
        if name == "used VRAM" and not y.max() > _GROWS * y.min():
            continue
        slope, base = _line(x, y)
        if slope.low is not None and slope.low > 0:
            return Fit(slope, base, name, int(use.sum()))
    return None


def _line(x: Floats, y: Floats) -> tuple[Range, Range]:
    """Least squares; neighbours that are alike count as fewer."""
    middle = x.mean()
    spread = ((x - middle) ** 2).sum()
    slope = float(((x - middle) * (y - y.mean())).sum() / spread)
    errors = y - y.mean() - slope * (x - middle)
    alike = float(np.clip((errors[1:] * errors[:-1]).sum() / max((errors**2).sum(), 1e-300), 0, 0.9))
    free = max((x.size - 2) * (1 - alike) / (1 + alike), 1.0)
    deviation = math.sqrt((errors**2).sum() / free)
    reach = student(free) * deviation
    base = float(y.mean() - slope * middle)
    around = reach / math.sqrt(spread)
    below = reach * math.sqrt(1 / x.size + middle**2 / spread)
    return Range(slope, slope - around, slope + around), Range(base, base - below, base + below)


def resident(step: Step) -> float | None:
    """Tokens in the KV cache in the step: as the server counts them, else as the client does."""
    used = (step["server"] or {}).get("kv_used_tokens")
    tokens = step.get("resident_tokens_mean") if used is None else used
    return None if tokens is None else float(tokens)


def tokens_per_request(steps: Sequence[Step]) -> Range:
    """Tokens that a running request holds: in the steps whose cache was not full; else its prompt and half its answer.

    What requests share of a prefix is held once, and so it is counted where the server counts.
    """
    ratios = []
    for step in steps:
        server = step["server"] or {}
        running, held, usage = server.get("running"), resident(step), server.get("kv_usage_ratio")
        if running and running >= 1 and held and (usage is None or usage < FULL):
            ratios.append((held / running, running))
    if len(ratios) >= 2:
        values, weights = (np.array(column) for column in zip(*ratios, strict=True))
        mean = float((values * weights).sum() / weights.sum())
        off = math.sqrt(float((weights * (values - mean) ** 2).sum() / weights.sum()) / (len(ratios) - 1))
        reach = student(len(ratios) - 1) * off
        return Range(mean, max(mean - reach, values.min() / 2), mean + reach)
    for step in steps:
        tokens = step.get("tokens") or {}
        prompt, output = tokens.get("prompt_mean"), tokens.get("output_mean")
        if prompt is not None and output is not None:
            return Range(prompt + (output + BLOCK_TOKENS) / 2, prompt, prompt + output + BLOCK_TOKENS)
    return UNKNOWN


def measured(steps: Sequence[Step]) -> dict[str, float | None]:
    """The lowest level at which each sign of a full server was seen; null: at none."""

    def first(seen: Any) -> float | None:
        return min((float(step["level"]) for step in steps if step["level"] and seen(step)), default=None)

    def knee(step: Step) -> bool:
        grown = pileup.growth(step, pileup.lighter_than(step, steps))
        return grown is not None and grown.elasticity < pileup.KNEE

    def server(step: Step, name: str) -> float:
        return float((step["server"] or {}).get(name) or 0.0)

    return {
        "queue_from": first(lambda step: server(step, "waiting") > QUEUED * max(server(step, "running"), 1.0)),
        "preemptions_from": first(lambda step: server(step, "preemptions_per_s") > 0),
        "full_from": first(lambda step: server(step, "kv_usage_ratio") >= FULL),
        "knee_from": first(knee),
    }


def _exhausted(pool_tokens: float | None, held: Range) -> Range:
    return UNKNOWN if pool_tokens is None or held.value is None else over(_exactly(pool_tokens), held)


def _as_level(at: Range, steps: Sequence[Step]) -> Figures:
    """In the unit of the levels, by what a level had in the engine before it was full."""
    shares = [
        step["level"] / running
        for step in steps
        if (running := (step["server"] or {}).get("running")) and running >= 1 and step["level"] and not step["rate"]
        if not (step["server"] or {}).get("waiting")
    ]
    if not shares:
        return UNKNOWN.under("exhausted_at_level")
    return at.rising(lambda running: running * float(np.median(shares))).under("exhausted_at_level")


def _base(
    steps: Sequence[Step], per_token: Range, found: Fit | None, weights: float | None, pool_bytes: float | None
) -> float | None:
    """Bytes without a token: effective VRAM less the tokens', the fit's, or the weights alone."""
    below = [
        effective - per_token.value * tokens
        for step in steps
        if (effective := step["gpu_total"]["vram_effective_bytes"]) is not None
        and per_token.value is not None
        and (tokens := resident(step)) is not None
    ]
    if below:
        return float(np.median(below))
    if found is not None and found.signal == "used VRAM":
        return found.base.value
    used = [step["gpu_total"]["vram_used_bytes"] for step in steps if step["gpu_total"]["vram_used_bytes"] is not None]
    if used and pool_bytes:
        return float(min(used)) - pool_bytes
    return weights


def _pool(steps: Sequence[Step]) -> tuple[float | None, float | None]:
    """Bytes and tokens of the KV cache, of all engines."""
    servers = [step["server"] or {} for step in steps]
    pool_bytes = max((server["kv_pool_bytes"] for server in servers if server.get("kv_pool_bytes")), default=None)
    sizes = [
        server["kv_used_tokens"] / server["kv_usage_ratio"]
        for server in servers
        if server.get("kv_used_tokens") and server.get("kv_usage_ratio")
    ]
    return pool_bytes, float(np.median(sizes)) if sizes else None


def engines(steps: Sequence[Step]) -> int:
    """How many hold the model, each all of it; 1 when nothing tells."""
    return max((int((step["server"] or {}).get("engines") or 1) for step in steps), default=1)


def _all_told(cards: Sequence[dict[str, Any]]) -> bool:
    return all(card["mem_total_b"] is not None for card in cards)


def _exactly(value: float) -> Range:
    return Range(value, value, value)


def _text(at: Range, held: Range, steps: Sequence[Step]) -> str | None:
    if at.value is None or held.value is None:
        return None
    most = max(((step["server"] or {}).get("running_max") or 0.0 for step in steps), default=0.0)
    full = measured(steps)["full_from"]
    text = f"the KV cache is full at {at.value:.0f} running requests of {held.value:.0f} tokens each"
    if full is None:
        return f"{text}; at most {most:.0f} ran, and it was never full"
    return f"{text}; it was full from the step of {full:g}, with up to {most:.0f} running"
