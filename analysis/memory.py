"""Memory that was freed goes back to the system: what one stage needed does not add to what the next one needs."""

from __future__ import annotations

import ctypes

import pyarrow as pa


def give_back() -> None:
    """At once where the C library can (glibc); elsewhere when it sees fit."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
