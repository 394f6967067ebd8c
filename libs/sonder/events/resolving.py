"""What a configuration leaves open, decided once by a look at the log and never again batch by batch.

Decided are the format, the delimiter, the form of the timestamps, what a public log says about its columns, and
fields of the contract whose column bears the field's own name. A configured column that the log does not have is an
error here.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sonder.core.errors import ConfigurationError
from sonder.core.input_config import EventsConfig
from sonder.events.contract import Col
from sonder.events.mapping import column_named
from sonder.events.public_logs import completed, recognise_columns, with_derived_columns
from sonder.events.sampling import Sample, take_sample
from sonder.events.timestamp_forms import detect
from sonder.events.values import nulls_of, number_of, text_of

TABLE_FORMATS = ("iceberg", "delta")
REQUIRED = (Col.USER_ID, Col.ITEM_ID, Col.TIMESTAMP)


def resolve(config: EventsConfig) -> EventsConfig:
    """The same configuration with nothing left open. Iceberg and Delta tables: see `resolve_table`."""
    if config.format in TABLE_FORMATS:
        return config
    sample = take_sample(config)
    settled = config.model_dump()
    if config.format == "auto":
        settled["format"] = sample.kind
    settled["delimiter"] = sample.delimiter
    return _resolved(
        EventsConfig.model_validate(settled), sample.table, is_whole=sample.is_whole or sample.kind != "jsonl"
    )


def resolve_table(config: EventsConfig, sample: pa.Table) -> EventsConfig:
    """The same for a table that somebody else reads (Iceberg, Delta): `sample` is some rows of it with all columns."""
    return _resolved(config, sample, is_whole=True)


def recognise(config: EventsConfig, sample: Sample | None = None) -> str | None:
    """A hint if the log looks like a public one that has a format of its own; None otherwise."""
    if config.format in TABLE_FORMATS:
        return None
    return recognise_columns(config, (sample or take_sample(config)).columns)


def _resolved(config: EventsConfig, table: pa.Table, *, is_whole: bool) -> EventsConfig:
    names = [name for name in table.column_names if name]
    settled = _with_completion(config, completed(config, names))
    table = with_derived_columns(table, config.format)
    columns = settled["columns"]
    for field in columns:
        if columns[field] is None and _is_adopted(field, table, settled):
            columns[field] = field
    _check_columns(settled, table, names, is_whole=is_whole)
    _check_actions(settled)
    if settled["timestamp"] == "auto":
        settled["timestamp"] = _timestamp_form(table, columns[Col.TIMESTAMP])
    return EventsConfig.model_validate(settled)


def _with_completion(config: EventsConfig, known: dict[str, Any]) -> dict[str, Any]:
    """What the format says, under what the configuration says."""
    settled = config.model_dump()
    given = settled["columns"]
    settled["columns"] = {field: given[field] or known.get("columns", {}).get(field) for field in given}
    if config.action is None and config.columns.action is None:
        settled["action"] = known.get("action")
    if not config.action_rules:
        settled["action_rules"] = known.get("action_rules", [])
    settled["action_weights"] = {**known.get("action_weights", {}), **config.action_weights}
    if config.timestamp == "auto":
        settled["timestamp"] = known.get("timestamp", "auto")
    return settled


def _is_adopted(field: str, table: pa.Table, settled: dict[str, Any]) -> bool:
    """Whether a column that bears the name of a field is that field: an unasked `value` has to be numbers."""
    if field not in table.column_names or (field == Col.ACTION and settled["action"] is not None):
        return False
    if field != Col.VALUE:
        return True
    numbers = number_of(table.column(field))
    return bool(numbers.is_bad.mean() < 0.01) if len(numbers.is_bad) else True


def _check_columns(settled: dict[str, Any], table: pa.Table, names: Sequence[str], *, is_whole: bool) -> None:
    found = f"the columns {', '.join(names)}" if names else "no columns"
    for field in REQUIRED:
        if settled["columns"][field] is None:
            raise ConfigurationError(
                f"The log has {found}, and none of them is named {field!r}",
                expected=f"the column that holds the {field}",
                do=f"Set events.columns.{field}; `sonder init LOG` guesses it.",
            )
    wanted = {f"events.columns.{field}": name for field, name in settled["columns"].items() if name}
    wanted |= {f"events.action_rules[{i}].column": rule["column"] for i, rule in enumerate(settled["action_rules"])}
    required = {f"events.columns.{field}" for field in REQUIRED}
    for place, name in wanted.items():
        if column_named(table, name) is not None:
            continue
        if not is_whole and place not in required:
            continue  # a rare field of JSON lines may well stand behind the sample
        closest = difflib.get_close_matches(name, names, 1, 0.4) or [n for n in names if n.lower() == name.lower()]
        raise ConfigurationError(
            f"{place} is {name!r}, the log has {found}",
            expected="a column of the log",
            do=f"Did you mean {closest[0]!r}?" if closest else "Correct the name.",
        )


def _check_actions(settled: dict[str, Any]) -> None:
    if settled["columns"]["action"] is None and settled["action"] is None:
        raise ConfigurationError(
            "The log has neither an action column nor a constant action",
            expected="events.columns.action or events.action",
            do="If every row means the same, say what: `action: buy`.",
        )
    for rule in settled["action_rules"]:
        try:
            pc.match_substring_regex(pa.array(["a"]), rule["matches"])
        except pa.ArrowInvalid as error:
            raise ConfigurationError(
                f"events.action_rules: {rule['matches']!r} is no regular expression: {error}", expected="RE2 syntax"
            ) from error


def _timestamp_form(table: pa.Table, name: str) -> str:
    column = column_named(table, name)
    assert column is not None, "its presence was checked"
    form = detect(column)
    if form is not None:
        return form
    texts = text_of(column)
    examples = texts.values.drop_null()[:3].to_pylist()
    if not examples and bool(nulls_of(texts.values).all()):
        return "iso"  # an empty log: there is nothing to be wrong about
    raise ConfigurationError(
        f"The timestamps in {name!r} ({', '.join(map(repr, examples))}) have no form that is known",
        expected="ISO 8601, epoch seconds to nanoseconds, ordinals, or a strptime pattern",
        do="Set events.timestamp, such as '%d.%m.%Y %H:%M'; or set events.columns.timestamp to another column.",
    )
