from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest
from conftest import Sent, Site, until

from remote_agents.agent.prometheus import Page
from remote_agents.agent.protocol import EVENT, SAMPLE
from remote_agents.agent.sample import TABLES
from remote_agents.agent.server_metrics import rows, scrape
from remote_agents.agent.server_series import METRICS, SERIES, known_series, mapped_series, server_values

VLLM = """# HELP python_info Python platform information
# TYPE python_info gauge
python_info{implementation="CPython",major="3",minor="12"} 1.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="meta-llama/Llama-3.1-8B"} 7.0
vllm:num_requests_running{engine="1",model_name="meta-llama/Llama-3.1-8B"} 5.0
vllm:num_requests_waiting{engine="0",model_name="meta-llama/Llama-3.1-8B"} 2.0
vllm:num_requests_waiting{engine="1",model_name="meta-llama/Llama-3.1-8B"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="meta-llama/Llama-3.1-8B"} 0.4375
vllm:kv_cache_usage_perc{engine="1",model_name="meta-llama/Llama-3.1-8B"} 0.25
# an old name beside the new one must not count twice
vllm:gpu_cache_usage_perc{engine="0",model_name="meta-llama/Llama-3.1-8B"} 0.99
vllm:num_preemptions_total{engine="0",model_name="meta-llama/Llama-3.1-8B"} 3.0
vllm:num_preemptions_created{engine="0",model_name="meta-llama/Llama-3.1-8B"} 1.7e+09
vllm:prompt_tokens_total{engine="0",model_name="meta-llama/Llama-3.1-8B"} 1.048576e+06
vllm:generation_tokens_total{engine="0",model_name="meta-llama/Llama-3.1-8B"} 65536.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="meta-llama/Llama-3.1-8B"} 90.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="meta-llama/Llama-3.1-8B"} 10.0
vllm:request_success_total{engine="0",finished_reason="abort",model_name="meta-llama/Llama-3.1-8B"} 4.0
vllm:request_success_total{engine="0",finished_reason="error",model_name="meta-llama/Llama-3.1-8B"} 1.0
vllm:admission_rejections_total{engine="0",model_name="meta-llama/Llama-3.1-8B",reason="max_num_queued_reqs"} 2.0
vllm:prefix_cache_queries_total{engine="0",model_name="meta-llama/Llama-3.1-8B"} 1.048576e+06
vllm:prefix_cache_hits_total{engine="0",model_name="meta-llama/Llama-3.1-8B"} 524288.0
# the names of 0.8 to 0.10 for the same must not count twice
vllm:gpu_prefix_cache_queries_total{engine="0",model_name="meta-llama/Llama-3.1-8B"} 1.048576e+06
vllm:external_prefix_cache_queries_total{engine="0",model_name="meta-llama/Llama-3.1-8B"} 7.0
vllm:cache_config_info{block_size="16",engine="0",kv_cache_memory_bytes="21474836480",num_gpu_blocks="8192"} 1.0
vllm:cache_config_info{block_size="16",engine="1",kv_cache_memory_bytes="None",num_gpu_blocks="8192"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="meta-llama/Llama-3.1-8B"} 0.0
"""
# A hybrid model: blocks of several kinds, so that blocks x block_size is not the number of tokens.
VLLM_HYBRID = """vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:cache_config_info{block_size="8",engine="0",kv_cache_size_tokens="463459",num_gpu_blocks="320"} 1.0
"""
VLLM_V0 = """vllm:num_requests_running{model_name="m"} 1.0
vllm:gpu_cache_usage_perc{model_name="m"} 0.125
vllm:num_preemptions_total{model_name="m"} 0.0
"""
SGLANG = """# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="qwen",pp_rank="0",tp_rank="0"} 9.0
sglang:num_running_reqs{engine_type="unified",model_name="qwen",pp_rank="0",tp_rank="1"} 9.0
sglang:num_running_reqs{engine_type="unified",model_name="qwen",pp_rank="0",priority="1",tp_rank="0"} 4.0
sglang:num_queue_reqs{engine_type="unified",model_name="qwen",pp_rank="0",priority="",tp_rank="0"} 3.0
sglang:token_usage{engine_type="unified",model_name="qwen",pp_rank="0",tp_rank="0"} 0.85
sglang:kv_cache_memory_usage_gb{engine_type="unified",model_name="qwen",pp_rank="0",tp_rank="0"} 20.5
sglang:num_retracted_requests_total{model_name="qwen",tp_rank="0"} 48.0
sglang:num_retracted_reqs{model_name="qwen",tp_rank="0"} 1.0
sglang:prompt_tokens_total{is_streaming="true",model_name="qwen"} 100.0
sglang:prompt_tokens_total{is_streaming="false",model_name="qwen"} 11.0
sglang:generation_tokens_total{model_name="qwen"} 7.57e+06
sglang:num_requests_total{model_name="qwen"} 108.0
sglang:num_aborted_requests_total{model_name="qwen"} 3.0
sglang:kv_used_tokens{engine_type="unified",model_name="qwen",pp_rank="0",tp_rank="0"} 85000.0
sglang:kv_evictable_tokens{engine_type="unified",model_name="qwen",pp_rank="0",tp_rank="0"} 5000.0
sglang:num_used_tokens{engine_type="unified",model_name="qwen",pp_rank="0",tp_rank="0"} 90000.0
sglang:cached_tokens_total{cache_source="device",model_name="qwen"} 30.0
sglang:cached_tokens_total{cache_source="host",model_name="qwen"} 4.0
"""
TGI = """# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 8
tgi_queue_size 5
tgi_batch_current_max_tokens 2048
tgi_batch_max_total_tokens 8192
# TYPE tgi_request_success counter
tgi_request_success 250
tgi_request_failure{err="validation"} 2
tgi_request_failure{err="overloaded"} 5
# speculated tokens, not cached ones
tgi_request_skipped_tokens_sum 17
# TYPE tgi_request_generated_tokens histogram
tgi_request_generated_tokens_bucket{le="1"} 0
tgi_request_generated_tokens_sum 64000
tgi_request_generated_tokens_count 250
tgi_request_input_length_sum 32000
"""
TRITON = """# TYPE nv_inference_request_success counter
nv_inference_request_success{model="ensemble",version="1"} 12
nv_inference_request_success{model="bert",version="1"} 30
nv_inference_request_failure{model="bert",reason="REJECTED",version="1"} 2
nv_inference_request_failure{model="bert",reason="OTHER",version="1"} 1
nv_cache_num_hits_per_model{model="bert",version="1"} 9
nv_inference_pending_request_count{model="bert",version="1"} 4
nv_gpu_utilization{gpu_uuid="GPU-1"} 0.5
"""
TRITON_TRTLLM = """nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 2
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 512
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 3
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 1
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="tensorrt_llm",version="1"} 0.25
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="tensorrt_llm",version="1"} 1560
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per",model="tensorrt_llm",version="1"} 64
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm",version="1"} 6239
nv_inference_pending_request_count{model="tensorrt_llm",version="1"} 99
"""
TRTLLM = """trtllm_num_requests_running{engine_type="trtllm",model_name="m"} 4.0
trtllm_num_requests_waiting{engine_type="trtllm",model_name="m"} 6.0
trtllm_kv_cache_utilization{engine_type="trtllm",model_name="m"} 0.5
trtllm_kv_cache_used_blocks{engine_type="trtllm",model_name="m"} 100.0
trtllm_kv_cache_tokens_per_block{engine_type="trtllm",model_name="m"} 32.0
trtllm_prompt_tokens_total{engine_type="trtllm",model_name="m"} 5000.0
trtllm_generation_tokens_total{engine_type="trtllm",model_name="m"} 700.0
trtllm_prompt_cached_tokens_total{engine_type="trtllm",model_name="m"} 1024.0
# of which, by tier: not once more
trtllm_prompt_cache_hit_tokens_total{cache_level="0",cache_tier="gpu",engine_type="trtllm",model_name="m"} 1024.0
trtllm_request_success_total{engine_type="trtllm",finished_reason="stop",model_name="m"} 20.0
trtllm_request_success_total{engine_type="trtllm",finished_reason="cancelled",model_name="m"} 3.0
trtllm_request_error_total{engine_type="trtllm",http_code="400",model_name="m"} 1.0
"""
LLAMA_CPP = """# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 42
llamacpp:prompt_tokens_cached_total 58
llamacpp:prompt_seconds_total 1.5
llamacpp:tokens_predicted_total 17
llamacpp:tokens_predicted_seconds_total 2
llamacpp:requests_processing 1
llamacpp:requests_deferred 2
llamacpp:n_tokens_max 2048
"""
LLAMA_CPP_OLD = "llamacpp:requests_processing 1\nllamacpp:kv_cache_usage_ratio 0.25\nllamacpp:kv_cache_tokens 512\n"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (
            VLLM,
            {
                "0": {
                    "running": 7,
                    "waiting": 2,
                    "kv_usage_ratio": 0.4375,
                    "kv_pool_b": 20 << 30,
                    "preemptions": 3,
                    "prompt_tokens": 1048576,
                    "generation_tokens": 65536,
                    "success": 100,
                    "failed": 7,
                    "prefix_queries_tok": 1048576,
                    "prefix_hits_tok": 524288,
                    "kv_used_tokens": 57344,
                },
                "1": {"running": 5, "waiting": 0, "kv_usage_ratio": 0.25, "kv_used_tokens": 32768},
            },
        ),
        (VLLM_HYBRID, {"0": {"kv_usage_ratio": 0.5, "kv_used_tokens": 231729.5}}),
        (VLLM_V0, {"": {"running": 1, "kv_usage_ratio": 0.125, "preemptions": 0}}),
        (
            SGLANG,
            {
                "": {
                    "running": 9,
                    "waiting": 3,
                    "kv_usage_ratio": 0.85,
                    "kv_pool_b": 20.5 * (1 << 30),
                    "preemptions": 48,
                    "prompt_tokens": 111,
                    "generation_tokens": 7_570_000,
                    "success": 108,
                    "failed": 3,
                    "kv_used_tokens": 85_000,
                    "prefix_hits_tok": 34,
                    "prefix_queries_tok": 111,
                }
            },
        ),
        (
            TGI,
            {
                "": {
                    "running": 8,
                    "waiting": 5,
                    "success": 250,
                    "failed": 7,
                    "generation_tokens": 64000,
                    "prompt_tokens": 32000,
                    "kv_used_tokens": 2048,
                    "kv_usage_ratio": 0.25,
                }
            },
        ),
        (TRITON, {"": {"waiting": 4, "success": 42, "failed": 3}}),
        (TRITON_TRTLLM, {"": {"running": 3, "waiting": 1, "kv_usage_ratio": 0.25, "kv_used_tokens": 99840}}),
        (
            TRTLLM,
            {
                "": {
                    "running": 4,
                    "waiting": 6,
                    "kv_usage_ratio": 0.5,
                    "kv_used_tokens": 3200,
                    "prompt_tokens": 5000,
                    "generation_tokens": 700,
                    "prefix_queries_tok": 5000,
                    "prefix_hits_tok": 1024,
                    "success": 20,
                    "failed": 4,
                }
            },
        ),
        (
            LLAMA_CPP,
            {
                "": {
                    "running": 1,
                    "waiting": 2,
                    "prompt_tokens": 42,
                    "generation_tokens": 17,
                    "prefix_hits_tok": 58,
                    "prefix_queries_tok": 100,
                }
            },
        ),
        (LLAMA_CPP_OLD, {"": {"running": 1, "kv_usage_ratio": 0.25, "kv_used_tokens": 512}}),
        ('vllm:cache_config_info{kv_cache_memory_bytes="None"} 1\n', {}),
        ("<html><body>vllm:num_requests_running</body></html>", {}),
        ("", {}),
    ],
)
def test_engines(text: str, values: dict[str, dict[str, float]]) -> None:
    assert server_values(text) == values


