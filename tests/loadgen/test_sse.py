"""The decoder of server-sent events, fed with bytes as servers and networks cut them."""

from __future__ import annotations

import pytest

from loadgen.sse import SseDecoder

STREAM = (
    b": a comment\n\n"
    b'data: {"a": 1}\n\n'
    b"event: message\r\nid: 7\r\ndata: one\r\ndata: two\r\n\r\n"
    b"data:no space\r\rdata\n\n"
    b"data: \xe2\x82\xac\n\n"
    b"data: [DONE]\n\n"
)
EVENTS = [b'{"a": 1}', b"one\ntwo", b"no space", b"", "€".encode(), b"[DONE]"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 16, 1000])
def test_events_are_the_same_however_the_bytes_are_cut(size: int) -> None:
    decoder = SseDecoder()
    events = [event for i in range(0, len(STREAM), size) for event in decoder.feed(STREAM[i : i + size])]
    assert events + decoder.flush() == EVENTS


@pytest.mark.parametrize("size", [1, 2, 4, 1000])
def test_byte_order_mark_is_skipped(size: int) -> None:
    data = b"\xef\xbb\xbfdata: x\n\n"
    decoder = SseDecoder()
    assert [event for i in range(0, len(data), size) for event in decoder.feed(data[i : i + size])] == [b"x"]


def test_event_without_its_last_blank_line_comes_with_the_flush() -> None:
    decoder = SseDecoder()
    assert decoder.feed(b"data: a\n\ndata: b") == [b"a"]
    assert decoder.flush() == [b"b"]
    assert decoder.flush() == []


def test_comment_alone_is_no_event() -> None:
    decoder = SseDecoder()
    assert decoder.feed(b": ping - 2026\n\n") == []
    assert decoder.flush() == []


def test_event_over_the_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="larger than 100 bytes"):
        SseDecoder(max_event_bytes=100).feed(b"data: " + b"x" * 200)
