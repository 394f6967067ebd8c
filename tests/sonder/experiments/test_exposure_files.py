"""Exposures in files: read together, each row once, and without whoever asked to be forgotten."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from sonder.core.storage import Folder
from sonder.experiments.exposure_files import erase_rows, read_exposures, read_shown
from sonder.experiments.exposures import EXPOSURE_SCHEMA, SHOWN_SCHEMA

START = datetime(2026, 3, 1, tzinfo=UTC)


def exposure(user_id: str, hours: int = 0) -> dict[str, Any]:
    moment = START + timedelta(hours=hours)
    about = {"experiment": "first", "version": 1, "arm": "control", "release": "r-1", "surface": "profile"}
    return {**about, "user_id": user_id, "exposed_at": moment}


def slot(user_id: str, item_id: str, request_id: str = "q", hours: int = 0) -> dict[str, Any]:
    about = {"experiment": "first", "version": 1, "team": "a", "position": 1, "request_id": request_id}
    return {**about, "user_id": user_id, "item_id": item_id, "shown_at": START + timedelta(hours=hours)}


@pytest.fixture
def experiments(tmp_path) -> Folder:  # type: ignore[no-untyped-def]
    return Folder.at(str(tmp_path / "experiments"))


def write(experiments: Folder, place: str, rows: list[dict[str, Any]]) -> None:
    schema = EXPOSURE_SCHEMA if "/exposures/" in place else SHOWN_SCHEMA
    (experiments / place).write_table(pa.Table.from_pylist(rows, schema=schema))


def test_the_rows_of_all_writers_are_read_once_by_time(experiments: Folder) -> None:
    write(experiments, "first/exposures/g1/1.parquet", [exposure("ada", 2), exposure("bob", 1)])
    write(experiments, "first/exposures/g2/1.parquet", [exposure("ada", 2), exposure("eve")])
    write(experiments, "other/exposures/g1/1.parquet", [exposure("dan")])
    assert read_exposures(experiments, "first")["user_id"].to_list() == ["eve", "bob", "ada"]
    nothing = read_exposures(experiments, "unheard")
    assert (nothing.height, nothing.columns) == (0, EXPOSURE_SCHEMA.names)


def test_a_request_that_was_answered_twice_counts_by_its_first_answer(experiments: Folder) -> None:
    write(experiments, "first/shown/g1/1.parquet", [slot("ada", "i1", hours=1), slot("ada", "i1", "q2")])
    write(experiments, "first/shown/g2/1.parquet", [slot("ada", "i1", hours=0), slot("ada", "i2", hours=0)])
    shown = read_shown(experiments, "first")
    assert sorted(shown.select("request_id", "item_id").rows()) == [("q", "i1"), ("q", "i2"), ("q2", "i1")]
    assert shown.filter(pl.col("request_id") == "q")["shown_at"].to_list() == [START, START]


def test_an_erasure_reaches_every_table_that_names_the_user_and_no_other_row(experiments: Folder) -> None:
    write(experiments, "first/exposures/g1/1.parquet", [exposure("ada"), exposure("bob")])
    write(experiments, "first/exposures/g1/2.parquet", [exposure("ada", 1)])
    write(experiments, "first/shown/g1/1.parquet", [slot("ada", "i1"), slot("bob", "i2")])
    frame = pa.table({"user_id": ["ada", "bob"], "buyers": [1.0, 0.0]})
    (experiments / "first/analyses/1/users.parquet").write_table(frame)
    (experiments / "first/analyses/1/days.parquet").write_table(pa.table({"day": [1]}))
    assert erase_rows(experiments, "ada") == 4
    assert read_exposures(experiments, "first")["user_id"].to_list() == ["bob"]
    assert read_shown(experiments, "first")["user_id"].to_list() == ["bob"]
    assert (experiments / "first/analyses/1/users.parquet").read_table().column("user_id").to_pylist() == ["bob"]
    assert not (experiments / "first/exposures/g1/2.parquet").exists()
    assert erase_rows(experiments, "ada") == 0


def test_erasures_at_the_same_moment_do_not_undo_one_another(experiments: Folder) -> None:
    users = [f"user-{number}" for number in range(24)]
    write(experiments, "first/exposures/g1/1.parquet", [exposure(user) for user in users])
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda user: erase_rows(experiments, user), users[:16])) == [1] * 16
    assert read_exposures(experiments, "first")["user_id"].sort().to_list() == sorted(users[16:])


def test_nothing_is_erased_where_no_experiment_ever_was(experiments: Folder) -> None:
    assert erase_rows(experiments, "ada") == 0
