"""The user table: ids that meet the log's, one spelling of values, decisions, and every row accounted for."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonder.core.config import validate
from sonder.core.errors import ConfigurationError, DataError
from sonder.core.input_config import EventsConfig, UsersConfig
from sonder.events.contract import USER_SCHEMA
from sonder.events.quarantine import empty_quarantine
from sonder.events.raw_blocks import RawBlock
from sonder.events.users import UserTable, assemble_users, empty_users, map_users, read_users, resolve_users

COLUMNS = {"user_id": "id", "signup_at": "joined", "attributes": ["land", "age"], "consent": {"ads": "ads"}}
ROWS = "id,joined,land,age,ads\nu1,2026-01-02,DE,30,yes\nu2,2026-01-03,,40,no\n"


def write(folder: Path, text: str, name: str = "users.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def users_of(path: Path, columns: dict[str, Any] | None = None, **keys: Any) -> tuple[pa.Table, Counter[str]]:
    config = UsersConfig.model_validate({"path": str(path), "columns": columns or COLUMNS, **keys})
    table = resolve_users(config, EventsConfig(path="log", max_id_bytes=20))
    parts, counts = [empty_users(table)], Counter[str]()
    for split in table.splits():
        for flat, found in read_users(split, table):
            parts.append(flat)
            counts.update(found)
    return assemble_users(pa.concat_tables(parts), table.config), counts


def plain(users: pa.Table) -> dict[str, tuple[Any, dict[str, str], dict[str, bool]]]:
    return {
        row["user_id"]: (
            row["signup_at"],
            {pair["name"]: pair["value"] for pair in row["attributes"]},
            {pair["name"]: pair["granted"] for pair in row["consent"]},
        )
        for row in users.to_pylist()
    }


def test_a_row_becomes_sign_up_attributes_and_decisions(tmp_path: Path) -> None:
    users, counts = users_of(write(tmp_path, ROWS))
    assert users.schema.equals(USER_SCHEMA)
    assert plain(users) == {
        "u1": (datetime(2026, 1, 2, tzinfo=UTC), {"land": "DE", "age": "30"}, {"ads": True}),
        "u2": (datetime(2026, 1, 3, tzinfo=UTC), {"age": "40"}, {"ads": False}),
    }
    assert +counts == Counter(rows=2)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "arrow"])
def test_every_format_says_the_same(tmp_path: Path, form: str) -> None:
    frame = pl.read_csv(write(tmp_path, ROWS, "source.csv"))
    path = tmp_path / f"users.{form}"
    writers = {"csv": "write_csv", "jsonl": "write_ndjson", "parquet": "write_parquet", "arrow": "write_ipc"}
    getattr(frame, writers[form])(path)
    assert plain(users_of(path)[0]) == plain(users_of(tmp_path / "source.csv")[0])


def test_ids_and_numbers_have_one_spelling(tmp_path: Path) -> None:
    frame = pl.DataFrame({"id": [17850.0, 1.0], "land": [True, False], "age": [30.0, 1.5], "joined": [None, None]})
    frame.write_parquet(tmp_path / "users.parquet")
    users, _ = users_of(tmp_path / "users.parquet", {**COLUMNS, "consent": {}})
    assert plain(users) == {
        "17850": (None, {"land": "true", "age": "30"}, {}),
        "1": (None, {"land": "false", "age": "1.5"}, {}),
    }


def test_a_row_without_a_usable_id_is_left_out_and_counted(tmp_path: Path) -> None:
    users, counts = users_of(write(tmp_path, ROWS + ",,DE,1,\n" + "x" * 21 + ",,DE,1,\nbroken line\n"))
    assert plain(users).keys() == {"u1", "u2"}
    assert +counts == Counter(rows=5, without_id=1, bad_id=1, unparsable=1)


def test_what_cannot_be_read_is_null_and_counted(tmp_path: Path) -> None:
    odd = f"u3,yesterday,{'x' * 21},3,maybe\nu4,1875-01-01,IT,4,\n"
    users, counts = users_of(write(tmp_path, ROWS + odd))
    assert plain(users)["u3"] == (None, {"age": "3"}, {})
    assert plain(users)["u4"] == (None, {"land": "IT", "age": "4"}, {})
    assert +counts == Counter(rows=4, bad_signup_at=2, bad_attributes=1, bad_consent=1)


@pytest.mark.parametrize(
    ("said", "granted"),
    [
        *((said, True) for said in ("TRUE", "1", "1.0", "Yes", "granted")),
        *((said, False) for said in ("False", "0", "n", "denied")),
    ],
)
def test_a_decision_is_read_in_its_usual_spellings(tmp_path: Path, said: str, granted: bool) -> None:
    users, _ = users_of(write(tmp_path, f"id,joined,land,age,ads\nu1,2026-01-01,,,{said}\n"))
    assert plain(users)["u1"][2] == {"ads": granted}


def test_of_a_repeated_id_the_first_row_stays_but_a_denial_in_any_row_holds(tmp_path: Path) -> None:
    again = "u1,2025-01-01,FR,99,no\nu2,2025-01-01,FR,99,yes\nu3,2026-01-01,IT,1,\nu3,2026-01-01,IT,1,yes\n"
    users, _ = users_of(write(tmp_path, ROWS + again))
    assert plain(users)["u1"] == (datetime(2026, 1, 2, tzinfo=UTC), {"land": "DE", "age": "30"}, {"ads": False})
    assert plain(users)["u2"][2] == {"ads": False}
    assert plain(users)["u3"][2] == {}  # a later yes is not the first row's


@given(st.permutations([f"u{row % 4},2026-01-0{row + 1},L{row},{row},yes" for row in range(8)]))
def test_users_come_by_id_whatever_the_order_of_the_rows(lines: list[str]) -> None:

    cells = [line.split(",") for line in lines]
    raw = pa.table(
        {name: [row[place] for row in cells] for place, name in enumerate(("id", "joined", "land", "age", "ads"))}
    )
    config = UsersConfig.model_validate({"path": "x", "columns": COLUMNS, "timestamp": "iso"})
    table = UserTable(config, EventsConfig(path="x"), max_id_bytes=20)
    flat, _ = map_users(RawBlock(raw, np.arange(8), empty_quarantine()), table, latest_us=2_000_000_000_000_000)
    shuffled = flat.take(pa.array(np.random.default_rng(1).permutation(8)))
    users = plain(assemble_users(shuffled, config))
    assert list(users) == ["u0", "u1", "u2", "u3"]
    for user_id, (_, attributes, _) in users.items():
        assert attributes["land"] == next(row[2] for row in cells if row[0] == user_id)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"user_id": "uid"}, "users.columns.user_id is 'uid', the user table has id, joined, land, age, ads"),
        ({"user_id": "id", "attributes": ["country"]}, r"users.columns.attributes\[0\] is 'country'"),
        ({"user_id": "id", "consent": {"ads": "land"}}, "most of it is no decision .'DE'.*Expected: booleans, 1/0"),
        ({"user_id": "id", "signup_at": "age"}, "it holds no times .'30', '40'.*Expected: ISO 8601"),
    ],
)
def test_a_column_that_is_not_what_it_is_said_to_be_is_one_clear_sentence(
    tmp_path: Path, columns: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        users_of(write(tmp_path, ROWS), columns)


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"No file matches .*users\.path"):
        users_of(tmp_path / "absent.csv")
    with pytest.raises(DataError, match="is not a Parquet file"):
        users_of(write(tmp_path, "not parquet", "users.parquet"))


def test_a_table_without_rows_has_no_users(tmp_path: Path) -> None:
    assert users_of(write(tmp_path, "id,joined,land,age,ads\n"))[0].num_rows == 0


@pytest.mark.parametrize(
    ("users", "sentence"),
    [
        ({"sensitive": ["age"]}, "sensitive names 'age'"),
        ({"columns": {"attributes": ["age", "age"]}}, "repeated: age"),
        ({"columns": {"consent": {"Ads!": "ads"}}}, "the purpose 'Ads!'"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(users: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        validate({"events": {"path": "a"}, "users": {"path": "u", **users}}, source="test")
