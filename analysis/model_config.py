"""A model's config.json, in the fields of Hugging Face: parameters, weights, and what a token costs in the KV cache.

    ModelConfig   the shapes that counts follow from; read_config finds them in a file
    parameters    by those shapes: attention (grouped or latent), MLP (dense or experts), embeddings, norms, router
    kv_bytes      2 x KV heads x head size a layer and token; a layer with a window holds no more tokens than that

Pure but for the read; no clock. What a config does not say has the meaning that it has there: null is the default,
which for some is that of the model's type. Not here: bits of data types (model_bits.py), which layers have a cache
(model_layers.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from analysis.damage import Damage, sentence
from analysis.model_bits import cache_bits, quantized_bits, type_bits
from analysis.model_fields import Fields
from analysis.model_layers import cached_layers
from loadgen import rundir
from loadgen.errors import UsageError

_GEMMAS = ("gemma2", "gemma3", "gemma3_text")
# Their MLP has two matrices instead of three.
_UNGATED = frozenset({"falcon", "gpt_neox", "gptj", "mpt", "bloom", "opt", "phi", "starcoder2"})
# Their query, key and value have biases though the config does not say so.
_BIASED = frozenset({"qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl"})
# Embedding and head are one matrix unless the config says that they are not.
_TIED = frozenset({"gemma", *_GEMMAS, "falcon", "opt", "cohere", "cohere2", "starcoder2"})
# Norms of a layer, where they are not two.
_NORMS = dict.fromkeys(_GEMMAS, 4)
# Each layer with experts has one of that size for every token.
_SHARED = frozenset({"llama4", "llama4_text"})


@dataclass(frozen=True)
class ModelConfig:
    """Counts of parameters are of the whole model, bytes of all its GPUs together.

    `layers_full` and `layers_windowed` have a KV cache; `kv_values`: values a token and layer in it. `kv_bits` is None
    where the size of the cache is not known, and `kv_why` says why, as the rest of a sentence. `active_parameters` are
    those that a token is multiplied with: its embedding is looked up. A layer sends it to `chosen` of its `experts`.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    qk_dim: int
    v_dim: int
    layers_full: int
    layers_windowed: int
    window: int | None
    kv_values: int
    kv_bits: float | None
    kv_why: str | None
    parameters: int
    active_parameters: int
    weights_bytes: int
    expert_bytes: int
    experts: int
    chosen: int

    @property
    def kv_bytes_per_token(self) -> float | None:
        """Of a token that every layer with a cache still holds."""
        return None if self.kv_bits is None else self._kv_bytes(self.layers_full + self.layers_windowed, self.kv_bits)

    def kv_bytes(self, context_tokens: float) -> float | None:
        """Of one sequence of so many tokens."""
        held = context_tokens if self.window is None else min(context_tokens, self.window)
        tokens = self.layers_full * context_tokens + self.layers_windowed * held
        return None if self.kv_bits is None else self._kv_bytes(tokens, self.kv_bits)

    def _kv_bytes(self, tokens: float, bits: float) -> float:
        return tokens * self.kv_values * bits / 8

    def attention_flops(self, begin: float, end: float) -> float:
        """Of a token with its context, the mean of those whose contexts are from `begin` to `end` tokens."""
        tokens = self.layers_full * (begin + end) / 2 + self.layers_windowed * self._seen(begin, end)
        return 2 * self.heads * (self.qk_dim + self.v_dim) * tokens

    def _seen(self, begin: float, end: float) -> float:
        """Tokens of the window, a mean as above."""
        window = end if self.window is None else self.window
        inside = min(max(window - begin, 0.0), end - begin)
        if not end > begin:
            return min(end, window)
        return (inside * (begin + inside / 2) + (end - begin - inside) * window) / (end - begin)

    def weights_read(self, batch: float) -> float:
        """Bytes of a pass in which so many sequences get a token: experts that none is sent to are not read."""
        missed = (1 - self.chosen / self.experts) ** batch if self.experts else 0.0
        return self.weights_bytes - missed * self.expert_bytes


