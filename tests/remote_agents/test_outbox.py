from __future__ import annotations

import os
import threading

import pytest

from remote_agents.agent import outbox as outbox_module
from remote_agents.agent.outbox import Outbox
from remote_agents.agent.protocol import BYE, PONG, SAMPLE, Decoder


def test_a_pong_goes_past_the_data_that_wait() -> None:
    read_end, write_end = os.pipe()
    outbox = Outbox(write_end, "here", lambda: None)
    for number in range(3):
        outbox.sample("host", [[number]])
    outbox.pong(9, t1_ns=1)
    outbox.put(BYE, {})
    outbox.run()
    first, *rest = Decoder().feed(os.read(read_end, 65536))
    assert (first.kind, first.body["id"], first.body["t1_ns"]) == (PONG, 9, 1)
    assert [frame.kind for frame in rest] == [SAMPLE, SAMPLE, SAMPLE, BYE]


def test_a_collector_that_does_not_read_costs_the_oldest_and_never_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "SPOOL_FRAMES", 10)
    read_end, write_end = os.pipe()
    outbox = Outbox(write_end, "here", lambda: None)
    for number in range(25):
        outbox.sample("host", [[number]])
    outbox.put(BYE, {})
    assert outbox.dropped == 16
    outbox.run()
    samples = [frame.body[2][0][0] for frame in Decoder().feed(os.read(read_end, 65536))[:-1]]
    assert samples == list(range(16, 25))


def test_a_broken_pipe_ends_the_agent() -> None:
    read_end, write_end = os.pipe()
    broken = threading.Event()
    outbox = Outbox(write_end, "here", broken.set)
    os.close(read_end)
    outbox.sample("host", [[1]])
    outbox.run()
    assert broken.is_set()
