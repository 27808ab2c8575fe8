"""The kernel's stamps: converted alike one by one and by array, and never out of order."""

from __future__ import annotations

import random
import struct

import pytest

from loadgen.transport.stamps import received

OFFSET = 1_700_000_000_000_000_000
STAMPING = struct.Struct("@6l")


def payload(received_ns: int, offset: int = OFFSET) -> bytes:
    """As the kernel writes it: three timespecs, of which the first is the software's."""
    return STAMPING.pack(*divmod(received_ns + offset, 1_000_000_000), 0, 0, 0, 0)


@pytest.mark.parametrize("count", [1, 15, 16, 200])
def test_stamps_and_lags(count: int) -> None:
    draw = random.Random(count)
    instants = sorted(draw.randrange(10**9, 5 * 10**9) for _ in range(count))
    reads = [instant + draw.randrange(50_000_000) for instant in instants]
    stamps, lags = received([payload(instant) for instant in instants], reads, 0, lambda _: OFFSET)
    assert stamps == instants
    assert list(lags) == [(read - instant) // 1000 for read, instant in zip(reads, instants, strict=True)]


@pytest.mark.parametrize("count", [3, 40])
def test_what_the_kernel_did_not_stamp_is_stamped_by_the_read(count: int) -> None:
    reads = [10**9 + 1000 * number for number in range(count)]
    ancillary = [payload(read - 700) for read in reads]
    ancillary[1] = b""
    stamps, lags = received(ancillary, reads, 0, lambda _: OFFSET)
    assert stamps == [reads[0] - 700, reads[1], *(read - 700 for read in reads[2:])]
    assert list(lags) == [0] * (count - 1)


@pytest.mark.parametrize("count", [4, 40])
def test_a_stamp_never_turns_an_answer_back(count: int) -> None:
    """The wall clock is set by an hour in the middle, and back by a second at the end."""
    reads = [10**9 + 10**6 * number for number in range(count)]
    step_ns = 3_600_000_000_000
    changed = reads[count // 2]

    def offset_ns(read: int) -> int:
        return OFFSET + step_ns * (read >= changed)

    ancillary = [payload(read - 5000, offset_ns(read)) for read in reads]
    ancillary[-1] = payload(reads[-1] - 5000, offset_ns(reads[-1]) + 10**9)
    stamps, lags = received(ancillary, reads, reads[0] - 10, offset_ns)
    assert stamps == [reads[0] - 10, *(read - 5000 for read in reads[1:-1]), reads[-1]]
    assert list(lags) == [5] * (count - 1)
