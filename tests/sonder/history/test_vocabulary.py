"""Raw ids and dense indices: a bijection on what is known, -1 for all else."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from sonder.core.storage import Folder
from sonder.history.assemble import ITEM_STATS_SCHEMA, LABEL_STATS_SCHEMA
from sonder.history.item_table import build_vocabulary
from sonder.history.vocabulary import ITEM_SCHEMA, Vocabulary

NO_CATALOGUE = pa.table({"item_id": pa.array([], pa.string())})


def at(microsecond: int) -> datetime:
    return datetime(2025, 1, 1, microsecond=microsecond, tzinfo=UTC)


def item_stats(*rows: tuple[str, int, int, int]) -> pa.Table:
    names = ITEM_STATS_SCHEMA.names
    records = [dict(zip(names, (i, n, at(first), at(last)), strict=True)) for i, n, first, last in rows]
    return pa.Table.from_pylist(records, schema=ITEM_STATS_SCHEMA)


def label_stats(*rows: tuple[str, str, int]) -> pa.Table:
    records = [dict(zip(LABEL_STATS_SCHEMA.names, row, strict=True)) for row in rows]
    return pa.Table.from_pylist(records, schema=LABEL_STATS_SCHEMA)


def test_items_are_numbered_by_falling_events_then_id_over_all_buckets() -> None:
    stats = [item_stats(("b", 2, 5, 6), ("a", 2, 1, 1)), item_stats(("c", 5, 3, 9), ("b", 1, 4, 8))]
    table = build_vocabulary(stats, [], NO_CATALOGUE, {}).items
    assert table.schema.equals(ITEM_SCHEMA)
    assert table.column("item_id").to_pylist() == ["c", "b", "a"]
    assert table.column("item_index").to_pylist() == [0, 1, 2]
    assert table.column("num_events").to_pylist() == [5, 3, 2]
    assert table.column("first_seen").to_pylist() == [at(3), at(4), at(1)]
    assert table.column("last_seen").to_pylist() == [at(9), at(8), at(1)]


def test_the_catalogue_is_joined_and_its_unseen_items_come_last_by_id() -> None:
    catalogue = pa.table(
        {"item_id": ["z", "a", "m"], "title": ["Zed", "Ah", None], "category": ["x/y", None, "q"], "extra": [1, 2, 3]}
    )
    table = build_vocabulary([item_stats(("b", 1, 0, 0), ("a", 9, 0, 0))], [], catalogue, {}).items
    assert table.column("item_id").to_pylist() == ["a", "b", "m", "z"]
    assert table.column("title").to_pylist() == ["Ah", None, None, "Zed"]
    assert table.column("category").to_pylist() == [None, None, "q", "x/y"]
    assert table.column("num_events").to_pylist() == [9, 1, 0, 0]
    assert table.column("first_seen").to_pylist()[2:] == [None, None]
    assert table.column("vector").null_count == 4


def test_vectors_of_the_catalogue_are_kept() -> None:
    catalogue = pa.table({"item_id": ["a"], "vector": pa.array([[1.0, 0.5]], pa.list_(pa.float32()))})
    table = build_vocabulary([item_stats(("b", 1, 0, 0))], [], catalogue, {}).items
    assert table.column("vector").to_pylist() == [None, [1.0, 0.5]]


def test_actions_and_surfaces_are_numbered_by_falling_count_then_name_and_weighted() -> None:
    labels = [
        label_stats(("action", "click", 2), ("action", "impression", 9), ("surface", "home", 4)),
        label_stats(("action", "buy", 3), ("action", "click", 1), ("action", "hide", 1), ("surface", "search", 4)),
    ]
    vocabulary = build_vocabulary([], labels, NO_CATALOGUE, {"buy": 2.0})
    assert vocabulary.actions == ("impression", "buy", "click", "hide")
    assert vocabulary.action_weights == (0.0, 2.0, 1.0, -1.0)
    assert vocabulary.surfaces == ("home", "search")


def vocabulary_of(ids: list[str], **labels: Any) -> Vocabulary:
    stats = item_stats(*((item, 1, 0, 0) for item in ids))
    counts = [label_stats(*((kind, name, 1) for kind, names in labels.items() for name in names))]
    return build_vocabulary([stats], counts, NO_CATALOGUE, {})


ids = st.lists(st.text(max_size=4), unique=True, max_size=8)


@given(known=ids, asked=st.lists(st.one_of(st.none(), st.text(max_size=4)), max_size=12))
def test_an_index_is_the_row_of_its_id_and_minus_one_for_null_and_unknown(
    known: list[str], asked: list[str | None]
) -> None:
    vocabulary = vocabulary_of(known)
    rows: dict[str | None, int] = {item: row for row, item in enumerate(vocabulary.item_ids.to_pylist())}
    assert sorted(rows) == sorted(known)
    for type_ in (pa.string(), pa.large_string()):
        index = vocabulary.item_index(pa.array(asked, type_))
        assert index.dtype == np.int32
        assert index.tolist() == [rows.get(item, -1) for item in asked]


def test_actions_and_surfaces_have_small_indices() -> None:
    vocabulary = vocabulary_of(["x"], action=["click", "buy"], surface=["home"])
    assert vocabulary.action_index(pa.array(["buy", None, "click", "gone"])).tolist() == [0, -1, 1, -1]
    assert vocabulary.surface_index(pa.array([None, "home"])).tolist() == [-1, 0]
    assert vocabulary.action_index(pa.array(["buy"])).dtype == np.int16


def test_an_unknown_action_weighs_nothing() -> None:
    vocabulary = vocabulary_of(["x"], action=["buy", "hide", "impression"])
    weights = dict(zip(vocabulary.actions, vocabulary.action_weights, strict=True))
    assert weights == {"buy": 1.0, "hide": -1.0, "impression": 0.0}
    index = vocabulary.action_index(pa.array(["hide", "gone", "buy"]))
    assert vocabulary.weight_of(index).tolist() == [-1.0, 0.0, 1.0]


def test_a_saved_vocabulary_is_the_same_when_loaded(tmp_path: Path) -> None:
    vocabulary = vocabulary_of(["b", "a", "ü"], action=["buy"], surface=["home", "search"])
    vocabulary.save(Folder.at(str(tmp_path)))
    loaded = Vocabulary.load(Folder.at(str(tmp_path)))
    assert loaded.items.equals(vocabulary.items)
    assert (loaded.actions, loaded.action_weights, loaded.surfaces) == (
        vocabulary.actions,
        vocabulary.action_weights,
        vocabulary.surfaces,
    )
