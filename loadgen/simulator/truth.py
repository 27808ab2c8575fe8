"""The truth log: what the simulator knows of each request, one CSV line when it ends.

Lines collect in memory; `flush` hands them to the kernel, so that a SIGKILL costs only what came since the last flush.
No fsync: that would stop the event loop. Times are CLOCK_MONOTONIC ns of the simulator's host, and empty for what did
not happen.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from loadgen.errors import UsageError
from loadgen.record import Outcome


class TruthRow(NamedTuple):
    request_id: str
    replica: int | None
    received_ns: int  # the request was completely read
    admitted_ns: int | None  # the model gave it a slot
    first_token_ns: int | None  # just before the write of the first token (the whole answer when it is not streamed)
    last_token_ns: int | None
    prompt_tokens: int | None
    output_tokens: int  # written, or in the answer
    outcome: Outcome  # OK, CANCELLED (the client left) or HTTP_ERROR
    status: int | None
    late_tokens: int  # written more than 5 ms after they were due
    late_max_us: int  # the worst lateness


class TruthLog:
    """Appends to a new file. Raises UsageError when it cannot be made."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        except OSError as error:
            raise UsageError(f"cannot make the truth log {path}: {error.strerror}; name another file") from error
        self._lines = [",".join(TruthRow._fields) + "\n"]

    def add(self, row: TruthRow) -> None:
        self._lines.append(",".join(["" if value is None else str(value) for value in row]) + "\n")

    def flush(self) -> None:
        data = "".join(self._lines).encode()
        self._lines.clear()
        while data:
            data = data[os.write(self._descriptor, data) :]

    def close(self) -> None:
        self.flush()
        os.close(self._descriptor)
