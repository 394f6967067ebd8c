"""Who saw an arm's answer where another arm's could have differed: the rows that every analysis starts from.

Many rows of a user are one exposure: the first counts. A user who was seen in two arms is an error of assignment; such
users are counted and left out. Written by gateways (services.gateway) or by anybody else who assigns, in this schema.
"""

from __future__ import annotations

import polars as pl
import pyarrow as pa

from sonder.events.contract import TIMESTAMP_TYPE

EXPOSURE_SCHEMA = pa.schema(
    [
        pa.field("experiment", pa.string(), nullable=False),
        pa.field("version", pa.int32(), nullable=False),  # of the experiment's record
        pa.field("arm", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("exposed_at", TIMESTAMP_TYPE, nullable=False),
        pa.field("release", pa.string(), nullable=False),  # that answered
        pa.field("surface", pa.string(), nullable=False),  # which answer: profile, recommendations, ...
    ]
)
SHOWN_SCHEMA = pa.schema(
    [
        pa.field("experiment", pa.string(), nullable=False),
        pa.field("version", pa.int32(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("request_id", pa.string(), nullable=False),  # that a click's event names
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("team", pa.string(), nullable=False),  # a: of the control, b: of the other arm, none: earns no credit
        pa.field("position", pa.int32(), nullable=False),  # from 1
        pa.field("shown_at", TIMESTAMP_TYPE, nullable=False),
    ]
)  # a slot of an interleaved list


def first_exposures(exposures: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """One row a user (user_id, arm, exposed_at), by user_id, and how many users were seen in several arms."""
    by_user = exposures.group_by("user_id").agg(
        pl.col("arm").sort_by("exposed_at").first(),
        pl.col("exposed_at").min(),
        pl.col("arm").n_unique().alias("num_arms"),
    )
    kept = by_user.filter(pl.col("num_arms") == 1).drop("num_arms").sort("user_id")
    return kept, by_user.height - kept.height
