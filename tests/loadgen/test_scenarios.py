"""The scenarios that tests/run does not drive, by Locust's own command line against a server that tells what it got."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from loadgen.shards import read_shard
from tests.conftest import ROOT

pytestmark = pytest.mark.run
KEY = "s3cret-Of-The-Scenarios"
TEXT = {"choices": [{"index": 0, "text": " a", "finish_reason": None}]}
END = {"choices": [{"index": 0, "text": "", "finish_reason": "length"}], "timings": {"prompt_ms": 4}}


class _Handler(BaseHTTPRequestHandler):
    """Every third answer to a prediction is an error that repeats the key."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/chat/completions":  # asked before the run whether the key is right
            self._answer(404, b"", {})
            return
        self.server.got.append((self.path, body))
        if self.path == "/v1/completions":
            events = b"".join(b"data: " + json.dumps(message).encode() + b"\n\n" for message in (TEXT, TEXT, END))
            self._answer(200, events, {})
        elif len(self.server.got) % 3:
            self._answer(200, b'{"label_us": 1}', {"X-Queue-Ms": "2.5"})
        else:
            words = f"no slot {len(self.server.got)} for {self.headers['Authorization']}"
            self._answer(503, json.dumps({"error": words}).encode(), {"X-Queue-Ms": "9"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    got: list[tuple[str, Any]]


@contextmanager
def _serving() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.got = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def _run(folder: Path, server: _Server, scenario: str, *options: str) -> tuple[Path, dict[str, list[Any]]]:
    """The run directory, and the columns of its records."""
    url = f"http://127.0.0.1:{server.server_port}"
    command = [sys.executable, "-m", "loadgen.locust", "-f", str(ROOT / "scenarios" / f"{scenario}.py"), "--host", url]
    command += [
        "--headless",
        "--steps",
        "3",
        "--step-requests",
        "60",
        "--agents",
        "none",
        "--prompt-tokens",
        "5",
        *options,
    ]
    env = {**os.environ, "LOADGEN_API_KEY_ENV": "THE_KEY", "THE_KEY": KEY}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    run = (folder / "runs" / "latest").resolve()
    table, problem = read_shard(run / "requests" / "worker-0.arrow")
    assert (table is not None, problem) == (True, None), done.stdout + done.stderr
    return run, table.to_pydict()


def test_predict(tmp_path: Path) -> None:
    template = '{"inputs": "{{prompt}}", "id": "{{id}}", "seed": {{seed}}, "n": {{n}}}'
    options = ("--url-path", "/v2/infer?a=1", "--body-template", template)
    with _serving() as server:
        run, rows = _run(tmp_path, server, "predict", *options, "--server-time", "header:x-queue-ms,field:label_us")
        got = server.got
    assert {path for path, _ in got} == {"/v2/infer?a=1"}
    assert all(len(body["inputs"].split()) == 5 and len(body["id"]) == 32 for _, body in got)
    assert sorted(body["n"] for _, body in got) == list(range(len(got)))
    assert len({body["seed"] for _, body in got}) == len({body["id"] for _, body in got}) == len(got)
    ended = {outcome: rows["outcome"].count(outcome) for outcome in set(rows["outcome"]) - {"CANCELLED"}}
    assert set(ended) == {"OK", "HTTP_ERROR"}
    assert ended["OK"] >= 40
    hidden = "HTTP 503: no slot <n> for Bearer (hidden)"
    of_outcome = {"OK": [(None, (2500, 1))], "HTTP_ERROR": [(hidden, (9000, None))], "CANCELLED": []}
    for outcome, error, times in zip(rows["outcome"], rows["error"], rows["server_times_us"], strict=True):
        assert outcome == "CANCELLED" or (error, tuple(times)) in of_outcome[outcome]
    assert set(rows["output_events"]) == set(rows["first_token_ns"]) == {None}
    lines = [json.loads(line) for line in (run / "requests" / "worker-0.errors.jsonl").read_text().splitlines()]
    assert [(line["outcome"], line["error"], line["status"]) for line in lines] == [("HTTP_ERROR", hidden, 503)]
    example = rows["request_id"].index(lines[0]["request_id"])
    assert (rows["end_ns"][example], rows["error"][example]) == (lines[0]["t_ns"], hidden)
    assert lines[0]["raw"].startswith('{"error": "no slot ')
    assert lines[0]["raw"].endswith(' for Bearer (hidden)"}')
    assert not [path for path in run.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert json.loads((run / "run.json").read_text())["options"]["server_time"] == "header:x-queue-ms,field:label_us"


def test_completions(tmp_path: Path) -> None:
    options = ("--model", "m", "--output-tokens", "2", "--server-time", "field:timings.prompt_ms")
    with _serving() as server:
        run, rows = _run(tmp_path, server, "completions", *options)
        path, body = server.got[0]
    assert path == "/v1/completions"
    assert (body["model"], body["max_tokens"], body["stream"], len(body["prompt"].split())) == ("m", 2, True, 5)
    ended = [row for row, outcome in enumerate(rows["outcome"]) if outcome != "CANCELLED"]
    assert len(ended) >= 40
    assert {rows["outcome"][row] for row in ended} == {"OK"}
    assert {(rows["output_tokens"][row], rows["finish_reason"][row]) for row in ended} == {(2, "length")}
    assert {tuple(rows["server_times_us"][row]) for row in ended} == {(4000,)}
    assert not (run / "requests" / "worker-0.errors.jsonl").exists()
