"""Merging deliveries one after the other gives the bytes, the counts and the statistics of one run over all of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonder.core.errors import DataError
from sonder.core.storage import Folder
from sonder.events.contract import EVENT_SCHEMA, Col
from sonder.events.erasure import digest_of
from sonder.events.quarantine import empty_quarantine
from sonder.events.reading import FILE_SHIFT
from sonder.history.assemble import assemble_bucket
from sonder.history.merge import MergedBucket, merge_bucket, users_of_rows
from sonder.history.snapshot import HISTORY_SCHEMA
from sonder.history.timelines import MICROSECONDS_PER_DAY as DAY

MOST_A_DAY = 5
Row = tuple[str, str, str, int, str | None]  # user, item, action, time, id


def events_of(rows: list[Row], *, file: int = 0) -> pa.Table:
    """Rows of one file, in its order."""
    users, items, actions, times, ids = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    columns: dict[str, Any] = {
        Col.USER_ID: pa.array(users, pa.large_string()),
        Col.ITEM_ID: pa.array(items, pa.large_string()),
        Col.ACTION: pa.array(actions, pa.large_string()),
        Col.TIMESTAMP: pa.array(times, pa.int64()).cast(pa.timestamp("us", tz="UTC")),
        Col.EVENT_ID: pa.array(ids, pa.large_string()),
        Col.SURFACE: pa.array([None if time % 3 else "home" for time in times], pa.large_string()),
        Col.VALUE: pa.array([None if time % 2 else time / 7 for time in times], pa.float64()),
        Col.REQUEST_ID: pa.nulls(len(users), pa.large_string()),
        Col.LOG_ORDER: pa.array([(file << FILE_SHIFT) + place for place in range(len(rows))], pa.int64()),
    }
    return pa.table(columns, schema=EVENT_SCHEMA)


def together(deliveries: list[list[Row]], **options: Any) -> Any:
    """One run over all deliveries, in their order."""
    tables = [events_of(rows, file=file) for file, rows in enumerate(deliveries)]
    return assemble_bucket(pa.concat_tables(tables), max_events_per_day=options.get("most", MOST_A_DAY))


def one_by_one(deliveries: list[list[Row]], **options: Any) -> list[MergedBucket]:
    """The same, each merged into what the ones before it made."""
    history, quarantined, merged = HISTORY_SCHEMA.empty_table(), empty_quarantine(), []
    for rows in deliveries:
        merged.append(
            merge_bucket(history, quarantined, events_of(rows), max_events_per_day=options.get("most", MOST_A_DAY))
        )
        history, quarantined = merged[-1].history, merged[-1].quarantined
    return merged


def file_bytes(table: pa.Table) -> bytes:
    file = Folder.at("memory://merge") / "part-0.parquet"
    file.write_table(table)
    return file.read_bytes()


def counted(parts: list[pa.Table], key: list[str]) -> list[tuple[Any, ...]]:
    joined = pl.DataFrame(pl.from_arrow(pa.concat_tables(parts)))
    return joined.group_by(key).agg(pl.col(Col.NUM_EVENTS).sum()).sort(key).rows()


@st.composite
def deliveries(draw: st.DrawFn, *, with_ids: bool) -> list[list[Row]]:
    """A log over three days and up to four deliveries: late rows, ties, bots, rows and files that come twice."""
    seed = draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    num = int(rng.integers(1, 60))
    users = [f"u{'é' if number % 2 else ''}{number}" for number in rng.integers(0, 6, num)]
    # Coarse times: ties within and across deliveries. Without ids, rows of two deliveries differ in something.
    times = [
        int(day) * DAY + int(step) * 1000
        for day, step in zip(rng.integers(0, 3, num), rng.integers(0, 9, num), strict=True)
    ]
    rows = [
        (user, f"i{item}", "buy" if item % 3 else "view", time, f"e{place}" if with_ids else None)
        for place, (user, item, time) in enumerate(zip(users, rng.integers(0, 7, num), times, strict=True))
    ]
    parts: list[list[Row]] = [[] for _ in range(draw(st.integers(1, 4)))]
    placed: dict[Row, int] = {}
    for row in rows:
        parts[placed.setdefault(row, int(rng.integers(0, len(parts))))].append(row)
    if with_ids:
        for row in rows:  # delivered again: the same id, sometimes in another place, time or shape
            if rng.random() < 0.3:
                changed = (row[0], "i99", *row[2:]) if rng.random() < 0.3 else row
                later = (*changed[:3], changed[3] + int(rng.integers(0, 2)) * DAY, changed[4])
                parts[int(rng.integers(0, len(parts)))].append(later)
        if rng.random() < 0.3:
            parts.append(list(parts[0]))
    return parts


@pytest.mark.parametrize("with_ids", [True, False])
def test_deliveries_merged_one_by_one_are_the_bytes_of_one_run(with_ids: bool) -> None:
    @settings(max_examples=150, deadline=None)
    @given(deliveries(with_ids=with_ids))
    def holds(parts: list[list[Row]]) -> None:
        whole, merged = together(parts), one_by_one(parts)
        last = merged[-1]
        assert last.history.equals(whole.history)
        assert file_bytes(last.history) == file_bytes(whole.history)
        reasons = [Counter(table.column("reason").to_pylist()) for table in (last.quarantined, whole.quarantined)]
        assert reasons[0] == reasons[1]
        if not any(bucket.num_removed for bucket in merged):
            items = [bucket.item_stats for bucket in merged]
            assert counted(items, [Col.ITEM_ID]) == counted([whole.item_stats], [Col.ITEM_ID])
            labels = [bucket.label_stats for bucket in merged]
            assert counted(labels, ["field", "name"]) == counted([whole.label_stats], ["field", "name"])
        events = sum(bucket.num_added - bucket.num_removed for bucket in merged)
        assert events == int(np.sum(whole.history.column(Col.NUM_EVENTS).to_numpy()))

    holds()


def test_a_log_without_ids_that_is_delivered_again_changes_nothing() -> None:
    rows = [("u1", "i1", "view", 5, None), ("u1", "i1", "view", 5, None), ("u2", "i1", "buy", 7, None)]
    first, again = one_by_one([rows, rows])
    assert again.history.equals(first.history)
    assert again.num_added == 0
    assert again.touched.num_rows == 0
    assert again.quarantined.column("reason").to_pylist() == ["duplicate_event_id"] * 3


def test_only_users_whose_history_changed_are_touched() -> None:
    first = [("u1", "i1", "view", 5, "a"), ("u2", "i1", "view", 5, "b"), ("u3", "i2", "buy", 6, "c")]
    second = [("u2", "i1", "view", 5, "b"), ("u3", "i2", "buy", 2, "late"), ("u4", "new", "save", 9, "d")]
    last = one_by_one([first, second])[-1]
    assert last.touched.column(0).to_pylist() == ["u3", "u4"]
    assert (last.num_added, last.num_removed) == (2, 0)


def test_a_bot_seen_only_over_both_days_leaves_the_history_with_its_repeated_rows() -> None:
    first = [("u1", "i1", "view", time, f"a{time}") for time in range(3)] + [("u1", "i1", "view", 0, "a0")]
    second = [("u1", "i1", "view", time, f"a{time}") for time in range(3, 6)] + [("u2", "i1", "view", 1, "b")]
    last = one_by_one([first, second])[-1]
    assert last.history.column(Col.USER_ID).to_pylist() == ["u2"]
    assert Counter(last.quarantined.column("reason").to_pylist()) == {"bot": 7}
    assert last.touched.column(0).to_pylist() == ["u1", "u2"]
    assert last.num_removed == 3
    third = merge_bucket(
        last.history, last.quarantined, events_of([("u1", "i5", "view", 9 * DAY, "z")]), max_events_per_day=MOST_A_DAY
    )
    assert third.history.equals(last.history)  # who was a bot stays one
    assert third.touched.num_rows == 0


def test_an_erased_user_leaves_history_and_what_was_set_aside() -> None:
    first = [("u1", "i1", "view", 5, "a"), ("u1", "i1", "view", 5, "a"), ("u1", "i1", "buy", 50, "b")]
    before = one_by_one([first, [("u2", "i1", "view", 1, "c")]])[-1]
    after = merge_bucket(
        before.history, before.quarantined, events_of([]), max_events_per_day=None, erased={digest_of("u1"): 10}
    )
    assert after.history.column(Col.NUM_EVENTS).to_pylist() == [1, 1]
    assert after.history.column(Col.ACTION).to_pylist() == [["buy"], ["view"]]
    assert after.quarantined.num_rows == 0
    assert after.touched.column(0).to_pylist() == ["u1"]


def test_an_erased_bot_needs_the_log() -> None:
    rows = [("u1", "i1", "view", time, None) for time in range(9)]
    before = one_by_one([rows])[-1]
    with pytest.raises(DataError, match="without --since"):
        merge_bucket(
            before.history, before.quarantined, events_of([]), max_events_per_day=5, erased={digest_of("u1"): 10}
        )


def test_the_user_of_a_row_that_was_cut_is_still_read() -> None:
    row = '{"user_id":"a\\"b\\u00e9","item_id":"' + "x" * 3_000
    table = pa.table({"source": ["f"], "log_order": [1], "reason": ["bot"], "detail": ["x"], "row": [row[:2_000]]})
    assert users_of_rows(table).to_list() == ['a"bé']
