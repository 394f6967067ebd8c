"""The item table and the vocabulary of a snapshot, from the counts of its buckets and the catalogue.

Items are numbered by falling number of events, then id; those of the catalogue without events come last, by id.
Actions and surfaces are numbered by falling number of events, then name.
Source of the weights: `events.actions`. Limits: one row per item in memory, on one machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl
import pyarrow as pa

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


def _labels(label_stats: Sequence[pa.Table], field: str) -> tuple[str, ...]:
    counts = pl.DataFrame(pl.from_arrow(pa.concat_tables([LABEL_STATS_SCHEMA.empty_table(), *label_stats])))
    ordered = (
        counts.filter(pl.col("field") == field)
        .group_by("name")
        .agg(pl.col(Col.NUM_EVENTS).sum())
        .sort(Col.NUM_EVENTS, "name", descending=[True, False])
    )
    return tuple(ordered["name"].to_list())
