"""What the user table says, as part of a profile: joined as it is, rendered as JSON objects, carried over unchanged.

No event changes these facts, so a profile computed anew takes them from the stored one. A user without a row in the
table, or a release without a table, has nulls; a user with a row has objects, perhaps empty.
Point in time: a `signup_at` that is not before as_of is null. Attributes and consent have no time: they are those of
the table that the release was made with.
"""

from __future__ import annotations

import polars as pl
import pyarrow as pa

from sonder.events.contract import ATTRIBUTES_TYPE, CONSENT_TYPE, TIMESTAMP_TYPE

FACTS = ("signup_at", "attributes", "consent")
FACT_FIELDS = (
    pa.field("signup_at", TIMESTAMP_TYPE),
    pa.field("attributes", ATTRIBUTES_TYPE),
    pa.field("consent", CONSENT_TYPE),
)


def with_all_facts(profiles: pa.Table) -> pa.Table:
    """Profiles of any release; one that was made before there were user tables has nulls."""
    for field in FACT_FIELDS:
        if field.name not in profiles.column_names:
            profiles = profiles.append_column(field, pa.nulls(profiles.num_rows, field.type))
    return profiles


def stored_facts(body: bytes) -> bytes:
    """The end of a user's stored JSON record, from its facts on: what a profile computed anew carries over.

    A quote within a text is escaped, so these bytes are a key; nothing before the facts has a key of that name.
    """
    return body[body.index(b',"signup_at":') :]


def with_objects(bodies: pl.Series, attributes: pl.Series, consent: pl.Series) -> pl.Series:
    """JSON objects [U] with `attributes` and `consent` at their end: `{name: value}`, or null."""
    frame = pl.DataFrame(
        {"body": bodies, "attributes": _objects(attributes, "value"), "consent": _objects(consent, "granted")}
    )
    parts = [
        pl.col("body").str.head(-1),
        pl.lit(',"attributes":'),
        pl.col("attributes").fill_null("null"),
        pl.lit(',"consent":'),
        pl.col("consent").fill_null("null"),
        pl.lit("}"),
    ]
    return frame.select(pl.concat_str(parts)).to_series()


def _objects(pairs: pl.Series, value: str) -> pl.Series:
    """Lists of structs {name, `value`} -> JSON objects as text; null stays null."""
    frame = pairs.alias("pairs").to_frame().with_row_index("row")
    flat = frame.filter(pl.col("pairs").list.len() > 0).explode("pairs").unnest("pairs").rename({value: "value"})
    pair = pl.concat_str(_encoded("name"), pl.lit(":"), _encoded("value"))
    content = flat.select("row", pair=pair).group_by("row", maintain_order=True).agg(pl.col("pair").str.join(","))
    joined = frame.join(content, on="row", how="left", maintain_order="left")
    objects = pl.concat_str(pl.lit("{"), pl.col("pair").fill_null(""), pl.lit("}"))
    return joined.select(pl.when(pl.col("pairs").is_not_null()).then(objects)).to_series()


def _encoded(column: str) -> pl.Expr:
    """Each value as JSON."""
    return pl.struct(pl.col(column).alias("v")).struct.json_encode().str.slice(len('{"v":')).str.head(-1)
