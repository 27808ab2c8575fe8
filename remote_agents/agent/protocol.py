"""Frames between the collector and an agent, the same over a pipe and over an SSH channel.

    stream  =  anything (a login banner)  MAGIC  frame*
    frame   =  length u32 | crc32 u32 | kind u8 | seq u32 | JSON of `length` bytes        (crc over kind, seq, JSON)

Here: encoding, decoding and the kinds; no thread and no clock of its own, but `frames` stamps each read with the
reader's CLOCK_MONOTONIC. A damaged or missing frame is an error, never skipped.
"""

import json
import os
import struct
import time
import zlib
from typing import Any, Iterator, List, NamedTuple, Tuple

MAGIC = b"\x00gpu-agent/1\n"

CONFIG = 1  # to the agent, first: {gpus, metrics_url, metrics_token, telemetry_url, max_lifetime_s}
HELLO = 2  # {host, schema, tables, boot_id, …}; a host's later HELLO replaces its earlier one
SAMPLE = 3  # [table, host, rows], each row in the order of the table's columns
EVENT = 4  # {t_mono_ns, kind, text, …}
PING = 5  # to the agent: {id}
PONG = 6  # {id, t1_ns, t2_ns}: received and answered, goes past all waiting data
BYE = 7  # both ways: the last frame of an orderly end

_SIZES = struct.Struct(">II")
_KEY = struct.Struct(">BI")
_HEADER = _SIZES.size + _KEY.size
_MAX_FRAME = 16 << 20
_MAX_NOISE = 256 << 10


class ProtocolError(Exception):
    """What came is not what the other side sent."""


class Frame(NamedTuple):
    kind: int
    body: Any


def encode(kind: int, seq: int, body: Any) -> bytes:
    keyed = _KEY.pack(kind, seq & 0xFFFFFFFF) + json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    return _SIZES.pack(len(keyed) - _KEY.size, zlib.crc32(keyed)) + keyed


class Decoder:
    """Bytes in, whole frames out; what comes before the magic is skipped."""

    def __init__(self) -> None:
        self._noise = b""
        self._buffer = bytearray()
        self._in_step = False
        self._skipped = 0
        self._seq = 0

    def feed(self, data: bytes) -> List[Frame]:
        self._buffer += data
        if not self._in_step and not self._skip_noise():
            return []
        frames = []
        while len(self._buffer) >= _HEADER:
            length, crc = _SIZES.unpack_from(self._buffer)
            if length > _MAX_FRAME:
                raise ProtocolError(f"frame {self._seq} is damaged: it claims {length} bytes")
            if len(self._buffer) < _HEADER + length:
                break
            keyed = bytes(self._buffer[_SIZES.size : _HEADER + length])
            kind, seq = _KEY.unpack_from(keyed)
            if zlib.crc32(keyed) != crc:
                raise ProtocolError(f"frame {self._seq} is damaged: its checksum does not fit")
            if seq != self._seq:
                raise ProtocolError(f"frame {self._seq} is missing: frame {seq} came instead")
            del self._buffer[: _HEADER + length]
            self._seq = (seq + 1) & 0xFFFFFFFF
            frames.append(Frame(kind, json.loads(keyed[_KEY.size :].decode())))
        return frames

    def _skip_noise(self) -> bool:
        start = self._buffer.find(MAGIC)
        end = start if start >= 0 else max(0, len(self._buffer) - len(MAGIC) + 1)
        self._noise = (self._noise + bytes(self._buffer[:end]))[:400]
        self._skipped += end
        if self._skipped > _MAX_NOISE:
            raise ProtocolError(f"no agent answers: what came begins with {self._noise[:80]!r}")
        self._in_step = start >= 0
        del self._buffer[: end + len(MAGIC) if self._in_step else end]
        return self._in_step


def frames(descriptor: int) -> Iterator[Tuple[int, Frame]]:
    """(CLOCK_MONOTONIC ns right after the read, frame), until the end of the stream. Raises ProtocolError."""
    decoder = Decoder()
    while True:
        data = os.read(descriptor, 65536)
        read_ns = time.monotonic_ns()
        if not data:
            return
        for frame in decoder.feed(data):
            yield read_ns, frame


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
