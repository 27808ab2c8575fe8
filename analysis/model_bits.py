"""Bits a value of a model: of its data type, of weights that are quantized, of its KV cache. Pure.

A data type that is not known is an error where weights have it: nothing follows from such a config. Where the KV cache
has it, its size alone is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BITS = {
    **dict.fromkeys(("float32", "float", "fp32"), 32.0),
    **dict.fromkeys(("float16", "half", "fp16", "bfloat16", "bf16", "auto"), 16.0),
    **dict.fromkeys(("fp8", "fp8_e4m3", "fp8_e5m2", "float8_e4m3fn", "float8_e5m2", "int8"), 8.0),
}
# Bits a weight of formats that the config names without telling their width, scales of a block included.
_FORMATS = {"fp8": 8.0, "fbgemm_fp8": 8.0, "mxfp4": 4.25, "nvfp4": 4.5}


def type_bits(dtype: object) -> float:
    """Of a data type by name; without one, 16. Raises ValueError."""
    if dtype is None:
        return 16.0
    bits = _named(dtype)
    if bits is None:
        raise ValueError(f"has the data type {dtype!r}, which is unknown")
    return bits


def _named(dtype: object) -> float | None:
    return _BITS.get(str(dtype).removeprefix("torch.").lower())


def quantized_bits(quantized: Mapping[str, Any]) -> float:
    """Bits a weight with the scales of its group. Raises ValueError when it does not say."""
    for name in (quantized.get("quant_algo"), quantized.get("quant_method"), quantized.get("fmt")):
        if (known := _FORMATS.get(str(name).lower())) is not None:
            return known
    if quantized.get("load_in_4bit") or quantized.get("load_in_8bit"):
        return 4.5 if quantized.get("load_in_4bit") else 8.0
    groups = quantized.get("config_groups")
    told = [group["weights"] for group in groups.values() if _has_weights(group)] if isinstance(groups, dict) else []
    bits, group = (
        (told[0].get("num_bits"), told[0].get("group_size"))
        if told
        else (quantized.get("bits") or quantized.get("w_bit"), quantized.get("group_size"))
    )
    if isinstance(bits, bool) or not isinstance(bits, int | float) or not 1 <= bits <= 32:
        raise ValueError(f"has a quantization_config ({quantized.get('quant_method')!r}) that does not tell its bits")
    per_group = group if isinstance(group, int) and group > 0 else None
    return bits + ((16 + bits) / per_group if per_group and bits < 8 else 0.0)


def _has_weights(group: object) -> bool:
    return isinstance(group, dict) and isinstance(group.get("weights"), dict)


def cache_bits(
    fields: Mapping[str, Any], outer: Mapping[str, Any], quantized: object, bits: float
) -> tuple[float | None, str | None]:
    """Of the KV cache: as it is told to be, else in 16 bits as weights that are not quantized are.

    None, and what the config has, when it is told to be something unknown.
    """
    told = fields.get("kv_cache_dtype") or outer.get("kv_cache_dtype")
    if told is None and isinstance(quantized, dict):
        scheme = quantized.get("kv_cache_scheme")
        told = quantized.get("kv_cache_quant_algo") or (isinstance(scheme, dict) and "fp8") or None
    if told in (None, "auto"):
        return max(bits, 16.0), None
    known = _named(told)
    return known, None if known else f"has a KV cache in the data type {told!r}, which is unknown"
