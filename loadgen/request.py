"""One request from its call to its record, free of Locust: send, judge, and the record's values.

Here is the judgement of an answer as a whole, from what the transport saw and what the API's reader read. Stamps are
CLOCK_MONOTONIC ns; none is taken here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadgen.endpoints import Call, Failure, Malformed
from loadgen.endpoints.errors import body_words
from loadgen.endpoints.server_times import ServerTime, read
from loadgen.failures import storable
from loadgen.record import INTEGERS, TEXTS, Outcome
from loadgen.transport.client import Client
from loadgen.transport.response import Exchange

_MAX_REASON = 40
_MAX_US = 2**31 - 1  # what a record holds
# Ends of a connection that do not outweigh what the server had said before.
_BROKEN_OFF = (Outcome.TRUNCATED, Outcome.RESET)


def perform(
    client: Client, exchange: Exchange, head: bytes, call: Call, timeout_s: float, first_output_s: float | None = None
) -> Failure | None:
    """Send the call's request and read its answer into `exchange`, which is new, and the call's reader."""
    client.fetch(exchange, head, call.body, call.reader.feed, timeout_s, first_output_s)
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


class Fields(NamedTuple):
    """A record's values, as `Recorder.append` takes them."""

    integers: tuple[int, ...]
    texts: tuple[str | None, ...]
    gaps_us: NDArray[np.int32] | None
    lags_us: NDArray[np.int32] | None
    server_times_us: list[int | None] | None


def fields(
    worker: int,
    sequence: int,
    identity: str,
    intended_ns: int,
    call: Call,
    exchange: Exchange,
    outcome: Outcome,
    error: str | None,
    server_times: Sequence[ServerTime],
) -> Fields:
    """The values of the record, in the order of INTEGERS and TEXTS; whatever the server sent, they can be stored."""
    answer = call.reader.answer
    stamps = answer.stamps_ns
    has_tokens = answer.has_tokens
    gaps = _gaps_ns(stamps) if has_tokens else None
    tokens = answer.output_tokens
    source = "usage" if tokens is not None else "events" if stamps else None
    reason = answer.finish_reason
    return Fields(
        (
            worker,
            sequence,
            intended_ns,
            -1 if exchange.sent_ns is None else exchange.sent_ns,
            -1 if exchange.first_byte_ns is None else exchange.first_byte_ns,
            stamps[0] if stamps else -1,
            stamps[-1] if stamps else -1,
            exchange.end_ns,
            -1 if exchange.status is None else exchange.status,
            exchange.attempts,
            -1 if exchange.dns_us is None else exchange.dns_us,
            -1 if exchange.connect_us is None else exchange.connect_us,
            -1 if exchange.tls_us is None else exchange.tls_us,
            -1 if answer.prompt_tokens is None else answer.prompt_tokens,
            tokens if tokens is not None else len(stamps) or -1,
            len(stamps) if has_tokens else -1,
            exchange.bytes_out,
            exchange.bytes_in,
            exchange.read_lag_us,
            -1 if gaps is None else _coalesced(gaps),
        ),
        (
            identity,
            call.name,
            outcome.value,
            storable(str(reason))[:_MAX_REASON] if reason else None,
            error,
            source,
            "kernel" if exchange.kernel_stamps else "user",
        ),
        None if gaps is None else np.minimum(gaps // 1000, _MAX_US).astype(np.int32),
        np.array(exchange.lags_us, np.int32) if len(exchange.lags_us) > 1 else None,
        read(server_times, exchange.headers, call.reader.messages()) if server_times else None,
    )


def dropped(worker: int, sequence: int, intended_ns: int, now_ns: int, scenario: str) -> Fields:
    """The values of a record for a request that was due and not sent."""
    known = {"worker": worker, "seq": sequence, "intended_ns": intended_ns, "end_ns": now_ns, "attempts": 0}
    known |= {"bytes_out": 0, "bytes_in": 0}
    texts = {"request_id": "", "scenario": scenario, "outcome": Outcome.DROPPED.value, "error": "too many in flight"}
    return Fields(
        tuple(known.get(name, -1) for name in INTEGERS), tuple(texts.get(name) for name in TEXTS), None, None, None
    )


def _coalesced(gaps: NDArray[np.int64]) -> int:
    """Reads that brought more than one output event: these have one stamp, so no gap between them."""
    none = gaps == 0
    if not none.any():
        return 0
    return int(none[0]) + int(np.count_nonzero(none[1:] > none[:-1]))


def _gaps_ns(stamps: Sequence[int]) -> NDArray[np.int64]:
    instants = np.array(stamps, np.int64)
    return np.subtract(instants[1:], instants[:-1])
