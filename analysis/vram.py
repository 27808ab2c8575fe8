"""GPU memory: what a token costs, what the model takes without any, and the load that fills the KV cache.

    memory = base + bytes a token x resident tokens         base = weights + rest (activations, graphs, context)
    cache is full at  pool tokens / tokens that a running request holds                   requests in the engine

Bytes a token: by the server's own pool (its bytes / its tokens), which is that of the cache that runs; by the model's
config, for requests of that length where layers have windows; or as the slope of memory over resident tokens in the
run's seconds (vram_fit.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import kv_pool, pileup
from analysis.intervals import student
from analysis.model_config import ModelConfig
from analysis.ranges import UNKNOWN, Figures, Range, over
from analysis.serving import busy_pct, only_serving
from analysis.vram_fit import BLOCK_TOKENS, FULL, Fit, fit

# A queue has begun where so much of what is in the engine waits.
QUEUED = 0.05
# The config and the server mean the same cache when they differ by less.
_SAME = 1.1

Step = dict[str, Any]


def assess(
    steps: Sequence[Step], timeline: pd.DataFrame, config: ModelConfig | None, cards: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    """The summary's `vram`; each step gets `vram_predicted_bytes`. None when nothing of memory was measured or told."""
    held_by = engines(steps)
    found = fit(timeline, steps)
    pool_bytes, pool_tokens, told = (
        find(steps) for find in (kv_pool.largest_pool, kv_pool.pool_tokens, kv_pool.bytes_per_token)
    )
    held = tokens_per_request(steps)
    computed = _computed(config, held)
    source = "server" if told else "config" if computed.value else "fit" if found else None
    per_token = _exactly(told) if told else computed if computed.value else found.slope if found else UNKNOWN
    mixed = config if source == "config" else None
    tokens_bytes = [_tokens_bytes(step, per_token.value, mixed) for step in steps]
    weights = None if config is None else float(config.weights_bytes) * held_by
    base = _base(steps, tokens_bytes, found, weights, pool_bytes)
    too_many = base is not None and base < 0
    base = None if too_many else base
    for step, size in zip(steps, tokens_bytes, strict=True):
        step["vram_predicted_bytes"] = None if base is None or size is None else base + size
    if pool_tokens is not None:
        at = _exhausted(pool_tokens, held)
    elif pool_bytes and computed.value:
        pool_tokens = pool_bytes / computed.value
        at = _exhausted(pool_bytes, _times(computed, held))
    else:
        at = UNKNOWN
    if source is None and base is None:
        return None
    return {
        **per_token.under("bytes_per_token"),
        "source": source,
        "config_bytes_per_token": None if config is None else config.kv_bytes_per_token,
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
    } | {
        "text": "; ".join((*_predicted(at, held, steps), *_doubts(steps, config, computed.value, told, too_many)))
        or None
    }


def _computed(config: ModelConfig | None, held: Range) -> Range:
    """Bytes a token by the config, in requests that hold so many tokens: those beyond a window cost less."""
    if config is None or config.kv_bytes_per_token is None:
        return UNKNOWN
    if config.window is None or not held.value:
        return _exactly(config.kv_bytes_per_token)
    return held.falling(lambda tokens: _of_each(config, tokens) or 0.0)


def _of_each(config: ModelConfig, tokens: float) -> float | None:
    """Bytes a token of a request of so many."""
    size = config.kv_bytes(tokens)
    return size / tokens if size is not None and tokens > 0 else config.kv_bytes_per_token


def _times(per_token: Range, held: Range) -> Range:
    """Bytes of a request: a longer one has less for a token, and more in all."""
    pairs = zip(held, (per_token.value, per_token.high, per_token.low), strict=True)
    return Range(*(None if tokens is None or each is None else tokens * each for tokens, each in pairs))


def _tokens_bytes(step: Step, per_token: float | None, config: ModelConfig | None) -> float | None:
    """Of the tokens in the step; by `config` for the length that its requests have."""
    tokens, running = resident(step), (step["server"] or {}).get("running")
    if config is not None and tokens is not None and running and running >= 1:
        per_token = _of_each(config, tokens / running)
    return None if per_token is None or tokens is None else per_token * tokens


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


def _exhausted(pool: float, held: Range) -> Range:
    """Requests; pool and what one holds in the same unit."""
    return UNKNOWN if held.value is None else over(_exactly(pool), held)


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
    steps: Sequence[Step],
    tokens_bytes: Sequence[float | None],
    found: Fit | None,
    weights: float | None,
    pool_bytes: float | None,
) -> float | None:
    """Bytes without a token: effective VRAM less the tokens', the fit's, or the weights alone."""
    below = [
        effective - size
        for step, size in zip(steps, tokens_bytes, strict=True)
        if (effective := step["gpu_total"]["vram_effective_bytes"]) is not None and size is not None
    ]
    if below:
        return float(np.median(below))
    if found is not None and found.signal == "used VRAM":
        return found.base.value
    used = [step["gpu_total"]["vram_used_bytes"] for step in steps if step["gpu_total"]["vram_used_bytes"] is not None]
    if used and pool_bytes:
        return float(min(used)) - pool_bytes
    return weights


def engines(steps: Sequence[Step]) -> int:
    """How many hold the model, each all of it; 1 when nothing tells."""
    return max((int((step["server"] or {}).get("engines") or 1) for step in steps), default=1)


def _all_told(cards: Sequence[dict[str, Any]]) -> bool:
    return all(card["mem_total_b"] is not None for card in cards)


def _exactly(value: float) -> Range:
    return Range(value, value, value)


def _predicted(at: Range, held: Range, steps: Sequence[Step]) -> Iterator[str]:
    if at.value is None or held.value is None:
        return
    most = max(((step["server"] or {}).get("running_max") or 0.0 for step in steps), default=0.0)
    full = measured(steps)["full_from"]
    yield f"the KV cache is full at {at.value:.0f} running requests of {held.value:.0f} tokens each"
    if full is None:
        yield f"at most {most:.0f} ran, and it was never full"
    else:
        yield f"it was full from the step of {full:g}, with up to {most:.0f} running"


def _doubts(
    steps: Sequence[Step], config: ModelConfig | None, computed: float | None, told: float | None, too_many: bool
) -> Iterator[str]:
    if too_many:
        yield "the tokens that were counted cost more than the memory in use: what it is without any is not known"
    if config is not None and config.kv_why:
        yield f"what a token costs does not follow from the model's config: it {config.kv_why}"
    if told and computed and not 1 / _SAME < told / computed < _SAME:
        yield (
            f"a token takes {told:,.0f} B by the server's own figures and {computed:,.0f} B by the model's config: the "
            f"server's are used; its cache may have another data type than the config says, or GPUs hold copies"
        )
    gpus = [gpu for step in only_serving(steps) for gpu in step["gpus"]]
    if told and not gpus:
        yield "no GPU was watched: each engine's cache is taken to be on one"
    elif told and not any(map(busy_pct, gpus)):
        yield "no GPU is known to have run anything: the cache is taken to be on all with so much memory in use"
