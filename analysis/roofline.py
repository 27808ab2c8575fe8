"""MFU and MBU of a step: what the model's shapes say was computed and read, by what the cards can do. Pure.

    FLOP/s  = tokens/s x (2 N + 4 L H D T)          N active parameters, T mean context     (PaLM, appendix B; a third)
    bytes/s = iterations/s x (weights + KV of all running contexts)    iterations/s = tokens/s of an answer = 1 / TPOT

Prompts count as computed and not as read: their pass over the weights is one of few. Decoding reads all experts as soon
as the batch sends something to each. Beside them stands what the cards measured: tensor_pct and dram_pct of the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.gpu_peaks import peaks
from analysis.model_config import ModelConfig

Step = Mapping[str, Any]


def roofline(
    step: Step, config: ModelConfig | None, cards: Sequence[Mapping[str, Any]], engines: int, speedup: float = 1.0
) -> dict[str, float | None] | None:
    """mfu_pct and mbu_pct of all GPUs together; None without the model's config or a known card.

    `engines` hold the model, each all of it; `speedup` is the simulator's.
    """
    found = [peaks(card["name"]) for card in cards]
    known = [peak for peak in found if peak is not None]
    prompt_rate, output_rate = token_rates(step)
    if config is None or not known or len(known) < len(found) or output_rate is None:
        return None
    in_8_bits = 0.9 < config.weights_bytes / config.parameters < 1.5  # narrower weights are widened to 16 bits first
    flops = speedup * sum((in_8_bits and peak.flops_8) or peak.flops_16 for peak in known)
    read = speedup * sum(card["dram_peak_b_s"] or peak.bytes_per_s for card, peak in zip(cards, known, strict=True))
    context = mean_context(step)
    attention = 4 * config.layers * config.heads * config.head_dim * (context or 0.0)
    computed = ((prompt_rate or 0.0) + output_rate) * (2 * config.active_parameters + attention)
    return {
        "mfu_pct": 100 * computed / flops,
        "mbu_pct": _percent(_bytes_read(step, config, output_rate, context, engines), read),
        "peak_flops": flops,
        "peak_bytes_per_s": read,
        "prompt_tokens_per_s": prompt_rate,
        "output_tokens_per_s": output_rate,
    }


def token_rates(step: Step) -> tuple[float | None, float | None]:
    """Prompt and output tokens a second: as the server counts them, else as the client does."""
    server, tokens = step["server"] or {}, step.get("tokens") or {}
    prompt, output = server.get("prompt_tokens_per_s"), server.get("generation_tokens_per_s")
    return (
        tokens.get("prompt_per_s") if prompt is None else prompt,
        step["output_tokens_per_s"] if output is None else output,
    )


def mean_context(step: Step) -> float | None:
    """Tokens of a request while it is decoded: its prompt and half of its answer."""
    tokens = step.get("tokens") or {}
    prompt, output = tokens.get("prompt_mean"), tokens.get("output_mean")
    return None if prompt is None else float(prompt) + (output or 0.0) / 2


def _bytes_read(
    step: Step, config: ModelConfig, output_rate: float, context: float | None, engines: int
) -> float | None:
    """A second; None when the size of the batch is not known, or empty."""
    server = step["server"] or {}
    batch = server.get("running") or None
    used = server.get("kv_used_tokens")
    if batch is None or batch < 1:
        return None
    held = float(used / batch) if used else context
    iterations = output_rate / float(batch)  # of one engine; a sequence gets one token of each
    per_engine = config.weights_bytes + float(batch) / engines * config.kv_bytes(held or 0.0)
    return iterations * engines * per_engine


def _percent(value: float | None, of: float) -> float | None:
    return None if value is None or of <= 0 else 100 * value / of
