from __future__ import annotations

import threading
from typing import Any

import pytest
from conftest import Sent, Site, until

from remote_agents.agent import server_metrics
from remote_agents.agent.protocol import EVENT, SAMPLE
from remote_agents.agent.sample import TABLES
from remote_agents.agent.server_metrics import SERIES, rows, scrape, server_values

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
vllm:cache_config_info{block_size="16",engine="0",kv_cache_memory_bytes="21474836480",num_gpu_blocks="8192"} 1.0
vllm:cache_config_info{block_size="16",engine="1",kv_cache_memory_bytes="None",num_gpu_blocks="8192"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="meta-llama/Llama-3.1-8B"} 0.0
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
"""
TGI = """# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 8
tgi_queue_size 5
tgi_batch_current_max_tokens 2048
# TYPE tgi_request_success counter
tgi_request_success 250
# TYPE tgi_request_generated_tokens histogram
tgi_request_generated_tokens_bucket{le="1"} 0
tgi_request_generated_tokens_sum 64000
tgi_request_generated_tokens_count 250
tgi_request_input_length_sum 32000
"""
TRITON = """# TYPE nv_inference_request_success counter
nv_inference_request_success{model="ensemble",version="1"} 12
nv_inference_request_success{model="bert",version="1"} 30
nv_inference_pending_request_count{model="bert",version="1"} 4
nv_gpu_utilization{gpu_uuid="GPU-1"} 0.5
"""
TRITON_TRTLLM = """nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 2
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 512
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 3
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 1
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="tensorrt_llm",version="1"} 0.25
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="tensorrt_llm",version="1"} 1560
nv_inference_pending_request_count{model="tensorrt_llm",version="1"} 99
"""
LLAMA_CPP = """# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 42
llamacpp:prompt_seconds_total 1.5
llamacpp:tokens_predicted_total 17
llamacpp:tokens_predicted_seconds_total 2
llamacpp:requests_processing 1
llamacpp:requests_deferred 2
llamacpp:n_tokens_max 2048
"""


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
                },
                "1": {"running": 5, "waiting": 0, "kv_usage_ratio": 0.25},
            },
        ),
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
                }
            },
        ),
        (
            TGI,
            {"": {"running": 8, "waiting": 5, "success": 250, "generation_tokens": 64000, "prompt_tokens": 32000}},
        ),
        (TRITON, {"": {"waiting": 4, "success": 42}}),
        (TRITON_TRTLLM, {"": {"running": 3, "waiting": 1, "kv_usage_ratio": 0.25}}),
        (LLAMA_CPP, {"": {"running": 1, "waiting": 2, "prompt_tokens": 42, "generation_tokens": 17}}),
        (
            "trtllm_num_requests_running 4\ntrtllm_kv_cache_utilization 0.5\n",
            {"": {"running": 4, "kv_usage_ratio": 0.5}},
        ),
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


def test_rows_are_in_column_order_with_whole_bytes() -> None:
    table = rows(server_values(SGLANG), 1_000, 3_501_000)
    row = dict(zip([column.name for column in TABLES["server"]], table[0], strict=True))
    assert (row["t0_mono_ns"], row["t1_mono_ns"], row["render_us"], row["engine"]) == (1_000, 3_501_000, 3500, "")
    assert row["kv_pool_b"] == int(20.5 * (1 << 30))
    assert isinstance(row["kv_pool_b"], int)
    assert rows(server_values(TRITON), 0, 1)[0][6] is None  # Triton tells no KV usage


def test_every_series_fills_a_column_of_the_table() -> None:
    assert {series.column for series in SERIES} <= {column.name for column in TABLES["server"]}


def scraping(site: Site, sent: Sent, path: str = "/metrics", token: str | None = None) -> None:
    threading.Thread(target=scrape, args=(site.url + path, token, sent.outbox), daemon=True).start()


def test_scraping_goes_on_through_a_restart_of_the_server(
    site: Site, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_metrics, "SLOW_NS", 50_000_000)
    site.pages["/metrics"] = (200, VLLM, 0)
    scraping(site, sent, token="secret")
    until(lambda: len(site.asked) >= 3)
    site.pages["/metrics"] = (503, "starting", 0)
    until(lambda: len(site.asked) >= 5)
    site.pages["/metrics"] = (200, LLAMA_CPP, 0)
    until(lambda: len(site.asked) >= 7)
    assert set(site.asked) == {("/metrics", "Bearer secret")}
    frames = until(lambda: sent.frames())
    events = [frame.body for frame in frames if frame.kind == EVENT]
    assert [event["kind"] for event in events] == ["no_server_metrics", "server_metrics"]
    assert "status 503" in events[0]["text"]
    assert "secret" not in str(events)
    samples = [frame.body for frame in frames if frame.kind == SAMPLE]
    assert [len(rows) for _, _, rows in samples[:2]] == [2, 2]
    assert len(samples[-1][2]) == 1


def test_a_server_without_metrics_is_said_once_and_left_alone(site: Site, sent: Sent) -> None:
    scraping(site, sent)
    until(lambda: site.asked)
    events = until(sent.events)
    assert [(event["kind"], "status 404" in event["text"]) for event in events] == [("no_server_metrics", True)]
    assert len(site.asked) == 1


def test_a_page_that_is_slow_again_and_again_is_asked_for_less_often(
    site: Site, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_metrics, "SLOW_NS", 30_000_000)
    monkeypatch.setattr(server_metrics, "BACKED_OFF_NS", 100_000_000)
    site.pages["/metrics"] = (200, TGI, 0.015)
    scraping(site, sent)
    until(lambda: len(site.asked) >= 6)
    site.pages["/metrics"] = (200, TGI, 0)
    until(lambda: len(site.asked) >= 14)
    texts = [event["text"] for event in sent.events()]
    assert texts == [
        "server metrics take more than 10 ms: read every 5 s",
        "server metrics are fast again: read every second",
    ]


def test_redirects_stay_on_the_server(site: Site, sent: Sent) -> None:
    site.redirects["/metrics"] = "/metrics/"
    site.pages["/metrics/"] = (200, TGI, 0)
    scraping(site, sent)
    got: list[Any] = until(lambda: sent.rows("server"))
    assert got[0][4] == 8
    site.redirects["/away"] = "http://127.0.0.1:9/metrics"
    scraping(site, sent, "/away")
    assert "status 307" in until(sent.events)[0]["text"]
