"""Items of a newer snapshot under the numbers that models know."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from sonder.history.item_table import continued, count_labels, item_stats_table, label_table
from sonder.history.vocabulary import Vocabulary
from tests.tiny_log import vocabulary_of


def named(ids: list[str], counts: list[int], categories: list[str | None]) -> Vocabulary:
    known = vocabulary_of(categories)
    items = known.items.set_column(1, known.items.schema.field(1), pa.array(ids))
    place = items.schema.get_field_index("num_events")
    return replace(known, items=items.set_column(place, items.schema.field(place), pa.array(counts, pa.int64())))


def test_known_items_keep_their_numbers_and_new_ones_follow_in_their_own_order() -> None:
    known = named(["a", "b", "c"], [9, 5, 1], ["x", "y", None])
    newer = named(["new", "c", "also", "a"], [50, 20, 3, 2], ["z", "x", "x", "w"])
    after = continued(known, replace(newer, actions=("other",), action_weights=(1.0,)))
    assert after.item_ids.to_pylist() == ["a", "b", "c", "new", "also"]
    assert after.items.column("item_index").to_pylist() == [0, 1, 2, 3, 4]
    assert after.items.column("num_events").to_pylist() == [2, 0, 20, 50, 3]
    assert after.items.column("category").to_pylist() == ["w", "y", "x", "z", "x"]  # what is gone keeps what it had
    assert after.items.column("first_seen").null_count == 1
    assert after.actions == known.actions


def test_statistics_come_back_out_of_what_was_made_of_them() -> None:
    items = named(["a", "b"], [3, 0], [None, None]).items
    assert item_stats_table(items).column("item_id").to_pylist() == ["a"]
    labels = {"action": {"view": 4, "buy": 1}, "surface": {"home": 2}}
    assert count_labels([label_table(labels), label_table(labels)]) == {
        "action": {"view": 8, "buy": 2},
        "surface": {"home": 4},
    }
