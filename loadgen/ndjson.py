"""Newline-delimited JSON, sans I/O: bytes in, whole lines out, the empty ones skipped. No clock."""

from __future__ import annotations


class NdjsonDecoder:
    """`feed` returns the lines that these bytes completed; `flush` what is left at the end."""

    def __init__(self, max_line_bytes: int = 4 << 20) -> None:
        self._tail = b""
        self._max = max_line_bytes

    def feed(self, chunk: bytes) -> list[bytes]:
        """Raises ValueError when one line is larger than the bound."""
        lines = (self._tail + chunk).split(b"\n")
        self._tail = lines.pop()
        if len(self._tail) > self._max:
            raise ValueError(f"a line is larger than {self._max} bytes")
        return [line for line in lines if line.strip()]

    def flush(self) -> list[bytes]:
        """The last line, when no line end followed it."""
        return self.feed(b"\n")
