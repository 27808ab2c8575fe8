"""The simulator as a process, over real sockets: bytes, errors, odd clients, truth log, metrics, telemetry, its end."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from loadgen.errors import UsageError
from loadgen.simulator.config import SimulatorConfig
from loadgen.simulator.server import run
from remote_agents.agent.sample import SCHEMA, TABLES
from tests.simulator.target import FAST, Target, chat, events, request_bytes, simulator


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with simulator(tmp_path_factory.mktemp("fast"), **FAST) as target:
        yield target


def post(target: Target, body: dict[str, Any] | str, path: str = "/v1/chat/completions") -> tuple[int, bytes]:
    connection = target.connect()
    connection.request("POST", path, body if isinstance(body, str) else json.dumps(body))
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, data


def dial(target: Target) -> socket.socket:
    return socket.create_connection(("127.0.0.1", target.port), timeout=10)


def read_until(client: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        piece = client.recv(65536)
        if not piece:
            break
        data += piece
    return data


def metric(target: Target, name: str) -> float:
    """Summed over replicas and labels."""
    values = re.findall(rf"^{re.escape(name)}\{{.*\}} (\S+)$", target.get("/metrics"), re.M)
    assert values
    return sum(map(float, values))


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Bytes


def test_stream(fast: Target) -> None:
    status, body = post(fast, chat(max_tokens=4, stream_options={"include_usage": True}, ignore_eos=True))
    role, *tokens, finish, usage, done = events(body)
    assert (status, done) == (200, "[DONE]")
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len(tokens) == 4 and all(token["choices"][0]["delta"]["content"].strip() for token in tokens)
    assert [event["choices"][0]["finish_reason"] for event in (role, *tokens)] == [None] * 5
    assert finish["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert len({(event["id"], event["model"], event["created"]) for event in (role, *tokens, finish, usage)}) == 1


def test_stream_without_usage(fast: Target) -> None:
    body = events(post(fast, chat(max_tokens=1))[1])
    assert len(body) == 4 and not any("usage" in event for event in body[:-1])


def test_every_token_is_an_http_chunk_of_its_own(fast: Target) -> None:
    with dial(fast) as client:
        client.sendall(request_bytes(chat(max_tokens=3)))
        head, body = read_until(client, b"\r\n0\r\n\r\n").split(b"\r\n\r\n", 1)
    assert b"\r\ncontent-type: text/event-stream; charset=utf-8\r\n" in head
    sizes = [int(size, 16) for size in re.findall(rb"(?:^|\r\n)([0-9a-f]+)\r\n", body)]
    assert sizes == [len(part.split(b"\r\n")[1]) for part in re.split(rb"(?<=\n\n)\r\n", body)[:-1]] + [0]
    assert len(sizes) == 1 + 3 + 1 + 1 + 1


def test_the_answer_depends_on_the_prompt_alone(fast: Target) -> None:
    streamed = "".join(e["choices"][0]["delta"].get("content", "") for e in events(post(fast, chat())[1])[:-1])
    whole = json.loads(post(fast, chat(stream=False))[1])
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": streamed}
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    other = json.loads(post(fast, chat("another prompt", stream=False))[1])
    assert other["choices"][0]["message"]["content"] != streamed


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"max_tokens": None}, 16),
        ({"max_tokens": 2, "max_completion_tokens": 3}, 3),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b c"}]}]}, 5),
    ],
)
def test_how_many_tokens(fast: Target, fields: dict[str, Any], tokens: int) -> None:
    usage = json.loads(post(fast, chat(stream=False) | fields)[1])["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, tokens)


def test_models_and_health(fast: Target) -> None:
    [model] = json.loads(fast.get("/v1/models"))["data"]
    assert (model["id"], model["max_model_len"]) == ("sim-8b", 131_072)
    assert fast.get("/health") == ""


# Errors and odd clients


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ('{"model"', 400, "not valid JSON"),
        ("[" * 100_000, 400, "not valid JSON"),
        ("[]", 400, "not a JSON object"),
        (chat() | {"model": "gpt"}, 404, "The model `gpt` does not exist"),
        (chat() | {"messages": []}, 400, "at least one message"),
        (chat() | {"messages": [{"role": "user"}]}, 400, "no `content`"),
        (chat() | {"max_tokens": 0}, 400, "`max_tokens`"),
        (chat() | {"max_completion_tokens": True}, 400, "`max_completion_tokens`"),
        (chat() | {"max_tokens": 131_070}, 400, "maximum context length is 131072 tokens"),
    ],
)
def test_refusals(fast: Target, body: dict[str, Any] | str, status: int, message: str) -> None:
    got, answer = post(fast, body)
    assert got == status
    assert message in json.loads(answer)["error"]["message"]


def test_method_path_and_keep_alive(fast: Target) -> None:
    connection = fast.connect()
    for method, path, status in (
        ("GET", "/v1/chat/completions", 405),
        ("HEAD", "/metrics", 405),
        ("GET", "/nope", 404),
        ("POST", "/v1/chat/completions?x=1", 200),
        ("GET", "/health", 200),
    ):
        connection.request(method, path, json.dumps(chat(max_tokens=1)) if method == "POST" else None)
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("allow")) == (
            status,
            {405: "POST" if "chat" in path else "GET"}.get(status),
        )
        answer.read()
    connection.close()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nx: " + b"y" * 300_000, 431),
        (b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n" + b"x" * (8 << 20) + b"x", 413),
        (request_bytes(chat(), version="1.0"), 400),
    ],
)
def test_what_closes_the_connection(fast: Target, data: bytes, status: int) -> None:
    with dial(fast) as client:
        client.sendall(data)
        assert read_until(client, b"never").startswith(f"HTTP/1.1 {status} ".encode())


def test_a_request_byte_by_byte_and_expect_continue(fast: Target) -> None:
    with dial(fast) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head, body = request_bytes(chat(max_tokens=1), more="Expect: 100-continue\r\n").split(b"\r\n\r\n")
        for byte in head + b"\r\n\r\n":
            client.send(bytes([byte]))
        assert read_until(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert read_until(client, b"\r\n0\r\n\r\n").startswith(b"HTTP/1.1 200 OK")


def test_requests_sent_ahead_are_answered_in_order(fast: Target) -> None:
    with dial(fast) as client:
        client.sendall(b"".join(request_bytes(chat(max_tokens=2, stream=False), f"ahead-{n}") for n in range(40)))
        client.sendall(request_bytes(chat(max_tokens=1), "ahead-40", more="connection: close\r\n"))
        data = read_until(client, b"never")
    assert re.findall(rb"x-request-id: ahead-(\d+)", data) == [str(n).encode() for n in range(41)]


def test_a_client_that_does_not_read_is_cut_off(fast: Target) -> None:
    with dial(fast) as client, pytest.raises(OSError):
        for _ in range(100_000):
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n" * 10)


def test_who_leaves_makes_room(tmp_path: Path) -> None:
    with simulator(tmp_path, replicas=1, slots=1, jitter=0) as target:
        running, waiting, last = dial(target), dial(target), dial(target)
        running.sendall(request_bytes(chat(max_tokens=30_000), "running"))
        assert running.recv(100)
        waiting.sendall(request_bytes(chat(max_tokens=30_000), "waiting"))
        wait_for(lambda: metric(target, "vllm:num_requests_waiting") == 1)
        last.sendall(request_bytes(chat(max_tokens=1), "last"))
        wait_for(lambda: metric(target, "vllm:num_requests_waiting") == 2)
        assert 1 / 2195 - 1e-9 <= metric(target, "vllm:kv_cache_usage_perc") < 5 / 2195
        waiting.close()
        wait_for(lambda: metric(target, "vllm:num_requests_waiting") == 1)
        running.close()
        assert read_until(last, b"\r\n0\r\n\r\n").startswith(b"HTTP/1.1 200 OK")
        last.close()
        wait_for(lambda: len(target.rows()) == 3)
        rows = target.rows()
        assert [rows[name]["outcome"] for name in ("running", "waiting", "last")] == ["CANCELLED", "CANCELLED", "OK"]
        assert rows["waiting"]["admitted_ns"] == rows["waiting"]["status"] == ""
        assert rows["last"]["admitted_ns"] > rows["running"]["last_token_ns"]
        assert metric(target, "vllm:kv_cache_usage_perc") == 0


# Many streams, and what the simulator says of them


async def _stream(port: int, name: str, output: int) -> tuple[str, int, list[int], bytes]:
    """Id, when sent, when each read with a token came, and the bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = chat("w " * 20, output, stream_options={"include_usage": True})
    sent_ns = time.monotonic_ns()
    writer.write(request_bytes(body, name))
    data, stamps = b"", []
    while not data.endswith(b"\r\n0\r\n\r\n"):
        piece = await reader.read(65536)
        assert piece
        data += piece
        stamps.append(time.monotonic_ns())
    writer.close()
    return name, sent_ns, stamps, data