def test_data_parallel_ranks_of_sglang_are_rows() -> None:
    text = 'sglang:num_running_reqs{dp_rank="0",tp_rank="0"} 3\nsglang:num_running_reqs{dp_rank="1",tp_rank="0"} 4\n'
    assert server_values(text) == {"0": {"running": 3}, "1": {"running": 4}}


def test_oddities_of_the_text() -> None:
    text = 'vllm:num_requests_running{a="x}y",b="say \\"hi\\" 1"} 2 1700000000000\nvllm:num_requests_waiting NaN\n'
    assert server_values(text) == {"": {"running": 2}}
    assert server_values('"llamacpp:requests_processing 3\\n"') == {"": {"running": 3}}  # a page sent as a JSON string
    assert server_values("vllm:num_requests_running\nvllm:num_requests_waiting many\n# EOF\n") == {}
    with_exemplar = 'vllm:prompt_tokens_total{engine="0"} 17.0 # {trace_id="4bf9"} 1.0 1700000000.5\n'
    assert server_values(with_exemplar) == {"0": {"prompt_tokens": 17}}  # as OpenMetrics may have it


A_PAGE = Page("", 4096, 1_000, 3_000_000, 3500, 2900)


def test_rows_are_in_column_order_with_whole_bytes() -> None:
    table = rows(server_values(SGLANG), A_PAGE)
    row = dict(zip([column.name for column in TABLES["server"]], table[0], strict=True))
    assert (row["t0_mono_ns"], row["t1_mono_ns"], row["engine"]) == (1_000, 3_000_000, "")
    assert (row["render_us"], row["page_b"]) == (3500, 4096)
    assert row["kv_pool_b"] == int(20.5 * (1 << 30))
    assert isinstance(row["kv_pool_b"], int)
    [triton] = rows(server_values(TRITON), A_PAGE)
    assert triton[[column.name for column in TABLES["server"]].index("kv_usage_ratio")] is None


