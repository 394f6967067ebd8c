"""Tiny logs: `timelines({"u": [(item, day), …]})` and a vocabulary of n items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pytest

from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import ITEM_SCHEMA, Vocabulary

Events = Sequence[tuple[int, float] | tuple[int, float, int]]
MakeTimelines = Callable[[Mapping[str, Events]], Timelines]
MakeVocabulary = Callable[..., Vocabulary]


@pytest.fixture
def timelines() -> MakeTimelines:
    def make(users: Mapping[str, Events]) -> Timelines:
        lengths = [len(events) for events in users.values()]
        rows = [event for events in users.values() for event in events]
        return Timelines(
            user_ids=pa.array(list(users), pa.string()),
            offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
            items=np.asarray([row[0] for row in rows], dtype=np.int32),
            actions=np.asarray([row[2] if len(row) == 3 else 0 for row in rows], dtype=np.int16),
            surfaces=np.full(len(rows), -1, dtype=np.int16),
            times_us=np.asarray([row[1] * MICROSECONDS_PER_DAY for row in rows], dtype=np.int64),
            values=np.full(len(rows), np.nan),
        )

    return make


@pytest.fixture
def vocabulary() -> MakeVocabulary:
    """Actions are 0 wanted, 1 shown, 2 unwanted."""

    def make(num_items: int, categories: Sequence[str] | None = None) -> Vocabulary:
        empty = {name: pa.nulls(num_items, ITEM_SCHEMA.field(name).type) for name in ITEM_SCHEMA.names}
        columns = empty | {
            "item_index": pa.array(range(num_items), pa.int32()),
            "item_id": pa.array([f"i{index}" for index in range(num_items)]),
            "num_events": pa.array([1] * num_items, pa.int64()),
            "category": pa.array(categories or [None] * num_items, pa.string()),
        }
        items = pa.table(columns, schema=ITEM_SCHEMA)
        return Vocabulary(items, ("buy", "impression", "hide"), (1.0, 0.0, -1.0), ())

    return make
