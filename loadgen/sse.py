"""Server-sent events, sans I/O: bytes in, the data of whole events out.

Follows the event-stream grammar of the HTML standard as far as model servers use it: data lines joined by newlines,
comments and other fields skipped, LF, CRLF and CR line ends, a byte order mark at the start. No clock.
"""

from __future__ import annotations


class SseDecoder:
    """`feed` returns the data of the events that these bytes completed; `flush` what is left at the end."""

    def __init__(self, max_event_bytes: int = 4 << 20) -> None:
        self._tail = b""
        self._data: list[bytes] = []
        self._size = 0
        self._max = max_event_bytes
        self._start = True

    @property
    def pending(self) -> bool:
        """Whether bytes are held that belong to an event which is not complete."""
        return bool(self._tail or self._data)

    def feed(self, chunk: bytes) -> list[bytes]:
        """Raises ValueError when one event is larger than the bound."""
        buffer = self._tail + chunk
        if self._start and buffer:
            if len(buffer) < 3 and b"\xef\xbb\xbf".startswith(buffer):
                self._tail = buffer
                return []
            buffer = buffer.removeprefix(b"\xef\xbb\xbf")
            self._start = False
        if b"\r" in buffer:
            # A CR at the very end may be half of a CRLF: it waits for the next bytes.
            held = b"\r" if buffer.endswith(b"\r") else b""
            buffer = buffer[: len(buffer) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held
        lines = buffer.split(b"\n")
        self._tail = lines.pop()
        events: list[bytes] = []
        for line in lines:
            if line.startswith(b"data:"):
                value = line[6:] if line[5:6] == b" " else line[5:]
                self._data.append(value)
                self._size += len(value)
            elif line == b"data":
                self._data.append(b"")
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
                self._size = 0
        if self._size + len(self._tail) > self._max:
            raise ValueError(f"an event is larger than {self._max} bytes")
        return events

    def flush(self) -> list[bytes]:
        """The event that the end of the stream cut off: some servers leave out the last blank line."""
        events = self.feed(b"\n\n") if self._tail or self._data else []
        self._tail, self._data = b"", []
        return events
