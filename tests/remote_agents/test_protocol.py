from __future__ import annotations

import os
import struct
import subprocess
import sys
import tracemalloc
import zlib

import pytest

from remote_agents.agent.protocol import (
    ACK,
    BYE,
    DEFLATED,
    EVENT,
    LOST,
    MAGIC,
    PING,
    SAMPLE,
    START,
    Decoder,
    Frame,
    ProtocolError,
    encode,
    read_start,
)

FRAMES = [
    Frame(SAMPLE, 1, ["gpu_fast", "host-a", [[1, None, "GPU-1", 0.5], [2**62, -3, "µ", 1e-9]]]),
    Frame(EVENT, 2, {"kind": "xid", "text": "XID 79, 'fallen off the bus'"}),
    Frame(PING, 0, {"id": 7}),
    Frame(SAMPLE, 3, ["gpu_fast", "host-a", [[1, None, "GPU-1", 0.5]] * 50]),  # long enough to be deflated
    Frame(LOST, 9, {"frames": 6, "from_ns": 1, "to_ns": 2}),
    Frame(BYE, 10, {}),
]


def stream() -> bytes:
    return MAGIC + b"".join(encode(frame.kind, frame.body, frame.number) for frame in FRAMES)


@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
def test_frames_survive_any_cut_of_the_stream(size: int) -> None:
    data, decoder = b"Last login: yesterday\r\n\x00gpu-" + stream(), Decoder()
    got = [frame for start in range(0, len(data), size) for frame in decoder.feed(data[start : start + size])]
    assert got == FRAMES
    assert decoder.received == 10
    assert decoder.noise() == "Last login: yesterday\r\n\x00gpu-"


def test_rows_are_deflated() -> None:
    rows = ["gpu_fast", "host-a", [[10**15 + tick, None, "GPU-1", 0.5] for tick in range(8)]]
    assert len(encode(SAMPLE, rows)) < len(repr(rows)) / 2


@pytest.mark.parametrize("position", range(0, 60, 3))
def test_a_damaged_frame_is_an_error(position: int) -> None:
    data = bytearray(stream())
    data[len(MAGIC) + position] ^= 0x10
    with pytest.raises(
        ProtocolError, match=r"after number 0 is damaged: it(s checksum does not fit| claims \d+ bytes)"
    ):
        list(Decoder().feed(bytes(data) + bytes(1 << 20)))


def test_a_missing_frame_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="frame 2 is missing: frame 3 came instead"):
        list(Decoder().feed(MAGIC + encode(EVENT, {}, 1) + encode(EVENT, {}, 3)))


def framed(kind: int, text: bytes, number: int = 1) -> bytes:
    keyed = struct.pack(">BI", kind, number) + text
    return MAGIC + struct.pack(">II", len(text), zlib.crc32(keyed)) + keyed


def test_a_frame_that_inflates_beyond_measure_is_an_error_and_costs_no_memory() -> None:
    bomb = zlib.compress(bytes(1 << 30), 1)  # a GiB in less than 5 MiB
    tracemalloc.start()
    with pytest.raises(ProtocolError, match="is cut, or larger than 16777216 bytes"):
        list(Decoder().feed(framed(EVENT | DEFLATED, bomb)))
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (EVENT, b"{"),
        (EVENT, b"\xff"),
        (EVENT, b"[" * 100_000),
        (EVENT | DEFLATED, b"not deflated"),
        (EVENT | DEFLATED, zlib.compress(b"{}")[:-3]),
        (LOST, b"{}"),
        (LOST, b'{"frames": null}'),
        (LOST, b'{"frames": -1}'),
        (LOST, b"7"),
    ],
)
def test_a_frame_that_no_agent_sends_is_an_error(kind: int, text: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(Decoder(2).feed(framed(kind, text)))


def test_over_a_new_link_the_numbers_go_on() -> None:
    assert [frame.number for frame in Decoder(41).feed(MAGIC + encode(ACK, {}) + encode(EVENT, {}, 42))] == [0, 42]


def test_endless_noise_is_an_error_that_shows_it() -> None:
    decoder = Decoder()
    with pytest.raises(ProtocolError, match="begins with b'bash: python3: command not found"):
        for _ in range(100):
            list(decoder.feed(b"bash: python3: command not found\n" * 200))


def test_numbers_that_json_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode(SAMPLE, [float("nan")])


def test_the_first_frame_is_start_and_nothing_else() -> None:
    def piped(data: bytes) -> int:
        read_end, write_end = os.pipe()
        os.write(write_end, data)
        os.close(write_end)
        return read_end

    assert read_start(piped(b"noise" + MAGIC + encode(START, {"name": "gpu1"}))) == {"name": "gpu1"}
    assert read_start(piped(b"")) is None
    with pytest.raises(ProtocolError, match=f"of kind {PING}, not START"):
        read_start(piped(MAGIC + encode(PING, {})))


def test_the_protocol_needs_the_standard_library_only() -> None:
    code = "import sys; from remote_agents.agent import protocol, sample; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"gevent", "locust", "pandas", "pyarrow", "pynvml", "numpy"} & set(modules)
