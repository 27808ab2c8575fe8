"""A model's config.json, in the fields of Hugging Face: parameters, weights, and what a token costs in the KV cache.

    ModelConfig   the shapes that counts follow from; read_config finds them in a file
    parameters    by those shapes: attention (grouped or latent), MLP (dense or experts), embeddings, norms, router
    kv_bytes      2 x KV heads x head size a layer and token; a layer with a window holds no more tokens than that

Pure but for the read; no clock. What a config does not say has the meaning that it has there: null is the default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.damage import Damage, sentence
from loadgen import rundir
from loadgen.errors import UsageError

_BITS = {
    **dict.fromkeys(("float32", "float", "fp32"), 32.0),
    **dict.fromkeys(("float16", "half", "fp16", "bfloat16", "bf16", "auto"), 16.0),
    **dict.fromkeys(("fp8", "fp8_e4m3", "fp8_e5m2", "float8_e4m3fn", "float8_e5m2", "int8"), 8.0),
}
# Bits a weight of formats that the config names without telling their width, scales of a block included.
_FORMATS = {"fp8": 8.0, "fbgemm_fp8": 8.0, "mxfp4": 4.25, "nvfp4": 4.5}
# Their MLP has two matrices instead of three.
_UNGATED = frozenset({"falcon", "gpt_neox", "gptj", "mpt", "bloom", "opt", "phi", "starcoder2"})
# Their query, key and value have biases though the config does not say so.
_BIASED = frozenset({"qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl"})
_WITHOUT_CACHE = frozenset({"linear_attention", "mamba", "recurrent", "conv"})
_WITH_WINDOW = frozenset({"sliding_attention", "chunked_attention", "local_attention"})


@dataclass(frozen=True)
class ModelConfig:
    """Counts of parameters are of the whole model, bytes of all its GPUs together.

    `layers_full` and `layers_windowed` have a KV cache; `kv_values`: values a token and layer in it.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    head_dim: int
    layers_full: int
    layers_windowed: int
    window: int | None
    kv_values: int
    kv_bits: float
    parameters: int
    active_parameters: int
    weights_bytes: int
    active_weights_bytes: int

    @property
    def kv_bytes_per_token(self) -> float:
        """Of a token that every layer with a cache still holds."""
        return (self.layers_full + self.layers_windowed) * self.kv_values * self.kv_bits / 8

    def kv_bytes(self, context_tokens: float) -> float:
        """Of one sequence of so many tokens."""
        held = context_tokens if self.window is None else min(context_tokens, self.window)
        tokens = self.layers_full * context_tokens + self.layers_windowed * held
        return tokens * self.kv_values * self.kv_bits / 8


def read_config(path: Path) -> ModelConfig:
    """Raises UsageError with one sentence when it is no such file."""
    remedy = "give the config.json of the model's folder"
    try:
        fields = json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"the model config {path} cannot be read ({error.strerror}): {remedy}") from error
    except ValueError as error:
        raise UsageError(f"the model config {path} is no JSON ({error}): {remedy}") from error
    if not isinstance(fields, dict):
        raise UsageError(f"the model config {path} is no JSON object: {remedy}")
    try:
        return parse_config(fields)
    except ValueError as error:
        raise UsageError(f"the model config {path} {error}: {remedy}") from error


def config_of(manifest: Mapping[str, Any], asked: Path | None, found: list[Damage]) -> ModelConfig | None:
    """That of the file that was asked for, else the one that the run was given. Raises UsageError of the file."""
    if asked is not None:
        return read_config(asked)
    fields = manifest.get("model_config")
    try:
        return parse_config(fields) if fields else None
    except ValueError as error:
        found.append(Damage(rundir.MANIFEST, sentence(f"model_config {error}: it is not used")))
        return None


