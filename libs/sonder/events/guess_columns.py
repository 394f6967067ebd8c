"""Which column of a log holds which field of the contract, by the columns' names and by what is in them.

A field goes to the column with the best name among those whose content could be it: times must read as times, values
as numbers, actions as a few words, an event id must never repeat. A column without a telling name is a time if it reads
as one with a clock, an action if it is full of well-known actions; user and item are then the first columns of ids that
are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from sonder.events.column_names import TELLING_ACTIONS, name_score, plain
from sonder.events.contract import Col
from sonder.events.mapping import column_named
from sonder.events.timestamp_forms import detect
from sonder.events.timestamps import is_native
from sonder.events.values import number_of, one_array, text_of

MAX_ACTIONS = 50
_ORDER = (
    Col.TIMESTAMP, Col.ACTION, Col.USER_ID, Col.ITEM_ID, Col.EVENT_ID, Col.VALUE, Col.REQUEST_ID, Col.SURFACE
)  # fmt: skip


@dataclass(frozen=True)
class _Column:
    """What is known of one column of the sample."""

    name: str
    place: int
    array: pa.Array
    texts: pa.LargeStringArray  # without the nulls
    num_distinct: int
    is_nested: bool

    @property
    def repeats(self) -> bool:
        return self.num_distinct < len(self.texts)


def assign_columns(table: pa.Table, names: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Column and reason by field, for the fields that were found."""
    columns = [_describe(name, place, table) for place, name in enumerate(names)]
    return _assign([column for column in columns if not column.is_nested])


def _describe(name: str, place: int, table: pa.Table) -> _Column:
    array = one_array(column_named(table, name))
    texts = pc.drop_null(text_of(array).values)
    return _Column(name, place, array, texts, len(texts.unique()), pa.types.is_nested(array.type))


def _assign(columns: list[_Column]) -> tuple[dict[str, str], dict[str, str]]:
    chosen: dict[str, str] = {}
    why: dict[str, str] = {}
    for field in _ORDER:
        free = [column for column in columns if column.name not in chosen.values()]
        fitting = [column for column in free if name_score(field, column.name) > 0 and _could_be(field, column)]
        if fitting:
            best = max(fitting, key=lambda column: (name_score(field, column.name), -column.place))
            chosen[field], why[field] = best.name, f"by its name; {_content(field, best)}"
        elif by_content := next((column for column in free if _must_be(field, column)), None):
            chosen[field], why[field] = by_content.name, f"by its content; {_content(field, by_content)}"
    for field in (Col.USER_ID, Col.ITEM_ID):
        if field not in chosen:
            free = [column for column in columns if column.name not in chosen.values() and _could_be(field, column)]
            ids = [column for column in free if column.num_distinct > min(MAX_ACTIONS, 0.1 * len(column.texts))]
            if ids:
                chosen[field] = ids[0].name
                why[field] = f"the first column of ids that is left, a guess to check; {_content(field, ids[0])}"
    return chosen, why


def _could_be(field: str, column: _Column) -> bool:
    num = len(column.texts)
    if num == 0:
        return False
    match field:
        case Col.TIMESTAMP:
            return detect(column.array) is not None
        case Col.ACTION:
            return column.num_distinct <= MAX_ACTIONS and (column.num_distinct < num or num == 1)
        case Col.USER_ID | Col.ITEM_ID:
            return not is_native(column.array.type) and not _has_fractions(column.array)
        case Col.EVENT_ID:
            return not column.repeats and num == len(column.array)
        case Col.VALUE:
            return bool(pc.mean(pc.is_valid(number_of(column.texts).values)).as_py() > 0.99)
        case Col.SURFACE:
            return column.num_distinct <= 200
    return True


def _must_be(field: str, column: _Column) -> bool:
    """Content that speaks for itself, whatever the column is called."""
    if len(column.texts) == 0:
        return False
    if field == Col.TIMESTAMP:
        return detect(column.array) not in (None, "ordinal")
    if field == Col.ACTION and column.num_distinct <= MAX_ACTIONS:
        found = {plain(text) for text in column.texts.unique().to_pylist()}
        return len(found & set(TELLING_ACTIONS)) >= max(1, len(found) // 2)
    return False


def _has_fractions(array: pa.Array) -> bool:
    return bool(pc.any(pc.match_substring_regex(text_of(array).values, r"^-?[0-9]*\.[0-9]*[1-9][0-9]*$")).as_py())


def _content(field: str, column: _Column) -> str:
    if field == Col.TIMESTAMP:
        return f"such as {column.texts[0].as_py()}"
    if field == Col.ACTION:
        return f"{column.num_distinct} different in the sample"
    if field == Col.VALUE:
        return "numbers"
    if field == Col.EVENT_ID:
        return "never repeated in the sample"
    return f"{column.num_distinct:,} different in {len(column.texts):,} rows"
