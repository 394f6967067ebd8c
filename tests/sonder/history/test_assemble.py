"""Assembling a bucket: one total order, keys that survive a second delivery, nothing lost."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from sonder.events.contract import EVENT_SCHEMA, Reason
from sonder.history.assemble import AssembledBucket, assemble_bucket
from sonder.history.snapshot import HISTORY_SCHEMA

DAY_US = 86_400_000_000
Row = dict[str, Any]


def row(user: str, item: str, time_us: int = 0, order: int = 0, **fields: Any) -> Row:
    return {"user_id": user, "item_id": item, "action": "click", "timestamp": time_us, "log_order": order, **fields}


def assemble(rows: list[Row], max_events_per_day: int | None = 1_000, **options: Any) -> AssembledBucket:
    columns = [pa.array([r.get(field.name) for r in rows], field.type) for field in EVENT_SCHEMA]
    return assemble_bucket(
        pa.Table.from_arrays(columns, schema=EVENT_SCHEMA), max_events_per_day=max_events_per_day, **options
    )


def keys_of(bucket: AssembledBucket) -> dict[str, list[int]]:
    return {r["user_id"]: r["event_key"] for r in bucket.history.to_pylist()}


def test_users_are_sorted_and_their_events_ordered_by_time() -> None:
    bucket = assemble([row("b", "x", 5), row("a", "z", 9, 1), row("a", "y", 3, 2)])
    assert bucket.history.schema.equals(HISTORY_SCHEMA)
    assert bucket.history.column("user_id").to_pylist() == ["a", "b"]
    assert bucket.history.column("item_id").to_pylist() == [["y", "z"], ["x"]]
    assert bucket.history.column("num_events").to_pylist() == [2, 1]


def test_ties_in_time_keep_the_order_of_the_log() -> None:
    bucket = assemble([row("a", "third", 7, 30), row("a", "first", 7, 10), row("a", "second", 7, 20)])
    assert bucket.history.column("item_id").to_pylist() == [["first", "second", "third"]]


def test_every_field_of_an_event_stays_with_it() -> None:
    bucket = assemble(
        [
            row("a", "x", 2, 0, surface="home", value=1.5, request_id="r1"),
            row("a", "y", 1, 1, action="buy"),
        ]
    )
    (user,) = bucket.history.to_pylist()
    assert user["action"] == ["buy", "click"]
    assert user["surface"] == [None, "home"]
    assert user["value"] == [None, 1.5]
    assert user["request_id"] == [None, "r1"]
    assert [time.timestamp() for time in user["timestamp"]] == [1e-06, 2e-06]


def test_identical_rows_are_separate_events_and_keep_their_keys_when_delivered_again() -> None:
    rows = [row("a", "x", 5, order, value=2.0) for order in (0, 1, 2)] + [row("b", "x", 5, 3, value=2.0)]
    first = assemble(rows)
    assert first.quarantined.num_rows == 0
    assert len({*keys_of(first)["a"], *keys_of(first)["b"]}) == 4
    again = assemble([{**r, "log_order": r["log_order"] + (9 << 40)} for r in reversed(rows)])
    assert keys_of(again) == keys_of(first)


def test_a_row_that_differs_in_any_field_has_another_key() -> None:
    base = row("a", "x", 5, 0, surface="home", value=2.0, request_id="r")
    changes: list[Row] = [
        {"item_id": "y"}, {"action": "buy"}, {"timestamp": 6}, {"surface": None}, {"surface": "search"},
        {"value": None}, {"value": -2.0}, {"request_id": None}, {"request_id": "s"},
    ]  # fmt: skip
    rows = [base] + [{**base, **change, "log_order": i + 1} for i, change in enumerate(changes)]
    assert len(set(keys_of(assemble(rows))["a"])) == len(rows)


def test_the_key_of_an_event_is_pinned() -> None:
    """A key that changes doubles every event that is delivered again: change it only with its version."""
    rows = [row("a", "x", 5, order, surface="home", value=2.0) for order in (0, 1)] + [
        row("a", "y", 6, 2, event_id="e")
    ]
    assert keys_of(assemble(rows))["a"] == [
        3_721_323_106_764_975_481,
        12_030_131_195_152_180_155,
        14_713_430_217_105_925_048,
    ]


def test_of_a_given_id_the_first_delivered_stays_within_a_user() -> None:
    bucket = assemble(
        [
            row("a", "late", 9, 1, event_id="e1"),
            row("a", "early", 1, 2, event_id="e1"),
            row("a", "other", 5, 3, event_id="e2"),
            row("b", "of another user", 5, 4, event_id="e1"),
        ],
        sources={0: "log.csv"},
    )
    assert bucket.history.column("item_id").to_pylist() == [["other", "late"], ["of another user"]]
    (quarantined,) = bucket.quarantined.to_pylist()
    assert quarantined["reason"] == Reason.DUPLICATE
    assert (quarantined["source"], quarantined["log_order"], quarantined["detail"]) == ("log.csv", 2, "e1")
    assert '"item_id":"early"' in quarantined["row"]


def test_a_user_with_too_many_events_on_one_day_is_set_aside_whole() -> None:
    bot = [row("bot", f"i{n}", n, n) for n in range(4)] + [row("bot", "x", 40 * DAY_US, 4)]
    calm = [row("calm", f"i{n}", n * DAY_US, 10 + n) for n in range(4)]
    bucket = assemble(bot + calm, max_events_per_day=3)
    assert bucket.history.column("user_id").to_pylist() == ["calm"]
    assert bucket.quarantined.column("reason").to_pylist() == [Reason.BOT] * 5
    assert bucket.quarantined.column("log_order").to_pylist() == [0, 1, 2, 3, 4]
    assert bucket.item_stats.column("num_events").to_pylist() == [1, 1, 1, 1]


def test_exactly_the_limit_is_no_bot_and_repeated_ids_do_not_count() -> None:
    rows = [row("a", f"i{n}", n, n, event_id=f"e{n % 3}") for n in range(6)]
    assert assemble(rows, max_events_per_day=3).history.column("num_events").to_pylist() == [3]


def test_a_log_without_days_has_no_bots() -> None:
    rows = [row("a", f"i{n}", n, n) for n in range(50)]
    assert assemble(rows, max_events_per_day=None).history.column("num_events").to_pylist() == [50]


def test_statistics_count_what_is_in_the_history() -> None:
    bucket = assemble(
        [row("a", "x", 5, 0, surface="home"), row("b", "x", 9, 1), row("b", "y", 7, 2, action="buy", surface="home")]
    )
    stats = [
        (r["item_id"], r["num_events"], r["first_seen"].microsecond, r["last_seen"].microsecond)
        for r in bucket.item_stats.to_pylist()
    ]
    assert stats == [("x", 2, 5, 9), ("y", 1, 7, 7)]
    labels = [tuple(r.values()) for r in bucket.label_stats.to_pylist()]
    assert labels == [("action", "buy", 1), ("action", "click", 2), ("surface", "home", 2)]


def test_an_empty_bucket_is_empty_tables() -> None:
    bucket = assemble([])
    assert bucket.history.equals(HISTORY_SCHEMA.empty_table())
    assert (bucket.quarantined.num_rows, bucket.item_stats.num_rows, bucket.label_stats.num_rows) == (0, 0, 0)


def test_rows_of_different_files_name_their_source() -> None:
    rows = [row("a", "x", 0, (file << 40) + n, event_id="e") for file in (0, 3) for n in (0, 1)]
    bucket = assemble(rows, sources={0: "one.csv", 3: "two.csv"})
    assert bucket.quarantined.column("source").to_pylist() == ["one.csv", "two.csv", "two.csv"]
    assert set(assemble(rows, sources="db.table").quarantined.column("source").to_pylist()) == {"db.table"}


rows_strategy = st.lists(
    st.fixed_dictionaries(
        {
            "user_id": st.sampled_from(["a", "b", "ü", "zz"]),
            "item_id": st.sampled_from(["x", "y", ""]),
            "action": st.sampled_from(["click", "buy"]),
            "timestamp": st.sampled_from([0, 1, DAY_US - 1, DAY_US, 3 * DAY_US]),
            "event_id": st.sampled_from([None, None, "e1", "e2"]),
            "value": st.sampled_from([None, 0.0, 1.5]),
        }
    ),
    max_size=30,
)


def reference(rows: list[Row], max_events_per_day: int) -> tuple[dict[str, list[int]], set[int], set[int]]:
    """Log orders by user in the history, of repeated ids, and of bots: row by row."""
    seen: set[tuple[str, str]] = set()
    repeated: set[int] = set()
    days: Counter[tuple[str, int]] = Counter()
    for r in sorted(rows, key=lambda r: r["log_order"]):
        if r["event_id"] is not None:
            if (r["user_id"], r["event_id"]) in seen:
                repeated.add(r["log_order"])
                continue
            seen.add((r["user_id"], r["event_id"]))
        days[r["user_id"], r["timestamp"] // DAY_US] += 1
    bots = {user for (user, _), count in days.items() if count > max_events_per_day}
    history: dict[str, list[int]] = defaultdict(list)
    for r in sorted(rows, key=lambda r: (r["timestamp"], r["log_order"])):
        if r["user_id"] not in bots and r["log_order"] not in repeated:
            history[r["user_id"]].append(r["log_order"])
    return history, repeated, {r["log_order"] for r in rows if r["user_id"] in bots}


@settings(max_examples=150, deadline=None)
@given(rows=rows_strategy, shuffle=st.randoms(use_true_random=False), limit=st.integers(1, 6))
def test_it_agrees_with_a_row_by_row_reference_in_any_order_of_rows(rows: list[Row], shuffle: Any, limit: int) -> None:
    rows = [{**r, "log_order": order, "request_id": str(order)} for order, r in enumerate(rows)]
    shuffled = rows[:]
    shuffle.shuffle(shuffled)
    bucket = assemble(shuffled, max_events_per_day=limit)
    history, repeated, bots = reference(rows, limit)
    assert {r["user_id"]: [int(n) for n in r["request_id"]] for r in bucket.history.to_pylist()} == history
    assert bucket.history.column("user_id").to_pylist() == sorted(history, key=lambda user: user.encode())
    set_aside = {(r["log_order"], r["reason"]) for r in bucket.quarantined.to_pylist()}
    assert {order for order, reason in set_aside if reason == Reason.DUPLICATE} == repeated - bots
    assert {order for order, reason in set_aside if reason == Reason.BOT} == bots
    assert len(set_aside) + sum(map(len, history.values())) == len(rows)
    assert bucket.history.equals(assemble(rows, max_events_per_day=limit).history)


@settings(max_examples=100, deadline=None)
@given(rows=rows_strategy)
def test_derived_keys_are_unique_within_a_user_and_do_not_depend_on_the_log_order(rows: list[Row]) -> None:
    rows = [{**r, "log_order": order, "event_id": None} for order, r in enumerate(rows)]
    keys = keys_of(assemble(rows, max_events_per_day=None))
    assert all(len(set(of_user)) == len(of_user) for of_user in keys.values())
    backwards = [{**r, "log_order": len(rows) - r["log_order"]} for r in rows]
    assert {u: sorted(k) for u, k in keys_of(assemble(backwards, max_events_per_day=None)).items()} == {
        u: sorted(k) for u, k in keys.items()
    }


def test_keys_are_unsigned_digests_of_64_bits() -> None:
    keys = np.array(keys_of(assemble([row("a", f"i{n}", n, n) for n in range(500)]))["a"], dtype=np.uint64)
    assert len(np.unique(keys)) == 500
    assert (keys > np.uint64(2**63)).mean() > 0.3