def test_500_streams_are_complete_and_the_truth_log_agrees(tmp_path: Path) -> None:
    with simulator(tmp_path, replicas=4) as target:

        async def all_of_them() -> list[tuple[str, int, list[int], bytes]]:
            return await asyncio.gather(*(_stream(target.port, f"r-{n}", 5 + n % 20) for n in range(500)))

        answers = asyncio.run(all_of_them())
        assert metric(target, "vllm:generation_tokens_total") == sum(5 + n % 20 for n in range(500))
        assert metric(target, "simulator_emissions_total") == sum(5 + n % 20 for n in range(500))
        assert target.end() == 0
    rows = target.rows()
    assert len(rows) == 500
    assert sorted(sum(row["replica"] == str(n) for row in rows.values()) for n in range(4)) == [125] * 4
    first_lag_ms, last_lag_ms = [], []
    for name, sent_ns, stamps, data in answers:
        row = rows[name]
        body = b"".join(re.findall(rb"data: [^\n]*\n\n", data))
        usage = events(body)[-2]["usage"]
        assert len(events(body)) == usage["completion_tokens"] + 4
        assert (row["outcome"], row["status"], row["prompt_tokens"]) == ("OK", "200", "20")
        assert int(row["output_tokens"]) == usage["completion_tokens"] == 5 + int(name[2:]) % 20
        times = [int(row[column]) for column in ("received_ns", "admitted_ns", "first_token_ns", "last_token_ns")]
        assert all(before <= after for before, after in pairwise((sent_ns, *times, stamps[-1])))
        first_lag_ms.append((stamps[0] - times[2]) / 1e6)
        last_lag_ms.append((stamps[-1] - times[3]) / 1e6)
    assert 0 < sorted(first_lag_ms)[250] < 50
    assert 0 < sorted(last_lag_ms)[250] < 50


