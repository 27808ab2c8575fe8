"""The truth log: what the simulator knows of each request, one CSV line when it ends.

Lines collect in memory; `flush` hands them to the kernel, so that a SIGKILL costs only what came since the last flush.
No fsync: that would stop the event loop. Times are CLOCK_MONOTONIC ns of the simulator's host, and empty for what did
not happen.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from enum import StrEnum
from operator import attrgetter
from pathlib import Path

from loadgen.errors import LoadgenError, UsageError
from loadgen.record import Outcome


class Kind(StrEnum):
    """What was asked for."""

    CHAT = "chat"
    COMPLETION = "completion"
    PREDICT = "predict"


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthRow:
    request_id: str
    replica: int | None = None
    received_ns: int  # the request was completely read
    admitted_ns: int | None = None  # the model gave it a slot
    first_token_ns: int | None = None  # before the write of the first token; of the whole answer when not streamed
    last_token_ns: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int = 0  # written, or in the answer
    outcome: Outcome  # what the client must see; CANCELLED: it left
    status: int | None = None
    late_tokens: int = 0  # written more than 5 ms after they were due
    late_max_us: int = 0  # the worst lateness
    kind: Kind
    fault: str | None = None
    fault_us: int | None = None  # how long a stall or a delay lasts
    network_us: int | None = None  # each way
    preprocess_wait_us: int | None = None  # for a CPU worker
    preprocess_us: int | None = None
    io_us: int | None = None
    queue_us: int | None = None  # from then, and a delay, to the first admission
    compute_us: int | None = None  # from then to the last token's instant, preemptions included
    cached_tokens: int | None = None  # of the prompt, that the prefix cache had
    preemptions: int = 0
    emissions: int = 0  # writes that `late_tokens` is counted over: of a token, or of a whole answer
    speedup: float  # all modelled times were divided by it


_COLUMNS = [field.name for field in fields(TruthRow)]
_values = attrgetter(*_COLUMNS)


class TruthLog:
    """Appends to a new file. Raises UsageError when it cannot be made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        except OSError as error:
            raise UsageError(f"cannot make the truth log {path}: {error.strerror}; name another file") from error
        self._lines = [",".join(_COLUMNS) + "\n"]

    def add(self, row: TruthRow) -> None:
        self._lines.append(",".join(["" if value is None else str(value) for value in _values(row)]) + "\n")

    def flush(self) -> None:
        """Raises LoadgenError."""
        data = "".join(self._lines).encode()
        self._lines.clear()
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            raise LoadgenError(f"cannot write the truth log {self._path}: {error.strerror}") from error

    def close(self) -> None:
        self.flush()
        os.close(self._descriptor)
