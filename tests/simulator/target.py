"""A simulator process for the tests, and the least a client needs."""

from __future__ import annotations

import contextlib
import csv
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

_PROGRAM = """
import json, sys
from pathlib import Path
from loadgen.simulator.config import SimulatorConfig
from loadgen.simulator.server import run
config = json.loads(sys.argv[1])
run(SimulatorConfig(**config | {"truth": Path(config["truth"])}), lambda url: print(url, flush=True))
"""
FAST = {"gpu": "H200", "dtype": "fp8", "replicas": 2, "jitter": 0}  # under 2 ms a token


@dataclass
class Target:
    process: subprocess.Popen[str]
    port: int
    truth: Path

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def get(self, path: str) -> str:
        connection = self.connect()
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200
        text = answer.read().decode()
        connection.close()
        return text

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(10)

    def rows(self) -> dict[str, dict[str, str]]:
        """The truth log by request id."""
        with self.truth.open() as file:
            return {row["request_id"]: row for row in csv.DictReader(file)}


@contextlib.contextmanager
def simulator(folder: Path, **config: Any) -> Iterator[Target]:
    truth = folder / "simulator" / "truth.csv"
    arguments = [sys.executable, "-c", _PROGRAM, json.dumps(config | {"truth": str(truth)})]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Target(process, int(process.stdout.readline().rsplit(":", 1)[1]), truth)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def chat(prompt: str = "one two three", max_tokens: int = 5, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": "sim-8b", "messages": messages, "max_tokens": max_tokens, "stream": True, **fields}


def completion(prompt: Any = "one two three", max_tokens: int = 5, **fields: Any) -> dict[str, Any]:
    return {"model": "sim-8b", "prompt": prompt, "max_tokens": max_tokens, "stream": True, **fields}


def request_bytes(
    body: dict[str, Any] | str,
    request_id: str = "",
    version: str = "1.1",
    more: str = "",
    path: str = "/v1/chat/completions",
) -> bytes:
    text = body if isinstance(body, str) else json.dumps(body)
    identity = f"x-request-id: {request_id}\r\n" if request_id else ""
    head = f"POST {path} HTTP/{version}\r\nhost: x\r\ncontent-length: {len(text)}\r\n{identity}{more}\r\n"
    return (head + text).encode()


def events(body: bytes) -> list[Any]:
    """The data of each SSE event; the last one of a stream is the string [DONE]."""
    texts = [line.removeprefix("data: ") for line in body.decode().split("\n\n")[:-1]]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]
