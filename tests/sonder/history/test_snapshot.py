"""Reading a snapshot: all of it, a bucket of it, one user of it."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from sonder.core.errors import NotFound
from sonder.core.ids import bucket_of
from sonder.core.storage import Folder
from sonder.history.snapshot import HISTORY_SCHEMA, bucket_file, buckets_of, find_user, read_bucket, read_timelines
from sonder.history.vocabulary import ITEM_SCHEMA, Vocabulary

USERS = [f"user-{number}" for number in range(40)]
NUM_BUCKETS = 7
NO_ITEMS = Vocabulary(ITEM_SCHEMA.empty_table(), actions=("click",), action_weights=(1.0,), surfaces=())


def history_of(users: list[str]) -> pa.Table:
    rows = [
        {"user_id": user, "item_id": ["x", user], "action": ["click"] * 2, "timestamp": [1, 2], "surface": [None] * 2,
         "value": [None, 2.0], "request_id": [None] * 2, "event_key": [1, 2], "num_events": 2}
        for user in sorted(users)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=HISTORY_SCHEMA)


@pytest.fixture
def snapshot(tmp_path: Path) -> Folder:
    folder = Folder.at(str(tmp_path)) / "abc"
    buckets = bucket_of(pl.Series(USERS), NUM_BUCKETS)
    for bucket in range(NUM_BUCKETS):
        users = [user for user, place in zip(USERS, buckets, strict=True) if place == bucket]
        bucket_file(folder, bucket).write_table(history_of(users))
    (folder / "manifest.json").write_json({"buckets": [{"bucket": bucket} for bucket in range(NUM_BUCKETS)]})
    return folder


def test_every_bucket_is_listed_and_read(snapshot: Folder) -> None:
    assert buckets_of(snapshot) == list(range(NUM_BUCKETS))
    tables = [read_bucket(snapshot, bucket) for bucket in buckets_of(snapshot)]
    assert all(table.schema.equals(HISTORY_SCHEMA) for table in tables)
    assert sorted(user for table in tables for user in table.column("user_id").to_pylist()) == sorted(USERS)


def test_the_layout_of_a_bucket_is_its_number_in_three_digits(snapshot: Folder) -> None:
    assert (snapshot / "bucket=003" / "part-0.parquet").path == bucket_file(snapshot, 3).path


def test_timelines_hold_all_users_or_those_of_the_asked_buckets(snapshot: Folder) -> None:
    everybody = read_timelines(snapshot, NO_ITEMS)
    assert sorted(everybody.user_ids.to_pylist()) == sorted(USERS)
    assert everybody.num_events == 2 * len(USERS)
    some = read_timelines(snapshot, NO_ITEMS, [2, 5])
    expected = [u for b in (2, 5) for u in read_bucket(snapshot, b).column("user_id").to_pylist()]
    assert some.user_ids.to_pylist() == expected
    assert read_timelines(snapshot, NO_ITEMS, []).num_users == 0


@pytest.mark.parametrize("user", USERS[:10])
def test_a_user_is_found_in_one_bucket(snapshot: Folder, user: str) -> None:
    found = find_user(snapshot, user)
    assert found.column("user_id").to_pylist() == [user]
    assert found.column("item_id").to_pylist() == [["x", user]]


def test_an_unknown_user_is_not_found(snapshot: Folder) -> None:
    with pytest.raises(NotFound, match="No user 'nobody' in the history abc"):
        find_user(snapshot, "nobody")


def test_a_snapshot_without_a_manifest_is_absent(snapshot: Folder) -> None:
    (snapshot / "manifest.json").remove()
    with pytest.raises(NotFound, match="Nothing is published"):
        buckets_of(snapshot)
