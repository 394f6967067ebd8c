"""Ids such as `u0000042`, many at once, without a Python loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def padded_ids(prefix: str, numbers: NDArray[np.integer[Any]], width: int) -> pa.Array:
    """`prefix` and the number with `width` digits -> string [N]; numbers must fit."""
    head = np.frombuffer(prefix.encode("ascii"), dtype=np.uint8)
    characters = np.empty((len(numbers), len(head) + width), dtype=np.uint8)
    characters[:, : len(head)] = head
    rest = np.asarray(numbers, dtype=np.int64)
    for column in range(characters.shape[1] - 1, len(head) - 1, -1):
        rest, digit = np.divmod(rest, 10)
        characters[:, column] = digit + ord("0")
    assert not rest.any(), "a number has more digits than the id"
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * characters.shape[1]
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(characters))
