"""Which series of a model server's page means what: Prometheus text of any engine -> the columns of table `server`.

Ours, and before them those of a user's mapping. Counters stay raw; what the servers tell in other units (blocks, shares
of a pool) is turned into the columns here, and what a page does not tell is left out. No clock, no I/O.
"""

import re
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Pattern, Sequence, Tuple

from remote_agents.agent.prometheus import samples
from remote_agents.agent.sample import TABLES

_OF_THE_SCRAPE = ("t0_mono_ns", "t1_mono_ns", "engine", "render_us", "page_b")
# The columns that a server may fill, and a user's mapping
METRICS = tuple(column.name for column in TABLES["server"] if column.name not in _OF_THE_SCRAPE)


class Series(NamedTuple):
    """Where a column comes from: of one column the first series present counts.

    A column that begins with _ is none of the table's: `_completed` makes others of it.
    """

    column: str
    name: str  # without `_total`
    only: Tuple[str, str] = ("", "")  # a label, and the pattern of its values; a missing one is ""
    combine: Callable[[Iterable[float]], float] = sum
    scale: float = 1
    plus: bool = False  # it counts with the one before it, not instead


_TOTAL = ("priority", "")  # SGLang repeats some series a priority; the empty one is the total
_ENDED_WELL = ("finished_reason", "(?!abort|error|cancelled|timeout).*")
_ENDED_BADLY = ("finished_reason", "abort|error|cancelled|timeout")
_BLOCKS = "nv_trt_llm_kv_cache_block_metrics"
SERIES = (
    Series("running", "vllm:num_requests_running"),
    Series("waiting", "vllm:num_requests_waiting"),
    Series("kv_usage_ratio", "vllm:kv_cache_usage_perc", combine=max),
    Series("kv_usage_ratio", "vllm:gpu_cache_usage_perc", combine=max),
    Series("prefix_queries_tok", "vllm:prefix_cache_queries"),
    Series("prefix_queries_tok", "vllm:gpu_prefix_cache_queries"),
    Series("prefix_hits_tok", "vllm:prefix_cache_hits"),
    Series("prefix_hits_tok", "vllm:gpu_prefix_cache_hits"),
    Series("preemptions", "vllm:num_preemptions"),
    Series("prompt_tokens", "vllm:prompt_tokens"),
    Series("generation_tokens", "vllm:generation_tokens"),
    Series("success", "vllm:request_success", _ENDED_WELL),
    Series("failed", "vllm:request_success", _ENDED_BADLY),
    Series("failed", "vllm:admission_rejections", plus=True),
    # Every tensor-parallel rank of SGLang may repeat the scheduler's series: max, not sum.
    Series("running", "sglang:num_running_reqs", _TOTAL, max),
    Series("waiting", "sglang:num_queue_reqs", _TOTAL, max),
    Series("kv_usage_ratio", "sglang:token_usage", _TOTAL, max),
    Series("kv_pool_b", "sglang:kv_cache_memory_usage_gb", _TOTAL, max, 1 << 30),
    Series("kv_used_tokens", "sglang:kv_used_tokens", _TOTAL, max),
    Series("kv_used_tokens", "sglang:num_used_tokens", _TOTAL, max),
    Series("prefix_hits_tok", "sglang:cached_tokens", _TOTAL),
    Series("_looked_up_tok", "sglang:prompt_tokens", _TOTAL),
    Series("preemptions", "sglang:num_retracted_requests", _TOTAL, max),
    Series("prompt_tokens", "sglang:prompt_tokens", _TOTAL),
    Series("generation_tokens", "sglang:generation_tokens", _TOTAL),
    Series("success", "sglang:num_requests", _TOTAL),
    Series("failed", "sglang:num_aborted_requests", _TOTAL),
    # TGI reserves for a request what it may grow to, and tells that.
    Series("running", "tgi_batch_current_size"),
    Series("waiting", "tgi_queue_size"),
    Series("kv_used_tokens", "tgi_batch_current_max_tokens"),
    Series("_pool_tokens", "tgi_batch_max_total_tokens"),
    Series("prompt_tokens", "tgi_request_input_length_sum"),
    Series("generation_tokens", "tgi_request_generated_tokens_sum"),
    Series("success", "tgi_request_success"),
    Series("failed", "tgi_request_failure"),
    Series("running", "nv_trt_llm_request_metrics", ("request_type", "active")),
    Series("waiting", "nv_trt_llm_request_metrics", ("request_type", "waiting")),
    Series("waiting", "nv_inference_pending_request_count"),
    Series("kv_usage_ratio", _BLOCKS, ("kv_cache_block_type", "fraction"), max),
    Series("_used_blocks", _BLOCKS, ("kv_cache_block_type", "used"), max),
    Series("_block_tokens", _BLOCKS, ("kv_cache_block_type", "tokens_per"), max),
    Series("success", "nv_inference_request_success"),
    Series("failed", "nv_inference_request_failure"),
    Series("running", "trtllm_num_requests_running"),
    Series("waiting", "trtllm_num_requests_waiting"),
    Series("kv_usage_ratio", "trtllm_kv_cache_utilization", combine=max),
    Series("_used_blocks", "trtllm_kv_cache_used_blocks", combine=max),
    Series("_block_tokens", "trtllm_kv_cache_tokens_per_block", combine=max),
    Series("prefix_hits_tok", "trtllm_prompt_cached_tokens"),
    Series("_looked_up_tok", "trtllm_prompt_tokens"),
    Series("prompt_tokens", "trtllm_prompt_tokens"),
    Series("generation_tokens", "trtllm_generation_tokens"),
    Series("success", "trtllm_request_success", _ENDED_WELL),
    Series("failed", "trtllm_request_success", _ENDED_BADLY),
    Series("failed", "trtllm_request_error", plus=True),
    Series("running", "llamacpp:requests_processing"),
    Series("waiting", "llamacpp:requests_deferred"),
    Series("kv_usage_ratio", "llamacpp:kv_cache_usage_ratio", combine=max),
    Series("kv_used_tokens", "llamacpp:kv_cache_tokens"),
    Series("prefix_hits_tok", "llamacpp:prompt_tokens_cached"),
    Series("_computed_tok", "llamacpp:prompt_tokens"),  # what was found in the cache is not in it
    Series("prompt_tokens", "llamacpp:prompt_tokens"),
    Series("generation_tokens", "llamacpp:tokens_predicted"),
)
_CACHE_CONFIG = "vllm:cache_config_info"  # its labels say how large the KV cache is, or "None"

