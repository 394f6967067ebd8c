"""Mapping: any columns become the eight fields, and each row that does not is set aside for the first reason."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonder.core.errors import ConfigurationError
from sonder.core.input_config import EventsConfig
from sonder.events.contract import EVENT_SCHEMA, QUARANTINE_SCHEMA
from sonder.events.mapping import Batch, map_batch
from sonder.events.reading import resolve_table
from sonder.events.values import NOTHING

LATEST_US = 1_900_000_000_000_000  # 2030
COLUMNS = {"user_id": "Who", "item_id": "SKU no.", "action": "did", "timestamp": "at", "value": "£"}
FIRST_ROW = 1_000


def mapped(raw: dict[str, Any] | pa.Table, **section: Any) -> Batch:
    table = raw if isinstance(raw, pa.Table) else pa.table(raw)
    config = resolve_table(EventsConfig.model_validate({"path": "log", **section}), table)
    return map_batch(table, config, "the source", FIRST_ROW, latest_us=LATEST_US)


cells = {
    "Who": st.sampled_from(["u1", " u2 ", "", None, "NULL", "ü", "17850.0", "x" * 257, "é" * 129, "a\0b"]),
    "SKU no.": st.sampled_from(["i1", "", None, "nan", "i" * 256, "i" * 257]),
    "did": st.sampled_from(["buy", "view", None, "a" * 300]),
    "at": st.sampled_from(["2020-01-01T10:00:00Z", "1989-12-31T23:59:59Z", "2030-03-18", "soon", "", None]),
    "£": st.sampled_from(["1.5", "-2", "", None, "inf", "cheap", "1,5", "NaN"]),
}


def first_reason(row: dict[str, str | None]) -> str | None:
    """The contract of events.mapping, row by row."""
    text = {name: None if cell is None or cell.strip() in NOTHING else cell.strip() for name, cell in row.items()}
    try:
        is_number = text["£"] is None or math.isfinite(float(text["£"]))
    except ValueError:
        is_number = False
    is_overlong = any(len((text[name] or "").encode()) > 256 for name in ("Who", "SKU no.", "did"))
    if "\0" in (text["Who"] or "") or not is_number:
        return "unknown_type"
    if text["SKU no."] is None or text["did"] is None:
        return "missing_id"
    if text["at"] != "2020-01-01T10:00:00Z":
        return "bad_timestamp"
    return "overlong_id" if is_overlong else "anonymous" if text["Who"] is None else None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.fixed_dictionaries(cells), min_size=1, max_size=30))
def test_each_row_is_an_event_or_aside_for_the_first_reason_that_applies(rows: list[dict[str, str | None]]) -> None:
    table = pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in cells]))
    batch = mapped(table, columns=COLUMNS, timestamp="iso")
    reasons = [first_reason(row) for row in rows]
    aside = list(zip(batch.quarantined["log_order"].to_pylist(), batch.quarantined["reason"].to_pylist(), strict=True))
    assert aside == [(FIRST_ROW + number, reason) for number, reason in enumerate(reasons) if reason is not None]
    kept = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
    assert batch.events["user_id"].to_pylist() == [str(row["Who"]).strip() for row in kept]
    assert batch.events["log_order"].to_pylist() == [
        FIRST_ROW + number for number, reason in enumerate(reasons) if reason is None
    ]
    assert (batch.events.schema, batch.quarantined.schema) == (EVENT_SCHEMA, QUARANTINE_SCHEMA)


MINIMAL = {"user_id": ["u"] * 4, "item_id": ["i"] * 4, "timestamp": ["2020-01-01"] * 4}


def test_a_constant_action_fills_what_its_column_leaves_open_and_rules_come_first() -> None:
    raw = {**MINIMAL, "kind": ["view", None, "", "view"], "invoice": ["1", "2", "C3", "C4"]}
    assert mapped(MINIMAL, action="buy").events["action"].to_pylist() == ["buy"] * 4
    filled = mapped(raw, columns={"action": "kind"}, action="buy")
    assert filled.events["action"].to_pylist() == ["view", "buy", "buy", "view"]
    rules = [
        {"action": "cancel", "column": "invoice", "matches": "^C"},
        {"action": "late", "column": "invoice", "matches": "4$|2$"},
    ]
    ruled = mapped(raw, columns={"action": "kind"}, action_rules=rules)
    assert ruled.events["action"].to_pylist() == ["view", "late", "cancel", "cancel"]


def test_a_column_that_bears_the_name_of_a_field_is_that_field_unless_told_otherwise() -> None:
    raw = {**MINIMAL, "value": [1, 2, 3, 4], "surface": ["home"] * 4, "price": [9, 9, 9, 9], "action": ["view"] * 4}
    assert mapped(raw).events.select(["value", "surface", "action"]).to_pylist()[0] == {
        "value": 1.0,
        "surface": "home",
        "action": "view",
    }
    assert mapped(raw, columns={"value": "price"}).events["value"].to_pylist() == [9.0] * 4
    assert mapped(raw, action="buy").events["action"].to_pylist() == ["buy"] * 4
    assert mapped({**raw, "value": ["a", "b", "c", "d"]}).quarantined.num_rows == 0  # words are no value unless asked


def test_a_dotted_name_reaches_into_objects() -> None:
    raw = {**MINIMAL, "actor": [{"id": 7, "geo": {"city": "X"}}] * 3 + [None]}
    batch = mapped(raw, columns={"user_id": "actor.id", "surface": "actor.geo.city"}, action="buy")
    assert batch.events.select(["user_id", "surface"]).to_pylist() == [{"user_id": "7", "surface": "X"}] * 3
    assert batch.quarantined["reason"].to_pylist() == ["anonymous"]


def test_what_is_set_aside_shows_the_field_and_the_whole_row() -> None:
    raw = {**MINIMAL, "value": [1.0, 2.0, np.inf, 3.0], "note": ["a", "b", "c", "d"]}
    (row,) = mapped(raw, action="buy", columns={"value": "value"}).quarantined.to_pylist()
    assert (row["source"], row["log_order"], row["reason"]) == ("the source", FIRST_ROW + 2, "unknown_type")
    assert row["detail"].startswith('{"value":')
    assert row["row"] == '{"user_id":"u","item_id":"i","timestamp":"2020-01-01","value":null,"note":"c"}'


@pytest.mark.parametrize(
    ("section", "found", "do"),
    [
        ({"columns": {"user_id": "use_id"}}, "'use_id', the log has the columns user_id, item_id", "'user_id'?"),
        ({"columns": {"value": "Price"}}, "events.columns.value is 'Price'", "Correct the name"),
        (
            {"action_rules": [{"action": "a", "column": "Item_ID", "matches": "x"}]},
            r"action_rules\[0\].column",
            "'item_id'",
        ),
        ({"action_rules": [{"action": "a", "column": "item_id", "matches": "("}]}, "no regular expression", "RE2"),
        ({"action": None}, "neither an action column nor a constant action", "action: buy"),
    ],
)
def test_a_mapping_that_does_not_fit_the_log_says_what_was_found(section: dict[str, Any], found: str, do: str) -> None:
    with pytest.raises(ConfigurationError, match=found) as error:
        mapped(MINIMAL, **{"action": "buy", **section})
    assert do in str(error.value)


def test_a_log_without_a_column_for_a_user_lists_the_columns_it_has() -> None:
    with pytest.raises(ConfigurationError, match=r"columns who, item_id.*none of them is named 'user_id'"):
        mapped({"who": ["u"], "item_id": ["i"], "timestamp": ["2020-01-01"]}, action="buy")