def read_config(path: Path) -> ModelConfig:
    """Raises UsageError with one sentence when it is no such file."""
    remedy = "give the config.json of the model's folder"
    try:
        fields = json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"the model config {path} cannot be read ({error.strerror}): {remedy}") from error
    except (ValueError, RecursionError) as error:
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
    shapes = Fields(fields, str(fields.get("model_type") or outer.get("model_type")))
    layers, hidden, heads = (shapes.need(name) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    attention = _attention(shapes, hidden, heads)
    mlp = _mlp(shapes, layers, hidden)
    # Matrices of the layers are what quantization is for; the rest stays in the data type of the config.
    matrices = layers * attention.parameters + mlp.dense + mlp.sparse
    embedding = shapes.need("vocab_size") * hidden
    tied = next(
        (bool(told) for part in (fields, outer) if (told := part.get("tie_word_embeddings")) is not None),
        shapes.kind in _TIED,
    )
    norms = (_NORMS.get(shapes.kind, 2) * layers + 1) * hidden
    rest = embedding * (1 if tied else 2) + norms + _biases(shapes, layers, heads)
    bits = type_bits(fields.get("dtype") or fields.get("torch_dtype") or outer.get("dtype") or outer.get("torch_dtype"))
    quantized = fields.get("quantization_config") or outer.get("quantization_config")
    matrix_bits = quantized_bits(quantized) if isinstance(quantized, dict) else bits
    full, windowed, window, unsaid = cached_layers(shapes, layers)
    kv_bits, unknown = cache_bits(fields, outer, quantized, bits)
    return ModelConfig(
        name=str(outer.get("_name_or_path") or outer.get("model_type") or "model"),
        layers=layers,
        hidden=hidden,
        heads=heads,
        qk_dim=attention.qk_dim,
        v_dim=attention.v_dim,
        layers_full=full,
        layers_windowed=windowed,
        window=window,
        kv_values=attention.kv_values,
        kv_bits=None if unsaid else kv_bits,
        kv_why=unsaid or unknown,
        parameters=matrices + rest,
        active_parameters=matrices - mlp.sparse + mlp.sparse_used + rest - (0 if tied else embedding),
        weights_bytes=round((matrices * matrix_bits + rest * bits) / 8),
        expert_bytes=round(mlp.sparse * matrix_bits / 8),
        experts=mlp.experts,
        chosen=mlp.chosen,
    )


class _Attention(NamedTuple):
    """Parameters of one layer; values that a token has in its cache; sizes of a head's query and key, and value."""

    parameters: int
    kv_values: int
    qk_dim: int
    v_dim: int


def _attention(shapes: Fields, hidden: int, heads: int) -> _Attention:
    head_dim, kv_heads = shapes.get("head_dim", hidden // heads), shapes.get("num_key_value_heads", heads)
    latent = shapes.get("kv_lora_rank", 0)
    if not latent:
        return _Attention(2 * hidden * head_dim * (heads + kv_heads), 2 * kv_heads * head_dim, head_dim, head_dim)
    rope, plain = shapes.need("qk_rope_head_dim"), shapes.need("qk_nope_head_dim")
    value_dim = shapes.get("v_head_dim", head_dim)
    ranks = shapes.get("q_lora_rank", 0)
    query_dim = heads * (plain + rope)
    query = ranks * (hidden + query_dim + 1) if ranks else hidden * query_dim
    into, out = hidden * (latent + rope) + latent, latent * heads * (plain + value_dim)
    return _Attention(query + into + out + heads * value_dim * hidden, latent + rope, plain + rope, value_dim)


class _Mlp(NamedTuple):
    """Parameters of all layers: those that every token uses, the experts', and those of the experts it is sent to."""

    dense: int
    sparse: int = 0
    sparse_used: int = 0
    experts: int = 0
    chosen: int = 0


def _mlp(shapes: Fields, layers: int, hidden: int) -> _Mlp:
    wide = shapes.need("intermediate_size")
    each = hidden * (2 if shapes.kind in _UNGATED else 3)
    experts = shapes.first("num_local_experts", "n_routed_experts", "num_experts")
    if not experts:
        return _Mlp(layers * each * wide)
    plain = min(shapes.get("first_k_dense_replace", 0), layers)
    steps = ("decoder_sparse_step", "moe_layer_freq", "interleave_moe_layer_step", "expert_layer_period")
    every = max(shapes.first(*steps), 1)
    with_experts = len(range(shapes.get("expert_layer_offset", every - 1), layers - plain, every))
    narrow = shapes.get("moe_intermediate_size", wide)
    shared = shapes.get("n_shared_experts", 0) * narrow + shapes.get("shared_expert_intermediate_size", 0)
    shared += narrow if shapes.kind in _SHARED else 0
    dense = (layers - with_experts) * each * shapes.get("intermediate_size_mlp", wide)
    dense += with_experts * (each * shared + hidden * experts)
    chosen = min(shapes.first("num_experts_per_tok", "num_experts_per_token", "moe_topk") or 1, experts)
    one = with_experts * each * narrow
    return _Mlp(dense, experts * one, chosen * one, experts, chosen)


def _biases(shapes: Fields, layers: int, heads: int) -> int:
    if not (shapes.all.get("attention_bias") or shapes.kind in _BIASED):
        return 0
    head_dim = shapes.get("head_dim", shapes.need("hidden_size") // heads)
    return layers * (heads + 2 * shapes.get("num_key_value_heads", heads)) * head_dim
