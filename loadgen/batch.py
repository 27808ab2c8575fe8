"""Records become columns: a batch is a few hundred requests in a row, for Arrow and for whoever counts. Pure.

A batch is made on the event loop, so its size bounds how long the loop is held. Stamps and durations are those of the
records (record.py).
"""

from __future__ import annotations

import itertools
import math
import struct
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from loadgen import histogram, shards
from loadgen.record import INTEGERS, REQUEST_COLUMNS, TEXTS, Outcome

# Measured at 2 us a row and 30 ns a value, with those that count them: about 1 ms.
MAX_ROWS = 400
MAX_VALUES = 25_000  # gaps and lags

# Raw gaps that a worker keeps in a run, 4 bytes each.
MOST_GAPS = 32_000_000
_DOUBLINGS = 16

_TYPES = {column.name: column.type for column in REQUEST_COLUMNS}
_SCHEMA = shards.arrow_schema([(column.name, column.type) for column in REQUEST_COLUMNS], {})
_LIST = pa.list_(pa.int32())
_MAX_INT32 = 2**31 - 1
_QUANTILES = {"gap_p50_us": 0.5, "gap_p99_us": 0.99, "gap_max_us": 1.0}

# Packs the integers of a request.
pack = struct.Struct(f"{len(INTEGERS)}q").pack

# A request as it was recorded: packed integers, texts, gaps_us, lags_us, server_times_us; see Recorder.append.
Row = tuple[
    bytes,
    Sequence[str | None],
    NDArray[np.int32] | None,
    NDArray[np.int32] | None,
    Sequence[int | None] | None,
]


