"""Timelines against a readable reference: one plain list of events per user."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonder.core.errors import DataError
from sonder.history.snapshot import HISTORY_SCHEMA
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import ITEM_SCHEMA, Vocabulary

Event = tuple[int, int]  # item_index, time


def timelines_of(users: dict[str, list[Event]]) -> Timelines:
    events = [event for of_user in users.values() for event in of_user]
    items = np.array([item for item, _ in events], dtype=np.int32)
    return Timelines(
        user_ids=pa.array(list(users), pa.string()),
        offsets=np.concatenate(([0], np.cumsum([len(of_user) for of_user in users.values()], dtype=np.int64))),
        items=items,
        actions=(items % 3).astype(np.int16),
        surfaces=(items % 2 - 1).astype(np.int16),
        times_us=np.array([time for _, time in events], dtype=np.int64),
        values=items.astype(np.float64) / 2,
    )


def users_of(timelines: Timelines) -> dict[str, list[Event]]:
    for column, expected in (
        (timelines.actions, timelines.items % 3),
        (timelines.surfaces, timelines.items % 2 - 1),
        (timelines.values, timelines.items / 2),
    ):
        np.testing.assert_array_equal(column, expected)  # every column moves with its event
    events = list(zip(timelines.items.tolist(), timelines.times_us.tolist(), strict=True))
    bounds = timelines.offsets.tolist()
    assert bounds[-1] == len(events)
    return {
        user: events[start:stop]
        for user, start, stop in zip(timelines.user_ids.to_pylist(), bounds[:-1], bounds[1:], strict=True)
    }


worlds = st.dictionaries(
    st.text("abcü", min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8)), max_size=7).map(
        lambda events: sorted(events, key=lambda event: event[1])
    ),
    max_size=6,
)


@given(worlds)
def test_a_timeline_holds_what_it_was_made_of(users: dict[str, list[Event]]) -> None:
    timelines = timelines_of(users)
    assert users_of(timelines) == users
    assert timelines.num_users == len(users)
    assert timelines.num_events == sum(map(len, users.values()))
    assert timelines.lengths.tolist() == [len(events) for events in users.values()]
    assert timelines.user_rows.tolist() == [row for row, events in enumerate(users.values()) for _ in events]
    assert timelines.ages.tolist() == [age for events in users.values() for age in range(len(events) - 1, -1, -1)]


@given(worlds, st.integers(-1, 9))
def test_before_a_cutoff_keeps_every_user_and_only_older_events(users: dict[str, list[Event]], cutoff: int) -> None:
    expected = {user: [event for event in events if event[1] < cutoff] for user, events in users.items()}
    assert users_of(timelines_of(users).before(cutoff)) == expected


@given(worlds, st.integers(-1, 9), st.integers(-1, 9))
def test_a_window_includes_its_start_and_excludes_its_end(users: dict[str, list[Event]], start: int, end: int) -> None:
    expected = {user: [event for event in events if start <= event[1] < end] for user, events in users.items()}
    assert users_of(timelines_of(users).between(start, end)) == expected


@given(worlds, st.integers(0, 8))
def test_last_and_without_last_divide_a_history(users: dict[str, list[Event]], num: int) -> None:
    timelines = timelines_of(users)
    last = {user: events[max(0, len(events) - num) :] for user, events in users.items()}
    rest = {user: events[: max(0, len(events) - num)] for user, events in users.items()}
    assert users_of(timelines.last(num)) == last
    assert users_of(timelines.without_last(num)) == rest


@given(worlds, st.data())
def test_take_picks_users_in_the_order_asked_for(users: dict[str, list[Event]], data: st.DataObject) -> None:
    rows = data.draw(st.permutations(range(len(users)))) if users else []
    rows = rows[: data.draw(st.integers(0, len(rows)))]
    names = list(users)
    taken = timelines_of(users).take(np.array(rows, dtype=np.int64))
    assert users_of(taken) == {names[row]: users[names[row]] for row in rows}
    assert taken.user_ids.to_pylist() == [names[row] for row in rows]


@given(worlds)
def test_concat_undoes_take(users: dict[str, list[Event]]) -> None:
    timelines = timelines_of(users)
    parts = [timelines.take(np.array([row])) for row in range(len(users))] or [timelines]
    assert users_of(Timelines.concat(parts)) == users


def vocabulary_of(*item_ids: str) -> Vocabulary:
    columns = [
        pa.array(range(len(item_ids)), pa.int32()),
        pa.array(item_ids, pa.string()),
        *(
            pa.array([0] * len(item_ids), field.type) if not field.nullable else pa.nulls(len(item_ids), field.type)
            for field in list(ITEM_SCHEMA)[2:]
        ),
    ]
    items = pa.Table.from_arrays(columns, schema=ITEM_SCHEMA)
    return Vocabulary(items, actions=("click", "buy"), action_weights=(1.0, 1.0), surfaces=("home",))


def history_of(*users: dict[str, object]) -> pa.Table:
    defaults = {"request_id": [], "event_key": [], "num_events": 0}
    return pa.Table.from_pylist([{**defaults, **user} for user in users], schema=HISTORY_SCHEMA)


def test_rows_of_a_snapshot_become_indices_with_minus_one_for_the_unknown() -> None:
    history = history_of(
        {"user_id": "a", "item_id": ["x", "new"], "action": ["buy", "hide"], "timestamp": [1, 2],
         "surface": ["home", None], "value": [None, 2.5]},
        {"user_id": "b", "item_id": ["y"], "action": ["click"], "timestamp": [5],
         "surface": ["search"], "value": [None]},
    )  # fmt: skip
    timelines = Timelines.from_history(history, vocabulary_of("y", "x"))
    assert timelines.user_ids.to_pylist() == ["a", "b"]
    assert timelines.offsets.tolist() == [0, 2, 3]
    assert timelines.items.tolist() == [1, -1, 0]
    assert timelines.actions.tolist() == [1, -1, 0]
    assert timelines.surfaces.tolist() == [0, -1, -1]
    assert timelines.times_us.tolist() == [1, 2, 5]
    np.testing.assert_array_equal(timelines.values, [np.nan, 2.5, np.nan])


def test_rows_in_several_chunks_and_slices_read_like_one() -> None:
    rows = [
        {
            "user_id": user,
            "item_id": [item],
            "action": ["click"],
            "timestamp": [time],
            "surface": [None],
            "value": [None],
        }
        for user, item, time in (("a", "x", 1), ("b", "y", 2), ("c", "x", 3))
    ]
    whole = history_of(*rows)
    parts = pa.concat_tables([whole.slice(1, 1), whole.slice(2, 1), whole.slice(0, 1)])
    timelines = Timelines.from_history(parts, vocabulary_of("x", "y"))
    assert timelines.user_ids.to_pylist() == ["b", "c", "a"]
    assert timelines.items.tolist() == [1, 0, 0]
    assert Timelines.from_history(whole.slice(1), vocabulary_of("x", "y")).items.tolist() == [1, 0]


def test_no_rows_are_no_users() -> None:
    timelines = Timelines.from_history(HISTORY_SCHEMA.empty_table(), vocabulary_of("x"))
    assert (timelines.num_users, timelines.num_events, timelines.offsets.tolist()) == (0, 0, [0])


def test_a_table_that_is_no_history_is_refused() -> None:
    with pytest.raises(DataError, match="without column 'item_id'"):
        Timelines.from_history(pa.table({"user_id": ["a"]}), vocabulary_of("x"))
