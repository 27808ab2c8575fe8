"""Requests as `Recorder.append` takes them, by the names of their columns."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadgen.batch import Batch, GapBudget, batches, pack
from loadgen.record import INTEGERS, TEXTS

Request = tuple[
    tuple[int, ...],
    tuple[str | None, ...],
    NDArray[np.int32] | None,
    NDArray[np.int32] | None,
    Sequence[int | None] | None,
]

_PLAIN = {"worker": 0, "attempts": 1, "status": 200, "bytes_out": 300, "bytes_in": 500}


def recorded(
    seq: int,
    gaps_us: Sequence[int] | None = None,
    lags_us: Sequence[int] | None = None,
    server_times_us: Sequence[int | None] | None = None,
    **columns: Any,
) -> Request:
    """An OK answer of a chat, but for what `columns` say; None is not measured."""
    texts = {"request_id": f"{seq:032x}", "scenario": "chat", "outcome": "OK", "stamp_source": "kernel", **columns}
    integers = {"seq": seq, "intended_ns": seq * 1000, "sent_ns": seq * 1000, "end_ns": seq * 1000, **_PLAIN, **columns}
    return (
        tuple(-1 if integers.get(name) is None else integers[name] for name in INTEGERS),
        tuple(texts.get(name) for name in TEXTS),
        None if gaps_us is None else np.array(gaps_us, np.int32),
        None if lags_us is None else np.array(lags_us, np.int32),
        server_times_us,
    )


def batched(requests: Iterable[Request], budget: GapBudget | None = None) -> list[Batch]:
    """What the recorder makes of them."""
    rows: deque[Any] = deque((pack(*integers), *rest) for integers, *rest in requests)
    return list(batches(rows, budget or GapBudget()))
