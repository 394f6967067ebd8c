"""Memory that was freed goes back to the machine."""

from __future__ import annotations

import ctypes

import pyarrow as pa


def give_back() -> None:
    """Call it where much was freed in small pieces: glibc and Arrow keep such pieces for later.

    Of the heap nothing goes back under another C library.
    """
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