def parse_config(fields: Mapping[str, Any]) -> ModelConfig:
    """Raises ValueError with what is wrong, as the rest of a sentence."""
    inner = next((fields[key] for key in ("text_config", "llm_config") if isinstance(fields.get(key), dict)), None)
    outer, fields = fields, fields if inner is None or "num_hidden_layers" in fields else inner
    shapes = _Fields(fields)
    layers, hidden, heads = (shapes.need(name) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    head_dim = shapes.get("head_dim", hidden // heads)
    latent = shapes.get("kv_lora_rank", 0)
    kv_heads = shapes.get("num_key_value_heads", heads)
    attention, kv_values = _attention(shapes, hidden, heads, kv_heads, head_dim, latent)
    dense, sparse, chosen = _mlp(shapes, layers, hidden)
    # Matrices of the layers are what quantization is for; the rest stays in the data type of the config.
    matrices = layers * attention + dense + sparse
    active_matrices = layers * attention + dense + chosen
    tied = bool(fields.get("tie_word_embeddings", outer.get("tie_word_embeddings", False)))
    norms = (2 * layers + 1) * hidden
    rest = shapes.need("vocab_size") * hidden * (1 if tied else 2) + norms + _biases(shapes, layers, heads, kv_heads)
    bits = _bits(fields.get("dtype") or fields.get("torch_dtype") or outer.get("dtype") or outer.get("torch_dtype"))
    quantized = fields.get("quantization_config") or outer.get("quantization_config")
    matrix_bits = _quantized_bits(quantized) if isinstance(quantized, dict) else bits
    full, windowed, window = _cached_layers(shapes, layers)
    return ModelConfig(
        name=str(outer.get("_name_or_path") or outer.get("model_type") or "model"),
        layers=layers,
        hidden=hidden,
        heads=heads,
        head_dim=head_dim,
        layers_full=full,
        layers_windowed=windowed,
        window=window,
        kv_values=kv_values,
        kv_bits=_kv_bits(fields, outer, quantized, bits),
        parameters=matrices + rest,
        active_parameters=active_matrices + rest,
        weights_bytes=round((matrices * matrix_bits + rest * bits) / 8),
        active_weights_bytes=round((active_matrices * matrix_bits + rest * bits) / 8),
    )


class _Fields:
    """Whole numbers of a config; null is absent."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.all = fields

    def need(self, name: str) -> int:
        value = self.get(name, 0)
        if not value:
            raise ValueError(f"has no {name}")
        return value

    def get(self, name: str, default: int) -> int:
        value = self.all.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**9:
            raise ValueError(f"has {name} {value!r}, which is no count")
        return value

    def first(self, *names: str) -> int:
        return next((value for name in names if (value := self.get(name, 0))), 0)


def _attention(shapes: _Fields, hidden: int, heads: int, kv_heads: int, head_dim: int, latent: int) -> tuple[int, int]:
    """Parameters of one layer, and the values that a token has in its cache."""
    if not latent:
        return 2 * hidden * head_dim * (heads + kv_heads), 2 * kv_heads * head_dim
    rope, plain = shapes.need("qk_rope_head_dim"), shapes.need("qk_nope_head_dim")
    value_dim = shapes.get("v_head_dim", head_dim)
    ranks = shapes.get("q_lora_rank", 0)
    query_dim = heads * (plain + rope)
    query = ranks * (hidden + query_dim + 1) if ranks else hidden * query_dim
    into, out = hidden * (latent + rope) + latent, latent * heads * (plain + value_dim)
    return query + into + out + heads * value_dim * hidden, latent + rope


def _mlp(shapes: _Fields, layers: int, hidden: int) -> tuple[int, int, int]:
    """Parameters of all layers: those that every token uses, the experts', and those of the experts it is sent to."""
    wide = shapes.need("intermediate_size")
    each = hidden * (2 if shapes.all.get("model_type") in _UNGATED else 3)
    experts = shapes.first("num_local_experts", "n_routed_experts", "num_experts")
    if not experts:
        return layers * each * wide, 0, 0
    plain = min(shapes.get("first_k_dense_replace", 0), layers)
    every = max(shapes.first("decoder_sparse_step", "moe_layer_freq"), 1)
    with_experts = (layers - plain) // every
    narrow = shapes.get("moe_intermediate_size", wide)
    shared = shapes.get("n_shared_experts", 0) * narrow + shapes.get("shared_expert_intermediate_size", 0)
    dense = (layers - with_experts) * each * wide + with_experts * (each * shared + hidden * experts)
    chosen = shapes.first("num_experts_per_tok", "num_experts_per_token", "moe_topk") or 1
    return dense, with_experts * experts * each * narrow, with_experts * min(chosen, experts) * each * narrow


def _biases(shapes: _Fields, layers: int, heads: int, kv_heads: int) -> int:
    if not (shapes.all.get("attention_bias") or shapes.all.get("model_type") in _BIASED):
        return 0
    head_dim = shapes.get("head_dim", shapes.need("hidden_size") // heads)
    return layers * (heads + 2 * kv_heads) * head_dim


def _cached_layers(shapes: _Fields, layers: int) -> tuple[int, int, int | None]:
    """Layers that hold every token, layers that hold a window, and that window."""
    kinds, window = shapes.all.get("layer_types"), shapes.get("sliding_window", 0)
    if shapes.all.get("use_sliding_window") is False or not window:
        without = sum(kind in _WITHOUT_CACHE for kind in kinds) if isinstance(kinds, list) else 0
        return layers - without, 0, None
    if isinstance(kinds, list):
        windowed = sum(kind in _WITH_WINDOW for kind in kinds)
        return layers - windowed - sum(kind in _WITHOUT_CACHE for kind in kinds), windowed, window
    pattern = shapes.get("sliding_window_pattern", 0)  # every so many layers one has no window
    full = layers // pattern if pattern else 0
    return full, layers - full, window


def _bits(dtype: object) -> float:
    """Of a data type by name; without one, 16."""
    if dtype is None:
        return 16.0
    bits = _BITS.get(str(dtype).removeprefix("torch.").lower())
    if bits is None:
        raise ValueError(f"has the data type {dtype!r}, which is unknown")
    return bits


def _quantized_bits(quantized: Mapping[str, Any]) -> float:
    """Bits a weight with the scales of its group."""
    for name in (quantized.get("quant_algo"), quantized.get("quant_method"), quantized.get("fmt")):
        if (known := _FORMATS.get(str(name).lower())) is not None:
            return known
    if quantized.get("load_in_4bit") or quantized.get("load_in_8bit"):
        return 4.5 if quantized.get("load_in_4bit") else 8.0
    groups = quantized.get("config_groups")
    weights = next((group.get("weights") for group in groups.values()), None) if isinstance(groups, dict) else None
    bits, group = (
        (weights.get("num_bits"), weights.get("group_size"))
        if isinstance(weights, dict)
        else (quantized.get("bits") or quantized.get("w_bit"), quantized.get("group_size"))
    )
    if isinstance(bits, bool) or not isinstance(bits, int | float) or not 1 <= bits <= 32:
        raise ValueError(f"has a quantization_config ({quantized.get('quant_method')!r}) that does not tell its bits")
    per_group = group if isinstance(group, int) and group > 0 else None
    return bits + ((16 + bits) / per_group if per_group and bits < 8 else 0.0)


def _kv_bits(fields: Mapping[str, Any], outer: Mapping[str, Any], quantized: object, bits: float) -> float:
    """Of the KV cache: as it is told to be, else in 16 bits as weights that are not quantized are."""
    told = fields.get("kv_cache_dtype") or outer.get("kv_cache_dtype")
    if told is None and isinstance(quantized, dict):
        scheme = quantized.get("kv_cache_scheme")
        told = quantized.get("kv_cache_quant_algo") or (isinstance(scheme, dict) and "fp8") or None
    return _bits(told) if told not in (None, "auto") else max(bits, 16.0)
