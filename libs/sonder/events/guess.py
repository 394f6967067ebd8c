"""`sonder init`: look at a log, guess its `events:` section, show a few mapped rows, write a commented sonder.yaml.

Public logs are known by their files and columns; any other log is guessed column by column (events.guess_columns).
Every guess carries its reason, which is written beside it (events.guess_yaml).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sonder.core.errors import ConfigurationError
from sonder.core.input_config import EventColumns, EventsConfig
from sonder.events.column_names import NAMES, plain
from sonder.events.contract import Col
from sonder.events.guess_columns import assign_columns
from sonder.events.guess_yaml import Guess, render_config
from sonder.events.public_logs import event_files, recognise_columns, retail_edition
from sonder.events.reading import map_batch, resolve
from sonder.events.sampling import Sample, take_sample
from sonder.events.spread import spread_sample
from sonder.events.text_lines import first_lines

__all__ = ["Guess", "guess_config", "mapped_rows", "render_config"]

NUM_SHOWN = 5


def guess_config(path: str) -> Guess:
    """Look at a log and guess its configuration; ConfigurationError if a user, an item or a time is not found."""
    config, why = _recognised(path)
    if config is None:
        config, why = _by_columns(path)
    return _explained(config, why)


def mapped_rows(guess: Guess) -> list[dict[str, Any]]:
    """The first five events of the sample, fields without a value left out."""
    rows = guess.events.slice(0, NUM_SHOWN).drop_columns([Col.LOG_ORDER]).to_pylist()
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def _recognised(path: str) -> tuple[EventsConfig | None, dict[str, str]]:
    """Public logs and sequence files, by the names and the first lines of their files."""
    files = event_files(EventsConfig(path=path))
    names = [file.source.rpartition("/")[2].lower() for file in files]
    if any(name.endswith((".inter", "ratings.dat")) for name in names):
        return EventsConfig(path=path, format="movielens"), {"format": "the files are named like MovieLens'"}
    if not names[0].endswith((".txt", ".dat", ".csv")):
        return None, {}
    lines = first_lines(files[0].source, 200)
    if "cdnow" in names[0] or (lines and b"number_of_cds" in lines[0]):
        return EventsConfig(path=path, format="cdnow"), {"format": "it looks like CDNOW"}
    if names[0].endswith(".txt") and _are_sequences(lines):
        why = "lines of `user item item …` with no delimiter but spaces and no header"
        found = EventsConfig(path=path, format="sequences", action="interact")
        return found, {"format": why, "action": "the file names no action; say here what a line's items are"}
    return None, {}


def _are_sequences(lines: list[bytes]) -> bool:
    rows = [line.split() for line in lines if line.strip()]
    if len(rows) < 2 or any(mark in b"".join(lines) for mark in (b",", b";", b"\t", b"|")):
        return False
    lengths = {len(row) for row in rows}
    return len(lengths) > 1 and len({row[0] for row in rows}) == len(rows)


def _by_columns(path: str) -> tuple[EventsConfig, dict[str, str]]:
    config = EventsConfig(path=path)
    sample = take_sample(config)
    if sample.kind == "csv" and _is_headless(sample):
        config = EventsConfig(path=path, columns=EventColumns(user_id="column_1"))
        sample = take_sample(config)
    if retail_edition(sample.columns):
        return EventsConfig(path=path, format="online_retail"), {"format": "its columns are those of UCI Online Retail"}
    chosen, why = assign_columns(sample.table, sample.columns)
    missing = [field for field in (Col.USER_ID, Col.ITEM_ID, Col.TIMESTAMP) if field not in chosen]
    if missing:
        raise ConfigurationError(
            f"No column of {path} looks like {' or '.join(missing)}; it has {', '.join(sample.columns)}",
            expected="a column for each of user_id, item_id and timestamp",
            do="Write sonder.yaml by hand and set events.columns.",
        )
    action = None
    if Col.ACTION not in chosen:
        action, why["action"] = _constant_action(chosen)
    settled = {"path": path, "format": sample.kind, "columns": chosen, "action": action}
    if sample.kind == "csv":
        settled["delimiter"] = sample.delimiter
        why["delimiter"] = "it cuts the lines into the same number of cells"
    why["format"] = f"{len(sample.files)} file{'s' if len(sample.files) > 1 else ''}, by name and content"
    return EventsConfig.model_validate(settled), why


def _is_headless(sample: Sample) -> bool:
    """Whether the names of the columns look like a row: a number or a time among them."""
    names = pa.array(sample.columns, pa.large_string())
    numbers = pc.match_substring_regex(names, r"^-?[0-9]+(\.[0-9]+)?$|^[0-9]{4}-[0-9]{2}-[0-9]{2}")
    return bool(pc.any(numbers).as_py())


def _constant_action(chosen: Mapping[str, str]) -> tuple[str, str]:
    value = plain(chosen.get(Col.VALUE, ""))
    request = plain(chosen.get(Col.REQUEST_ID, ""))
    if value in ("rating", "overall", "stars", "score"):
        return "rate", "no column of actions, and the value is a rating"
    if value in NAMES[Col.VALUE][1:5] or any(word in request for word in ("invoice", "order", "basket", "cart")):
        return "buy", "no column of actions, and the log speaks of prices or orders"
    return "interact", "no column of actions; say here what every row means"


def _explained(config: EventsConfig, why: dict[str, str]) -> Guess:
    resolved = resolve(config)
    sample = take_sample(resolved)
    raw = spread_sample(resolved, sample)
    batch = map_batch(raw, resolved, "sample", 0)
    times = pc.min_max(batch.events.column(Col.TIMESTAMP).cast(pa.int64()))
    counts = batch.events.column(Col.ACTION).value_counts().to_pylist()
    why = {**why, "form": _form_reason(resolved)}
    is_timed = resolved.timestamp != "ordinal" and batch.events.num_rows > 0
    return Guess(
        config=config,
        resolved=resolved,
        why=why,
        actions={entry["values"]: entry["counts"] for entry in sorted(counts, key=lambda entry: -entry["counts"])},
        first_us=times["min"].as_py() if is_timed else None,
        last_us=times["max"].as_py() if is_timed else None,
        hint=recognise_columns(config, sample.columns),
        events=batch.events,
        num_aside=batch.quarantined.num_rows,
    )


def _form_reason(resolved: EventsConfig) -> str:
    reasons = {"iso": "ISO 8601 or native times", "ordinal": "an order without a clock"}
    return reasons.get(resolved.timestamp, "decided from the sample")
