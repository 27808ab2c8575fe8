from __future__ import annotations

import os
import subprocess
import sys

import pytest

from remote_agents.agent.protocol import (
    BYE,
    EVENT,
    MAGIC,
    PING,
    SAMPLE,
    Decoder,
    Frame,
    ProtocolError,
    encode,
    frames,
)

BODIES = [
    (SAMPLE, ["gpu_fast", "host-a", [[1, None, "GPU-1", 0.5], [2**62, -3, "µ", 1e-9]]]),
    (EVENT, {"kind": "xid", "text": "XID 79, 'fallen off the bus'"}),
    (PING, {"id": 7}),
    (BYE, {}),
]


def stream() -> bytes:
    return MAGIC + b"".join(encode(kind, seq, body) for seq, (kind, body) in enumerate(BODIES))


@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
def test_frames_survive_any_cut_of_the_stream(size: int) -> None:
    data, decoder = b"Last login: yesterday\r\n\x00gpu-" + stream(), Decoder()
    got = [frame for start in range(0, len(data), size) for frame in decoder.feed(data[start : start + size])]
    assert got == [Frame(kind, body) for kind, body in BODIES]


def test_frames_are_stamped_as_they_are_read() -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, stream())
    os.close(write_end)
    got = list(frames(read_end))
    assert [frame.body for _, frame in got] == [body for _, body in BODIES]
    assert len({read_ns for read_ns, _ in got}) == 1


@pytest.mark.parametrize("position", range(0, 60, 3))
def test_a_damaged_frame_is_an_error(position: int) -> None:
    data = bytearray(stream())
    data[len(MAGIC) + position] ^= 0x10
    with pytest.raises(ProtocolError, match=r"frame 0 is damaged: it(s checksum does not fit| claims \d+ bytes)"):
        assert Decoder().feed(bytes(data)) == []  # a longer length may still wait for more bytes
        Decoder().feed(bytes(data) + bytes(1 << 20))


def test_a_missing_frame_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="frame 1 is missing: frame 2 came instead"):
        Decoder().feed(MAGIC + encode(PING, 0, {}) + encode(PING, 2, {}))


def test_endless_noise_is_an_error_that_shows_it() -> None:
    decoder = Decoder()
    with pytest.raises(ProtocolError, match="begins with b'bash: python3: command not found"):
        for _ in range(100):
            decoder.feed(b"bash: python3: command not found\n" * 200)


def test_numbers_that_json_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode(SAMPLE, 0, [float("nan")])


def test_the_protocol_needs_the_standard_library_only() -> None:
    code = "import sys; from remote_agents.agent import protocol, sample; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"gevent", "locust", "pandas", "pyarrow", "pynvml", "numpy"} & set(modules)
