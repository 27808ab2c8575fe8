"""The model server's own figures: Prometheus text of any engine -> the columns of table `server`, once a second.

Here: which series means what, and the scraping thread. Rendering the page costs the server time, so each scrape is
timed, and one that is slow again and again is asked for less often. Stamps are CLOCK_MONOTONIC ns around the scrape;
counters stay raw; a row per engine (data-parallel rank), an engine without that label is "".
"""

import json
import math
import re
import time
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

from remote_agents.agent.fetch import FETCH_ERRORS, Fetcher
from remote_agents.agent.outbox import Outbox
from remote_agents.agent.pace import SLOW_NS, Pace
from remote_agents.agent.sample import TABLES

SLOW_RENDER_US = 10_000
SLOW_IN_A_ROW = 5
BACKED_OFF_NS = 5_000_000_000
REPROBE_NS = 60_000_000_000


class Series(NamedTuple):
    """Where a column comes from: of one column the first series present counts."""

    column: str
    name: str  # without `_total`
    only: Tuple[str, str] = ("", "")  # a label that it must have; a missing one is ""
    combine: Callable[[Iterable[float]], float] = sum
    scale: float = 1


_TOTAL = ("priority", "")  # SGLang repeats some series a priority; the empty one is the total
SERIES = (
    Series("running", "vllm:num_requests_running"),
    Series("waiting", "vllm:num_requests_waiting"),
    Series("kv_usage_ratio", "vllm:kv_cache_usage_perc", combine=max),
    Series("kv_usage_ratio", "vllm:gpu_cache_usage_perc", combine=max),
    Series("preemptions", "vllm:num_preemptions"),
    Series("prompt_tokens", "vllm:prompt_tokens"),
    Series("generation_tokens", "vllm:generation_tokens"),
    Series("success", "vllm:request_success"),
    # Every tensor-parallel rank of SGLang may repeat the scheduler's series: max, not sum.
    Series("running", "sglang:num_running_reqs", _TOTAL, max),
    Series("waiting", "sglang:num_queue_reqs", _TOTAL, max),
    Series("kv_usage_ratio", "sglang:token_usage", _TOTAL, max),
    Series("kv_pool_b", "sglang:kv_cache_memory_usage_gb", _TOTAL, max, 1 << 30),
    Series("preemptions", "sglang:num_retracted_requests", _TOTAL, max),
    Series("prompt_tokens", "sglang:prompt_tokens", _TOTAL),
    Series("generation_tokens", "sglang:generation_tokens", _TOTAL),
    Series("success", "sglang:num_requests", _TOTAL),
    Series("running", "tgi_batch_current_size"),
    Series("waiting", "tgi_queue_size"),
    Series("prompt_tokens", "tgi_request_input_length_sum"),
    Series("generation_tokens", "tgi_request_generated_tokens_sum"),
    Series("success", "tgi_request_success"),
    Series("running", "nv_trt_llm_request_metrics", ("request_type", "active")),
    Series("waiting", "nv_trt_llm_request_metrics", ("request_type", "waiting")),
    Series("waiting", "nv_inference_pending_request_count"),
    Series("kv_usage_ratio", "nv_trt_llm_kv_cache_block_metrics", ("kv_cache_block_type", "fraction"), max),
    Series("success", "nv_inference_request_success"),
    Series("running", "trtllm_num_requests_running"),
    Series("waiting", "trtllm_num_requests_waiting"),
    Series("kv_usage_ratio", "trtllm_kv_cache_utilization", combine=max),
    Series("success", "trtllm_request_success"),
    Series("running", "llamacpp:requests_processing"),
    Series("waiting", "llamacpp:requests_deferred"),
    Series("kv_usage_ratio", "llamacpp:kv_cache_usage_ratio", combine=max),
    Series("prompt_tokens", "llamacpp:prompt_tokens"),
    Series("generation_tokens", "llamacpp:tokens_predicted"),
)
_CACHE_CONFIG = "vllm:cache_config_info"  # its label kv_cache_memory_bytes is the size of the pool, or "None"
_WANTED = {series.name for series in SERIES} | {_CACHE_CONFIG}
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


