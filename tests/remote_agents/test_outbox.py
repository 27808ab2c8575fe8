"""The spool: what it keeps, what it throws away, and what it says of that."""

from __future__ import annotations

import time

import pytest

from remote_agents.agent.outbox import Outbox
from remote_agents.agent.protocol import EVENT, LOST, MAGIC, Decoder, Frame


def sent_after(outbox: Outbox, number: int) -> list[Frame]:
    """What a link that had received `number` would be sent."""
    decoder = Decoder(number)
    frames = list(decoder.feed(MAGIC))
    while (entry := outbox.after(decoder.received, 0)) is not None:
        frames += decoder.feed(entry.frame)
    return frames


def filled(frames: int, limit_b: int = 1 << 20) -> Outbox:
    outbox = Outbox("here", limit_b, gather_ns=0)
    for number in range(frames):
        outbox.sample("host", [[number]])
    return outbox


def values(frames: list[Frame]) -> list[int]:
    return [frame.body[2][0][0] for frame in frames if frame.kind != LOST]


def test_what_is_not_acknowledged_is_sent_again() -> None:
    outbox = filled(10)
    assert values(sent_after(outbox, 0)) == list(range(10))
    outbox.acknowledge(4)
    assert values(sent_after(outbox, 4)) == [4, 5, 6, 7, 8, 9]
    assert values(sent_after(outbox, 7)) == [7, 8, 9]
    outbox.acknowledge(10)
    assert (outbox.spool_b, outbox.after(10, 0)) == (0, None)
    outbox.sample("host", [[10]])
    assert values(sent_after(outbox, 10)) == [10]


def test_a_full_spool_throws_the_oldest_away_and_says_so() -> None:
    outbox = filled(25, limit_b=10 * 35)
    kept = len(values(sent_after(outbox, 0)))
    assert 5 < kept < 15
    assert outbox.dropped == 25 - kept
    assert outbox.spool_b <= 10 * 35
    lost, *rest = sent_after(outbox, 3)  # a collector that has three of them
    assert (lost.kind, lost.body["frames"], lost.number) == (LOST, outbox.dropped - 3, outbox.dropped)
    assert 0 < lost.body["from_ns"] < lost.body["to_ns"]
    assert values(rest) == list(range(outbox.dropped, 25))


def test_a_loss_is_said_until_it_is_acknowledged() -> None:
    outbox = filled(25, limit_b=10 * 35)
    assert sent_after(outbox, 0)[0].kind == sent_after(outbox, 0)[0].kind == LOST
    outbox.acknowledge(outbox.dropped)
    assert values(sent_after(outbox, outbox.dropped)) == list(range(outbox.dropped, 25))
    outbox.acknowledge(25)
    for number in range(25):
        outbox.sample("host", [[number]])
    (first, *_) = sent_after(outbox, 25)
    assert first.kind == LOST  # a new loss has times of its own
    assert first.body["from_ns"] > 0


def test_what_cannot_be_encoded_leaves_no_hole_in_the_numbers() -> None:
    outbox = filled(2)
    with pytest.raises(ValueError, match="JSON"):
        outbox.sample("host", [[float("nan")]])
    outbox.sample("host", [[2]])
    assert values(sent_after(outbox, 0)) == [0, 1, 2]


def test_no_frame_is_larger_than_the_room_for_it() -> None:
    outbox = Outbox("here", limit_b=10, gather_ns=0)
    outbox.sample("host", [["x" * 200]])
    assert len(values(sent_after(outbox, 0))) == 1


def test_rows_of_half_a_second_are_one_frame_a_table() -> None:
    outbox = Outbox("here")
    for number in range(3):
        outbox.sample("host", [[number]])
        outbox.sample("agent", [[number], [number]])
    outbox.event("xid", "an event does not wait")
    assert [frame.kind for frame in sent_after(outbox, 0)] == [EVENT]
    outbox.flush()
    assert [frame.body for frame in sent_after(outbox, 1)] == [
        ["host", "here", [[0], [1], [2]]],
        ["agent", "here", [[0], [0], [1], [1], [2], [2]]],
    ]
    outbox = Outbox("here", gather_ns=50_000_000)
    outbox.sample("host", [[0]])
    time.sleep(0.06)
    outbox.sample("host", [[1]])  # the first has waited for long enough
    assert [frame.body[2] for frame in sent_after(outbox, 0)] == [[[0], [1]]]
