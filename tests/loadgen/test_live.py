"""The live figures: what workers send adds up on the master."""

from __future__ import annotations

import pytest

from loadgen.live import Board, Tally, bucket, bucket_ms


@pytest.mark.parametrize("ms", [0.5, 1, 12.3, 250, 9999])
def test_buckets_are_two_per_cent_apart(ms: float) -> None:
    assert bucket_ms(bucket(int(ms * 1e6))) == pytest.approx(ms, rel=0.011)


def test_two_workers_add_up() -> None:
    board = Board()
    board.look(10.0)
    for worker in "ab":
        tally = Tally(ended=50, failed=5)
        for ms in range(1, 101):
            tally.ttft[bucket(ms * 1_000_000)] += 1
        board.report(worker, {**tally.take(), "in_flight": 7})
        assert tally.take()["ttft"] == {}
    figures = board.look(12.0)
    assert figures["qps"] == pytest.approx(45.0)
    assert (figures["ended"], figures["failed"], figures["in_flight"]) == (100, 10, 14)
    assert figures["ttft_p50_ms"] == pytest.approx(50, rel=0.02)
    assert figures["ttft_p99_ms"] == pytest.approx(99, rel=0.02)
    board.lose("a")
    figures = board.look(13.0)
    assert (figures["ended"], figures["in_flight"], figures["ttft_p50_ms"]) == (100, 7, None)