_CACHE_SIZES = {
    "kv_cache_memory_bytes": "kv_pool_b",
    "kv_cache_size_tokens": "_pool_tokens",
    "num_gpu_blocks": "",
    "block_size": "",
}

# name of a series -> what it fills: (rank among those of its column, series, pattern of its label)
Known = Dict[str, List[Tuple[int, Series, Pattern[str]]]]


def known_series(all_series: Iterable[Series]) -> Known:
    rank = 0
    known: Known = {_CACHE_CONFIG: []}
    for series in all_series:
        rank += not series.plus
        known.setdefault(series.name, []).append((rank, series, re.compile(series.only[1])))
    return known


def mapped_series(mapping: Iterable[Sequence[Any]]) -> List[Series]:
    """Of a user's rows (column, name, (label, value) or None, sum|max, scale)."""
    result = []
    for column, name, label, combine, scale in mapping:
        name = name[: -len("_total")] if name.endswith("_total") else name
        only = (label[0], re.escape(label[1])) if label else ("", "")
        result.append(Series(column, name, only, max if combine == "max" else sum, scale))
    return result


BUILT_IN = known_series(SERIES)


def read_text(text: str, known: Known = BUILT_IN) -> Iterator[Tuple[str, Dict[str, str], float]]:
    """(name without `_total`, labels, value) of the known series of a page. Raises ValueError."""
    return samples(text, known)


def server_values(text: str, known: Known = BUILT_IN) -> Dict[str, Dict[str, float]]:
    """Engine -> column -> value; empty when no known series is in the text. Raises ValueError."""
    found: Dict[Tuple[str, str], Tuple[int, Series, List[float]]] = {}
    sizes: Dict[str, Dict[str, float]] = {}
    for name, labels, value in read_text(text, known):
        engine = labels.get("engine", labels.get("dp_rank", ""))
        if name == _CACHE_CONFIG:
            sizes[engine] = _cache_sizes(labels)
        for rank, series, pattern in known[name]:
            if pattern.fullmatch(labels.get(series.only[0], "")):
                best, _, numbers = found.get((engine, series.column), (rank, series, []))
                if rank <= best:
                    numbers = [*numbers, value] if rank == best else [value]
                    found[engine, series.column] = (rank, series, numbers)
    values = sizes
    for (engine, column), (_, series, numbers) in found.items():
        values.setdefault(engine, {})[column] = series.combine(numbers) * series.scale
    completed = {engine: _completed(columns) for engine, columns in values.items()}
    return {engine: columns for engine, columns in completed.items() if columns}


def _cache_sizes(labels: Dict[str, str]) -> Dict[str, float]:
    """What vLLM's configuration says; of a hybrid model only newer ones tell the tokens, blocks are of more kinds."""
    told = {name: int(text) for name, text in labels.items() if name in _CACHE_SIZES and text.isdigit()}
    if "num_gpu_blocks" in told and "block_size" in told:
        told.setdefault("kv_cache_size_tokens", told["num_gpu_blocks"] * told["block_size"])
    return {_CACHE_SIZES[name]: size for name, size in told.items() if _CACHE_SIZES[name]}


def _completed(values: Dict[str, float]) -> Dict[str, float]:
    """The table's columns, those too that follow from others: a server tells a size in blocks, tokens or a share."""
    hits, used, ratio = (values.get(name) for name in ("prefix_hits_tok", "kv_used_tokens", "kv_usage_ratio"))
    pool = values.get("_pool_tokens")
    if hits is not None and "_looked_up_tok" in values:
        values.setdefault("prefix_queries_tok", values["_looked_up_tok"])
    elif hits is not None and "_computed_tok" in values:
        values.setdefault("prefix_queries_tok", values["_computed_tok"] + hits)
    if used is None and "_used_blocks" in values and "_block_tokens" in values:
        values["kv_used_tokens"] = values["_used_blocks"] * values["_block_tokens"]
    elif used is None and ratio is not None and pool is not None:
        values["kv_used_tokens"] = ratio * pool
    elif used is not None and ratio is None and pool:
        values["kv_usage_ratio"] = used / pool
    return {column: value for column, value in values.items() if column[0] != "_"}
