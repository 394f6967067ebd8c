"""The item table and the vocabulary of a snapshot, from the counts of its buckets and the catalogue.

Items are numbered by falling number of events, then id; those of the catalogue without events come last, by id.
Actions and surfaces are numbered by falling number of events, then name.
Source of the weights: `events.actions`. Limits: one row per item in memory, on one machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from sonder.events.actions import action_weight
from sonder.events.contract import Col
from sonder.history.assemble import ITEM_STATS_SCHEMA, LABEL_STATS_SCHEMA
from sonder.history.vocabulary import ITEM_SCHEMA, Vocabulary


def build_vocabulary(
    item_stats: Sequence[pa.Table],
    label_stats: Sequence[pa.Table],
    catalogue: pa.Table,
    action_weights: Mapping[str, float],
) -> Vocabulary:
    """Join the statistics of all buckets with the catalogue (item_id unique; its other columns may be missing)."""
    actions = _labels(label_stats, Col.ACTION)
    return Vocabulary(
        items=_item_table(pa.concat_tables([ITEM_STATS_SCHEMA.empty_table(), *item_stats]), catalogue),
        actions=actions,
        action_weights=tuple(action_weight(action, action_weights) for action in actions),
        surfaces=_labels(label_stats, Col.SURFACE),
    )


def continued(known: Vocabulary, newer: Vocabulary) -> Vocabulary:
    """The items of a newer snapshot under the numbers that models were made with; what is new follows in its order.

    Titles, categories and counts are the newer ones; an item that the newer snapshot has no more keeps what it had, and
    no events. Actions and surfaces stay those that the models know: another one is unknown to them (-1).
    """
    before = pl.DataFrame(pl.from_arrow(known.items)).with_columns(place=pl.int_range(pl.len()))
    after = pl.DataFrame(pl.from_arrow(newer.items)).with_columns(is_new=pl.lit(True))
    kept = before.select(Col.ITEM_ID, "place", Col.CATEGORY, Col.TITLE, Col.VECTOR)
    joined = after.join(kept, on=Col.ITEM_ID, how="full", coalesce=True, suffix="_before")
    is_gone = pl.col("is_new").is_null()
    rows = joined.sort("place", Col.ITEM_INDEX, nulls_last=True).with_columns(
        pl.col(Col.NUM_EVENTS).fill_null(0),
        *(
            pl.when(is_gone).then(pl.col(f"{name}_before")).otherwise(pl.col(name)).alias(name)
            for name in (Col.CATEGORY, Col.TITLE, Col.VECTOR)
        ),
        pl.int_range(pl.len(), dtype=pl.Int32).alias(Col.ITEM_INDEX),
    )
    columns = [rows[field.name].to_arrow().cast(field.type) for field in ITEM_SCHEMA]
    return replace(known, items=pa.Table.from_arrays(columns, schema=ITEM_SCHEMA))


def count_labels(label_stats: Sequence[pa.Table]) -> dict[str, dict[str, int]]:
    """Events by action and by surface, summed over all buckets."""
    counts = _label_counts(label_stats)
    return {
        field: dict(counts.filter(pl.col("field") == field).select("name", Col.NUM_EVENTS).iter_rows())
        for field in (Col.ACTION, Col.SURFACE)
    }


def label_table(labels: Mapping[str, Mapping[str, int]]) -> pa.Table:
    """What `count_labels` returned, as statistics again -> LABEL_STATS_SCHEMA."""
    rows = [
        {"field": field, "name": name, Col.NUM_EVENTS: num}
        for field, nums in labels.items()
        for name, num in nums.items()
    ]
    return pa.Table.from_pylist(rows, schema=LABEL_STATS_SCHEMA)


def item_stats_table(items: pa.Table) -> pa.Table:
    """The statistics that an item table was made of -> ITEM_STATS_SCHEMA; items without events have none."""
    seen = items.filter(pc.greater(items.column(Col.NUM_EVENTS), 0))
    return seen.select(ITEM_STATS_SCHEMA.names).cast(ITEM_STATS_SCHEMA)


def _item_table(item_stats: pa.Table, catalogue: pa.Table) -> pa.Table:
    seen = pl.DataFrame(pl.from_arrow(item_stats)).group_by(Col.ITEM_ID).agg(
        pl.col(Col.NUM_EVENTS).sum(), pl.col(Col.FIRST_SEEN).min(), pl.col(Col.LAST_SEEN).max()
    )  # fmt: skip
    wanted = [name for name in (Col.ITEM_ID, Col.CATEGORY, Col.TITLE, Col.VECTOR) if name in catalogue.column_names]
    known = pl.DataFrame(pl.from_arrow(catalogue.select(wanted))).with_columns(pl.col(Col.ITEM_ID).cast(pl.String))
    joined = (
        seen.join(known, on=Col.ITEM_ID, how="full", coalesce=True)
        .with_columns(pl.col(Col.NUM_EVENTS).fill_null(0))
        .sort(Col.NUM_EVENTS, Col.ITEM_ID, descending=[True, False])
        .with_row_index(Col.ITEM_INDEX)
    )
    columns = [
        joined[field.name].to_arrow().cast(field.type)
        if field.name in joined.columns
        else pa.nulls(joined.height, field.type)
        for field in ITEM_SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=ITEM_SCHEMA)


def _label_counts(label_stats: Sequence[pa.Table]) -> pl.DataFrame:
    """field, name, num_events: by field, then falling number of events, then name."""
    counts = pl.DataFrame(pl.from_arrow(pa.concat_tables([LABEL_STATS_SCHEMA.empty_table(), *label_stats])))
    return (
        counts.group_by("field", "name")
        .agg(pl.col(Col.NUM_EVENTS).sum())
        .sort("field", Col.NUM_EVENTS, "name", descending=[False, True, False])
    )


def _labels(label_stats: Sequence[pa.Table], field: str) -> tuple[str, ...]:
    return tuple(_label_counts(label_stats).filter(pl.col("field") == field)["name"].to_list())
