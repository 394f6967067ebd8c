"""The catalogue in every format: ids that meet the log's, categories as paths, vectors as numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from sonder.core.errors import ConfigurationError
from sonder.core.input_config import EventsConfig, ItemsConfig
from sonder.events.catalogue import CATALOGUE_SCHEMA, read_items

EVENTS = EventsConfig(path="log.csv")
COLUMNS = {"item_id": "sku", "category": "path", "title": "name", "vector": "v"}
EXPECTED = [
    {"item_id": "17850", "category": "a/b/c", "title": "One, two", "vector": [0.5, -1.0]},
    {"item_id": "x", "category": None, "title": None, "vector": None},
]


def items(path: Path, **section: Any) -> list[dict[str, Any]]:
    table = read_items(ItemsConfig.model_validate({"path": str(path), "columns": COLUMNS, **section}), EVENTS)
    assert table.schema == CATALOGUE_SCHEMA
    return table.to_pylist()


@pytest.mark.parametrize("ending", ["parquet", "arrow", "jsonl", "csv"])
def test_every_format_gives_the_same_items(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"items.{ending}"
    typed = pa.table(
        {
            "sku": pa.array(["17850", "x"]),
            "path": pa.array([["a", "b", "c"], None]),
            "name": ["One, two", None],
            "v": pa.array([[0.5, -1.0], None]),
        }
    )
    if ending == "parquet":
        pq.write_table(typed, path)
    elif ending == "arrow":
        feather.write_feather(typed, path)
    elif ending == "jsonl":
        rows = [{"sku": 17850, "path": "a > b >c", "name": "One, two", "v": "[0.5, -1.0]"}, {"sku": "x", "path": None}]
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        path.write_text('sku;path;name;v\n17850;/a/b/c/;"One, two";0.5 -1.0\nx;;;\n')
    assert items(path) == EXPECTED


@pytest.mark.parametrize("vector", ["", "[]", "0.5 nothing", "cold"])
def test_a_vector_that_is_not_all_numbers_is_none(tmp_path: Path, vector: str) -> None:
    (tmp_path / "items.csv").write_text(f"sku,v\na,{vector}\nb,1 2\n")
    found = items(tmp_path / "items.csv", columns={"item_id": "sku", "vector": "v"})
    assert [row["vector"] for row in found] == [None, [1.0, 2.0]]


def test_of_repeated_ids_the_first_stays_and_rows_without_one_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("sku,name\na,first\n,nobody\nb,only\na,second\nNULL,nobody\n")
    found = items(tmp_path / "items.csv", columns={"item_id": "sku", "title": "name"})
    assert [(row["item_id"], row["title"]) for row in found] == [("a", "first"), ("b", "only")]


def test_a_column_that_the_catalogue_lacks_is_named_with_those_it_has(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("sku,name\na,first\n")
    with pytest.raises(ConfigurationError, match=r"items\.columns\.title is 'label', the catalogue has sku, name"):
        items(tmp_path / "items.csv", columns={"item_id": "sku", "title": "label"})


def test_a_log_without_a_catalogue_has_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\nu,i,2020-01-01\n")
    assert read_items(None, EventsConfig(path=str(tmp_path / "log.csv"))).num_rows == 0