def read_text(text: str) -> Iterator[Tuple[str, Dict[str, str], float]]:
    """(name without `_total`, labels, value) of the wanted series of a Prometheus or OpenMetrics text."""
    if text.startswith('"'):  # llama.cpp once sent its page as a JSON string
        text = json.loads(text)
    for line in text.splitlines():
        name = line.partition(" ")[0].partition("{")[0]
        name = name[: -len("_total")] if name.endswith("_total") else name
        if name not in _WANTED:
            continue
        labels, closed, rest = line.rpartition("}")
        words = (rest if closed else line.partition(" ")[2]).split()
        try:
            value = float(words[0])
        except (IndexError, ValueError):
            continue
        if math.isfinite(value):
            yield name, dict(_LABEL.findall(labels)), value


def server_values(text: str) -> Dict[str, Dict[str, Any]]:
    """Engine -> column -> value; empty when no known series is in the text. Raises ValueError."""
    found: Dict[Tuple[str, str], Tuple[int, List[float]]] = {}
    values: Dict[str, Dict[str, Any]] = {}
    for name, labels, value in read_text(text):
        engine = labels.get("engine", labels.get("dp_rank", ""))
        if name == _CACHE_CONFIG and labels.get("kv_cache_memory_bytes", "").isdigit():
            values.setdefault(engine, {})["kv_pool_b"] = int(labels["kv_cache_memory_bytes"])
        for rank, series in enumerate(SERIES):
            if series.name == name and labels.get(series.only[0], "") == series.only[1]:
                best, numbers = found.get((engine, series.column), (rank, []))
                if rank <= best:
                    found[engine, series.column] = (rank, [*numbers, value] if rank == best else [value])
    for (engine, column), (rank, numbers) in found.items():
        values.setdefault(engine, {})[column] = SERIES[rank].combine(numbers) * SERIES[rank].scale
    return values


def rows(values: Dict[str, Dict[str, Any]], t0_ns: int, t1_ns: int) -> List[List[Any]]:
    """Rows of table `server`."""
    known = {"t0_mono_ns": t0_ns, "t1_mono_ns": t1_ns, "render_us": (t1_ns - t0_ns) // 1000}
    table = []
    for engine in sorted(values):
        row = dict(values[engine], engine=engine, **known)
        cells = [(row.get(column.name), column.type) for column in TABLES["server"]]
        table.append([int(cell) if kind == "int64" and cell is not None else cell for cell, kind in cells])
    return table


def scrape(url: str, token: Optional[str], outbox: Outbox) -> None:
    """Thread body, never returns."""
    fetcher = Fetcher(url, token)
    pace = Pace(SLOW_NS)
    problem: Optional[str] = None
    slow = 0
    found = backed_off = False
    while True:
        pace.wait()
        t0_ns = time.monotonic_ns()
        before = problem
        pause_ns = SLOW_NS
        try:
            status, body = fetcher.get()
            t1_ns = time.monotonic_ns()
            values = server_values(body.decode(errors="replace")) if status == 200 else {}
            problem = None if values else "no known series in it" if status == 200 else f"status {status}"
            if problem and not found:  # a server that has metrics is only restarting or overloaded
                pause_ns = REPROBE_NS
        except (*FETCH_ERRORS, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem is None:
            found = True
            if before is not None:
                outbox.event("server_metrics", f"server metrics found at {url}")
            outbox.sample("server", rows(values, t0_ns, t1_ns))
            is_slow = (t1_ns - t0_ns) // 1000 > SLOW_RENDER_US
            slow = slow + 1 if is_slow != backed_off else 0
            if slow >= SLOW_IN_A_ROW:
                backed_off, slow = is_slow, 0
                text = "take more than 10 ms: read every 5 s" if is_slow else "are fast again: read every second"
                outbox.event("server_metrics", "server metrics " + text, render_us=(t1_ns - t0_ns) // 1000)
                pace = Pace(BACKED_OFF_NS if backed_off else SLOW_NS)
                pace.wait()
            continue
        if before is None:
            outbox.event("no_server_metrics", f"no server metrics at {url}: {problem}")
        if pause_ns > SLOW_NS:
            time.sleep(pause_ns / 1e9)
