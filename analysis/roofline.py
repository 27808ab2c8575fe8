"""MFU and MBU of a step: what the model's shapes say was computed and read, by what the cards can do. Pure.

    FLOP/s  = tokens/s x (2 N + 2 H (Q + V) T of each layer)    N active parameters, H heads, Q and V sizes of a head
    bytes/s = iterations/s x (weights + KV of all running contexts)    iterations/s = tokens/s of an answer = 1 / TPOT

T is the mean context: half the prompt for its tokens, the prompt and half the answer for those of the answer. What a
prefix cache answered was not computed. Prompts count as computed and not as read: their pass over the weights is one of
few. Decoding reads the experts that the batch sends something to. Beside them stands what the cards measured:
tensor_pct and dram_pct of the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.gpu_peaks import peaks
from analysis.model_config import ModelConfig

Step = Mapping[str, Any]
# No card does more than it can: above this a share is not of this model, or not of these cards.
MOST_PCT = 105.0


def roofline(
    step: Step,
    config: ModelConfig | None,
    cards: Sequence[Mapping[str, Any]],
    engines: int,
    speedup: float = 1.0,
    told: float | None = None,
) -> dict[str, float | str | None] | None:
    """mfu_pct and mbu_pct of all GPUs together; None without the model's config or a known card.

    `why` says why one of them is None. `engines` hold the model, each all of it; `speedup` is the simulator's; `told`
    is what a token costs in the KV cache as the server says: without it, as the config does.
    """
    found = [peaks(card["name"]) for card in cards]
    known = [peak for peak in found if peak is not None]
    prompt_rate, output_rate = token_rates(step)
    if config is None or not known or len(known) < len(found) or output_rate is None:
        return None
    in_8_bits = 0.9 < config.weights_bytes / config.parameters < 1.5  # narrower weights are widened to 16 bits first
    flops = speedup * sum((in_8_bits and peak.flops_8) or peak.flops_16 for peak in known)
    read = speedup * sum(card["dram_peak_b_s"] or peak.bytes_per_s for card, peak in zip(cards, known, strict=True))
    mfu, no_mfu = _share("MFU", _computed(step, config, prompt_rate, output_rate), None, flops)
    mbu, no_mbu = _share("MBU", *_bytes_read(step, config, output_rate, engines, told), read)
    return {
        "mfu_pct": mfu,
        "mbu_pct": mbu,
        "why": "; ".join(why for why in (no_mfu, no_mbu) if why) or None,
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
    prompt, output = _lengths(step)
    return None if prompt is None else prompt + output / 2


def _lengths(step: Step) -> tuple[float | None, float]:
    tokens = step.get("tokens") or {}
    return tokens.get("prompt_mean"), tokens.get("output_mean") or 0.0


def _computed(step: Step, config: ModelConfig, prompt_rate: float | None, output_rate: float) -> float:
    """FLOP a second. Tokens that a prefix cache had are the first of their prompts."""
    server = step["server"] or {}
    cached = (server.get("prefix_hit_pct") or 0.0) / 100
    computed = server.get("computed_prompt_tokens_per_s")
    if computed is None:
        computed = (prompt_rate or 0.0) * (1 - cached)
    of_prompt = of_answer = 2.0 * config.active_parameters
    prompt, output = _lengths(step)
    if prompt is not None:
        of_prompt += config.attention_flops(cached * prompt, prompt)
        of_answer += config.attention_flops(prompt, prompt + output)
    return float(computed * of_prompt + output_rate * of_answer)


def _bytes_read(
    step: Step, config: ModelConfig, output_rate: float, engines: int, told: float | None
) -> tuple[float | None, str | None]:
    """A second; or why it is not known."""
    server = step["server"] or {}
    batch = server.get("running") or None
    used = server.get("kv_used_tokens")
    if batch is None or batch < 1:
        return None, "the server does not tell how many requests run at once"
    context = (used / batch if used else mean_context(step)) or 0.0
    of_one = told * context if told else config.kv_bytes(context)
    if of_one is None:
        return None, f"the model's config {config.kv_why}"
    iterations = output_rate / float(batch)  # of one engine; a sequence gets one token of each
    each = float(batch) / engines
    return float(iterations * engines * (config.weights_read(each) + each * of_one)), None


def _share(name: str, value: float | None, why: str | None, of: float) -> tuple[float | None, str | None]:
    """In per cent; or why there is none."""
    if value is None or of <= 0:
        return None, f"{name} is not known: {why or 'the peak of the cards is 0'}"
    share = 100 * value / of
    if share <= MOST_PCT:
        return share, None
    return None, (
        f"{name} came out as {share:.0f} %, which no card can do: the model's config, the cards that were watched, or "
        f"the tokens that were counted are not those of the server"
    )
