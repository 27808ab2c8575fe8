"""/predict: plain inference, any JSON in and three numbers out, which depend on the body alone. Bytes only, no clock.

    {"outputs": [0.1, 0.2, 0.3], "model": "sim-8b", "timings": {"preprocess_ms": …, "io_ms": …, "queue_ms": …,
    "compute_ms": …}}

The timings are the server's own split of its time, as the headers `x-preprocess-ms`, `x-io-ms`, `x-queue-ms` and
`x-compute-ms` are; the network and a held-up request are in none of them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping

from loadgen.simulator.openai import Ask, parse_json
from loadgen.simulator.truth import Kind

_OUTPUTS = 3
_BITS = 10  # of the body's checksum, for each output


def parse(body: bytes) -> Ask:
    """A GET may come without a body. Raises Refusal."""
    if body:
        parse_json(body)
    return Ask(kind=Kind.PREDICT, text_at=zlib.crc32(body))


def answer(model: str, ask: Ask, timings_ms: Mapping[str, float]) -> tuple[str, bytes]:
    """Header lines and body; the timings by stage."""
    numbers = [(ask.text_at >> _BITS * index) % (1 << _BITS) / (1 << _BITS) for index in range(_OUTPUTS)]
    rounded = {stage: round(time_ms, 3) for stage, time_ms in timings_ms.items()}
    fields = {
        "outputs": [round(number, 3) for number in numbers],
        "model": model,
        "timings": {f"{stage}_ms": time_ms for stage, time_ms in rounded.items()},
    }
    headers = "".join(f"x-{stage}-ms: {time_ms}\r\n" for stage, time_ms in rounded.items())
    return headers, json.dumps(fields).encode()