def test_every_series_fills_a_column_of_the_table() -> None:
    assert {series.column for series in SERIES if series.column[0] != "_"} == set(METRICS)


def test_a_mapping_comes_before_what_we_know() -> None:
    mapping = [
        ["running", "my_active", ["state", "busy|idle"], "max", 2.0],
        ["waiting", "vllm:num_requests_swapped", None, "sum", 1],
        ["prompt_tokens", "my_prompt_tokens_total", None, "sum", 1],
        ["success", "never_there", None, "sum", 1],
    ]
    known = known_series((*mapped_series(mapping), *SERIES))
    text = """my_active{state="busy|idle",shard="0"} 3
my_active{state="busy|idle",shard="1"} 5
my_active{state="busy"} 99
my_prompt_tokens_total 7
vllm:num_requests_running 1
vllm:num_requests_waiting 1
vllm:num_requests_swapped 4
vllm:request_success_total 6
"""
    assert server_values(text, known) == {"": {"running": 10, "waiting": 4, "prompt_tokens": 7, "success": 6}}
    assert server_values("vllm:num_requests_waiting 1\n", known) == {"": {"waiting": 1}}  # ours, where theirs is not


MS = 1_000_000


def scraping(site: Site, sent: Sent, path: str = "/metrics", token: str | None = None, **arguments: Any) -> None:
    mapping = arguments.pop("mapping", [])
    threading.Thread(
        target=scrape, args=(site.url + path, token, mapping, sent.outbox), kwargs=arguments, daemon=True
    ).start()


