"""One request from its call to its record, free of Locust: send, judge, and the record's values.

Here is the judgement of an answer as a whole, from what the transport saw and what the API's reader read. Stamps are
CLOCK_MONOTONIC ns; none is taken here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from loadgen.endpoints import Call, Failure, Malformed
from loadgen.endpoints.errors import body_words
from loadgen.endpoints.server_times import ServerTime, read
from loadgen.failures import storable
from loadgen.record import Outcome
from loadgen.transport.client import Client, Exchange

_MAX_REASON = 40
_MAX_US = 2**31 - 1  # what a record holds
# Ends of a connection that do not outweigh what the server had said before.
_BROKEN_OFF = (Outcome.TRUNCATED, Outcome.RESET)


def perform(client: Client, exchange: Exchange, head: bytes, call: Call, timeout_s: float) -> Failure | None:
    """Send the call's request and read its answer into `exchange`, which is new, and the call's reader."""
    client.fetch(exchange, head, call.body, call.reader.feed, timeout_s)
    return judge(call, exchange)


def judge(call: Call, exchange: Exchange) -> Failure | None:
    """Why the request failed, None when it did not.

    A status other than 2xx, or an error inside the stream, is the failure also when the connection broke afterwards.
    """
    failure, status = exchange.failure, exchange.status
    if status is None or (failure is not None and failure.outcome not in _BROKEN_OFF):
        return failure
    if not 200 <= status < 300:
        return _refusal(status, exchange)
    try:
        verdict = call.reader.finish()
    except Malformed as error:
        verdict = error.failure()
    if failure is not None and (verdict is None or verdict.outcome is not Outcome.STREAM_ERROR):
        return failure
    return verdict


def _refusal(status: int, exchange: Exchange) -> Failure:
    body, headers = exchange.error_body, exchange.headers
    if 300 <= status < 400 and "location" in headers:
        words = f"redirects to {headers['location']}"
    elif (encoding := headers.get("content-encoding", "identity")) != "identity":
        words = f"a body in the encoding {encoding}"
    else:
        words = body_words(body)
    return Failure(Outcome.HTTP_ERROR, f"HTTP {status}: {words}" if words else f"HTTP {status}", body)


def row(
    worker: int,
    sequence: int,
    identity: str,
    intended_ns: int,
    call: Call,
    exchange: Exchange,
    outcome: Outcome,
    error: str | None,
    server_times: Sequence[ServerTime],
) -> tuple[Any, ...]:
    """The values of the record, in the order of REQUEST_COLUMNS; whatever the server sent, they can be stored."""
    answer = call.reader.answer
    stamps = answer.stamps_ns
    source = "usage" if answer.output_tokens is not None else "events" if stamps else None
    return (
        worker,
        sequence,
        identity,
        call.name,
        intended_ns,
        exchange.sent_ns,
        exchange.first_byte_ns,
        stamps[0] if stamps else None,
        stamps[-1] if stamps else None,
        exchange.end_ns,
        outcome.value,
        exchange.status,
        storable(str(answer.finish_reason))[:_MAX_REASON] if answer.finish_reason else None,
        error,
        exchange.attempts,
        exchange.dns_us,
        exchange.connect_us,
        exchange.tls_us,
        answer.prompt_tokens,
        answer.output_tokens if source == "usage" else len(stamps) or None,
        source,
        len(stamps) if answer.has_tokens else None,
        _gaps_us(stamps) if answer.has_tokens else None,
        exchange.bytes_out,
        exchange.bytes_in,
        exchange.read_lag_ns // 1000 if exchange.read_lag_ns >= 0 else None,
        answer.coalesced_reads if answer.has_tokens else None,
        "kernel" if exchange.kernel_stamps else "user",
        read(server_times, exchange.headers, call.reader.messages()) if server_times else None,
    )


def _gaps_us(stamps: Sequence[int]) -> list[int]:
    gaps = [(later - earlier) // 1000 for earlier, later in itertools.pairwise(stamps)]
    # Only then may one of them be larger than a record holds.
    if stamps and stamps[-1] - stamps[0] > _MAX_US * 1000:
        gaps = [min(gap, _MAX_US) for gap in gaps]
    return gaps
