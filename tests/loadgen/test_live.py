"""The live figures: what workers send adds up on the master."""

from __future__ import annotations

import json

import pytest

from loadgen import histogram
from loadgen.live import Board, Tally
from tests.loadgen.recorded import batched, recorded

OUTCOMES = {10: "TIMEOUT", 20: "DROPPED", 30: "CANCELLED"}
MS = 1_000_000


def tally_of_a_hundred() -> Tally:
    """TTFT of 1 to 100 ms, but the 10th failed, the 20th was dropped, and the 30th was cancelled."""
    tally = Tally()
    requests = [
        recorded(
            number,
            outcome=OUTCOMES.get(number, "OK"),
            intended_ns=0,
            sent_ns=None if number == 20 else 3 * MS,
            first_token_ns=None if number == 20 else number * MS,
            read_lag_us=None if number == 20 else 250,
        )
        for number in range(1, 101)
    ]
    for batch in batched(requests):
        tally.add(batch)
    return tally


def test_a_tally_counts_what_was_recorded() -> None:
    tally = tally_of_a_hundred()
    assert (tally.ended, tally.failed, tally.cancelled, tally.dropped) == (99, 2, 1, 1)
    assert tally.ttft.total() == 98
    report = json.loads(json.dumps(tally.take()))
    assert report["lag"] == {str(histogram.bucket(250_000)): 99}
    assert report["send_lag"] == {str(histogram.bucket(3 * MS)): 99}
    again = tally.take()
    assert (again["ttft"], again["lag"], again["send_lag"]) == ({}, {}, {}), "histograms are since the last take"
    assert again["ended"] == 99, "totals stay"


def test_two_workers_add_up() -> None:
    board = Board()
    board.look(10.0)
    for worker in "ab":
        board.report(worker, {**tally_of_a_hundred().take(), "in_flight": 7})
    figures = board.look(12.0)
    assert figures["qps"] == pytest.approx(97.0)
    assert (figures["ended"], figures["failed"], figures["dropped"], figures["in_flight"]) == (198, 4, 2, 14)
    assert figures["ttft_p50_ms"] == pytest.approx(51, rel=0.02)
    assert figures["ttft_p99_ms"] == pytest.approx(99, rel=0.02)
    assert figures["read_lag_p99_ms"] == pytest.approx(0.25, rel=0.02)
    assert figures["send_lag_p99_ms"] == pytest.approx(3, rel=0.02)
    board.lose("a")
    figures = board.look(13.0)
    assert (figures["ended"], figures["in_flight"], figures["ttft_p50_ms"]) == (198, 7, None)
    assert (figures["read_lag_p99_ms"], figures["send_lag_p99_ms"]) == (None, None)