class GapBudget:
    """Which requests keep their raw gaps: all of them while less than half of the budget is used, then every k-th.

    k doubles sixteen times, each time after the same number of gaps, so that the second half lasts thousands of times
    as long as the first.
    """

    def __init__(self, most: int = MOST_GAPS) -> None:
        self._most = most
        self._kept = 0

    @property
    def stride(self) -> int:
        """k: a request keeps its gaps when its ordinal is a multiple of it."""
        past_half = 2 * self._kept / self._most - 1
        return 1 << max(0, 1 + math.floor(_DOUBLINGS * past_half))

    def keep(self, ordinals: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Of requests with so many gaps each (-1: without): those that keep them, never more than what is left."""
        wanted = (lengths >= 0) & (ordinals % self.stride == 0)
        used = self._kept + np.cumsum(np.where(wanted, lengths, 0))
        kept: NDArray[np.bool_] = wanted & (used <= self._most)
        self._kept += int(lengths[kept].sum())
        return kept


@dataclass(frozen=True)
class Batch:
    """Requests in the order of their ends. `integers` and `texts` are by column; -1 and None are "not measured".

    `durations` are the histograms of all their chunk gaps, read lags and send lags (record.HISTOGRAM_COLUMNS).
    """

    integers: Mapping[str, NDArray[np.int64]]
    texts: Mapping[str, Sequence[str | None]]
    durations: Mapping[str, Counter[int]]
    arrow: pa.RecordBatch

    def __len__(self) -> int:
        return int(self.arrow.num_rows)

    @cached_property
    def outcomes(self) -> Counter[str | None]:
        return Counter(self.texts["outcome"])

    def having(self, outcome: Outcome) -> NDArray[np.bool_]:
        """Which of them ended so."""
        if self.outcomes[outcome] in (0, len(self)):
            return np.full(len(self), self.outcomes[outcome] > 0)
        return np.array([text == outcome for text in self.texts["outcome"]])

    @cached_property
    def counted(self) -> NDArray[np.bool_]:
        """Which of them are in rates and percentiles: all that were not cancelled."""
        return ~self.having(Outcome.CANCELLED)

    @property
    def failed(self) -> int:
        """How many of those that are counted are not OK."""
        return len(self) - self.outcomes[Outcome.CANCELLED] - self.outcomes[Outcome.OK]

    def encoded(self, column: str) -> tuple[NDArray[np.int32], list[str | None]]:
        """A text column as indices into its different texts."""
        encoded = self.arrow.column(column).dictionary_encode(null_encoding="encode")
        return encoded.indices.to_numpy(), encoded.dictionary.to_pylist()


def batches(rows: deque[Row], budget: GapBudget) -> Iterator[Batch]:
    """Batches of the rows that there are now: each has at most MAX_ROWS rows and MAX_VALUES gaps and lags, or one row.

    A row leaves `rows` when its batch was made.
    """
    left = len(rows)
    while left:
        some = _first(rows, min(left, MAX_ROWS))
        batch = _batch(some, budget)
        for _ in some:
            rows.popleft()
        left -= len(some)
        yield batch


def _first(rows: deque[Row], most: int) -> list[Row]:
    some = list(itertools.islice(rows, most))
    values = 0
    for index, (_, _, gaps, lags, _) in enumerate(some):
        values += (0 if gaps is None else len(gaps)) + (0 if lags is None else len(lags))
        if values > MAX_VALUES:
            return some[: max(index, 1)]
    return some


def _batch(rows: Sequence[Row], budget: GapBudget) -> Batch:
    packed, text_rows, gap_arrays, lag_arrays, server_times = zip(*rows, strict=True)
    matrix = np.frombuffer(b"".join(packed), np.int64).reshape(len(rows), len(INTEGERS))
    integers = dict(zip(INTEGERS, matrix.T.copy(), strict=True))
    texts = dict(zip(TEXTS, zip(*text_rows, strict=True), strict=True))
    gaps, lengths = _joined(gap_arrays)
    arrays = {name: pa.array(values, pa.string()) for name, values in texts.items()}
    arrays |= _integer_arrays(integers | _summary(gaps, lengths), len(rows))
    arrays["chunk_gaps_us"] = _lists(gaps, lengths, budget.keep(integers["seq"], lengths))
    arrays["server_times_us"] = pa.array(server_times, _LIST)
    return Batch(
        integers,
        texts,
        {
            "chunk_gap": histogram.count(gaps * np.int64(1000)),
            "read_lag": histogram.count(_lags(lag_arrays, integers["read_lag_us"]) * np.int64(1000)),
            "send_lag": histogram.count(_send_lags_ns(integers)),
        },
        pa.RecordBatch.from_arrays([arrays[name] for name in _TYPES], schema=_SCHEMA),
    )


def _integer_arrays(columns: Mapping[str, NDArray[np.int64]], rows: int) -> dict[str, pa.Array]:
    matrix = np.stack(list(columns.values()))
    measured = pa.py_buffer(np.packbits(matrix != -1, bitorder="little"))
    narrow = np.minimum(matrix, _MAX_INT32).astype(np.int32)
    # One array for all columns of a type, of which each is a slice: cheaper than as many arrays.
    whole = {
        "int32": pa.Array.from_buffers(pa.int32(), matrix.size, [measured, pa.py_buffer(narrow)]),
        "int64": pa.Array.from_buffers(pa.int64(), matrix.size, [measured, pa.py_buffer(matrix)]),
    }
    return {name: whole[_TYPES[name]].slice(index * rows, rows) for index, name in enumerate(columns)}


def _joined(arrays: Sequence[NDArray[np.int32] | None]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """All values one after the other, and how many are each array's: -1 for None."""
    lengths = np.array([-1 if array is None else len(array) for array in arrays], np.int64)
    present = [array for array in arrays if array is not None]
    return np.concatenate(present) if present else np.empty(0, np.int32), lengths


def _lists(values: NDArray[np.int32], lengths: NDArray[np.int64], kept: NDArray[np.bool_]) -> pa.Array:
    """The Arrow lists of those that are kept; null for the others."""
    if not kept.any():
        return pa.nulls(len(lengths), _LIST)
    sizes = np.maximum(lengths, 0)
    if not kept.all():
        values, sizes = values[np.repeat(kept, sizes)], np.where(kept, sizes, 0)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.int32()), mask=pa.array(~kept))


def _summary(gaps: NDArray[np.int32], lengths: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Nearest ranks of each request's gaps; -1 for a request that has none."""
    columns = {name: np.full(len(lengths), -1) for name in _QUANTILES}
    some = np.flatnonzero(lengths > 0)
    sizes = lengths[some]
    stops = np.cumsum(sizes)
    starts = stops - sizes
    ordered = gaps.copy()
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        ordered[start:stop].sort()
    for name, share in _QUANTILES.items():
        columns[name][some] = ordered[starts + np.ceil(share * sizes).astype(np.int64) - 1]
    return columns


def _lags(arrays: Sequence[NDArray[np.int32] | None], worst_us: NDArray[np.int64]) -> NDArray[np.int32]:
    """The lag of every read: a request without an array of them had one."""
    values, lengths = _joined(arrays)
    return np.concatenate([values, worst_us[(lengths < 0) & (worst_us >= 0)]])


def _send_lags_ns(columns: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64]:
    """How late what was due was sent. The time that connecting took is not ours; a second attempt says nothing."""
    lags: NDArray[np.int64] = columns["sent_ns"] - columns["intended_ns"]
    for phase in ("dns_us", "connect_us", "tls_us"):
        lags -= np.maximum(columns[phase], 0) * 1000
    known: NDArray[np.bool_] = (columns["sent_ns"] != -1) & (columns["attempts"] == 1)
    return lags[known]
