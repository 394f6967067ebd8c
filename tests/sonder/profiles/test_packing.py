from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonder.core.errors import ArtefactMismatch
from sonder.history.timelines import Timelines
from sonder.profiles.packing import EVENT_BYTES, pack_timelines, unpack_timelines

Event = tuple[int, float, int, int, int]
EVENTS = st.tuples(
    st.integers(-(2**62), 2**62),
    st.floats(width=64),
    st.integers(-1, 2**31 - 1),
    st.integers(-1, 2**15 - 1),
    st.integers(-1, 2**15 - 1),
)


def timelines_of(histories: list[list[Event]]) -> Timelines:
    events = [event for history in histories for event in history]
    times, values, items, actions, surfaces = (
        (list(column) for column in zip(*events, strict=True)) if events else [[]] * 5
    )
    return Timelines(
        user_ids=pa.array([f"u{user}" for user in range(len(histories))], pa.string()),
        offsets=np.cumsum([0, *(len(history) for history in histories)]),
        items=np.array(items, np.int32),
        actions=np.array(actions, np.int16),
        surfaces=np.array(surfaces, np.int16),
        times_us=np.array(times, np.int64),
        values=np.array(values, np.float64),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(EVENTS, max_size=4), max_size=5))
def test_unpacking_gives_back_every_column_of_every_user(histories: list[list[Event]]) -> None:
    before = timelines_of(histories)
    after = unpack_timelines(before.user_ids.to_pylist(), pack_timelines(before))
    assert after.user_ids.equals(before.user_ids)
    for name in ("offsets", "items", "actions", "surfaces", "times_us", "values"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
        assert getattr(after, name).dtype == getattr(before, name).dtype


def test_an_event_takes_24_bytes_and_a_user_without_events_none() -> None:
    packed = pack_timelines(timelines_of([[(1, 2.0, 3, 4, 5)] * 3, []]))
    assert [len(part) for part in packed] == [3 * EVENT_BYTES, 0]
    assert EVENT_BYTES == 24


def test_users_of_a_batch_may_come_in_any_order() -> None:
    first, second = pack_timelines(timelines_of([[(1, 0.5, 7, 0, 0)], [(2, 0.5, 8, 0, 0), (3, 0.5, 9, 0, 0)]]))
    swapped = unpack_timelines(["b", "a"], [second, first])
    assert swapped.items.tolist() == [8, 9, 7]
    assert swapped.offsets.tolist() == [0, 2, 3]


def test_a_cut_timeline_is_refused() -> None:
    with pytest.raises(ArtefactMismatch, match="24 bytes an event"):
        unpack_timelines(["a"], [b"x" * 25])


def test_a_missing_timeline_is_refused() -> None:
    with pytest.raises(ArtefactMismatch, match="one timeline per user"):
        unpack_timelines(["a", "b"], [b""])
