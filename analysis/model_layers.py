"""Which layers of a model hold every token in the KV cache, which a window of them, and which none. Pure.

A config says it for each layer, by a pattern, by a period, or by its kind of model. Where it says it in a way that is
not known here, or not at all, the size of the cache is not known.
"""

from __future__ import annotations

from analysis.model_fields import Fields

# Every so many layers one has no window; 0: all have it. Of other types the config has to say.
_FULL_EVERY = {
    **dict.fromkeys(("gemma2", "gpt_oss"), 2),
    **dict.fromkeys(("cohere2", "llama4", "llama4_text"), 4),
    **dict.fromkeys(("gemma3", "gemma3_text"), 6),
    **dict.fromkeys(("mistral", "mixtral", "phi3", "phimoe", "starcoder2"), 0),
}
_WITHOUT_CACHE = frozenset({"linear_attention", "mamba", "recurrent", "conv"})
_WITH_WINDOW = frozenset({"sliding_attention", "chunked_attention", "local_attention"})
# One layer of so many has attention: at the place that a second key tells, without it the last of them.
_PERIODS = {"full_attention_interval": None, "attn_layer_period": "attn_layer_offset"}
# These say that layers differ, each in a way of its own.
_UNREAD = (
    *("hybrid_override_pattern", "layers_block_type", "block_types", "block_configs", "hybrid_layer_ids"),
    *("attn_layer_indices", "attn_type_list", "linear_attn_config"),
)
# These that some hold nothing of their own.
_SHARED_CACHE = ("num_kv_shared_layers", "use_cla")


def cached_layers(shapes: Fields, layers: int) -> tuple[int, int, int | None, str | None]:
    """Layers that hold every token, layers that hold a window, that window; and what the config leaves open."""
    window = shapes.first("sliding_window", "attention_chunk_size")
    told, by_request = shapes.all.get("use_sliding_window"), shapes.kind.startswith("qwen")
    kinds = _kinds(shapes, layers)
    keys = _SHARED_CACHE if kinds is not None else (*_SHARED_CACHE, *_UNREAD)
    if unread := next((key for key in keys if shapes.all.get(key)), None):
        return layers, 0, None, f"has {unread}, by which its layers differ in what they hold"
    if kinds is not None:
        without, windowed = (sum(kind in some for kind in kinds) for some in (_WITHOUT_CACHE, _WITH_WINDOW))
        if windowed and not window:
            return layers - without, 0, None, "has layers with a window and does not say how large it is"
        return layers - without - windowed, windowed, window or None, None
    if not window or told is False or (by_request and not told):
        return layers, 0, None, None
    if by_request:
        full = min(shapes.get("max_window_layers", layers), layers)
        return full, layers - full, window, None
    every = shapes.get("sliding_window_pattern", 0) or _FULL_EVERY.get(shapes.kind)
    if every is None:
        return layers, 0, None, "has a sliding_window and does not say which layers it is for"
    full = layers // every if every else 0
    return full, layers - full, window, None


def _kinds(shapes: Fields, layers: int) -> list[str] | None:
    """What each layer is, where the config says it; or a pattern of it, as "LLLG": local, local, local, global.

    Or 1 for each that has attention, or a period in which one has.
    """
    kinds, pattern = shapes.all.get("layer_types"), shapes.all.get("sliding_window_pattern")
    if kinds is None and isinstance(pattern, str) and set(pattern) in ({"L", "G"}, {"L"}, {"G"}):
        names = {"L": "sliding_attention", "G": "full_attention"}
        return [names[pattern[layer % len(pattern)]] for layer in range(layers)]
    if kinds is None:
        return _by_number(shapes, layers) or _by_period(shapes, layers)
    if not isinstance(kinds, list) or len(kinds) < layers or not all(isinstance(kind, str) for kind in kinds):
        raise ValueError("has layer_types that are not a name for each layer")
    return kinds[:layers]


def _by_number(shapes: Fields, layers: int) -> list[str] | None:
    numbers = shapes.all.get("attn_type_list")
    if not isinstance(numbers, list) or len(numbers) < layers or any(number not in (0, 1) for number in numbers):
        return None
    return ["full_attention" if number else "linear_attention" for number in numbers[:layers]]


def _by_period(shapes: Fields, layers: int) -> list[str] | None:
    for key, place in _PERIODS.items():
        if every := shapes.get(key, 0):
            at = shapes.get(place, every - 1) if place else every - 1
            return ["full_attention" if layer % every == at else "linear_attention" for layer in range(layers)]
    return None
