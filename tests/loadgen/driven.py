"""Drives one call as ModelUser does, without Locust: the real client, reader and judgement, and the resulting record.

Each record is put into the recorder's own Arrow schema too: whatever a server sends, it must be writable.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from loadgen import request, shards
from loadgen.endpoints import Call
from loadgen.endpoints.openai import chat
from loadgen.endpoints.server_times import ServerTime
from loadgen.failures import FailureLog
from loadgen.record import INTEGERS, REQUEST_COLUMNS, TEXTS, Outcome
from loadgen.transport.client import Client
from loadgen.transport.response import Exchange
from loadgen.transport.target import Target
from tests.loadgen.scripted import Script, serving

_SCHEMA = shards.arrow_schema([(column.name, column.type) for column in REQUEST_COLUMNS], {})
_NOWHERE = Path("/nonexistent/never-written")


def a_chat(max_tokens: int = 64) -> Call:
    return chat([{"role": "user", "content": "hi"}], model="m", max_tokens=max_tokens)


def drive(
    client: Client,
    call: Call,
    timeout_s: float = 5.0,
    log: FailureLog | None = None,
    server_times: Sequence[ServerTime] = (),
) -> dict[str, Any]:
    """The record, by column; `raw` beside it is the example that was kept, None when the kind was known already."""
    head = f"{call.method} {call.path} HTTP/1.1\r\nHost: t\r\nAccept-Encoding: identity\r\n"
    head += f"Content-Length: {len(call.body)}\r\n\r\n"
    exchange, intended = Exchange(), time.monotonic_ns()
    failure = request.perform(client, exchange, head.encode(), call, timeout_s)
    outcome, error, example = Outcome.OK, None, None
    if failure is not None:
        log = log or FailureLog(_NOWHERE, ())
        outcome, (error, example) = failure.outcome, log.note(failure, {"t_ns": exchange.end_ns})
    fields = request.fields(0, 0, "0" * 32, intended, call, exchange, outcome, error, server_times)
    record: dict[str, Any] = dict(zip(TEXTS, fields.texts, strict=True))
    record |= {name: None if v == -1 else v for name, v in zip(INTEGERS, fields.integers, strict=True)}
    record["chunk_gaps_us"] = None if fields.gaps_us is None else fields.gaps_us.tolist()
    record["server_times_us"] = fields.server_times_us
    for name, value in record.items():
        pa.array([value], type=_SCHEMA.field(name).type)
    return {**record, "raw": example["raw"] if example else None}


def client_of(port: int) -> Client:
    return Client(Target.of(f"http://127.0.0.1:{port}"))


def answered(script: Script, call: Call | None = None, timeout_s: float = 5.0, **kind: Any) -> dict[str, Any]:
    """The record of one call (a streamed chat) that a scripted server answers."""
    with serving(script) as server:
        client = client_of(server.port)
        try:
            return drive(client, call or a_chat(), timeout_s, **kind)
        finally:
            client.close()
