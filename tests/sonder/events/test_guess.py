"""`sonder init`: the guessed mapping is right for logs with odd names, and what it writes reads back as the same."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sonder.core.config import load
from sonder.core.errors import ConfigurationError
from sonder.core.input_config import EventsConfig
from sonder.events.contract import EVENT_SCHEMA
from sonder.events.guess import guess_config, mapped_rows
from sonder.events.guess_yaml import Guess, horizon_days, render_config, telling_action
from sonder.events.reading import plan_splits, read_split, resolve

NUM = 600
START = datetime(2024, 3, 1, tzinfo=UTC)
ACTIONS = ("view", "view", "view", "add_to_cart", "purchase")


def rows() -> Iterator[dict[str, Any]]:
    for n in range(NUM):
        yield {
            "user": str(10_000 + n * 7 % 97),
            "item": f"SKU-{n * 13 % 211}",
            "action": ACTIONS[n * 3 % 5],
            "at": START + timedelta(hours=n),
            "price": round(1 + n % 90 / 7, 2),
        }


def as_csv(file: Path, table: list[dict[str, Any]], delimiter: str = ",", *, has_header: bool = True) -> Path:
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened, delimiter=delimiter)
        writer.writerows([list(table[0])] * has_header + [list(row.values()) for row in table])
    return file


def shop(folder: Path) -> Path:
    table = [
        {
            "InvoiceNo": n // 3,
            "StockCode": r["item"],
            "Qty Note": "a;b",
            "InvoiceDate": f"{r['at']:%d.%m.%Y %H:%M}",
            "UnitPrice": r["price"],
            "CustomerID": r["user"],
        }
        for n, r in enumerate(rows())
    ]
    return as_csv(folder / "shop.csv", table, ";")


def nameless(folder: Path) -> Path:
    table = [{"a": f"{r['at']:%m/%d/%Y %I:%M:%S %p}", "b": r["user"], "c": r["action"], "d": r["item"]} for r in rows()]
    return as_csv(folder / "nameless.csv", table)


def headless(folder: Path) -> Path:
    table = [{"u": r["user"], "i": r["item"], "x": r["price"], "t": int(r["at"].timestamp())} for r in rows()]
    return as_csv(folder / "headless.tsv", table, "\t", has_header=False)


def nested(folder: Path) -> Path:
    table = [
        {
            "event": r["action"],
            "event.id": f"e{n}",
            "actor": {"id": int(r["user"]), "plan": "free"} if n else None,
            "product": {"sku": r["item"], "price": r["price"]},
            "server_time": int(r["at"].timestamp() * 1000),
        }
        for n, r in enumerate(rows())
    ]
    (folder / "nested.jsonl").write_text("\n".join(map(json.dumps, table)))
    return folder / "nested.jsonl"


def native(folder: Path) -> Path:
    table = list(rows())
    columns = {
        "Visitor Id": [r["user"] for r in table],
        "tags": [["x"]] * NUM,
        "content_id": [r["item"] for r in table],
        "Dwell Time": [r["price"] for r in table],
        "Date-Time": pa.array([r["at"] for r in table], pa.timestamp("ns", "Europe/Berlin")),
    }
    pq.write_table(pa.table(columns), folder / "native.parquet", row_group_size=150)
    return folder / "native.parquet"


def hostile(folder: Path) -> Path:
    table = [
        {
            "yes": r["user"],
            "#: no": r["item"],
            "{when}": r["at"].isoformat(),
            "- action": "off" if n % 2 else "buy: now",
        }
        for n, r in enumerate(rows())
    ]
    return as_csv(folder / "hostile.csv", table)


# Columns by field, and what the rows of the log say about fields that have none.
LOGS: dict[Any, dict[str, Any]] = {
    shop: {
        "columns": {
            "user_id": "CustomerID",
            "item_id": "StockCode",
            "timestamp": "InvoiceDate",
            "value": "UnitPrice",
            "request_id": "InvoiceNo",
        },
        "action": "buy",
        "timestamp": "%d.%m.%Y %H:%M",
        "delimiter": ";",
    },
    nameless: {
        "columns": {"user_id": "b", "item_id": "d", "action": "c", "timestamp": "a"},
        "action": None,
        "timestamp": "%m/%d/%Y %I:%M:%S %p",
        "delimiter": ",",
    },
    headless: {
        "columns": {"user_id": "column_1", "item_id": "column_2", "timestamp": "column_4"},
        "action": "interact",
        "timestamp": "epoch_s",
        "delimiter": "\t",
    },
    nested: {
        "columns": {
            "user_id": "actor.id",
            "item_id": "product.sku",
            "action": "event",
            "timestamp": "server_time",
            "event_id": "event.id",
            "value": "product.price",
        },
        "action": None,
        "timestamp": "epoch_ms",
        "delimiter": None,
    },
    native: {
        "columns": {
            "user_id": "Visitor Id",
            "item_id": "content_id",
            "timestamp": "Date-Time",
            "value": "Dwell Time",
        },
        "action": "interact",
        "timestamp": "iso",
        "delimiter": None,
    },
    hostile: {
        "columns": {"user_id": "yes", "item_id": "#: no", "action": "- action", "timestamp": "{when}"},
        "action": None,
        "timestamp": "iso",
        "delimiter": ",",
    },
}


def events_of(config: EventsConfig) -> pa.Table:
    settled = resolve(config)
    batches = [batch.events for split in plan_splits(settled) for batch in read_split(split, settled)]
    return pa.concat_tables([EVENT_SCHEMA.empty_table(), *batches])


@pytest.mark.parametrize("write", LOGS)
def test_a_log_with_odd_names_is_mapped_and_the_file_written_maps_the_same(tmp_path: Path, write: Any) -> None:
    log, expected = write(tmp_path), LOGS[write]
    guess = guess_config(str(log))
    assert {field: name for field, name in guess.config.columns.model_dump().items() if name} == expected["columns"]
    assert (guess.config.action, guess.resolved.timestamp) == (expected["action"], expected["timestamp"])
    assert guess.resolved.delimiter == expected["delimiter"]

    (tmp_path / "sonder.yaml").write_text(render_config(guess, "./workspace"), encoding="utf-8")
    config = load(tmp_path / "sonder.yaml")
    events = events_of(config.events)
    assert events.equals(events_of(guess.config))
    skipped = 1 if write is nested else 0  # its first row has no user
    assert events["item_id"].to_pylist() == [r["item"] for r in rows()][skipped:]
    assert events["user_id"].to_pylist() == [r["user"] for r in rows()][skipped:]
    assert events["timestamp"].to_pylist() == [r["at"] for r in rows()][skipped:]
    shown = mapped_rows(guess)
    assert [
        {k: v for k, v in row.items() if v is not None}
        for row in events.drop_columns("log_order").slice(0, 5).to_pylist()
    ] == shown
    assert config.evaluation.test_days == 3  # six windows of 3 days fit into 25
    assert [task.within_days for task in config.scores] == [3, 3]


def test_every_guess_says_why_beside_it(tmp_path: Path) -> None:
    guess = guess_config(str(shop(tmp_path)))
    assert set(guess.why) >= {"user_id", "item_id", "timestamp", "value", "action", "format", "delimiter", "form"}
    written = render_config(guess, "w")
    for field in ("user_id", "item_id", "timestamp", "value"):
        (line,) = [line for line in written.splitlines() if line.startswith(f"    {field}:")]
        assert line.endswith(guess.why[field])


def test_a_log_without_a_column_of_times_names_what_it_has(tmp_path: Path) -> None:
    log = as_csv(tmp_path / "a.csv", [{"user": f"u{n % 9}", "item": f"i{n % 7}", "colour": "red"} for n in range(50)])
    with pytest.raises(ConfigurationError, match="looks like timestamp; it has user, item, colour"):
        guess_config(str(log))


def test_public_logs_are_known_by_their_files(tmp_path: Path) -> None:
    lines = b"".join(b"u%d " % n + b" ".join(b"%d" % i for i in range(n % 5 + 1)) + b"\n" for n in range(30))
    contents = {
        "ml/ratings.dat": b"1::1193::5::978300760\n",
        "CDNOW_master.txt": b" 00001 19970101  1   11.77\n",
        "beauty.txt": lines,
        "retail.csv": b"InvoiceNo,StockCode,Quantity,InvoiceDate,UnitPrice,CustomerID\n1,a,2,2010-12-01 08:26:00,3,4\n",
    }
    found = {}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
        guess = guess_config(str((tmp_path / name).parent if "/" in name else tmp_path / name))
        found[name] = guess.config.format
        assert validated(guess).events.format == guess.config.format
    assert list(found.values()) == ["movielens", "cdnow", "sequences", "online_retail"]


def validated(guess: Guess) -> Any:
    from sonder.core.config import validate

    return validate(yaml.safe_load(render_config(guess, "w")), source="sonder.yaml")


def test_a_log_with_order_only_is_evaluated_by_leaving_one_out_and_has_no_scores(tmp_path: Path) -> None:
    (tmp_path / "seq.txt").write_text("".join(f"u{n} " + " ".join(map(str, range(n % 4 + 2))) + "\n" for n in range(9)))
    config = validated(guess_config(str(tmp_path / "seq.txt")))
    assert config.evaluation.protocol == "leave_one_out"
    assert config.scores == ()


@pytest.mark.parametrize(
    ("span_days", "expected"), [(0.0, None), (5.9, None), (6, 1), (17.9, 1), (18, 3), (42, 7), (373, 60), (9_999, 90)]
)
def test_the_horizon_is_the_largest_of_which_six_fit(span_days: float, expected: int | None) -> None:
    assert horizon_days(span_days) == expected


anything = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(
    anything,
    anything,
    anything,
    st.dictionaries(anything | st.just("churn"), st.integers(1, 99), min_size=1, max_size=3),
)
def test_any_name_survives_the_file(column: str, path: str, reason: str, actions: dict[str, int]) -> None:
    config = EventsConfig.model_validate(
        {
            "path": path,
            "format": "csv",
            "columns": {"user_id": column, "item_id": "i", "timestamp": "t"},
            "timestamp": "iso",
        }
    )
    guess = Guess(
        config=config,
        resolved=config,
        why={"user_id": reason, "format": reason},
        actions=actions,
        first_us=0,
        last_us=100 * 86_400_000_000,
        hint=None,
        events=EVENT_SCHEMA.empty_table(),
        num_aside=0,
    )
    read = validated(guess)
    assert (read.workspace, read.events.path, read.events.columns.user_id) == ("w", path, column)
    assert dict(read.events.action_weights).keys() == actions.keys()
    assert telling_action(guess, read.events.action_weights) in {None, *actions}
    wanted = [task.action for task in read.scores if not task.churn]
    assert set(wanted) <= set(actions)
