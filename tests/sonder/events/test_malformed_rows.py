"""A thousand malformed rows of twenty kinds in each text format: each is set aside for its reason, no other is hurt."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sonder.events.contract import Col, Reason
from sonder.events.mapping import Batch

ROWS_PER_KIND = 50
FIELDS = ("user", "item", "action", "at", "value")
SECTION = {
    "columns": {"user_id": "user", "item_id": "item", "action": "action", "timestamp": "at", "value": "value"},
    "timestamp": "iso",
    "delimiter": ",",
}
ReadLog = Callable[..., Batch]


def good(number: int) -> dict[str, Any]:
    return {
        "user": f"u{number % 97}",
        "item": f"i{number}",
        "action": "buy",
        "at": f"2020-01-{number % 28 + 1:02d}T10:00:{number % 60:02d}",
        "value": f"{number}.5",
    }


FIELD_KINDS: dict[str, tuple[dict[str, Any], Reason]] = {
    "no item": ({"item": ""}, Reason.MISSING_ID),
    "no action": ({"action": ""}, Reason.MISSING_ID),
    "no user": ({"user": ""}, Reason.ANONYMOUS),
    "no user, spelled out": ({"user": "NULL"}, Reason.ANONYMOUS),
    "no time": ({"at": ""}, Reason.BAD_TIMESTAMP),
    "a word for a time": ({"at": "yesterday"}, Reason.BAD_TIMESTAMP),
    "a day that does not exist": ({"at": "2020-02-30T10:00:00"}, Reason.BAD_TIMESTAMP),
    "before 1990": ({"at": "1970-01-01T00:00:00"}, Reason.BAD_TIMESTAMP),
    "in the future": ({"at": "2999-01-01T00:00:00"}, Reason.BAD_TIMESTAMP),
    "an over-long user": ({"user": "u" * 257}, Reason.OVERLONG_ID),
    "an over-long item": ({"item": "é" * 129}, Reason.OVERLONG_ID),
    "an over-long action": ({"action": "a" * 300}, Reason.OVERLONG_ID),
    "a word for a value": ({"value": "cheap"}, Reason.UNKNOWN_TYPE),
    "an infinite value": ({"value": "inf"}, Reason.UNKNOWN_TYPE),
}


def csv_line(row: dict[str, Any]) -> bytes:
    return ",".join(row[field] for field in FIELDS).encode()


CSV_KINDS: dict[str, tuple[Callable[[dict[str, Any]], bytes], Reason]] = {
    "too few cells": (lambda row: csv_line(row).rsplit(b",", 2)[0], Reason.UNPARSABLE),
    "too many cells": (lambda row: csv_line(row) + b",more", Reason.UNPARSABLE),
    "a quote that never closes": (lambda row: b'"' + csv_line(row), Reason.UNPARSABLE),
    "a NUL byte": (lambda row: csv_line(row).replace(b"buy", b"b\0y"), Reason.UNPARSABLE),
    "bytes that are no UTF-8": (lambda row: csv_line(row).replace(b"u", b"\xff\xfe", 1), Reason.UNKNOWN_TYPE),
    "text that is no row": (lambda row: b"### log rotated ###", Reason.UNPARSABLE),
}

JSON_KINDS: dict[str, tuple[Callable[[dict[str, Any]], bytes], Reason]] = {
    "a cut line": (lambda row: json.dumps(row).encode()[:-9], Reason.UNPARSABLE),
    "a number": (lambda row: b"17", Reason.UNPARSABLE),
    "a list": (lambda row: b'["u1", "i1"]', Reason.UNPARSABLE),
    "bytes that are no UTF-8": (lambda row: json.dumps(row).encode().replace(b"u", b"\xff", 1), Reason.UNPARSABLE),
    "a user that is a list": (lambda row: json.dumps({**row, "user": ["u1"]}).encode(), Reason.UNKNOWN_TYPE),
    "an item that is an object": (lambda row: json.dumps({**row, "item": {"id": 1}}).encode(), Reason.UNKNOWN_TYPE),
}

PARQUET_KINDS: dict[str, tuple[dict[str, Any], Reason]] = {
    "bytes that are no UTF-8": ({"user": b"\xff\xfe"}, Reason.UNKNOWN_TYPE),
    "a NUL byte": ({"item": "a\0b"}, Reason.UNKNOWN_TYPE),
    "a null item": ({"item": None}, Reason.MISSING_ID),
    "a null user": ({"user": None}, Reason.ANONYMOUS),
    "a null time": ({"at": None}, Reason.BAD_TIMESTAMP),
}


def interleaved(
    bad_rows: list[tuple[str, Any]], as_row: Callable[[dict[str, Any]], Any]
) -> list[tuple[str | None, Any]]:
    """Two good rows after each bad one; kinds take turns."""
    rows: list[tuple[str | None, Any]] = []
    for number, bad_row in enumerate(bad_rows):
        rows += [bad_row, (None, as_row(good(2 * number))), (None, as_row(good(2 * number + 1)))]
    return rows


def assert_each_is_aside_for_its_reason(
    found: Batch, rows: list[tuple[str | None, Any]], reasons: dict[str, Reason]
) -> None:
    aside = dict(zip(found.quarantined["log_order"].to_pylist(), found.quarantined["reason"].to_pylist(), strict=True))
    by_kind = Counter((kind, aside.get(number)) for number, (kind, _) in enumerate(rows) if kind is not None)
    assert by_kind == {(kind, reason.value): ROWS_PER_KIND for kind, reason in reasons.items()}
    kept = [number for number, (kind, _) in enumerate(rows) if kind is None]
    events = found.events
    assert events[Col.LOG_ORDER].to_pylist() == kept
    expected = [good(number) for number in range(len(kept))]
    for field, name in ((Col.USER_ID, "user"), (Col.ITEM_ID, "item"), (Col.ACTION, "action")):
        assert events[field].to_pylist() == [row[name] for row in expected]
    assert events[Col.VALUE].to_pylist() == [float(row["value"]) for row in expected]
    assert [at.isoformat()[:19] for at in events[Col.TIMESTAMP].to_pylist()] == [row["at"] for row in expected]


def test_a_thousand_bad_csv_rows(tmp_path: Path, read_log: ReadLog) -> None:
    kinds = {
        **{
            name: (lambda row, c=change: csv_line({**row, **c}), reason)
            for name, (change, reason) in FIELD_KINDS.items()
        },
        **CSV_KINDS,
    }
    assert len(kinds) * ROWS_PER_KIND == 1_000
    bad_rows = [(name, make(good(turn))) for turn in range(ROWS_PER_KIND) for name, (make, _) in kinds.items()]
    rows = interleaved(bad_rows, csv_line)
    path = tmp_path / "log.csv"
    path.write_bytes(b"\n".join([b",".join(f.encode() for f in FIELDS), *(line for _, line in rows)]) + b"\n")
    found = read_log(path=str(path), **SECTION)
    assert_each_is_aside_for_its_reason(found, rows, {name: reason for name, (_, reason) in kinds.items()})
    rotated = [row for row in found.quarantined["row"].to_pylist() if "rotated" in row]
    assert rotated == ['"### log rotated ###"'] * ROWS_PER_KIND


def test_a_thousand_bad_json_lines(tmp_path: Path, read_log: ReadLog) -> None:
    def json_line(row: dict[str, Any]) -> bytes:
        return json.dumps(row, ensure_ascii=False).encode()

    kinds = {
        **{
            name: (lambda row, c=change: json_line({**row, **c}), reason)
            for name, (change, reason) in FIELD_KINDS.items()
        },
        **JSON_KINDS,
    }
    assert len(kinds) * ROWS_PER_KIND == 1_000
    bad_rows = [(name, make(good(turn))) for turn in range(ROWS_PER_KIND) for name, (make, _) in kinds.items()]
    rows = interleaved(bad_rows, json_line)
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(line for _, line in rows))
    found = read_log(path=str(path), **SECTION)
    assert_each_is_aside_for_its_reason(found, rows, {name: reason for name, (_, reason) in kinds.items()})


def test_bad_parquet_rows(tmp_path: Path, read_log: ReadLog) -> None:
    kinds = {**FIELD_KINDS, **PARQUET_KINDS}
    bad_rows = [(name, {**good(turn), **kinds[name][0]}) for turn in range(ROWS_PER_KIND) for name in kinds]
    rows = interleaved(bad_rows, lambda row: row)
    users = pa.array([row["user"] for _, row in rows], pa.binary())
    columns = {field: pa.array([row[field] for _, row in rows], pa.string()) for field in FIELDS[1:]}
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user": users, **columns, "note": ["kept"] * len(rows)}), path, row_group_size=700)
    found = read_log(path=str(path), **SECTION)
    assert_each_is_aside_for_its_reason(found, rows, {name: reason for name, (_, reason) in kinds.items()})
    assert all('"note":"kept"' in row for row in found.quarantined["row"].to_pylist() if len(row) < 2_000)


@pytest.mark.parametrize(("field", "value"), [("user", "u" * 5_000), ("item", "i" * 5_000)], ids=["user", "item"])
def test_what_the_quarantine_keeps_of_a_row_is_bounded(
    tmp_path: Path, read_log: ReadLog, field: str, value: str
) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b",".join(f.encode() for f in FIELDS) + b"\n" + csv_line({**good(1), field: value}) + b"\n")
    (aside,) = read_log(path=str(path), **SECTION).quarantined.to_pylist()
    assert (aside["reason"], len(aside["row"]), len(aside["detail"])) == ("overlong_id", 2_000, 200)
    assert aside["detail"].startswith(f'{{"{field}":')