def test_scraping_goes_on_through_a_restart_of_the_server(site: Site, sent: Sent) -> None:
    site.pages["/metrics"] = (200, VLLM, 0)
    scraping(site, sent, token="secret", period_ns=50 * MS)
    until(lambda: len(site.asked) >= 3)
    site.pages["/metrics"] = (503, "starting", 0)
    until(lambda: len(site.asked) >= 5)
    site.pages["/metrics"] = (200, LLAMA_CPP, 0)
    until(lambda: len(site.asked) >= 8)
    assert set(site.asked) == {("/metrics", "Bearer secret")}
    frames = sent.frames()
    events = [frame.body for frame in frames if frame.kind == EVENT]
    assert [event["kind"] for event in events] == ["server_metrics", "no_server_metrics", "server_metrics"]
    url = site.url + "/metrics"
    assert events[0]["text"] == (
        f"server metrics found at {url}: running, waiting, kv_usage_ratio, kv_pool_b, kv_used_tokens, "
        "prefix_queries_tok, prefix_hits_tok, preemptions, prompt_tokens, generation_tokens, success, failed"
    )
    assert events[1]["text"] == f"no server metrics at {url}: status 503"
    assert events[2]["text"].endswith(
        "; without kv_usage_ratio, kv_pool_b, kv_used_tokens, preemptions, success, failed"
    )
    assert "secret" not in str(events)
    samples = [frame.body for frame in frames if frame.kind == SAMPLE]
    assert [len(rows) for _, _, rows in samples[:2]] == [2, 2]
    assert len(samples[-1][2]) == 1


