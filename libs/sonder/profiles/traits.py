"""What a profile says in numbers: the plain features of a user beside the vector, as lookalikes read them.

Shapes: U users, F traits: activity (log counts and log days), lifecycle (one of each state), interests (how many, and
the root of the weight of each common category), scores (log odds, and whether the user has the score).
A trait of a user depends on its own profile alone; which categories and scores there are is settled once, on a sample.
Limits: categories are those of interests, so a log without a catalogue has none; a score of nobody's has no column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from sonder.segments.lifecycle import STATES

MAX_CATEGORIES = 64
TRAIT_COLUMNS = ["user_id", "num_events", "segments", "interests", "scores"]  # of PROFILE_SCHEMA, all that is read
_SURELY = 1e-4  # scores are kept this far from 0 and 1


@dataclass(frozen=True)
class TraitSpec:
    """Which traits there are, in their order."""

    categories: tuple[str, ...]
    scores: tuple[str, ...]

    @property
    def num_traits(self) -> int:
        return 5 + len(STATES) + len(self.categories) + 2 * len(self.scores)

    def to_dict(self) -> dict[str, list[str]]:
        return {"categories": list(self.categories), "scores": list(self.scores)}

    @classmethod
    def from_dict(cls, content: dict[str, list[str]]) -> TraitSpec:
        return cls(tuple(content["categories"]), tuple(content["scores"]))


def derive_traits(profiles: pa.Table) -> TraitSpec:
    """The MAX_CATEGORIES categories with most weight in these profiles, and their scores by name."""
    frame = _frame(profiles)
    weights = _interests(frame).group_by("category").agg(pl.col("weight").sum())
    common = weights.sort("weight", "category", descending=[True, False]).head(MAX_CATEGORIES)
    scores = _scores(frame).get_column("name").unique().sort()
    return TraitSpec(tuple(common["category"].to_list()), tuple(scores.to_list()))


def compute_traits(profiles: pa.Table, spec: TraitSpec) -> NDArray[np.float32]:
    """Traits of each profile -> float32 [U, F], finite; what a profile does not say is 0."""
    frame = _frame(profiles)
    segments = frame.select("num_events", pl.col("segments").struct.unnest())
    num_interests = frame.get_column("interests").list.len()
    activity = [
        segments["num_events"],
        segments["active_days"],
        segments["tenure_days"],
        segments["recency_days"],
        num_interests,
    ]
    logs_UA = np.column_stack([np.log1p(column.fill_null(0).cast(pl.Float64).to_numpy()) for column in activity])
    states_UL = segments["lifecycle"].to_numpy()[:, None] == np.array(STATES, dtype=object)[None, :]
    weights = _interests(frame).group_by("row", "category").agg(pl.col("weight").sum().sqrt())
    categories_UC = _spread(weights, "category", "weight", spec.categories, len(frame))
    scores = _scores(frame).with_columns(pl.col("value").cast(pl.Float64).clip(_SURELY, 1 - _SURELY))
    odds = scores.with_columns(value=(pl.col("value") / (1 - pl.col("value"))).log(), is_known=pl.lit(1.0))
    odds_UT = _spread(odds, "name", "value", spec.scores, len(frame))
    is_known_UT = _spread(odds, "name", "is_known", spec.scores, len(frame))
    return np.concatenate([logs_UA, states_UL, categories_UC, odds_UT, is_known_UT], axis=1).astype(np.float32)


def _frame(profiles: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(profiles.select(TRAIT_COLUMNS))
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(row=pl.int_range(pl.len()))


def _interests(frame: pl.DataFrame) -> pl.DataFrame:
    """row, category, weight of every interest with a category."""
    exploded = frame.select("row", "interests").explode("interests", empty_as_null=False, keep_nulls=False)
    return exploded.select("row", pl.col("interests").struct.unnest()).select("row", "category", "weight").drop_nulls()


def _scores(frame: pl.DataFrame) -> pl.DataFrame:
    """row, name, value of every score."""
    exploded = frame.select("row", "scores").explode("scores", empty_as_null=False, keep_nulls=False)
    return exploded.select("row", pl.col("scores").struct.unnest()).select("row", "name", "value").drop_nulls()


def _spread(rows: pl.DataFrame, key: str, value: str, names: tuple[str, ...], num_users: int) -> NDArray[np.float64]:
    """Long rows (row, key, value) -> [U, names]; 0 where there is none."""
    wide = np.zeros((num_users, len(names)))
    places = pl.DataFrame({key: list(names), "place": range(len(names))}, schema={key: pl.String, "place": pl.Int64})
    found = rows.join(places, on=key)
    wide[found["row"].to_numpy(), found["place"].to_numpy()] = found[value].to_numpy()
    return wide
