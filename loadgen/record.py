"""One record a request: the schema that every later number is derived from.

Here: column names, types, units and the closed set of outcomes. Not here: how records become columns (batch.py) and how
they are written (recorder.py, shards.py).
All `_ns` are CLOCK_MONOTONIC of the sending host; `None` is "not measured", never 0.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

# 1  first version
SCHEMA = 1


class Outcome(StrEnum):
    """How a request ended. CANCELLED is the harness's own doing and is in no rate, ratio or percentile."""

    OK = "OK"
    HTTP_ERROR = "HTTP_ERROR"  # a status other than 2xx
    STREAM_ERROR = "STREAM_ERROR"  # an error event inside a 200
    TRUNCATED = "TRUNCATED"  # the stream ended without its end: no finish reason, or an incomplete message
    MALFORMED = "MALFORMED"  # bytes that are not HTTP, SSE or JSON
    EMPTY = "EMPTY"  # complete, but without a token
    TIMEOUT = "TIMEOUT"
    CONNECT_ERROR = "CONNECT_ERROR"
    TLS_ERROR = "TLS_ERROR"
    RESET = "RESET"  # connection lost after the request was sent
    CANCELLED = "CANCELLED"
    DROPPED = "DROPPED"  # due, but never sent (open model)


class Column(NamedTuple):
    """`type` names an Arrow type: int64, int32, bool, string, list<int32> or list<int64>."""

    name: str
    type: str
    unit: str
    meaning: str


REQUEST_COLUMNS: tuple[Column, ...] = (
    Column("worker", "int32", "", "index of the load-generating process"),
    Column("seq", "int64", "", "ordinal of the record in its worker"),
    Column("request_id", "string", "", "sent as x-request-id, and as the trace id of traceparent"),
    Column("scenario", "string", "", "name of the task's request"),
    Column("intended_ns", "int64", "ns", "when the request was due; latencies count from here"),
    Column("sent_ns", "int64", "ns", "just before the first byte was handed to the kernel"),
    Column("first_byte_ns", "int64", "ns", "first byte of the answer"),
    Column("first_token_ns", "int64", "ns", "first event that carries output (content, reasoning or tool call)"),
    Column("last_token_ns", "int64", "ns", "last event that carries output"),
    Column("end_ns", "int64", "ns", "the answer was complete, or the failure was seen"),
    Column("outcome", "string", "", "see Outcome"),
    Column("status", "int32", "", "HTTP status"),
    Column("finish_reason", "string", "", "as the server gave it"),
    Column("error", "string", "", "normalised text of the failure, at most 200 characters"),
    Column("attempts", "int32", "", "1, or 2 after a retry on a connection that the server had closed while idle"),
    Column("dns_us", "int32", "us", "name resolution; null on a reused connection"),
    Column("connect_us", "int32", "us", "TCP handshake; null on a reused connection"),
    Column("tls_us", "int32", "us", "TLS handshake; null without TLS or on a reused connection"),
    Column("prompt_tokens", "int32", "", "as the server's usage says, else null"),
    Column("output_tokens", "int32", "", "see token_source"),
    Column("token_source", "string", "", "usage (the server's count) or events (output events counted)"),
    Column("output_events", "int32", "", "events that carried output"),
    Column("chunk_gaps_us", "list<int32>", "us", "gaps between the stamps of output events; null beyond the budget"),
    Column("gap_p50_us", "int32", "us", "median of the request's chunk gaps"),
    Column("gap_p99_us", "int32", "us", "their 99th percentile, nearest rank"),
    Column("gap_max_us", "int32", "us", "the longest"),
    Column("bytes_out", "int64", "B", "request head and body"),
    Column("bytes_in", "int64", "B", "answer as received, decrypted"),
    Column("read_lag_us", "int32", "us", "worst delay from the kernel's receipt to our read; null if unknown"),
    Column("coalesced_reads", "int32", "", "reads that carried more than one output event"),
    Column("stamp_source", "string", "", "kernel or user: where the receive stamps come from"),
    Column("server_times_us", "list<int32>", "us", "the server's own times, in the order of --server-time"),
)

# What follows from a request's gaps, so that whoever records a request does not give it.
_DERIVED = ("gap_p50_us", "gap_p99_us", "gap_max_us")
# What a request is recorded as: its integers (-1 where not measured) and its texts, each in the order of the columns.
INTEGERS = tuple(
    column.name for column in REQUEST_COLUMNS if column.type in ("int32", "int64") and column.name not in _DERIVED
)
TEXTS = tuple(column.name for column in REQUEST_COLUMNS if column.type == "string")

# A worker's own state, one row a second: the evidence when the client itself was the bottleneck.
HEALTH_COLUMNS: tuple[Column, ...] = (
    Column("t_ns", "int64", "ns", "end of the second"),
    Column("cpu_us", "int64", "us", "CPU time of the worker since its start"),
    Column("rss_b", "int64", "B", "resident memory"),
    Column("users", "int32", "", "users of this worker"),
    Column("in_flight", "int32", "", "requests sent and not ended"),
    Column("loop_lag_p99_us", "int32", "us", "lateness of a 20 ms timer on the event loop, over the second"),
    Column("loop_lag_max_us", "int32", "us", "the same, the worst"),
    Column("gc_pause_us", "int64", "us", "time in the garbage collector, over the second"),
    Column("gc_pause_max_us", "int64", "us", "its longest pause"),
)

# Histograms of every worker and second, which add up: `loadgen.histogram` says what a bucket is.
HISTOGRAM_COLUMNS: tuple[Column, ...] = (
    Column("t_ns", "int64", "ns", "end of the second: it holds the requests that were recorded in it"),
    Column("name", "string", "", "chunk_gap, read_lag (all reads), send_lag (sent - intended, less connecting)"),
    Column("buckets", "list<int32>", "", "bucket n counts durations around 1.02^n ns, within 1 %"),
    Column("counts", "list<int64>", "", "how many in each of them"),
)
