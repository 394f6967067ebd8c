"""`user item item …`, one user a line: the text format of the academic sequence sets.

There is no clock: the place of an item in its line is its time, as an ordinal. Row numbers count events, so that ties
and order come out right; a user without items takes one number and is set aside as missing_id.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sonder.events.quarantine import empty_quarantine
from sonder.events.raw_blocks import RawBlock
from sonder.events.text_lines import read_blocks

USER, ITEM, POSITION = "user", "item", "position"


def read_sequence_blocks(source: str, base_order: int) -> Iterator[RawBlock]:
    """Every block of a file: columns user, item (bytes) and position (from 0)."""
    order = base_order
    for chunk in read_blocks(source):
        block = sequence_block(chunk, order)
        order += len(block.log_order)
        yield block


def sequence_block(data: bytes, first_order: int) -> RawBlock:
    """Whole lines -> one row per item."""
    view = np.frombuffer(data, np.uint8)
    is_space = view <= ord(" ")
    starts = np.flatnonzero(~is_space & np.concatenate(([True], is_space[:-1])))
    line_of = np.searchsorted(np.flatnonzero(view == ord("\n")), starts)
    users = np.flatnonzero(np.diff(line_of, prepend=-1))  # the first token of each line
    num_items = np.diff(np.append(users, len(starts))) - 1
    num_rows = np.maximum(num_items, 1)  # a user without items is one row, without an item
    position = np.arange(num_rows.sum()) - np.repeat(np.cumsum(num_rows) - num_rows, num_rows)
    user_at = np.repeat(users, num_rows)
    item_at = pa.array(user_at + 1 + position, mask=np.repeat(num_items == 0, num_rows))
    tokens = _tokens(data, starts)
    table = pa.table(
        {USER: tokens.take(pa.array(user_at)), ITEM: tokens.take(item_at), POSITION: pa.array(position, pa.int64())}
    )
    return RawBlock(table, np.arange(first_order, first_order + table.num_rows), empty_quarantine())


def _tokens(data: bytes, starts: NDArray[np.int64]) -> pa.LargeBinaryArray:
    """The tokens as an Arrow array over the block itself; each keeps the space after it, which the mapping cuts off."""
    offsets = pa.py_buffer(np.append(starts, len(data)).astype(np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(starts), [None, offsets, pa.py_buffer(data)])