@pytest.mark.parametrize(
    ("page", "token", "said"),
    [
        (
            (404, "", 0),
            None,
            "status 404: switch metrics on (llama.cpp: --metrics, SGLang: --enable-metrics), say where",
        ),
        ((401, "", 0), None, "it asks for a key (status 401): --api-key-env names the variable that has it"),
        ((403, "", 0), "wrong", "it refuses the key (status 403): --api-key-env names the variable that has it"),
        ((200, "<!DOCTYPE html><html>", 0), None, "it is a web page, no Prometheus text: switch metrics on"),
        ((200, '{"detail": "x"}', 0), None, "it is JSON, no Prometheus text: "),
        ((200, '"llamacpp:requests_processing 3', 0), None, "it is JSON, no Prometheus text: "),
        ((200, '# only\nvllm:renamed 1\nvllm:also{a="b"} 1\nvllm:also{a="c"} 1\n', 0), None, "none of its 2 series is"),
        ((200, "", 0), None, "none of its 0 series is known: "),
    ],
)
def test_a_page_without_figures_is_said_once_and_left_alone(
    site: Site, sent: Sent, page: tuple[int, str, float], token: str | None, said: str
) -> None:
    site.pages["/metrics"] = page
    scraping(site, sent, token=token, period_ns=10 * MS)
    [event] = until(sent.events)
    assert event["kind"] == "no_server_metrics"
    assert event["text"].startswith(f"no server metrics at {site.url}/metrics: {said}")
    time.sleep(0.1)
    assert len(site.asked) == 1
    assert not sent.events()


def test_a_page_that_is_too_long_is_said(site: Site, sent: Sent) -> None:
    site.pages["/metrics"] = (200, "x" * ((16 << 20) + 1), 0)
    scraping(site, sent)
    [event] = until(sent.events)
    assert event["text"].endswith("its answer cannot be used (the answer is longer than 16 MiB)")


def test_a_long_page_is_read_whole(site: Site, sent: Sent) -> None:
    filler = "".join(f'vllm:time_to_first_token_seconds_bucket{{engine="0",le="{n}"}} 0.0\n' for n in range(50_000))
    site.pages["/metrics"] = (200, filler + "vllm:num_requests_running 3\n", 0)
    scraping(site, sent)
    [row] = until(lambda: sent.rows("server"))
    named = dict(zip([column.name for column in TABLES["server"]], row, strict=True))
    assert named["running"] == 3
    assert named["page_b"] == len(filler) + 28
    assert named["t0_mono_ns"] < named["t1_mono_ns"] <= named["t0_mono_ns"] + 1000 * (named["render_us"] + 1)


def test_a_server_that_is_not_there_yet_is_asked_again_every_second(sent: Sent) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}/metrics"
    threading.Thread(target=scrape, args=(url, None, [], sent.outbox, 20 * MS), daemon=True).start()
    [event] = until(sent.events)
    assert event["text"] == f"no server metrics at {url}: it cannot be reached (Connection refused)"
    with socket.create_server(("127.0.0.1", port)) as late:
        connection, _ = late.accept()
        connection.recv(1000)
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(TGI)}\r\n\r\n{TGI}".encode())
        [event] = until(sent.events)
    assert event["kind"] == "server_metrics"
    connection.close()


def test_a_page_that_costs_the_server_much_is_asked_for_less_often(site: Site, sent: Sent) -> None:
    site.pages["/metrics"] = (200, TGI, 0.015)
    scraping(site, sent, period_ns=30 * MS, backed_off_ns=100 * MS)
    texts: list[str] = []

    def said(text: str) -> bool:
        texts.extend(event["text"] for event in sent.events())
        return bool(texts) and texts[-1] == text

    until(lambda: said("server metrics take more than 10 ms: read every 5 s"))
    site.pages["/metrics"] = (200, TGI, 0)
    until(lambda: said("server metrics are fast again: read every second"))
    assert len(texts) == 3


def test_of_a_mapping_what_is_not_on_the_page_is_said(site: Site, sent: Sent) -> None:
    site.pages["/metrics"] = (200, TGI + "mine 3\n", 0)
    scraping(site, sent, mapping=[["success", "mine", None, "sum", 1], ["failed", "mien", None, "sum", 1]])
    assert until(sent.events)[0]["text"].endswith("; of the mapping, not on the page: mien (failed)")


def test_redirects_stay_on_the_server(site: Site, sent: Sent) -> None:
    site.redirects["/metrics"] = "/metrics/"
    site.pages["/metrics/"] = (200, TGI, 0)
    scraping(site, sent)
    got: list[Any] = until(lambda: sent.rows("server"))
    assert got[0][5] == 8
    site.redirects["/away"] = "http://127.0.0.1:9/metrics"
    scraping(site, sent, "/away")
    assert "status 307" in until(sent.events)[0]["text"]
