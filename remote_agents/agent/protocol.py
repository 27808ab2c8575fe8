"""Frames between the collector and an agent, the same over a pipe and over an SSH channel.

    stream  =  anything (a login banner)  MAGIC  frame*
    frame   =  length u32 | crc32 u32 | kind u8 | number u32 | JSON of `length` bytes      (crc over kind, number, JSON)

What the agent has to say (NUMBERED) is counted from 1 and kept until the collector acknowledges it; over a new link it
goes on where the last one ended. The rest belongs to the link, its number is 0. JSON of some size is deflated, then
the kind has the bit DEFLATED. Here: encoding, decoding and the kinds; no thread and no clock. A damaged or missing
frame is an error, never skipped.
"""

import json
import os
import struct
import zlib
from typing import Any, Iterator, NamedTuple

MAGIC = b"\x00gpu-agent/2\n"

START = 1  # to the agent, first: what to sample, and {name, token, agent, received, lease_s, max_lifetime_s}
WELCOME = 2  # {agent}: which agent it is; the first frame of every link, nothing but START is sent to it before
HELLO = 3  # {host, schema, tables, boot_id, …}; a host's later HELLO replaces its earlier one
SAMPLE = 4  # [table, host, rows], each row in the order of the table's columns
EVENT = 5  # {t_mono_ns, kind, text, …}
LOST = 6  # {frames, from_ns, to_ns}: thrown away since the spool was full; its number is that of the last of them
PING = 7  # to the agent: {id}
PONG = 8  # {id, t1_ns, t2_ns}: received and answered, goes past all waiting data
ACK = 9  # to the agent, every second: {received}: all up to this number is on the collector's disk
STOP = 10  # to the agent: send what waits, and end
BYE = 11  # the agent's last frame
NUMBERED = frozenset((HELLO, SAMPLE, EVENT, LOST, BYE))

DEFLATED = 0x80
_WORTH_DEFLATING = 256
_SIZES = struct.Struct(">II")
_KEY = struct.Struct(">BI")
_HEADER = _SIZES.size + _KEY.size
_MAX_FRAME = 16 << 20  # and of what is deflated in it
_MAX_NOISE = 256 << 10


class ProtocolError(Exception):
    """What came is not what the other side sent."""


class Frame(NamedTuple):
    kind: int
    number: int
    body: Any


def encode(kind: int, body: Any, number: int = 0) -> bytes:
    text = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    if len(text) > _WORTH_DEFLATING:
        kind, text = kind | DEFLATED, zlib.compress(text, 1)
    keyed = _KEY.pack(kind, number) + text
    return _SIZES.pack(len(text), zlib.crc32(keyed)) + keyed


class Decoder:
    """Bytes in, whole frames out; what comes before the magic is skipped. `received` is the last number that came."""

    def __init__(self, received: int = 0) -> None:
        self.received = received
        self.in_step = False
        self._noise = b""
        self._buffer = bytearray()
        self._skipped = 0

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Lazily: `received` may be set between two frames. Raises ProtocolError."""
        self._buffer += data
        if not self.in_step and not self._skip_noise():
            return
        while len(self._buffer) >= _HEADER:
            length, crc = _SIZES.unpack_from(self._buffer)
            if length > _MAX_FRAME:
                raise ProtocolError(f"the frame after number {self.received} is damaged: it claims {length} bytes")
            if len(self._buffer) < _HEADER + length:
                return
            keyed = bytes(self._buffer[_SIZES.size : _HEADER + length])
            if zlib.crc32(keyed) != crc:
                raise ProtocolError(f"the frame after number {self.received} is damaged: its checksum does not fit")
            del self._buffer[: _HEADER + length]
            yield self._frame(keyed)

    def _frame(self, keyed: bytes) -> Frame:
        kind, number = _KEY.unpack_from(keyed)
        text = keyed[_KEY.size :]
        if kind & DEFLATED:
            kind, text = kind & ~DEFLATED, self._inflated(text)
        try:
            body = json.loads(text.decode())
            frames = int(body["frames"]) if kind == LOST else 1
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ProtocolError(f"the frame after number {self.received} is none of an agent's: {error!r}") from error
        if kind in NUMBERED:
            if number != self.received + frames or frames < 1:
                raise ProtocolError(f"frame {self.received + 1} is missing: frame {number} came instead")
            self.received = number
        return Frame(kind, number, body)

    def _inflated(self, data: bytes) -> bytes:
        inflater = zlib.decompressobj()
        try:
            text = inflater.decompress(data, _MAX_FRAME)
        except zlib.error as error:
            raise ProtocolError(f"the frame after number {self.received} is damaged: {error}") from error
        if not inflater.eof:
            raise ProtocolError(f"the frame after number {self.received} is cut, or larger than {_MAX_FRAME} bytes")
        return text

    def noise(self) -> str:
        """The beginning of what came before the magic, or instead of it."""
        return (self._noise + bytes(self._buffer if not self.in_step else b""))[:400].decode(errors="replace").strip()

    def _skip_noise(self) -> bool:
        start = self._buffer.find(MAGIC)
        end = start if start >= 0 else max(0, len(self._buffer) - len(MAGIC) + 1)
        self._noise = (self._noise + bytes(self._buffer[:end]))[:400]
        self._skipped += end
        if self._skipped > _MAX_NOISE:
            raise ProtocolError(f"no agent answers: what came begins with {self._noise[:80]!r}")
        self.in_step = start >= 0
        del self._buffer[: end + len(MAGIC) if self.in_step else end]
        return self.in_step


def read_start(descriptor: int) -> Any:
    """The body of START, the first frame of a link; None when the link ends before. Raises ProtocolError."""
    decoder = Decoder()
    while True:
        data = os.read(descriptor, 1 << 16)
        if not data:
            return None
        for frame in decoder.feed(data):
            if frame.kind != START:
                raise ProtocolError(f"the first frame is of kind {frame.kind}, not START")
            return frame.body
