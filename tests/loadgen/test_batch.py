"""Records become columns: every value is where it belongs, and no batch is more work than it may be."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loadgen import batch as module
from loadgen import histogram
from loadgen.batch import GapBudget
from loadgen.record import INTEGERS, REQUEST_COLUMNS, TEXTS, Outcome
from tests.loadgen.recorded import batched, recorded

RANDOM = np.random.default_rng(3)


def test_every_column_is_there_and_holds_what_was_recorded() -> None:
    integers = {name: 1000 + index for index, name in enumerate(INTEGERS)}
    texts = {name: f"the {name}" for name in TEXTS}
    full = recorded(gaps_us=[3, 1, 2], lags_us=[7, 9], server_times_us=[5, None], **(integers | texts))
    nothing = recorded(**(dict.fromkeys([*INTEGERS, *TEXTS]) | {"seq": 1}))
    [batch] = batched([full, nothing])
    assert batch.arrow.schema.names == [column.name for column in REQUEST_COLUMNS]
    batch.arrow.validate(full=True)
    gaps = {"chunk_gaps_us": [3, 1, 2], "gap_p50_us": 2, "gap_p99_us": 3, "gap_max_us": 3}
    first, second = batch.arrow.to_pylist()
    assert first == {**integers, **texts, **gaps, "server_times_us": [5, None]}
    assert second == dict.fromkeys(first) | {"seq": 1}


def test_zero_is_measured() -> None:
    [batch] = batched([recorded(**dict.fromkeys(INTEGERS, 0), gaps_us=[0], lags_us=[0])])
    row = batch.arrow.to_pylist()[0]
    assert [row[name] for name in INTEGERS] == [0] * len(INTEGERS)
    assert (row["chunk_gaps_us"], row["gap_max_us"]) == ([0], 0)


def test_what_is_larger_than_its_column_is_the_largest_that_it_holds() -> None:
    [batch] = batched([recorded(0, connect_us=2**40, bytes_in=2**40)])
    assert batch.arrow.column("connect_us").to_pylist() == [2**31 - 1]
    assert batch.arrow.column("bytes_in").to_pylist() == [2**40]


def test_an_answer_of_one_event_has_no_gaps_and_an_empty_list() -> None:
    [batch] = batched([recorded(0, gaps_us=[]), recorded(1)])
    assert batch.arrow.column("chunk_gaps_us").to_pylist() == [[], None]
    assert batch.arrow.column("gap_max_us").to_pylist() == [None, None]


def test_the_summary_is_by_nearest_rank() -> None:
    lists = [RANDOM.integers(0, 10**6, size).tolist() for size in (1, 2, 3, 99, 100, 101, 1000)]
    [batch] = batched([recorded(seq, gaps_us=gaps) for seq, gaps in enumerate(lists)])
    for name, share in (("gap_p50_us", 0.5), ("gap_p99_us", 0.99), ("gap_max_us", 1.0)):
        expected = [sorted(gaps)[math.ceil(share * len(gaps)) - 1] for gaps in lists]
        assert batch.arrow.column(name).to_pylist() == expected
    assert batch.arrow.column("chunk_gaps_us").to_pylist() == lists, "in their order"


@pytest.mark.parametrize("values", [0, 10, 400, module.MAX_VALUES + 5])
def test_a_batch_is_bounded_work(values: int) -> None:
    """What holds the loop: so many rows, gaps and lags, or a single row."""
    requests = [recorded(seq, [50] * (values if seq % 3 else 0), [5] * (seq % 7)) for seq in range(997)]
    batches = batched(requests)
    assert [seq for batch in batches for seq in batch.integers["seq"].tolist()] == list(range(997))
    for batch in batches:
        work = batch.durations["chunk_gap"].total() + batch.durations["read_lag"].total()
        assert len(batch) <= module.MAX_ROWS
        assert work <= module.MAX_VALUES or len(batch) == 1
    rows, work = len(requests), sum(batch.durations["chunk_gap"].total() for batch in batches)
    assert len(batches) <= 1 + 2 * rows / module.MAX_ROWS + 3 * work / module.MAX_VALUES, "none is needlessly small"


def test_durations_are_those_of_every_request() -> None:
    gaps, lags = RANDOM.integers(1, 10**7, (2, 50, 20))
    requests = [
        recorded(seq, gaps[seq].tolist(), lags[seq].tolist(), sent_ns=seq * 1000 + 70_000, read_lag_us=99)
        for seq in range(50)
    ]
    plain = [recorded(50, read_lag_us=33), recorded(51)]
    [batch] = batched([*requests, *plain], GapBudget(most=100))
    assert batch.durations["chunk_gap"] == histogram.count(gaps.ravel() * 1000)
    assert batch.durations["read_lag"] == histogram.count(np.append(lags.ravel(), 33) * 1000)
    assert batch.durations["send_lag"] == {histogram.bucket(70_000): 50, histogram.bucket(0): 2}


def test_send_lag_is_neither_connecting_nor_a_second_attempt() -> None:
    times = {"intended_ns": 0, "sent_ns": 9_000_000}
    [batch] = batched(
        [
            recorded(0, **times, dns_us=1000, connect_us=2000, tls_us=4000),
            recorded(1, **times, attempts=2),
            recorded(2, intended_ns=0, sent_ns=None, outcome="DROPPED"),
        ]
    )
    assert batch.durations["send_lag"] == {histogram.bucket(2_000_000): 1}


def test_outcomes() -> None:
    outcomes = ["OK", "CANCELLED", "TIMEOUT", "DROPPED", "OK"]
    [batch] = batched([recorded(seq, outcome=outcome) for seq, outcome in enumerate(outcomes)])
    assert batch.counted.tolist() == [True, False, True, True, True]
    assert batch.failed == 2
    assert batch.having(Outcome.DROPPED).tolist() == [False, False, False, True, False]
    assert not batch.having(Outcome.RESET).any()


def test_a_text_column_is_encoded_with_its_nulls() -> None:
    [batch] = batched([recorded(seq, scenario=name) for seq, name in enumerate(["a", None, "b", "a"])])
    codes, names = batch.encoded("scenario")
    assert [names[code] for code in codes.tolist()] == ["a", None, "b", "a"]


# -- the budget of raw gaps


def kept_by(budget: GapBudget, requests: int, gaps: int, first: int = 0) -> list[int]:
    """Ordinals of those that keep their gaps."""
    kept: list[int] = []
    for start in range(first, first + requests, 500):
        ordinals = np.arange(start, min(start + 500, first + requests))
        kept += ordinals[budget.keep(ordinals, np.full(len(ordinals), gaps))].tolist()
    return kept


def test_a_short_run_keeps_all_gaps() -> None:
    assert kept_by(GapBudget(most=100_000), 5000, gaps=10) == list(range(5000))


def test_a_long_run_keeps_fewer_and_fewer_and_never_more_than_the_budget() -> None:
    budget = GapBudget(most=64_000)
    kept = np.array(kept_by(budget, 1_000_000, gaps=10))
    assert 0.8 * 64_000 < 10 * len(kept) <= 64_000
    counts, _ = np.histogram(kept, bins=[0, 10_000, 30_000, 100_000, 300_000, 1_000_000])
    assert all(counts > 50), "every part of the run has some"
    late = np.diff(kept[kept > 500_000])
    assert set(late.tolist()) <= {2**power for power in range(20)}, "systematic: every k-th"


def test_the_budget_is_never_exceeded_by_long_answers() -> None:
    budget = GapBudget(most=1000)
    assert kept_by(budget, 500, gaps=400) == [0, 1]
    assert kept_by(budget, 500, gaps=300, first=2**20) == []
    assert len(kept_by(budget, 500, gaps=100, first=0)) <= 2


def test_requests_without_tokens_use_no_budget() -> None:
    budget = GapBudget(most=10)
    assert kept_by(budget, 500, gaps=-1) == []
    assert budget.stride == 1


def test_beyond_the_budget_the_list_is_null_and_the_summary_stays() -> None:
    [batch] = batched([recorded(seq, gaps_us=[5, 9, 7]) for seq in range(4)], GapBudget(most=7))
    assert batch.arrow.column("chunk_gaps_us").to_pylist() == [[5, 9, 7], [5, 9, 7], None, None]
    assert batch.arrow.column("gap_max_us").to_pylist() == [9] * 4
    batch.arrow.validate(full=True)