def test_metrics_are_prometheus_text_under_vllm_names(fast: Target) -> None:
    post(fast, chat())
    text = fast.get("/metrics")
    types = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.M))
    for line in text.splitlines():
        matched = re.fullmatch(r'(# (?:HELP|TYPE) \S+ .+)|([a-z0-9_:]+)\{(\w+="[^"]*",?)+\} [0-9.e+-]+', line)
        assert matched, line
        if matched[2]:
            assert matched[2] in types or re.sub("_(bucket|sum|count)$", "", matched[2]) in types
    assert types["vllm:num_requests_running"] == types["vllm:kv_cache_usage_perc"] == "gauge"
    assert types["vllm:num_preemptions_total"] == types["vllm:request_success_total"] == "counter"
    assert re.search(
        r'^vllm:request_success_total\{engine="1",model_name="sim-8b",finished_reason="length"\}', text, re.M
    )
    assert re.search(r'^vllm:cache_config_info\{engine="0",.*block_size="16",.*num_gpu_blocks="\d+",', text, re.M)
    answered = metric(fast, "vllm:e2e_request_latency_seconds_count")
    assert answered == sum(map(int, re.findall(r'finished_reason="length"\} (\d+)', text))) > 0


def test_telemetry_has_the_columns_of_the_agent(tmp_path: Path) -> None:
    with simulator(tmp_path, replicas=3, gpus_per_host=2) as target, dial(target) as client:
        before = json.loads(target.get("/telemetry"))
        client.sendall(request_bytes(chat(max_tokens=30)))
        time.sleep(0.6)
        after = json.loads(target.get("/telemetry"))
    assert (after["schema"], after["simulated"]) == (SCHEMA, True)
    assert [(host["host"], len(host["gpu_fast"])) for host in after["hosts"]] == [("sim-0", 2), ("sim-1", 1)]
    for host in after["hosts"]:
        tables = {"gpu_fast": host["gpu_fast"], "gpu_slow": host["gpu_slow"], "host": [host["host_counters"]]}
        for table, rows in tables.items():
            for row in rows:
                assert list(row) == [column.name for column in TABLES[table]]
                assert row["t0_mono_ns"] == row["t1_mono_ns"] == after["t_mono_ns"]
    fast_rows = [row for host in after["hosts"] for row in host["gpu_fast"]]
    assert [row["util_pct"] for row in fast_rows] == [pytest.approx(100, abs=1), 0, 0]
    assert fast_rows[0]["power_mw"] == pytest.approx(16_000 + 0.7 * 56_000, rel=0.05)
    assert fast_rows[1]["power_mw"] == 16_000
    elapsed_s = (after["t_mono_ns"] - before["t_mono_ns"]) / 1e9
    used_mj = fast_rows[1]["energy_mj"] - before["hosts"][0]["gpu_fast"][1]["energy_mj"]
    assert used_mj == pytest.approx(16_000 * elapsed_s, abs=16_000 * 0.2)
    old, new = (answer["hosts"][0]["host_counters"] for answer in (before, after))
    assert all(new[name] >= old[name] for name in new if name.endswith("_ticks") and name in old)
    assert new["net_tx_b"] > old["net_tx_b"]


