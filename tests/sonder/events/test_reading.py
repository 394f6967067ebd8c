"""Reading: the same log in any format, compression, place and cut gives the same events in the same order."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sonder.core.errors import ConfigurationError, DataError
from sonder.core.input_config import EventsConfig
from sonder.events import reading, text_lines
from sonder.events.mapping import Batch
from sonder.events.reading import FILE_SHIFT, plan_splits, resolve

ReadLog = Callable[..., Batch]
FIELDS = ("user", "item", "action", "at", "value")
SECTION: dict[str, Any] = {
    "columns": {"user_id": "user", "item_id": "item", "action": "action", "timestamp": "at", "value": "value"},
    "timestamp": "iso",
    "delimiter": ",",
}
Rows = list[dict[str, str]]


def log_of(num: int, start: int = 0) -> Rows:
    return [
        {"user": f"u{n % 7}", "item": f"i{n}", "action": "buy", "at": f"2020-01-01T00:{n % 60:02d}:00", "value": f"{n}"}
        for n in range(start, start + num)
    ]


def as_csv(rows: Rows) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([FIELDS, *([row[name] for name in FIELDS] for row in rows)])
    return text.getvalue().encode()


def as_jsonl(rows: Rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def as_table(rows: Rows) -> pa.Table:
    return pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in FIELDS]))


def as_parquet(rows: Rows) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(as_table(rows), sink, row_group_size=4)
    return bytes(sink.getvalue())


def as_arrow_file(rows: Rows) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, as_table([]).schema) as writer:
        writer.write_table(as_table(rows), max_chunksize=4)
    return bytes(sink.getvalue())


def as_arrow_stream(rows: Rows) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, as_table([]).schema) as writer:
        writer.write_table(as_table(rows), max_chunksize=4)
    return bytes(sink.getvalue())


def compressed(content: bytes, codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(content)
    return bytes(sink.getvalue())


FORMS: dict[str, Callable[[Rows], bytes]] = {
    "log.csv": as_csv,
    "log.tsv": lambda rows: as_csv(rows).replace(b",", b"\t"),
    "log.jsonl": as_jsonl,
    "log.parquet": as_parquet,
    "log.arrow": as_arrow_file,
    "log.feather": as_arrow_stream,
    "no-ending-parquet": as_parquet,
    "no-ending-json": as_jsonl,
    "no-ending-csv": as_csv,
    "log.csv.gz": lambda rows: compressed(as_csv(rows), "gzip"),
    "log.csv.zst": lambda rows: compressed(as_csv(rows), "zstd"),
    "log.csv.bz2": lambda rows: compressed(as_csv(rows), "bz2"),
    "log.ndjson.gz": lambda rows: compressed(as_jsonl(rows), "gzip"),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_format_gives_the_same_events(tmp_path: Path, read_log: ReadLog, name: str) -> None:
    rows = log_of(19)
    (tmp_path / name).write_bytes(FORMS[name](rows))
    found = read_log(path=str(tmp_path / name), columns=SECTION["columns"])
    assert found.quarantined.num_rows == 0
    assert found.events["item_id"].to_pylist() == [row["item"] for row in rows]
    assert found.events["log_order"].to_pylist() == list(range(19))
    assert found.events["value"].to_pylist() == [float(n) for n in range(19)]
    assert [at.minute for at in found.events["timestamp"].to_pylist()] == list(range(19))


text = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=6)
odd = st.sampled_from(["", "NULL", " a ", 'say "hi"', "a,b", "[1]", "{}", "2020-01-01", "1e3", "é" * 129, "\ufeff"])
odd_rows = st.lists(st.fixed_dictionaries(dict.fromkeys(FIELDS, text | odd)), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(odd_rows)
def test_whatever_stands_in_the_cells_all_formats_agree_on_events_and_reasons(
    tmp_path: Path, read_log: ReadLog, rows: Rows
) -> None:
    rows = [*log_of(1), *rows]
    answers = []
    for name, write in (
        ("a.csv", as_csv),
        ("a.jsonl", as_jsonl),
        ("a.parquet", as_parquet),
        ("a.arrow", as_arrow_file),
    ):
        (tmp_path / name).write_bytes(write(rows))
        found = read_log(path=str(tmp_path / name), **SECTION)
        aside = found.quarantined.select(["log_order", "reason"]).to_pylist()
        if name == "a.csv":  # a NUL byte breaks a line of CSV and a cell of the others
            aside = [{**row, "reason": row["reason"].replace("unparsable", "unknown_type")} for row in aside]
        answers.append((found.events, aside))
    events, aside = answers[0]
    assert all(other.equals(events) and reasons == aside for other, reasons in answers[1:])
    assert events.num_rows + len(aside) == len(rows)


@pytest.mark.parametrize("place", ["folder", "glob", "glob of one character", "list", "file URI", "memory URI"])
def test_a_log_of_several_files_is_one_log_in_the_order_of_their_names(
    tmp_path: Path, read_log: ReadLog, place: str
) -> None:
    root = tmp_path / "_parent" / ".hidden" / "logs"  # above the path given, names mean nothing
    root.mkdir(parents=True)
    for number in (2, 0, 1):
        (root / f"day-{number}.csv").write_bytes(as_csv(log_of(3, start=3 * number)))
    for noise in (".day-3.csv", "_SUCCESS", "_temporary.csv"):
        (root / noise).write_bytes(b"noise")
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/logs/{file.name}": file.read_bytes() for file in root.iterdir()})
    path = {
        "folder": str(root),
        "glob": f"{root}/day-*.csv",
        "glob of one character": f"{root}/day-?.csv",
        "list": [str(root / f"day-{number}.csv") for number in (0, 1, 2, 1)],
        "file URI": f"file://{root}",
        "memory URI": "memory://logs",
    }[place]
    found = read_log(path=path, **SECTION).events
    memory.rm("/logs", recursive=True)
    assert found["item_id"].to_pylist() == [f"i{n}" for n in range(9)]
    assert found["log_order"].to_pylist() == [(n // 3 << FILE_SHIFT) + n % 3 for n in range(9)]


def test_folders_named_key_equals_value_are_columns(tmp_path: Path, read_log: ReadLog) -> None:
    for action in ("buy", "view%2Fall", "__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / f"kind={action}").mkdir()
        content = as_parquet(log_of(2))
        (tmp_path / f"kind={action}" / "part.parquet").write_bytes(content)
    columns = {**SECTION["columns"], "action": "kind"}
    found = read_log(path=str(tmp_path), columns=columns, action="none")
    assert found.events["action"].to_pylist() == ["none"] * 2 + ["buy"] * 2 + ["view/all"] * 2


def test_files_that_name_their_columns_in_another_order_are_read_by_name(tmp_path: Path, read_log: ReadLog) -> None:
    (tmp_path / "a.csv").write_text("user,item,at\nu1,i1,2020-01-01\n")
    (tmp_path / "b.csv").write_text("at,extra,item,user\n2020-01-02,x,i2,u2\n")
    columns = {"user_id": "user", "item_id": "item", "timestamp": "at"}
    found = read_log(path=str(tmp_path), columns=columns, action="buy").events
    assert found.select(["user_id", "item_id"]).to_pylist() == [
        {"user_id": "u1", "item_id": "i1"},
        {"user_id": "u2", "item_id": "i2"},
    ]


@pytest.mark.parametrize(("name", "write"), [("a.parquet", as_parquet), ("a.arrow", as_arrow_file)])
def test_a_file_cut_into_splits_gives_the_same_log(
    tmp_path: Path, read_log: ReadLog, monkeypatch: pytest.MonkeyPatch, name: str, write: Callable[[Rows], bytes]
) -> None:
    rows = log_of(30)
    rows[9]["item"] = rows[22]["item"] = ""
    (tmp_path / name).write_bytes(write(rows))
    whole = read_log(path=str(tmp_path / name), **SECTION)
    monkeypatch.setattr(reading, "ROWS_PER_SPLIT", 8)
    splits = plan_splits(resolve(EventsConfig(path=str(tmp_path / name), **SECTION)))
    assert [(split.first_row, split.num_rows) for split in splits] == [(0, 8), (8, 8), (16, 8), (24, 6)]
    cut = read_log(path=str(tmp_path / name), **SECTION)
    assert cut.events.equals(whole.events)
    assert cut.quarantined.equals(whole.quarantined)
    assert whole.quarantined["log_order"].to_pylist() == [9, 22]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.csv.gz"])
def test_a_text_file_read_in_small_blocks_gives_the_same_log(
    tmp_path: Path, read_log: ReadLog, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rows = log_of(40)
    rows[9]["item"] = ""
    content = as_jsonl(rows) if "json" in name else as_csv(rows)
    content = content.replace(b"\n", b"\r\n").removesuffix(b"\r\n")
    (tmp_path / name).write_bytes(compressed(content, "gzip") if name.endswith("gz") else content)
    whole = read_log(path=str(tmp_path / name), **SECTION)
    monkeypatch.setattr(text_lines.read_blocks, "__defaults__", (101,))
    small = read_log(path=str(tmp_path / name), **SECTION)
    assert small.events.equals(whole.events)
    assert small.quarantined.equals(whole.quarantined)
    assert (whole.events.num_rows, whole.quarantined["log_order"].to_pylist()) == (39, [9])


def test_a_folder_of_several_formats_needs_to_be_told_which(tmp_path: Path, read_log: ReadLog) -> None:
    (tmp_path / "a.csv").write_bytes(as_csv(log_of(2)))
    (tmp_path / "b.parquet").write_bytes(as_parquet(log_of(3)))
    with pytest.raises(ConfigurationError, match="1 csv, 1 parquet"):
        read_log(path=str(tmp_path), **SECTION)
    assert read_log(path=str(tmp_path), format="parquet", **SECTION).events.num_rows == 3


@pytest.mark.parametrize(
    ("ending", "write"), [("csv", as_csv), ("jsonl", as_jsonl), ("parquet", as_parquet), ("arrow", as_arrow_file)]
)
def test_an_empty_file_beside_others_is_no_obstacle(
    tmp_path: Path, read_log: ReadLog, ending: str, write: Callable[[Rows], bytes]
) -> None:
    for name, content in (
        ("a", b"" if ending in ("csv", "jsonl") else write([])),
        ("b", write(log_of(3))),
        ("c", write([])),
    ):
        (tmp_path / f"{name}.{ending}").write_bytes(content)
    found = read_log(path=str(tmp_path), **SECTION)
    assert found.events["log_order"].to_pylist() == [(1 << FILE_SHIFT) + n for n in range(3)]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.parquet", b"PAR1 but not really", "is not a Parquet file"),
        ("a.arrow", b"ARROW1 but not really", "is not an Arrow file"),
        ("a.csv.gz", b"\x1f\x8b broken", "cannot be read to its end"),
        ("a.csv", "user,item\n".encode("utf-16"), "UTF-16.*iconv"),
        ("a.json", b'[{"user": "u1"}]', "JSON array.*one object a line"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_one_clear_sentence(
    tmp_path: Path, read_log: ReadLog, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((DataError, ConfigurationError), match=says):
        read_log(path=str(tmp_path / name), **SECTION)


def test_a_truncated_file_fails_instead_of_losing_rows(tmp_path: Path, read_log: ReadLog) -> None:
    content = compressed(as_csv(log_of(5_000)), "gzip")
    (tmp_path / "a.csv.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="cannot be read to its end"):
        read_log(path=str(tmp_path / "a.csv.gz"), **SECTION)


@pytest.mark.parametrize("group", [0, 8])  # where a look at the log meets it, and where only the reading does
def test_damaged_pages_of_a_parquet_file_are_one_sentence_that_names_it(
    tmp_path: Path, read_log: ReadLog, group: int
) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(as_table(log_of(12_000)), file, row_group_size=1_000, compression="snappy")
    pages = pq.ParquetFile(file).metadata.row_group(group).column(FIELDS.index("item"))
    damaged = slice(pages.data_page_offset + 40, pages.dictionary_page_offset + pages.total_compressed_size)
    content = bytearray(file.read_bytes())
    content[damaged] = bytes(255 for _ in content[damaged])
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet cannot be read to its end: .*Expected: a whole Parquet file"):
        read_log(path=str(file), **SECTION)


@pytest.mark.parametrize("path", ["nowhere.csv", "nowhere/*.csv", "nonsense://x/y"])
def test_a_path_that_leads_nowhere_says_what_a_path_may_be(tmp_path: Path, read_log: ReadLog, path: str) -> None:
    with pytest.raises(ConfigurationError, match=r"Expected: a (file|path)"):
        read_log(path=path if "://" in path else str(tmp_path / path), **SECTION)
