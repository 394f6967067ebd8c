"""Tombstones: who was erased is named nowhere, the past is left out, what comes later counts."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from sonder.core.storage import Folder
from sonder.events.contract import TIMESTAMP_TYPE
from sonder.events.erasure import is_erased, read_erasures, record_erasure, without_erased

EVENTS = pa.table(
    {
        "user_id": pa.array(["ada", "bob", "ada", "ada"], pa.large_string()),
        "timestamp": pa.array([1, 2, 5, 6], pa.int64()).cast(TIMESTAMP_TYPE),
    }
)


def left(events: pa.Table) -> list[tuple[str, int]]:
    return list(zip(events["user_id"].to_pylist(), events["timestamp"].cast(pa.int64()).to_pylist(), strict=True))


def test_a_tombstone_holds_no_name_and_the_newest_request_counts(tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path / "erasures"))
    assert read_erasures(folder) == {}
    record_erasure(folder, "ada lovelace", at_us=3)
    record_erasure(folder, "ada lovelace", at_us=5)
    assert list(read_erasures(folder).values()) == [5]
    (file,) = (tmp_path / "erasures").glob("*.json")
    assert "ada" not in file.name
    assert b"ada" not in file.read_bytes()


def test_the_past_of_an_erased_user_is_left_out_and_the_future_counts(tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path))
    record_erasure(folder, "ada", at_us=5)
    erased = read_erasures(folder)
    assert left(without_erased(EVENTS, erased, is_ordinal=False)) == [("bob", 2), ("ada", 6)]
    assert left(without_erased(EVENTS, erased, is_ordinal=True)) == [("bob", 2)]
    assert left(without_erased(EVENTS, {}, is_ordinal=False)) == left(EVENTS)
    assert without_erased(EVENTS.slice(0, 0), erased, is_ordinal=False).num_rows == 0
    assert is_erased(EVENTS["user_id"], erased).tolist() == [True, False, True, True]
