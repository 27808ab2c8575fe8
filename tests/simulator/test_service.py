"""What may be asked of the simulator, over real sockets, and that the truth log says of each what its client saw."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.simulator.target import FAST, Target, chat, completion, events, request_bytes, simulator

CHAT, COMPLETION, PREDICT = "/v1/chat/completions", "/v1/completions", "/predict"
SLOW = {"replicas": 1, "jitter": 0}  # 54 ms a token
END = b"\r\n0\r\n\r\n"


def ask(target: Target, data: bytes) -> tuple[bytes, str, float]:
    """What came until the end of the answer, how the connection stood then, and how long it took."""
    began = time.monotonic()
    answer = b""
    with socket.create_connection(("127.0.0.1", target.port), timeout=10) as client:
        client.sendall(data)
        try:
            while not _whole(answer):
                piece = client.recv(65536)
                if not piece:
                    return answer, "closed", time.monotonic() - began
                answer += piece
        except ConnectionResetError:
            return answer, "reset", time.monotonic() - began
    return answer, "open", time.monotonic() - began


def _whole(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return len(body) == int(length[1]) if length else answer.endswith(END)


def post(target: Target, path: str, body: Any, method: str = "POST", **headers: str) -> tuple[int, Any, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=10)
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, json.loads(data), {name.lower(): value for name, value in answer.getheaders()}


def metric(target: Target, name: str) -> float:
    return sum(map(float, re.findall(rf"^{re.escape(name)}\{{.*\}} (\S+)$", target.get("/metrics"), re.M)))


def tokens(answer: bytes) -> int:
    return len(re.findall(rb'"delta":\{"content":"|"text":" ', answer))


def row_of(target: Target, name: str) -> dict[str, str]:
    assert target.end() == 0
    return target.rows()[name]


# Faults: the client sees what the truth log says

STREAM, WHOLE = chat(max_tokens=10), chat(max_tokens=10, stream=False)


@pytest.mark.parametrize(
    ("fault", "outcome", "connection"),
    [("reset", "RESET", "reset"), ("truncate", "TRUNCATED", "closed"), ("stream_error", "STREAM_ERROR", "open")],
)
def test_faults_in_the_middle(tmp_path: Path, fault: str, outcome: str, connection: str) -> None:
    with simulator(tmp_path, **FAST, **{f"{fault}_rate": 1}) as target:
        answers = {
            name: ask(target, request_bytes(body, name, path=path))[:2]
            for name, path, body in (
                ("stream", CHAT, STREAM),
                ("completion", COMPLETION, completion(max_tokens=10)),
                ("single", CHAT, chat(max_tokens=1)),
                ("whole", CHAT, WHOLE),
                ("predict", PREDICT, {}),
            )
        }
        assert metric(target, "vllm:num_requests_running") == 0
        assert metric(target, "vllm:kv_cache_usage_perc") == 0
        assert target.end() == 0
    for name, (answer, stood) in answers.items():
        row = target.rows()[name]
        assert stood == connection and answer.startswith(b"HTTP/1.1 200 OK")
        assert (row["outcome"], row["fault"], row["status"], row["fault_us"]) == (outcome, fault, "200", "")
        assert int(row["output_tokens"]) == tokens(answer)
        if name in ("stream", "completion"):
            assert 1 <= tokens(answer) < 10
        if fault == "stream_error":
            assert b'"error": {"message": "the simulator was asked to fail"' in answer
            assert answer.endswith(b"data: [DONE]\n\n" + END) == (name in ("stream", "completion", "single"))
        else:
            assert not _whole(answer)


def test_a_stall_is_silence_and_then_the_rest(tmp_path: Path) -> None:
    with simulator(tmp_path, **FAST, stall_rate=1, stall_s=0.3) as target:
        usual = {}
        for name, body in (("stream", STREAM), ("single", chat(max_tokens=1)), ("whole", WHOLE)):
            answer, stood, took_s = ask(target, request_bytes(body, name))
            usual[name] = tokens(answer)
            assert (stood, _whole(answer)) == ("open", True) and 0.3 <= took_s < 1
        assert usual == {"stream": 10, "single": 1, "whole": 0}
        with socket.create_connection(("127.0.0.1", target.port)) as leaver:
            leaver.sendall(request_bytes(STREAM, "left"))
            seen = leaver.recv(65536)
            while (piece := _receive(leaver, 0.1)) is not None:
                seen += piece
        time.sleep(0.05)
        assert metric(target, "vllm:kv_cache_usage_perc") == 0
        assert target.end() == 0
    rows = target.rows()
    assert {name: (row["outcome"], row["fault"], row["fault_us"]) for name, row in rows.items()} == {
        **dict.fromkeys(("stream", "single", "whole"), ("OK", "stall", "300000")),
        "left": ("CANCELLED", "stall", "300000"),
    }
    assert int(rows["left"]["output_tokens"]) == tokens(seen) < 10
    assert rows["stream"]["output_tokens"] == "10" and rows["stream"]["late_tokens"] == "0"


def _receive(client: socket.socket, timeout_s: float) -> bytes | None:
    client.settimeout(timeout_s)
    try:
        return client.recv(65536)
    except TimeoutError:
        return None


def test_a_delay_is_before_the_queue(tmp_path: Path) -> None:
    with simulator(tmp_path, **FAST, delay_rate=1, delay_s=0.3) as target:
        answer, stood, took_s = ask(target, request_bytes(STREAM, "late"))
        assert (tokens(answer), stood) == (10, "open") and 0.3 <= took_s < 1
        row = row_of(target, "late")
    assert (row["outcome"], row["fault"], row["fault_us"], row["output_tokens"]) == ("OK", "delay", "300000", "10")
    assert int(row["first_token_ns"]) - int(row["received_ns"]) > 300_000_000
    assert int(row["queue_us"]) < 10_000


@pytest.mark.parametrize("stages", [{}, {"network_ms": 50, "preprocess_ms": 50}])
def test_an_error_status_leaves_the_connection_and_the_gpu_alone(tmp_path: Path, stages: dict[str, float]) -> None:
    with simulator(tmp_path, **FAST, **stages, error_rate=1, error_status=503) as target:
        first, stood, took_s = ask(target, request_bytes(STREAM, "a") + request_bytes({}, "b", path=PREDICT))
        assert first.startswith(b"HTTP/1.1 503 ") and stood == "open" and b"x-request-id: a" in first
        assert took_s >= (0.15 if stages else 0)
        assert json.loads(first.split(b"\r\n\r\n")[1].split(b"HTTP")[0])["error"]["code"] == 503
        assert post(target, PREDICT, {})[0] == 503
        assert metric(target, "vllm:prompt_tokens_total") == 0
        row = row_of(target, "a")
    assert (row["outcome"], row["fault"], row["status"], row["output_tokens"]) == ("HTTP_ERROR", "error", "503", "0")


def test_a_mix_hits_its_share_and_the_truth_agrees_with_every_client(tmp_path: Path) -> None:
    kinds = ("error", "stream_error", "reset", "truncate")
    with simulator(tmp_path, **FAST, **{f"{kind}_rate": 0.15 for kind in kinds}) as target:
        seen = {}
        for n in range(150):
            answer, stood, _ = ask(target, request_bytes(chat(max_tokens=4), f"r-{n}"))
            if stood != "open":
                seen[f"r-{n}"] = {"reset": "RESET", "closed": "TRUNCATED"}[stood]
            else:
                ok = "STREAM_ERROR" if b'"error"' in answer else "OK"
                seen[f"r-{n}"] = ok if answer.startswith(b"HTTP/1.1 200") else "HTTP_ERROR"
        assert target.end() == 0
    told = {name: row["outcome"] for name, row in target.rows().items()}
    assert told == seen
    assert all(10 <= list(told.values()).count(outcome) <= 40 for outcome in set(told.values()) - {"OK"})
    assert sum(outcome == "OK" for outcome in told.values()) == sum(not row["fault"] for row in target.rows().values())


# Stages


def test_stages_are_in_the_latency_and_in_the_truth(tmp_path: Path) -> None:
    stages = {"network_ms": 40, "preprocess_ms": 30, "preprocess_workers": 1, "io_wait_ms": 20}
    with simulator(tmp_path, **FAST, **stages) as target:
        answer, _, took_s = ask(target, request_bytes(chat(max_tokens=2), "one"))
        assert tokens(answer) == 2 and 0.13 <= took_s < 0.3
        assert post(target, PREDICT, {})[0] == 200
        ticks = json.loads(target.get("/telemetry"))["hosts"][0]["host_counters"]
        assert (ticks["cpu_iowait_ticks"], ticks["cpu_user_ticks"]) == (4, 6)
        row = row_of(target, "one")
    names = ("network_us", "preprocess_wait_us", "preprocess_us", "io_us", "fault_us", "kind", "speedup")
    assert [row[name] for name in names] == ["40000", "0", "30000", "20000", "", "chat", "1.0"]
    assert int(row["admitted_ns"]) - int(row["received_ns"]) == pytest.approx(90e6, abs=3e6)
    assert int(row["first_token_ns"]) - int(row["admitted_ns"]) >= 40_000_000
    assert int(row["late_max_us"]) < 40_000
    assert int(row["compute_us"]) < 40_000


def test_preprocessing_queues_for_its_workers(tmp_path: Path) -> None:
    with simulator(tmp_path, **FAST, preprocess_ms=50, preprocess_workers=1) as target:
        clients = [socket.create_connection(("127.0.0.1", target.port), timeout=10) for _ in range(3)]
        for n, client in enumerate(clients):
            client.sendall(request_bytes(chat(max_tokens=1), f"r-{n}"))
        clients[1].close()  # its CPU time is spent all the same
        for client in (clients[0], clients[2]):
            data = b""
            while not _whole(data):
                data += client.recv(65536)
            client.close()
        assert target.end() == 0
    rows = target.rows()
    assert [rows[f"r-{n}"]["outcome"] for n in range(3)] == ["OK", "CANCELLED", "OK"]
    waits = [int(rows[f"r-{n}"]["preprocess_wait_us"]) for n in range(3)]
    assert waits == pytest.approx([0, 50_000, 100_000], abs=20_000)


# Completions


def test_a_streamed_completion(tmp_path: Path) -> None:
    with simulator(tmp_path, **FAST) as target:
        body = completion(max_tokens=4, stream_options={"include_usage": True})
        answer, stood, _ = ask(target, request_bytes(body, path=COMPLETION))
        whole = post(target, COMPLETION, completion(max_tokens=4, stream=False))[1]
        numbers = post(target, COMPLETION, completion([[1, 2, 3, 4]], 2, stream=False))[1]["usage"]
        listed = post(target, COMPLETION, completion(["one two three"], 4, stream=False))[1]
        refused = [
            post(target, COMPLETION, completion(prompt))[0] for prompt in (None, [], ["a", "b"], [True], 5, [[]])
        ]
        row = row_of(target, "sim-1")
    assert (stood, row["kind"], row["output_tokens"], row["emissions"]) == ("open", "completion", "4", "4")
    *chunks, usage, done = events(b"".join(re.findall(rb"data: [^\n]*\n\n", answer)))
    assert done == "[DONE]" and len(chunks) == 4
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 3 + ["length"]
    assert {chunk["object"] for chunk in (*chunks, usage)} == {"text_completion"}
    assert len({(chunk["id"], chunk["created"]) for chunk in (*chunks, usage)}) == 1 and usage["id"].startswith("cmpl-")
    assert usage["choices"] == [] and usage["usage"]["total_tokens"] == 7
    assert list(chunks[0]["choices"][0]) == ["index", "text", "logprobs", "finish_reason", "stop_reason"]
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert whole["choices"][0]["text"] == listed["choices"][0]["text"] == text and whole["object"] == "text_completion"
    assert whole["choices"][0]["finish_reason"] == "length" and whole["usage"] == usage["usage"]
    assert (numbers["prompt_tokens"], numbers["completion_tokens"]) == (4, 2)
    assert refused == [400] * 6


# /predict


def test_predict_tells_its_own_split(tmp_path: Path) -> None:
    with simulator(tmp_path, **SLOW, preprocess_ms=20, io_wait_ms=10) as target:
        status, answer, headers = post(target, PREDICT, {"input": [1, 2]}, **{"x-request-id": "p"})
        again = post(target, PREDICT, {"input": [1, 2]})[1]
        other = post(target, PREDICT, ["x"])[1]
        bare = post(target, PREDICT, None, method="GET")
        assert metric(target, "simulator_predictions_total") == 4
        assert metric(target, "vllm:generation_tokens_total") == metric(target, "vllm:request_success_total") == 0
        bad = ask(target, request_bytes("{", path=PREDICT))[0]
        row = row_of(target, "p")
    assert (status, answer["model"], len(answer["outputs"])) == (200, "sim-8b", 3)
    assert again["outputs"] == answer["outputs"] != other["outputs"] and bare[0] == 200
    assert answer["timings"] == {
        f"{stage}_ms": float(headers[f"x-{stage}-ms"]) for stage in ("preprocess", "io", "queue", "compute")
    }
    compute_ms = 16_060.522496 / 300 + 32 * 2 * 8.030261248 / 121  # weights over bandwidth, and 32 tokens' worth
    assert answer["timings"] == pytest.approx(
        {"preprocess_ms": 20, "io_ms": 10, "queue_ms": 0, "compute_ms": compute_ms}, abs=0.002
    )
    assert bad.startswith(b"HTTP/1.1 400 ")
    assert (row["kind"], row["outcome"], row["prompt_tokens"], row["output_tokens"]) == ("predict", "OK", "", "0")
    assert (row["emissions"], int(row["compute_us"])) == ("1", pytest.approx(1000 * compute_ms, abs=2))


def test_predictions_that_wait_are_one_batch(tmp_path: Path) -> None:
    with simulator(tmp_path, **SLOW, slots=8) as target:
        clients = [socket.create_connection(("127.0.0.1", target.port), timeout=10) for _ in range(11)]
        for n, client in enumerate(clients):
            client.sendall(request_bytes({}, f"p-{n}", path=PREDICT))
        for client in clients:
            data = b""
            while not _whole(data):
                data += client.recv(65536)
            client.close()
        assert target.end() == 0
    admitted = [target.rows()[f"p-{n}"]["admitted_ns"] for n in range(11)]
    sizes = [admitted.count(one) for one in dict.fromkeys(admitted)]
    assert sum(sizes) == 11 and max(sizes) == 8 and len(sizes) in (3, 4)


# Prefix cache, preemption


def test_cached_tokens_are_told(tmp_path: Path) -> None:
    prompt = " ".join(f"w{n}" for n in range(100))
    with simulator(tmp_path, **FAST | {"replicas": 1}, prefix_cache=True) as target:
        usages = [post(target, CHAT, chat(prompt, 2, stream=False))[1]["usage"] for _ in range(2)]
        body = chat(f"{prompt} more", 2, stream_options={"include_usage": True})
        streamed = ask(target, request_bytes(body, "third"))[0]
        names = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total")
        assert [metric(target, name) for name in names] == [301, 192]
        row = row_of(target, "third")
    assert [usage["prompt_tokens_details"] for usage in usages] == [{"cached_tokens": 0}, {"cached_tokens": 96}]
    assert usages[1]["prompt_tokens"] == 100
    assert b'"prompt_tokens_details": {"cached_tokens": 96}' in streamed and row["cached_tokens"] == "96"


def test_preemptions_are_counted_and_nobody_loses_a_token(tmp_path: Path) -> None:
    # 2195 blocks; 12 of 2,200 + 1,000 tokens need 2400
    with simulator(tmp_path, **SLOW, speedup=100) as target:
        clients = {f"r-{n}": socket.create_connection(("127.0.0.1", target.port), timeout=10) for n in range(12)}
        for name, client in clients.items():
            client.sendall(request_bytes(chat("w " * 2200, 1000), name))
        answers = {}
        for name, client in clients.items():
            answers[name] = b""
            while not answers[name].endswith(END):
                answers[name] += client.recv(1 << 20)
            client.close()
        preempted = metric(target, "vllm:num_preemptions_total")
        assert metric(target, "vllm:generation_tokens_total") == 12_000
        assert metric(target, "vllm:prompt_tokens_total") == 12 * 2200
        assert metric(target, "vllm:kv_cache_usage_perc") == 0
        assert target.end() == 0
    rows = target.rows()
    assert sum(int(row["preemptions"]) for row in rows.values()) == preempted >= 1
    assert all(tokens(answer) == 1000 == int(rows[name]["output_tokens"]) for name, answer in answers.items())


# Key, speed-up, options


def test_the_key_is_wanted_where_work_is_done(tmp_path: Path) -> None:
    with simulator(tmp_path, **FAST, api_key="s3cret") as target:
        with socket.create_connection(("127.0.0.1", target.port)) as client:
            client.sendall(b"GET /v1/models HTTP/1.1\r\nauthorization: Bearer \xe9\xff\x80\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 401 ")
        good, bad = {"Authorization": "Bearer s3cret"}, {"Authorization": "Bearer s3cre"}
        for path, body in ((CHAT, WHOLE), (COMPLETION, completion(stream=False)), (PREDICT, {})):
            assert [post(target, path, body, **headers)[0] for headers in ({}, bad, good)] == [401, 401, 200]
        status, answer, _ = post(target, "/v1/models", None, "GET")
        assert (status, answer) == (401, {"error": "Unauthorized"})
        assert post(target, "/v1/models", None, "GET", **good)[0] == 200
        for path in ("/health", "/metrics"):
            assert "s3cret" not in target.get(path)
        assert "s3cret" not in target.get("/telemetry")
        assert target.end() == 0
    refused = [row for row in target.rows().values() if row["status"] == "401"]
    assert [(row["outcome"], row["kind"]) for row in refused] == [
        ("HTTP_ERROR", kind) for kind in ("chat", "completion", "predict") for _ in range(2)
    ]


def test_sped_up_all_modelled_times_shrink(tmp_path: Path) -> None:
    stages = {"network_ms": 200, "preprocess_ms": 200, "io_wait_ms": 200, "delay_rate": 1, "delay_s": 1}
    with simulator(tmp_path, **SLOW, **stages, speedup=20, leak_b_per_s=1e6) as target:
        answer, _, took_s = ask(target, request_bytes(chat(max_tokens=40), "quick"))
        assert tokens(answer) == 40
        # 0.8 + 1 s and 40 tokens of 54 ms, divided by 20
        assert 0.19 < took_s < 0.4
        telemetry = json.loads(target.get("/telemetry"))
        assert telemetry["speedup"] == 20
        row = row_of(target, "quick")
    assert row["speedup"] == "20"
    names = ("network_us", "preprocess_us", "io_us", "fault_us")
    assert [row[name] for name in names] == ["10000", "10000", "10000", "50000"]
    assert int(row["compute_us"]) == pytest.approx(40 * 53_700 / 20, rel=0.01)
    used_b = telemetry["hosts"][0]["gpu_fast"][0]["mem_used_b"]
    assert 20e6 * took_s < used_b - (16_060_522_496 + 2195 * 16 * 131_072 + 2**30) < 20e6 * (took_s + 2)
