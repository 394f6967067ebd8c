"""The two protocols against a readable reference, and the promise that nothing after the cutoff is read."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from sonder.history import cutoffs
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import ITEM_SCHEMA, Vocabulary

Event = tuple[int, int, int]  # item, action, time
VOCABULARY = Vocabulary(
    ITEM_SCHEMA.empty_table(), actions=("impression", "click", "hide"), action_weights=(0.0, 1.0, -1.0), surfaces=()
)
WANTED, UNWANTED = 1, 2


def timelines_of(users: list[list[Event]]) -> Timelines:
    events = np.array([event for of_user in users for event in of_user], dtype=np.int64).reshape(-1, 3)
    return Timelines(
        user_ids=pa.array([f"u{row}" for row in range(len(users))], pa.string()),
        offsets=np.concatenate(([0], np.cumsum([len(of_user) for of_user in users], dtype=np.int64))),
        items=events[:, 0].astype(np.int32),
        actions=events[:, 1].astype(np.int16),
        surfaces=np.full(len(events), -1, dtype=np.int16),
        times_us=events[:, 2],
        values=np.full(len(events), np.nan),
    )


def users_of(timelines: Timelines) -> list[list[Event]]:
    events = list(zip(timelines.items.tolist(), timelines.actions.tolist(), timelines.times_us.tolist(), strict=True))
    return [events[a:b] for a, b in zip(timelines.offsets[:-1].tolist(), timelines.offsets[1:].tolist(), strict=True)]


worlds = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.integers(-1, 2), st.integers(0, 9)), max_size=6).map(
        lambda events: sorted(events, key=lambda event: event[2])
    ),
    max_size=5,
)


@given(worlds, st.integers(0, 10), st.integers(0, 10))
def test_temporal_reads_before_the_cutoff_and_asks_for_wanted_events_of_the_window(
    users: list[list[Event]], cutoff: int, end: int
) -> None:
    split = cutoffs.temporal(timelines_of(users), VOCABULARY, cutoff_us=cutoff, end_us=end)
    history = [[event for event in events if event[2] < cutoff] for events in users]
    targets = [[event for event in events if cutoff <= event[2] < end and event[1] == WANTED] for events in users]
    assert users_of(split.history) == history
    assert users_of(split.targets) == targets
    assert split.unwanted is not None
    assert users_of(split.unwanted) == [
        [event for event in events if cutoff <= event[2] < end and event[1] == UNWANTED] for events in users
    ]
    assert split.is_scored.tolist() == [bool(h) and bool(t) for h, t in zip(history, targets, strict=True)]
    assert split.is_cold.tolist() == [not h and bool(t) for h, t in zip(history, targets, strict=True)]


@given(worlds)
def test_leave_one_out_asks_users_of_three_events_for_their_last_one(users: list[list[Event]]) -> None:
    split = cutoffs.leave_one_out(timelines_of(users), part="test")
    assert users_of(split.history) == [events[:-1] if len(events) >= 3 else events for events in users]
    assert users_of(split.targets) == [events[-1:] if len(events) >= 3 else [] for events in users]
    assert split.unwanted is None  # there is no window in which to refuse anything


@given(worlds)
def test_validation_asks_for_the_event_before_and_never_shows_the_last(users: list[list[Event]]) -> None:
    split = cutoffs.leave_one_out(timelines_of(users), part="validation")
    assert users_of(split.history) == [events[:-2] if len(events) >= 3 else events for events in users]
    assert users_of(split.targets) == [events[-2:-1] if len(events) >= 3 else [] for events in users]


@given(worlds, st.integers(0, 10), st.integers(0, 2))
def test_changing_the_future_changes_nothing_that_is_readable(
    users: list[list[Event]], cutoff: int, action: int
) -> None:
    changed = [[e if e[2] < cutoff else (99, action, e[2] + 5) for e in events] for events in users]
    before = cutoffs.temporal(timelines_of(users), VOCABULARY, cutoff_us=cutoff, end_us=10)
    after = cutoffs.temporal(timelines_of(changed), VOCABULARY, cutoff_us=cutoff, end_us=10)
    assert users_of(before.history) == users_of(after.history)


def test_the_log_ends_just_after_its_newest_event_and_the_test_window_ends_with_it() -> None:
    timelines = timelines_of([[(0, 1, 7)], [(0, 1, 40 * MICROSECONDS_PER_DAY)]])
    end = cutoffs.end_of_log_us(timelines)
    assert end == 40 * MICROSECONDS_PER_DAY + 1
    assert cutoffs.test_cutoff_us(end, 30) == 10 * MICROSECONDS_PER_DAY + 1
    assert timelines.between(cutoffs.test_cutoff_us(end, 30), end).num_events == 1


def test_an_empty_log_ends_at_the_epoch() -> None:
    assert cutoffs.end_of_log_us(timelines_of([[]])) == 1