# Its end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(tmp_path: Path, number: int) -> None:
    with simulator(tmp_path, replicas=2) as target, dial(target) as open_stream:
        assert post(target, chat(max_tokens=2))[0] == 200
        open_stream.sendall(request_bytes(chat(max_tokens=1000), "open"))
        assert open_stream.recv(100)
        target.process.send_signal(number)
        assert target.process.wait(5) == 0
        rows = target.rows()
    assert [row["outcome"] for row in rows.values()] == ["OK", "CANCELLED"]
    assert int(rows["open"]["output_tokens"]) >= 1


def test_the_truth_log_survives_a_kill(tmp_path: Path) -> None:
    with simulator(tmp_path, **FAST) as target:
        post(target, chat())
        post(target, "{")
        time.sleep(1)
        target.process.kill()
        target.process.wait()
        assert [(row["outcome"], row["status"]) for row in target.rows().values()] == [
            ("OK", "200"),
            ("HTTP_ERROR", "400"),
        ]


def test_what_it_cannot_start_with_is_one_sentence(fast: Target) -> None:
    with pytest.raises(
        UsageError, match=rf"^the simulator cannot listen on 127\.0\.0\.1 port {fast.port}: .* in use; choose another$"
    ):
        run(SimulatorConfig(port=fast.port), print)
    with pytest.raises(UsageError, match=r"^the truth log .* exists already: name another file$"):
        run(SimulatorConfig(truth=fast.truth), print)
