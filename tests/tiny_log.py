"""Tiny logs for tests: users with (day, item, action) events, items i0, i1, … with a category and a title each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from sonder.core.storage import MANIFEST, Folder
from sonder.core.workspace import Workspace
from sonder.history.snapshot import HISTORY_SCHEMA, bucket_file
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY
from sonder.history.timelines import Timelines
from sonder.history.vocabulary import ITEM_SCHEMA, Vocabulary

ACTIONS, WEIGHTS = ("view", "buy", "hide", "impression"), (1.0, 1.0, -1.0, 0.0)
Event = tuple[float, int, str]  # day, item index, action


def timelines_of(users: Mapping[str, Sequence[Event]], values: float = float("nan")) -> Timelines:
    """Histories in time order; a day may be a fraction."""
    rows = [sorted(events, key=lambda event: event[0]) for events in users.values()]
    flat = [event for events in rows for event in events]
    return Timelines(
        user_ids=pa.array(list(users), pa.string()),
        offsets=np.concatenate([[0], np.cumsum([len(events) for events in rows])]).astype(np.int64),
        items=np.array([item for _, item, _ in flat], dtype=np.int32),
        actions=np.array([ACTIONS.index(action) for _, _, action in flat], dtype=np.int16),
        surfaces=np.full(len(flat), -1, dtype=np.int16),
        times_us=np.array([round(day * DAY) for day, _, _ in flat], dtype=np.int64),
        values=np.full(len(flat), values),
    )


def vocabulary_of(categories: Sequence[str | None], *, first_day: float | None = 0.0) -> Vocabulary:
    num = len(categories)
    columns = {field.name: pa.nulls(num, field.type) for field in ITEM_SCHEMA}
    columns["item_index"] = pa.array(range(num), pa.int32())
    columns["item_id"] = pa.array([f"i{index}" for index in range(num)])
    columns["title"] = pa.array([f"title {index}" for index in range(num)])
    columns["category"] = pa.array(categories, pa.string())
    columns["num_events"] = pa.array([1] * num, pa.int64())
    if first_day is not None:
        seen = pa.array([round(first_day * DAY)] * num, pa.int64())
        columns["first_seen"] = columns["last_seen"] = seen.cast(pa.timestamp("us", tz="UTC"))
    return Vocabulary(pa.table(columns, schema=ITEM_SCHEMA), ACTIONS, WEIGHTS, ())


def random_log(seed: int, *, num_users: int, num_items: int, num_days: int) -> dict[str, list[Event]]:
    """Users that come with their own rate, some of whom leave for good half-way."""
    draw = np.random.default_rng(seed)
    log: dict[str, list[Event]] = {}
    for user in range(num_users):
        stays = num_days if draw.random() < 0.6 else num_days * draw.uniform(0.3, 0.9)
        times = np.sort(draw.uniform(0, stays, 1 + draw.poisson(draw.gamma(1.0, 0.25) * stays)))
        actions = draw.choice(ACTIONS, len(times), p=[0.6, 0.25, 0.05, 0.1])
        items = draw.integers(0, num_items, len(times))
        log[f"u{user:04d}"] = [(float(t), int(i), str(a)) for t, i, a in zip(times, items, actions, strict=True)]
    return log


def write_snapshot(
    workspace: Workspace, name: str, timelines: Timelines, vocabulary: Vocabulary, *, num_buckets: int = 2
) -> Folder:
    """A history snapshot and its items, as `prepare` lays them out; users are dealt to the buckets in turn."""
    history, entries = workspace.history(name), []
    for bucket in range(num_buckets):
        part = timelines.take(np.arange(bucket, timelines.num_users, num_buckets))
        items, actions = np.array(vocabulary.item_ids.to_pylist(), object), np.array(vocabulary.actions, object)
        flat = [
            pa.array(items[part.items], pa.large_string()),
            pa.array(actions[part.actions], pa.large_string()),
            pa.array(part.times_us).cast(pa.timestamp("us", tz="UTC")),
            pa.nulls(part.num_events, pa.large_string()),
            pa.array(part.values, from_pandas=True),
            pa.nulls(part.num_events, pa.large_string()),
            pa.array(np.arange(part.num_events, dtype=np.uint64)),
        ]
        lists = [pa.LargeListArray.from_arrays(pa.array(part.offsets), column) for column in flat]
        columns = [part.user_ids.cast(pa.large_string()), *lists, pa.array(part.lengths, pa.int32())]
        bucket_file(history, bucket).write_table(pa.Table.from_arrays(columns, schema=HISTORY_SCHEMA))
        entries.append({"bucket": bucket, "users": part.num_users, "events": part.num_events})
    times_us = timelines.times_us
    (history / MANIFEST).write_json(
        {
            "buckets": entries,
            "is_ordinal": False,
            "first_event_us": int(times_us.min()),
            "last_event_us": int(times_us.max()),
        }
    )
    vocabulary.save(workspace.items(name))
    return history
