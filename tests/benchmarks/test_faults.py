"""Our client against the reference server's faults: every request ends as the server's log says it was answered."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from benchmarks.reference import Server
from loadgen import request
from loadgen.endpoints import Call
from loadgen.endpoints.openai import chat
from loadgen.record import Outcome
from loadgen.transport.client import Client, Exchange
from tests.loadgen.driven import client_of, drive

Serving = Callable[..., Server]
TOKENS, TIMEOUT_S = 20, 0.8
QUICK = ("--ttft-ms", 2, "--itl-ms", 1, "--tokens", TOKENS, "--model", "m")
# What the server did, by its log's word, and what our record calls it.
OUTCOMES = {
    "ok": Outcome.OK,
    "http_error": Outcome.HTTP_ERROR,
    "reset": Outcome.RESET,
    "stalled": Outcome.TIMEOUT,
    "truncated": Outcome.TRUNCATED,
    "garbage": Outcome.MALFORMED,
    "inband_error": Outcome.STREAM_ERROR,
}
FAULTS = {
    "error": "http_error",
    "reset": "reset",
    "stall": "stalled",
    "truncate": "truncated",
    "garbage": "garbage",
    "inband": "inband_error",
}


def _chat(fault: str | None = None) -> Call:
    extra = {"ref_fault": fault} if fault else {}
    return chat([{"role": "user", "content": "hi"}], model="m", max_tokens=TOKENS, extra=extra)


def _records(server: Server, calls: list[Call]) -> list[dict[str, Any]]:
    """One call after the other, by one user."""
    client = client_of(server.port)
    try:
        return [drive(client, call, TIMEOUT_S) for call in calls]
    finally:
        client.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_called_by_its_name_and_the_next_request_is_well(serving: Serving, fault: str) -> None:
    with serving(*QUICK) as server:
        records = _records(server, [_chat(), _chat(fault), _chat()])
        log = server.stop()
    assert list(log["outcome"]) == ["ok", FAULTS[fault], "ok"]
    assert [record["outcome"] for record in records] == [OUTCOMES[outcome] for outcome in log["outcome"]]
    assert [record["status"] for record in records] == list(log["status"])
    assert [record["attempts"] for record in records] == [1, 1, 1]
    assert {records[0]["output_events"], records[2]["output_events"]} == {TOKENS}
    if fault in ("reset", "stall", "truncate"):  # of a stream that breaks off, every event that came is counted
        assert records[1]["output_events"] == log["n_sent"][1] > 0


@pytest.mark.parametrize(
    "shape",
    [("--close-each",), ("--burst", 4), ("--split",), ("--headers-late",), ("--role-chunk", "early")],
    ids=lambda shape: shape[0].lstrip("-"),
)
def test_shapes_of_an_answer_that_are_no_fault(serving: Serving, shape: tuple[str | int, ...]) -> None:
    with serving(*QUICK, *shape) as server:
        records = _records(server, [_chat() for _ in range(5)])
        log = server.stop()
    assert [record["outcome"] for record in records] == [Outcome.OK] * 5
    assert list(log["outcome"]) == ["ok"] * 5
    assert [record["output_events"] for record in records] == list(log["n_sent"]) == [TOKENS] * 5
    assert [record["output_tokens"] for record in records] == [TOKENS] * 5
    reused = [record["connect_us"] is None for record in records]
    assert reused == ([False] * 5 if shape == ("--close-each",) else [False, True, True, True, True])
    if "--burst" in shape:
        assert all(record["coalesced_reads"] >= TOKENS / 4 for record in records)


def test_many_users_and_all_faults_at_once(serving: Serving) -> None:
    """Every request is in the log under its id, with what became of it: none is lost, none is told otherwise."""
    users, each = 20, 12
    rates = [("--error-rate", 0.1), ("--reset-rate", 0.1), ("--stall-rate", 0.05), ("--truncate-rate", 0.1)]
    rates += [("--garbage-rate", 0.1), ("--inband-rate", 0.1)]
    ended: dict[str, Outcome] = {}

    def user(number: int, port: int) -> None:
        client = client_of(port)
        for ordinal in range(each):
            identity = f"{number}-{ordinal}"
            ended[identity] = _outcome(client, identity)
        client.close()

    with serving(*QUICK, *itertools.chain.from_iterable(rates)) as server:
        gevent.joinall([gevent.spawn(user, number, server.port) for number in range(users)], raise_error=True)
        log = server.stop()
    assert ended == {row.id: OUTCOMES[row.outcome] for row in log.itertuples()}
    assert len(log) == users * each
    assert set(Counter(ended.values())) == set(OUTCOMES.values())


def _outcome(client: Client, identity: str) -> Outcome:
    call, exchange = _chat(), Exchange()
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: t", f"x-request-id: {identity}"]
    head = "\r\n".join([*lines, f"Content-Length: {len(call.body)}", "", ""]).encode()
    failure = request.perform(client, exchange, head, call, TIMEOUT_S)
    return failure.outcome if failure else Outcome.OK
