"""Which features a model reads, in which order, and how each is said in plain words.

A specification is fixed when the heads are trained and travels with them as JSON; features.py executes it. Actions and
categories are kept by name, so that a later vocabulary with more of them gives the same columns.
Windows are the days of WINDOWS_DAYS that fit into the log before the cutoff it is derived at. Categories are the top
level of the category path, the TOP_CATEGORIES with most events before that cutoff.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sonder.events.contract import Col
from sonder.history.timelines import MICROSECONDS_PER_DAY, Timelines
from sonder.history.vocabulary import Vocabulary

WINDOWS_DAYS = (1, 3, 7, 14, 30, 60, 90, 180, 365)
MAX_ACTIONS = 16
TOP_CATEGORIES = 16
DAY_PARTS = ("night (0 to 6 UTC)", "morning (6 to 12 UTC)", "afternoon (12 to 18 UTC)", "evening (18 to 24 UTC)")
EMBEDDING_DRIVER = "behaviour of similar users (embedding)"


@dataclass(frozen=True)
class FeatureSpec:
    """Everything that decides the columns of a feature matrix. The embedding, if any, is last."""

    windows_days: tuple[int, ...]
    actions: tuple[str, ...]
    categories: tuple[str, ...]
    has_values: bool
    embedding_dim: int

    @cached_property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """(family, description) of each column [F], in the order of features.compute_features.

        Columns of a family say the same thing over different windows (or, for the embedding, nothing on their own):
        drivers are told per family.
        """
        spans = [f"in the last {_days(days)}" for days in self.windows_days] + ["ever"]
        kinds = [f"{action!r} " for action in self.actions]
        windowed = ["number of events", *[f"number of {kind}events" for kind in kinds]]
        windowed += ["number of active days", *(["sum of values"] if self.has_values else [])]
        plain = [
            *[f"days since the last {kind}event" for kind in ("", *kinds)],
            "days since the first event",
            "mean days between active days",
            "spread of the days between active days",
            "most days between active days",
            "days since the last event relative to the usual gap",
            "number of different items ever",
            "events per different item",
            *[f"share of events in the {part}" for part in DAY_PARTS],
            "share of events on weekends",
            *[f"share of events in category {category!r}" for category in self.categories],
        ]
        return (
            *[(family, f"{family} {span}") for family in windowed for span in spans],
            *[(description, description) for description in plain],
            *[(EMBEDDING_DRIVER, f"embedding {d}") for d in range(self.embedding_dim)],
        )

    @property
    def num_features(self) -> int:
        return len(self.columns)

    @property
    def num_plain(self) -> int:
        """Columns before the embedding."""
        return self.num_features - self.embedding_dim

    def without_embedding(self) -> FeatureSpec:
        return replace(self, embedding_dim=0)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> FeatureSpec:
        lists = {name: tuple(content[name]) for name in ("windows_days", "actions", "categories")}
        return cls(**(content | lists))


@dataclass(frozen=True)
class BoundSpec:
    """A specification with its names resolved against a vocabulary; made once, used for every batch."""

    spec: FeatureSpec
    action_columns: NDArray[np.int64]  # [actions of the vocabulary + 1] place in spec.actions, else len(spec.actions)
    item_categories: NDArray[np.int64]  # [I + 1] place in spec.categories, else len(spec.categories)


def bind(spec: FeatureSpec, vocabulary: Vocabulary) -> BoundSpec:
    """Resolve names; the last row of each table is read by the index -1, unknown."""
    places = {name: place for place, name in enumerate(spec.actions)}
    actions = [places.get(name, len(places)) for name in vocabulary.actions]
    found = pc.index_in(top_categories(vocabulary), value_set=pa.array(spec.categories, pa.string()))
    categories = found.fill_null(len(spec.categories)).to_numpy(zero_copy_only=False).astype(np.int64)
    return BoundSpec(
        spec=spec,
        action_columns=np.array([*actions, len(places)], dtype=np.int64),
        item_categories=np.append(categories, len(spec.categories)),
    )


def derive_spec(
    timelines: Timelines, vocabulary: Vocabulary, *, first_us: int, cutoff_us: int, embedding_dim: int
) -> FeatureSpec:
    """Choose the columns from the log before `cutoff_us`; `timelines` may be a sample of its users."""
    history = timelines.before(cutoff_us)
    span_days = (cutoff_us - first_us) / MICROSECONDS_PER_DAY
    action_counts = np.bincount(history.actions[history.actions >= 0], minlength=len(vocabulary.actions))
    common = sorted(np.argsort(-action_counts, kind="stable")[:MAX_ACTIONS].tolist())
    return FeatureSpec(
        windows_days=tuple(days for days in WINDOWS_DAYS if days < span_days),
        actions=tuple(vocabulary.actions[index] for index in common if action_counts[index]),
        categories=_common_categories(history, vocabulary),
        has_values=bool(np.isfinite(history.values).any()),
        embedding_dim=embedding_dim,
    )


def top_categories(vocabulary: Vocabulary) -> pa.Array:
    """First level of each item's category path [I], null without one."""
    paths = vocabulary.items.column(Col.CATEGORY).combine_chunks().cast(pa.string())
    return pc.list_element(pc.split_pattern(paths, "/", max_splits=1), 0)


def _common_categories(history: Timelines, vocabulary: Vocabulary) -> tuple[str, ...]:
    """The top-level categories with most events, most first; of equals the first by name."""
    per_item = np.bincount(history.items[history.items >= 0], minlength=vocabulary.num_items)
    table = pa.table({"category": top_categories(vocabulary), "events": per_item})
    counted = table.group_by("category").aggregate([("events", "sum")])
    counted = counted.filter(pc.and_(pc.is_valid(counted["category"]), pc.greater(counted["events_sum"], 0)))
    ordered = counted.sort_by([("events_sum", "descending"), ("category", "ascending")])
    return tuple(ordered["category"].to_pylist()[:TOP_CATEGORIES])


def _days(days: int) -> str:
    return "day" if days == 1 else f"{days} days"
